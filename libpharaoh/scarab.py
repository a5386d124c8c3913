"""Scarab ids taken apart and put together: no daemon is needed for any of this.

A Scarab id is an unsigned 64-bit integer, `milliseconds since the epoch | coordinator | sequence`, so ids sort by time.
Nothing here masks: a value that does not fit raises InvalidArgumentError.

>>> from libpharaoh import parse
>>> scarab = parse(408559031853465647)
>>> scarab.milliseconds, scarab.coordinator, scarab.sequence
(48704031926, 826, 47)
>>> scarab.datetime.isoformat()
'2026-07-18T16:53:51.926000+00:00'
>>> scarab.to_base32()
'0BAVY8SDPEG1F'
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

from libpharaoh.errors import InvalidArgumentError

ID_MAX = 2**64 - 1
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_DIGITS = {letter: value for value, letter in enumerate(_ALPHABET)}
_DIGITS |= {letter.lower(): value for letter, value in _DIGITS.items()}
_DIGITS |= dict.fromkeys("oO", 0) | dict.fromkeys("iIlL", 1)
_BASE32_LENGTH = 13
_MILLISECOND = timedelta(milliseconds=1)
_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNIX_MS_END = (datetime(9999, 12, 31, tzinfo=UTC) - _UNIX_EPOCH) // _MILLISECOND


def whole_number(value: object, what: str, low: int, high: int) -> int:
    """`value` if it is an int (and not a bool) from `low` to `high`; else InvalidArgumentError that names `what`."""
    if type(value) is not int or not low <= value <= high:
        raise InvalidArgumentError(f"{what} must be a whole number from {low} to {high}, not {value!r}")
    return value


@dataclass(frozen=True, slots=True)
class Layout:
    """How the 64 bits are split, and the Unix time of millisecond 0. `hello` tells a daemon's layout.

    >>> Layout.from_text("41-9-14").sequence_count
    16384
    """

    ms_bits: int = 41
    coordinator_bits: int = 10
    sequence_bits: int = 13
    epoch_ms: int = 1_735_689_600_000
    """Unix time in milliseconds; the default is 2025-01-01T00:00:00Z."""

    def __post_init__(self) -> None:
        whole_number(self.ms_bits, "ms_bits", 38, 44)
        whole_number(self.coordinator_bits, "coordinator_bits", 0, 10)
        whole_number(self.sequence_bits, "sequence_bits", 8, 16)
        if self.ms_bits + self.coordinator_bits + self.sequence_bits != 64:
            raise InvalidArgumentError(f"the bits of layout {self} do not add up to 64")
        whole_number(self.epoch_ms, "epoch_ms", 0, _UNIX_MS_END - 2**self.ms_bits)

    @classmethod
    def from_text(cls, text: str, epoch_ms: int = 1_735_689_600_000) -> Self:
        """The layout written as `"41-10-13"`. Raises InvalidArgumentError when it is not of that form.

        >>> Layout.from_text("41-10-13") == Layout()
        True
        """
        parts = text.split("-")
        if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) <= 2 for part in parts):
            raise InvalidArgumentError(f"a layout is written like 41-10-13, not {text!r}")
        return cls(int(parts[0]), int(parts[1]), int(parts[2]), epoch_ms)

    @property
    def sequence_count(self) -> int:
        """How many ids one coordinator has per millisecond.

        >>> Layout().sequence_count
        8192
        """
        return 1 << self.sequence_bits

    @property
    def coordinator_count(self) -> int:
        """How many coordinators the layout has room for.

        >>> Layout().coordinator_count
        1024
        """
        return 1 << self.coordinator_bits

    def __str__(self) -> str:
        return f"{self.ms_bits}-{self.coordinator_bits}-{self.sequence_bits}"


DEFAULT_LAYOUT = Layout()


@dataclass(frozen=True, slots=True)
class Scarab:
    """The three parts of an id. Made by `parse`; raises InvalidArgumentError for parts that the layout cannot hold.

    >>> Scarab(milliseconds=5, coordinator=3, sequence=7).to_int() == compose(5, 3, 7)
    True
    """

    milliseconds: int
    """Since the layout's epoch, not since 1970: see `unix_ms`."""
    coordinator: int
    sequence: int
    layout: Layout = DEFAULT_LAYOUT

    def __post_init__(self) -> None:
        whole_number(self.milliseconds, "milliseconds", 0, 2**self.layout.ms_bits - 1)
        whole_number(self.coordinator, "coordinator", 0, self.layout.coordinator_count - 1)
        whole_number(self.sequence, "sequence", 0, self.layout.sequence_count - 1)

    @property
    def unix_ms(self) -> int:
        """Milliseconds since 1970.

        >>> parse(0).unix_ms
        1735689600000
        """
        return self.milliseconds + self.layout.epoch_ms

    @property
    def datetime(self) -> datetime:
        """When the id was issued, an aware datetime in UTC, exact to the millisecond.

        >>> parse(0).datetime
        datetime.datetime(2025, 1, 1, 0, 0, tzinfo=datetime.timezone.utc)
        """
        return _UNIX_EPOCH + self.unix_ms * _MILLISECOND

    def to_int(self) -> int:
        """The id again.

        >>> parse(12345).to_int()
        12345
        """
        high = self.milliseconds << self.layout.coordinator_bits | self.coordinator
        return high << self.layout.sequence_bits | self.sequence

    def to_base32(self) -> str:
        """The id as 13 letters and digits: see the function `to_base32`.

        >>> parse(12345).to_base32()
        '0000000000C1S'
        """
        return to_base32(self.to_int())

    @classmethod
    def from_base32(cls, text: str, layout: Layout = DEFAULT_LAYOUT) -> Scarab:
        """The parts of an id written by `to_base32`.

        >>> Scarab.from_base32("0BAVY8SDPEG1F").coordinator
        826
        """
        return parse(from_base32(text), layout)

    def __int__(self) -> int:
        return self.to_int()


