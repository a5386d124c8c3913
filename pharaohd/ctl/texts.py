"""Ids, times and keys as people write them on a command line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from libpharaoh import scarab
from libpharaoh.errors import InvalidArgumentError

BASE32_LENGTH = 13
DIGITS_MAX = 100  # beyond any id; int() itself refuses thousands
HEX = "hex:"
UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)


def read_id(text: str) -> int:
    """An id as people write it: 0x… is hexadecimal, 13 letters and digits are base32, other digits are decimal."""
    if re.fullmatch(r"0x[0-9a-fA-F]+", text):
        return int(text, 16)
    if len(text) == BASE32_LENGTH:
        return scarab.from_base32(text)
    if re.fullmatch(r"[0-9]+", text):
        return int(text[:DIGITS_MAX])
    raise InvalidArgumentError(f"{text!r} is neither a decimal, a 0x… nor a base32 id")


def read_time(text: str) -> datetime:
    """`now`, @SECONDS since 1970, or ISO 8601; UTC unless the text names a zone."""
    try:
        if text == "now":
            return datetime.now(UTC)
        if text.startswith("@"):
            return UNIX_EPOCH + round(float(text[1:]) * 1000) * MILLISECOND
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise InvalidArgumentError(f"{text!r} is no time: use 2026-07-18T16:53:51Z, @1784393631 or now") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def text_of_ms(unix_ms: int) -> str:
    """A time as `read_time` reads it."""
    return (UNIX_EPOCH + unix_ms * MILLISECOND).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def is_number(text: str) -> bool:
    """Whether the number of a coordinator is meant, and not a path."""
    return text.isascii() and text.isdigit()


def text_of_numbers(numbers: Iterable[int]) -> str:
    """Coordinators as host.owns has them: 0-3,8."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return ",".join(f"{first}-{last}" if first < last else str(first) for first, last in runs)


def read_key(text: str) -> str | bytes:
    """A key as people write it: hex:… is bytes, anything else is itself, be it UTF-8 or not."""
    if text.startswith(HEX):
        if not re.fullmatch(r"([0-9a-fA-F]{2})*", text[len(HEX) :]):
            raise InvalidArgumentError(f"{text!r} is not hex: and pairs of hexadecimal digits")
        return bytes.fromhex(text[len(HEX) :])
    try:
        text.encode()
    except UnicodeEncodeError:
        return os.fsencode(text)
    return text


def text_of_key(key: str | bytes) -> str:
    """A key as `read_key` reads it: hex:… unless it is text that a terminal can show."""
    raw = scarab.key_bytes(key)
    text = raw.decode(errors="replace")
    plain = text.encode() == raw and text.isprintable() and not text.startswith(HEX)
    return text if plain else HEX + raw.hex()


def json_of_key(label: str, key: str | bytes) -> dict[str, str]:
    """A key, or another text, for JSON: bytes that are no UTF-8 stand in `label`_hex, and readably in `label`."""
    raw = scarab.key_bytes(key)
    text = raw.decode(errors="replace")
    return {label: text} if text.encode() == raw else {label: text, f"{label}_hex": raw.hex()}
