"""A ring over a connection: the only import of the compiled core. The connection's hang-up is the ring's end."""

from __future__ import annotations

import array
import errno
import functools
import mmap
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from libpharaoh._core import ffi, lib
from libpharaoh._socket import Connection
from libpharaoh.errors import ConnectFailedError, PharaohError, ProtocolViolationError

if TYPE_CHECKING:
    from libpharaoh._core import IdBuffer, RingHandle

RING_VERSION = 1
STRICT_SLICE_NS = 20_000_000
"""How long one strict request waits: a killed worker wakes nobody, and a stopped one answers nobody."""
_MADV_WIPEONFORK = 18


def fork_mark() -> mmap.mmap:
    """A page whose first byte is 1 in this process and 0 in every child, also in one made past os.fork's hooks."""
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    page.madvise(_MADV_WIPEONFORK)
    page[0] = 1
    return page


def id_buffer(ids: array.array[int]) -> AbstractContextManager[IdBuffer]:
    """The memory of an array('Q') for `Ring.take` to write to, for as long as the context lasts."""
    buffer: Any = ffi.from_buffer("uint64_t[]", ids, require_writable=True)
    return buffer  # type: ignore[no-any-return]


class Ring:
    """One attached ring. Threads may share it; memory is given back when the last of them has let go of it."""

    def __init__(self, handle: Any, connection: Connection) -> None:
        self._handle = handle
        self.connection = connection
        self.coordinator: int = lib.ph_ring_coordinator(handle)
        self.address = int(ffi.cast("uintptr_t", handle))
        """For `_native.Source`, which pops."""
        self.take: Callable[[IdBuffer, int], int] = functools.partial(lib.ph_ring_take_locked, handle)
        """Writes up to so many increasing ids; returns how many."""

    @classmethod
    def attach(cls, connection: Connection, name: str, max_age_ms: int | None, deadline: float) -> Ring:
        """Asks for a ring. Raises the daemon's refusal, or ConnectFailedError when this process cannot map it."""
        before_ns = time.monotonic_ns()
        result, descriptors = connection.request_descriptors("attach", [name, max_age_ms], 3, deadline)
        after_ns = time.monotonic_ns()
        try:
            return cls(_open(result, descriptors, before_ns, after_ns), connection)
        except PharaohError:
            connection.close()
            raise
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            connection.close()
            raise ProtocolViolationError(f"attach: {type(error).__name__}: {error}") from None
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def wait(self, timeout_ns: int) -> None:
        """Asks for grants and sleeps until there is something to take, the ring is lost, or the time is over."""
        lib.ph_ring_wait_locked(self._handle, timeout_ns)

    def strict(self, after: int, *, keyless: bool = False) -> int:
        """An id issued now, greater than `after`, or 0. Leaves the floor as it is."""
        return lib.ph_ring_strict_locked(self._handle, after, lib.PH_STRICT_KEYLESS if keyless else 0, STRICT_SLICE_NS)

    def raise_floor(self, id: int) -> None:
        """From now on only ids greater than `id`."""
        lib.ph_ring_raise_floor_locked(self._handle, id)

    def moved_to(self) -> int | None:
        """The coordinator that serves requests without a key, if that was the answer to the last strict one."""
        moved = lib.ph_ring_strict_status(self._handle) == lib.PH_RING_MOVED
        return lib.ph_ring_strict_detail(self._handle) if moved else None

    def lost(self) -> bool:
        """Whether nothing will ever come from this ring again: revoked, damaged, inherited, or the worker died."""
        status = lib.ph_ring_status(self._handle)
        ended = (lib.PH_RING_REVOKED, lib.PH_RING_FORKED, lib.PH_RING_DAMAGED)
        return status in ended or self.connection.hung_up()


def _open(result: Any, descriptors: list[int], before_ns: int, after_ns: int) -> Any:
    """Maps what came with an attach reply. Takes the doorbell out of `descriptors`; the others can be closed."""
    if result["version"] != RING_VERSION:
        raise ProtocolViolationError(f"ring version {result['version']}")
    now_ns, age_ns = int(result["now_ns"]), int(result["max_age_ms"]) * 1_000_000
    # Another time namespace has another monotonic clock.
    skew_ns = 0 if before_ns <= now_ns <= after_ns else before_ns - now_ns
    handle = lib.ph_ring_open(descriptors[0], descriptors[1], descriptors[2], skew_ns, age_ns)
    if handle == ffi.NULL:
        if ffi.errno == errno.EPROTO:
            raise ProtocolViolationError("attach: the segments are not a ring of this version")
        raise ConnectFailedError(f"mapping a ring: {os.strerror(ffi.errno)}")
    return ffi.gc(handle, functools.partial(_close, descriptors.pop()))


def _close(doorbell_fd: int, handle: RingHandle) -> None:
    lib.ph_ring_close(handle)
    os.close(doorbell_fd)