def parse(id: int, layout: Layout = DEFAULT_LAYOUT) -> Scarab:
    """The parts of `id`. Raises InvalidArgumentError unless it is an int from 0 to 2**64 - 1.

    >>> parse(8192 * 1024 * 5 + 8192 * 3 + 7)
    Scarab(milliseconds=5, coordinator=3, sequence=7, layout=Layout(ms_bits=41, coordinator_bits=10, \
sequence_bits=13, epoch_ms=1735689600000))
    """
    whole_number(id, "an id", 0, ID_MAX)
    return Scarab(
        id >> (layout.coordinator_bits + layout.sequence_bits),
        id >> layout.sequence_bits & (layout.coordinator_count - 1),
        id & (layout.sequence_count - 1),
        layout,
    )


def compose(time: int | datetime, coordinator: int = 0, sequence: int = 0, layout: Layout = DEFAULT_LAYOUT) -> int:
    """The id with these parts.

    `time` is either milliseconds since the layout's epoch (as in `Scarab.milliseconds`) or an aware datetime, of which
    fractions of a millisecond are dropped. Raises InvalidArgumentError for what the layout cannot hold. A composed id
    is for queries and tests: only the daemon's ids are unique.

    >>> from datetime import UTC, datetime
    >>> compose(datetime(2025, 1, 1, 0, 0, 1, tzinfo=UTC)) == compose(1000)
    True
    """
    ms = _since_epoch(time, layout) // _MILLISECOND if isinstance(time, datetime) else time
    return Scarab(ms, coordinator, sequence, layout).to_int()


