"""The statistics page in named shared memory: csrc/stats.h. The only import of posix_ipc.

The supervisor creates it, and the workers write to it through the mapping that they inherit; `pharaohctl` maps it
read-only. The page's name follows from the runtime directory, whose lock says whether a daemon is alive: a page that
a killed daemon left behind is no daemon.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from types import TracebackType
from typing import Any, Self, TypeVar

import posix_ipc

from libpharaoh.errors import ConnectFailedError, ProtocolViolationError
from pharaohd._core import ffi, lib
from pharaohd.statistics import Statistics

NO_COORDINATOR: int = lib.PH_NO_COORDINATOR
HEADER_BYTES: int = ffi.sizeof("struct ph_stats_header")
SLOT_BYTES: int = ffi.sizeof("struct ph_stats_slot")

Row = TypeVar("Row")


class WorkerState(IntEnum):
    """enum ph_worker_state."""

    DOWN = lib.PH_WORKER_DOWN
    STARTING = lib.PH_WORKER_STARTING
    LIVE = lib.PH_WORKER_LIVE
    STOPPING = lib.PH_WORKER_STOPPING
    FAILED = lib.PH_WORKER_FAILED


@dataclass(frozen=True, slots=True)
class DaemonStats:
    """The page's header. Times are in nanoseconds of CLOCK_REALTIME; `first_live` may be NO_COORDINATOR."""

    modulus: int
    supervisor_pid: int
    started_ns: int
    first_live: int
    settings_serial: int
    reload_failures: int


class WorkerStats(Statistics):
    """One coordinator's slot."""

    __slots__ = ()

    @property
    def state_name(self) -> str:
        """In lower case: "live". A state that this version does not know is shown as its number."""
        return WorkerState(self.state).name.lower() if self.state in set(WorkerState) else str(self.state)


def page_name(runtime_dir: str) -> str:
    digest = hashlib.sha256(os.fsencode(os.path.realpath(runtime_dir))).hexdigest()
    return f"/pharaohd-{digest[:16]}"


class Page:
    """The supervisor's page, mapped writable and shared with its forked workers."""

    def __init__(self, runtime_dir: str, modulus: int, coordinators: Sequence[int], mode: int, gid: int) -> None:
        """Replaces a page that a killed daemon left: the caller holds the runtime directory's lock.

        mode: the socket's; others may read the page where they may use the socket. gid: its group, or -1.
        Raises OSError.
        """
        self._name = page_name(runtime_dir)
        unlink(self._name)
        try:
            memory = posix_ipc.SharedMemory(self._name, posix_ipc.O_CREX, mode=0o600)
        except posix_ipc.Error as error:
            raise OSError(f"{self._name} cannot be created: {error}") from error
        try:
            size = HEADER_BYTES + SLOT_BYTES * len(coordinators)
            os.posix_fallocate(memory.fd, 0, size)  # a full /dev/shm shows here and not as SIGBUS later
            os.fchown(memory.fd, -1, gid)
            os.fchmod(memory.fd, mode & 0o644)
            self._mapping = mmap.mmap(memory.fd, size)
        except OSError:
            unlink(self._name)
            raise
        finally:
            memory.close_fd()
        self.address = int(ffi.cast("uintptr_t", ffi.from_buffer(self._mapping)))
        self.header: Any = ffi.cast("struct ph_stats_header *", self.address)
        self.slots: Any = ffi.cast("struct ph_stats_slot *", self.address + HEADER_BYTES)
        self._fill(modulus, coordinators)

    def _fill(self, modulus: int, coordinators: Sequence[int]) -> None:
        for slot, coordinator in enumerate(coordinators):
            self.slots[slot].coordinator = coordinator
        header = self.header
        header.version = lib.PH_STATS_VERSION
        header.slot_count = len(coordinators)
        header.slot_bytes = SLOT_BYTES
        header.modulus = modulus
        header.supervisor_pid = os.getpid()
        header.started_ns = time.time_ns()
        header.first_live = NO_COORDINATOR
        header.magic = lib.PH_STATS_MAGIC  # last: until then a reader finds no page

    def remove(self) -> None:
        """Takes the name away; mappings stay."""
        unlink(self._name)


def new_slot() -> Any:
    """A slot that forked processes share and that no page shows."""
    return ffi.from_buffer("struct ph_stats_slot *", mmap.mmap(-1, SLOT_BYTES))


def unlink(name: str) -> None:
    try:
        posix_ipc.unlink_shared_memory(name)
    except posix_ipc.ExistentialError:
        return


class Reader:
    """A read-only view of a running daemon's page; disturbs nobody. A context manager."""

    def __init__(self, runtime_dir: str) -> None:
        """Raises ConnectFailedError: no daemon, or this user may not look; ProtocolViolationError: another version."""
        if not daemon_alive(runtime_dir):
            raise ConnectFailedError(f"no daemon runs in {runtime_dir}")
        try:
            memory = posix_ipc.SharedMemory(page_name(runtime_dir), flags=0, read_only=True)
        except (posix_ipc.Error, OSError) as error:
            raise ConnectFailedError(f"the daemon's statistics page cannot be opened: {error}") from error
        try:
            self._mapping = mmap.mmap(memory.fd, 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ConnectFailedError(f"the daemon's statistics page is not ready: {error}") from error
        finally:
            memory.close_fd()
        self._check()

    def _check(self) -> None:
        size = len(self._mapping)
        header = self._struct("struct ph_stats_header", 0) if size >= HEADER_BYTES else None
        if header is None or header.magic == 0:
            raise ConnectFailedError("the daemon's statistics page is not ready")
        if (header.magic, header.version, header.slot_bytes) != (lib.PH_STATS_MAGIC, lib.PH_STATS_VERSION, SLOT_BYTES):
            raise ProtocolViolationError(
                f"the statistics page has version {header.version}; this program reads {lib.PH_STATS_VERSION}",
                hint="use the pharaohctl of the running daemon's version, or restart the daemon",
            )
        if size < HEADER_BYTES + SLOT_BYTES * header.slot_count:
            raise ProtocolViolationError("the statistics page is shorter than its header says")
        self._slot_count: int = header.slot_count

    def _struct(self, name: str, offset: int) -> Any:
        return ffi.cast(f"{name} *", ffi.from_buffer(self._mapping) + offset)

    def daemon(self) -> DaemonStats:
        return _row(DaemonStats, self._struct("struct ph_stats_header", 0))

    def workers(self) -> list[WorkerStats]:
        """In rising order of coordinators."""
        offsets = range(HEADER_BYTES, HEADER_BYTES + SLOT_BYTES * self._slot_count, SLOT_BYTES)
        return [_row(WorkerStats, self._struct("struct ph_stats_slot", offset)) for offset in offsets]

    def close(self) -> None:
        self._mapping.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _row(cls: type[Row], struct: Any) -> Row:
    return cls(**{field.name: getattr(struct, field.name) for field in fields(cls)})  # type: ignore[arg-type]


def daemon_alive(runtime_dir: str) -> bool:
    """Whether a supervisor holds the directory's lock. Raises ConnectFailedError when this user may not look.

    Asking takes a shared lock for a moment; a supervisor that starts just then waits for it.
    """
    try:
        descriptor = os.open(runtime_dir, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ConnectFailedError(f"{runtime_dir}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
