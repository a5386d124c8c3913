"""What a daemon must make of a stream of frames: the reference that it is compared with (F46).

It decodes with the msgpack library and applies the rules of docs/reference/protocol.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from libpharaoh.errors import (
    AfterTooFarError,
    BadRequestError,
    KeyTooLongError,
    OutOfRangeError,
    UnknownMethodError,
    UnsupportedProtocolError,
)

FRAME_BYTES_MAX = 65536
DEPTH_MAX = 8
KEY_BYTES_MAX = 4096
MSGID_END = 2**32

PAST = 2**56
"""Ids below were issued in 2025."""
FAR = 2**62
"""Ids from here on are of a year that no daemon accepts as `after`."""


class Map(list[Any]):
    """A map, as pairs: its keys may be anything."""


@dataclass(frozen=True)
class Message:
    """A frame that is not refused."""

    kind: str
    """request, misfit (a request that can only be told so), response, notification."""
    length: int
    msgid: int = 0
    method: bytes = b""
    params: tuple[Any, ...] = ()


def read(stream: bytes) -> tuple[list[Message], str]:
    """The messages at the stream's start, and what ends them.

    "more": nothing, or the beginning of a frame; "refused": a frame that closes the connection; "meaningless": an
    extension of msgpack's own (-1, a timestamp) that it cannot make sense of, which is none of the frame's business.
    """
    caps = dict.fromkeys(("max_array_len", "max_map_len", "max_str_len", "max_bin_len", "max_ext_len"), FRAME_BYTES_MAX)
    unpacker = msgpack.Unpacker(
        raw=True, strict_map_key=False, object_pairs_hook=Map, ext_hook=lambda *ext: ext, max_buffer_size=0, **caps
    )
    unpacker.feed(stream)
    messages: list[Message] = []
    start = 0
    while True:
        try:
            value = unpacker.unpack()
        except msgpack.OutOfData:
            return messages, "more"
        except (ValueError, msgpack.UnpackException) as error:
            meaningless = "imestamp" in str(error) or "nanoseconds" in str(error)
            return messages, "meaningless" if meaningless else "refused"
        message = judged(value, unpacker.tell() - start)
        if message is None:
            return messages, "refused"
        messages.append(message)
        start = unpacker.tell()


def judged(value: Any, length: int) -> Message | None:
    """The frame's message. None: it closes the connection."""
    if type(value) is not list or length > FRAME_BYTES_MAX or depth_of(value) > DEPTH_MAX:
        return None
    match value:
        case [int(kind), *_] if type(kind) is int and kind == 2:
            return Message("notification", length)
        case [int(kind), int(msgid), *rest] if type(kind) is type(msgid) is int and 0 <= msgid < MSGID_END:
            if kind == 1 and len(rest) == 2:
                return Message("response", length, msgid)
            if kind == 0:
                return request(length, msgid, rest)
    return None


def request(length: int, msgid: int, rest: list[Any]) -> Message:
    match rest:
        case [bytes(method), list(params)] if not isinstance(params, Map):
            return Message("request", length, msgid, method, tuple(params))
    return Message("misfit", length, msgid)


def depth_of(value: Any) -> int:
    """Arrays and maps within each other that hold something."""
    if not isinstance(value, list) or not value:
        return 0
    parts = [part for pair in value for part in pair] if isinstance(value, Map) else value
    return 1 + max(depth_of(part) for part in parts)


# What a daemon of one coordinator answers: "ok", or the code of an error.

Outcome = str | int
OK: Final = "ok"
BAD = BadRequestError.code


def outcome(message: Message) -> Outcome | None:
    """None: no answer."""
    if message.kind == "notification":
        return None
    if message.kind == "misfit":
        return BAD
    rule = RULES.get(message.method)
    return UnknownMethodError.code if rule is None else rule(*message.params)


def is_uint(value: Any) -> bool:
    return type(value) is int and value >= 0


def nothing(*params: Any) -> Outcome:
    return BAD if params else OK


def next_ids(*params: Any) -> Outcome:
    match params:
        case [number] if is_uint(number):
            return OK if 1 <= number <= 8192 else OutOfRangeError.code
    return BAD


def timestamp(*params: Any) -> Outcome:
    key, after = (*params, None, None)[:2]
    if len(params) > 2 or not isinstance(key, bytes | None) or not (after is None or is_uint(after)):
        return BAD
    if key is not None and len(key) > KEY_BYTES_MAX:
        return KeyTooLongError.code
    return AfterTooFarError.code if after is not None and after >= FAR else OK


def id_of_key(*params: Any) -> Outcome:
    return timestamp(*params) if params and params[0] is not None else BAD


def is_token(value: Any) -> bool:
    match value:
        case None:
            return True
        case [session, sequence, *client] if not isinstance(value, Map) and is_uint(session) and is_uint(sequence):
            named = not client or (
                len(client) == 1 and isinstance(client[0], bytes) and len(client[0]) <= KEY_BYTES_MAX
            )
            return named and session > 0 and sequence < 2**63
    return False


def has_token(message: Message) -> bool:
    """Its outcome depends on what the counter remembers: another test's."""
    return message.method in DENSE and len(message.params) == 3 and type(message.params[2]) is list


def assign_offset(*params: Any) -> Outcome:
    key, count, token = (*params, None, None, None)[:3]
    fits = 1 <= len(params) <= 3 and isinstance(key, bytes) and (count is None or is_uint(count)) and is_token(token)
    if not fits:
        return BAD
    if len(key) > KEY_BYTES_MAX:
        return KeyTooLongError.code
    return OK if count is None or 1 <= count < 2**31 else OutOfRangeError.code


def route(*params: Any) -> Outcome:
    match params:
        case [bytes(key)]:
            return OK if len(key) <= KEY_BYTES_MAX else KeyTooLongError.code
    return BAD


def hello(*params: Any) -> Outcome:
    match params:
        case [bytes(), protocol] if is_uint(protocol):
            return OK if protocol == 1 else UnsupportedProtocolError.code
    return BAD


RULES: dict[bytes, Callable[..., Outcome]] = {
    b"ping": nothing,
    b"next_id": nothing,
    b"stats": nothing,
    b"cluster": nothing,
    b"next_ids": next_ids,
    b"get_timestamp": timestamp,
    b"begin_transaction": id_of_key,
    b"create_session": id_of_key,
    b"next_event_id": id_of_key,
    b"assign_offset": assign_offset,
    b"route": route,
    b"hello": hello,
}
DENSE = (b"assign_offset",)