def range_for(start: int | datetime, end: int | datetime, layout: Layout = DEFAULT_LAYOUT) -> tuple[int, int]:
    """The lowest and the highest id of the times `start <= time < end`, for SQL's inclusive BETWEEN.

    Both are milliseconds since the layout's epoch or aware datetimes. Raises InvalidArgumentError when no millisecond
    lies between them or the layout cannot hold one.

    >>> from datetime import UTC, datetime
    >>> range_for(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC))
    (264543141888000000, 265267917619199999)
    """
    first_ms, end_ms = _first_ms_from(start, layout), _first_ms_from(end, layout)
    whole_number(first_ms, "start in milliseconds since the epoch", 0, 2**layout.ms_bits - 1)
    whole_number(end_ms, "end in milliseconds since the epoch", first_ms + 1, 2**layout.ms_bits)
    shift = layout.coordinator_bits + layout.sequence_bits
    return first_ms << shift, (end_ms << shift) - 1


def to_base32(id: int) -> str:
    """13 characters of Crockford's base32, upper case; they sort as the ids do. Safe where 53 bits are the limit.

    >>> to_base32(2**64 - 1)
    'FZZZZZZZZZZZZ'
    """
    whole_number(id, "an id", 0, ID_MAX)
    return "".join(_ALPHABET[id >> shift & 31] for shift in range(60, -1, -5))


def from_base32(text: str) -> int:
    """The id that `to_base32` wrote. Reads lower case, and I, L as 1 and O as 0, as Crockford has it.

    Raises InvalidArgumentError for anything else, also for 13 characters that exceed 64 bits.

    >>> from_base32("0000000000c1s")
    12345
    """
    if not isinstance(text, str) or len(text) != _BASE32_LENGTH or not all(letter in _DIGITS for letter in text):
        raise InvalidArgumentError(f"an id in base32 has 13 characters of {_ALPHABET}, not {text!r}")
    value = 0
    for letter in text:
        value = value << 5 | _DIGITS[letter]
    if value > ID_MAX:
        raise InvalidArgumentError(f"{text!r} is more than 64 bits")
    return value


def shard(id: int, count: int) -> int:
    """Which of `count` shards an id belongs to, evenly: `id % count` is not even, since the sequence is often 0.

    The hash is SplitMix64's finalizer, modulo `count` (1 to 2**32); every client library computes the same.

    >>> [shard(compose(ms), 4) for ms in range(8)]
    [0, 3, 3, 0, 3, 3, 0, 1]
    """
    whole_number(id, "an id", 0, ID_MAX)
    whole_number(count, "count", 1, 2**32)
    mixed = ((id ^ id >> 30) * 0xBF58476D1CE4E5B9) & ID_MAX
    mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & ID_MAX
    return (mixed ^ mixed >> 31) % count


def key_bytes(key: str | bytes) -> bytes:
    """A key as it is routed and sent: str as UTF-8. Raises InvalidArgumentError for other types and lone surrogates.

    >>> key_bytes("Ω")
    b'\\xce\\xa9'
    """
    if isinstance(key, bytes):
        return key
    if not isinstance(key, str):
        raise InvalidArgumentError(f"a key is str or bytes, not {type(key).__name__}")
    try:
        return key.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"a key must be valid Unicode: {error}") from None


def coordinator_for(key: str | bytes, modulus: int) -> int:
    """The coordinator that serves `key` in a cluster of `modulus` coordinators: `crc32(key) % modulus`.

    >>> coordinator_for("orders", 4)
    2
    """
    return zlib.crc32(key_bytes(key)) % whole_number(modulus, "modulus", 1, 1024)


def _since_epoch(time: datetime, layout: Layout) -> timedelta:
    if time.utcoffset() is None:
        raise InvalidArgumentError(f"{time!r} has no time zone; use an aware datetime")
    return time - _UNIX_EPOCH - layout.epoch_ms * _MILLISECOND


def _first_ms_from(time: int | datetime, layout: Layout) -> int:
    """The first whole millisecond that is not before `time`."""
    if isinstance(time, datetime):
        return -(-_since_epoch(time, layout) // _MILLISECOND)
    return time
