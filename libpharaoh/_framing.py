"""MessagePack-RPC frames as bytes: the only import of msgpack.

A request is `[0, msgid, method, params]`, its reply `[1, msgid, error, result]`, with error either nil or
`[code, name, message, retryable, hint]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgpack

from libpharaoh.errors import PharaohError, ProtocolViolationError, from_wire

REPLY_BYTES_MAX = 4 * 1024 * 1024
"""More than any reply of a daemon with 1024 coordinators; keeps a foreign peer from filling the memory."""
CONTAINER_MAX = 16 * 1024
"""Items in one array or map: twice the runs that a full next_ids can have."""
MSGID_END = 2**32


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
