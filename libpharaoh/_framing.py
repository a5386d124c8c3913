"""MessagePack-RPC frames as bytes: the only import of msgpack.

A request is `[0, msgid, method, params]`, its reply `[1, msgid, error, result]`, with error either nil or
`[code, name, message, retryable, hint]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgpack

from libpharaoh._limits import FRAME_BYTES
from libpharaoh.errors import PharaohError, ProtocolViolationError, from_wire

REPLY_BYTES_MAX = 4 * 1024 * 1024
"""More than any reply of a daemon with 1024 coordinators; keeps a foreign peer from filling the memory."""
CONTAINER_MAX = 16 * 1024
"""Items in one array or map: twice the runs that a full next_ids can have."""
MSGID_END = 2**32
REQUEST_BYTES_MAX = FRAME_BYTES


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply: `result`, or `error` when that is not None."""

    msgid: int
    error: PharaohError | None
    result: Any


def encode_request(msgid: int, method: str, params: list[Any]) -> bytes:
    """The bytes of one request. `msgid` is below 2**32."""
    encoded: bytes = msgpack.packb([0, msgid, method, params])
    return encoded


class ReplyDecoder:
    """Cuts a stream of bytes into replies. After any error it is of no more use, and neither is the connection."""

    def __init__(self) -> None:
        # The lengths are capped too: an array's memory is taken when its header is read.
        self._unpacker = msgpack.Unpacker(
            max_buffer_size=REPLY_BYTES_MAX, max_array_len=CONTAINER_MAX, max_map_len=CONTAINER_MAX, max_ext_len=0
        )

    def feed(self, data: bytes) -> list[Reply]:
        """The replies that `data` completes. Raises ProtocolViolationError when it is no stream of replies."""
        try:
            self._unpacker.feed(data)
            return [_reply(frame) for frame in self._unpacker]
        except (ValueError, RecursionError, TypeError, msgpack.UnpackException) as error:
            raise ProtocolViolationError(f"{type(error).__name__}: {error}"[:200]) from None


@dataclass(frozen=True, slots=True)
class Request:
    """One request. A str that is not UTF-8 has surrogates in the place of the odd bytes."""

    msgid: int
    method: str
    params: list[Any] | None
    """None when they cannot be told: not an array, or values that are no MessagePack of ours."""


class RequestDecoder:
    """Cuts a stream of bytes into requests: the server's side. After any error it is of no more use.

    The frames' ends are found without decoding them, so that what one client sent cannot break the stream in which
    another's requests lie.
    """

    def __init__(self) -> None:
        self._scanner = msgpack.Unpacker(max_buffer_size=2 * REQUEST_BYTES_MAX)
        self._kept = bytearray()
        self._start = 0
        """The place in the stream of what is kept."""

    def feed(self, data: bytes) -> list[Request]:
        """The requests that `data`, 64 KiB at most, completes. Raises ProtocolViolationError."""
        found = []
        try:
            self._scanner.feed(data)
            self._kept += data
            while self._skip():
                length = self._scanner.tell() - self._start
                _check_length(length)
                found.append(_request(bytes(self._kept[:length])))
                del self._kept[:length]
                self._start += length
            _check_length(len(self._kept))
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise ProtocolViolationError(f"{type(error).__name__}: {error}"[:200]) from None
        return found

    def _skip(self) -> bool:
        """Whether there was a whole frame to move past."""
        try:
            self._scanner.skip()
        except msgpack.OutOfData:
            return False
        return True


def _check_length(length: int) -> None:
    if length > REQUEST_BYTES_MAX:
        raise ValueError(f"a frame of more than {REQUEST_BYTES_MAX} bytes")


def _request(frame: bytes) -> Request:
    unpacker = msgpack.Unpacker(unicode_errors="surrogateescape", strict_map_key=False, max_buffer_size=len(frame))
    unpacker.feed(frame)
    if unpacker.read_array_header() != 4 or unpacker.unpack() != 0:
        raise ValueError("not a request")
    msgid, method = unpacker.unpack(), unpacker.unpack()
    if type(msgid) is not int or not isinstance(method, str):
        raise ValueError("not a request")
    try:
        params = unpacker.unpack()
    except (ValueError, RecursionError, TypeError, msgpack.UnpackException):
        params = None
    return Request(msgid, method, params if isinstance(params, list) else None)


def encode_result(msgid: int, result: Any) -> bytes:
    """The bytes of a reply."""
    encoded: bytes = msgpack.packb([1, msgid, None, result])
    return encoded


def encode_error(msgid: int, error: PharaohError) -> bytes:
    """The bytes of a reply that is an error."""
    message = f"{error.message}: {error.detail}" if error.detail else error.message
    wire = [error.code, error.name, message, error.retryable, error.hint or None]
    encoded: bytes = msgpack.packb([1, msgid, wire, None], unicode_errors="replace")
    return encoded


def _reply(frame: object) -> Reply:
    if not isinstance(frame, list) or len(frame) != 4 or frame[0] != 1 or type(frame[1]) is not int:
        raise ValueError(f"not a reply: {str(frame):.100}")
    _, msgid, error, result = frame
    return Reply(msgid, None if error is None else _error(error), result)


def _error(error: object) -> PharaohError:
    match error:
        case [int(code), str(name), str(message), bool(retryable), str() | None as hint]:
            return from_wire(code, name, message, retryable, hint)
    raise ValueError(f"not an error: {str(error):.100}")
