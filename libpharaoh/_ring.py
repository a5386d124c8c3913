"""A ring over a connection. The connection's hang-up is the ring's end."""

from __future__ import annotations

import errno
import os
import time
from typing import Any

from libpharaoh import _native
from libpharaoh._socket import Connection
from libpharaoh.errors import ConnectFailedError, PharaohError, ProtocolViolationError

RING_VERSION = _native.RING_VERSION
STRICT_SLICE_NS = 20_000_000
"""How long one strict request waits: a killed worker wakes nobody, and a stopped one answers nobody."""
_LOST = (_native.RING_REVOKED, _native.RING_FORKED, _native.RING_DAMAGED)


class Ring(_native.Ring):
    """One attached ring. Threads may share it; memory is given back when the last of them has let go of it."""

    connection: Connection

    @classmethod
    def attach(cls, connection: Connection, name: str, max_age_ms: int | None, deadline: float) -> Ring:
        """Asks for a ring. Raises the daemon's refusal, or ConnectFailedError when this process cannot map it."""
        before_ns = time.monotonic_ns()
        result, descriptors = connection.request_descriptors("attach", [name, max_age_ms], 3, deadline)
        after_ns = time.monotonic_ns()
        try:
            ring = cls(descriptors, *_terms(result, before_ns, after_ns))
            ring.connection = connection
            return ring
        except PharaohError:
            connection.close()
            raise
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            connection.close()
            raise ProtocolViolationError(f"attach: {type(error).__name__}: {error}") from None
        except OSError as error:
            connection.close()
            if error.errno == errno.EPROTO:
                raise ProtocolViolationError("attach: the segments are not a ring of this version") from None
            raise ConnectFailedError(f"mapping a ring: {os.strerror(error.errno or 0)}") from None

    def lost(self) -> bool:
        """Whether nothing will ever come from this ring again: revoked, damaged, inherited, or the worker died."""
        return self.status() in _LOST or self.connection.hung_up()


def _terms(result: Any, before_ns: int, after_ns: int) -> tuple[int, int]:
    """What to add to each deadline, and how old an id may be, both in nanoseconds."""
    if result["version"] != RING_VERSION:
        raise ProtocolViolationError(f"ring version {result['version']}")
    now_ns, age_ns = int(result["now_ns"]), int(result["max_age_ms"]) * 1_000_000
    # Another time namespace has another monotonic clock.
    return 0 if before_ns <= now_ns <= after_ns else before_ns - now_ns, age_ns
