"""What csrc/ph_ring.h and ph_ring_layout.h export through cffi (see _build.py)."""

from typing import Any, Protocol, final

@final
class RingHandle:
    """A `struct ph_ring *`."""

@final
class IdBuffer:
    """A `uint64_t[]`."""

    def __add__(self, count: int) -> IdBuffer: ...

class _FFI(Protocol):
    NULL: Any
    errno: int
    def gc(self, handle: RingHandle, destructor: Any) -> RingHandle: ...
    def from_buffer(self, kind: str, buffer: Any, require_writable: bool = ...) -> IdBuffer: ...
    def release(self, buffer: IdBuffer | RingHandle) -> None: ...

class _Lib(Protocol):
    PH_RING_READY: int
    PH_RING_EMPTY: int
    PH_RING_FORKED: int
    PH_RING_REVOKED: int
    PH_RING_DAMAGED: int
    PH_RING_MOVED: int
    PH_RING_REFUSED: int
    PH_RING_TIMED_OUT: int
    PH_RING_OPEN: int
    PH_RING_CLOSED: int
    PH_RING_MAGIC: int
    PH_RING_SLOTS: int
    PH_RING_SEGMENT_BYTES: int
    PH_STRICT_OK: int
    PH_STRICT_MOVED: int
    PH_STRICT_REFUSED: int
    PH_STRICT_KEYLESS: int
    def ph_ring_open(
        self, grants_fd: int, client_fd: int, doorbell_fd: int, skew_ns: int, max_age_ns: int, /
    ) -> RingHandle: ...
    def ph_ring_close(self, ring: RingHandle, /) -> None: ...
    def ph_ring_next(self, ring: RingHandle, /) -> int: ...
    def ph_ring_next_locked(self, ring: RingHandle, /) -> int: ...
    def ph_ring_take(self, ring: RingHandle, out: IdBuffer, count: int, /) -> int: ...
    def ph_ring_take_locked(self, ring: RingHandle, out: IdBuffer, count: int, /) -> int: ...
    def ph_ring_wait_locked(self, ring: RingHandle, timeout_ns: int, /) -> int: ...
    def ph_ring_strict_locked(self, ring: RingHandle, after: int, flags: int, timeout_ns: int, /) -> int: ...
    def ph_ring_raise_floor_locked(self, ring: RingHandle, id: int, /) -> None: ...
    def ph_ring_status(self, ring: RingHandle, /) -> int: ...
    def ph_ring_strict_status(self, ring: RingHandle, /) -> int: ...
    def ph_ring_strict_detail(self, ring: RingHandle, /) -> int: ...
    def ph_ring_coordinator(self, ring: RingHandle, /) -> int: ...

ffi: _FFI
lib: _Lib
