"""Host time at a start and in a repair: gathers the evidence, keeps the page. csrc/evidence.c computes.

Invariants
- A start locks every Obelisk that the manifest names, owned or not, before it reads the first one: what it computes
  from is all there is, and nobody writes meanwhile.
- The page is a file in /dev/shm, named by the id that the state directory's manifest holds, locked by every process
  of the daemon. It is believed only as a regular file of this user, of one name, of this size, version and boot.
  Otherwise it is no evidence, and it is replaced by a new one, which gets its name when it is whole.
- Where it cannot be had it is memory without a name: workers succeed each other exactly, and the successor of a
  killed daemon goes on from the ceilings.
- A page that is locked belongs to a live daemon on a copy of this directory: nothing is issued from two of them.
- A clean stop removes the page, since every record is exact then.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import re
import secrets
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from libpharaoh.errors import AlreadyRunningError, ClockError, SettingsError, StartError
from pharaohd import manifest, obelisk, process
from pharaohd._core import ffi, lib
from pharaohd.settings import Settings

PAGE_BYTES: int = ffi.sizeof("struct ph_host_page")
SHARED_MEMORY_DIR = "/dev/shm"
MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs")
LOCK_PATIENCE_S = 2.0
RECORD_HINT = "`obelisk inspect N` shows whose; remove that file and make it anew: `pharaohctl obelisk bump N --create`"
NS_PER_MS = 1_000_000
NO_PAGE = (errno.ENOENT, errno.ELOOP, errno.EACCES, errno.EISDIR, errno.ENXIO, errno.ENODEV)


@dataclass(frozen=True, slots=True)
class Started:
    """What a host start found: struct ph_started."""

    ahead_ms: int
    """How far host time leads the wall clock."""
    jump_ms: int
    """The wall clock is so far ahead of the evidence of this boot, and is not followed; or 0."""
    floor_ms: int
    """Unix time in milliseconds: no id is issued below it."""
    exact: int
    """So many coordinators go on exactly where they were."""
    wait_ms: int
    """How long the first id has to wait for host time, at least."""


class Clock:
    """The clocks that the daemon goes by: the system's, and what clock.offset_file adds to the wall clock."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError when clock.offset_file cannot be mapped."""
        self._mapping = map_offset(settings.clock.offset_file) if settings.clock.offset_file else None
        self.offset: Any = ffi.cast("int64_t *", self._mapping) if self._mapping is not None else ffi.NULL
        """For the C core, as long as this object lives."""

    def read(self) -> tuple[int, int]:
        """Wall clock and boottime, in nanoseconds."""
        realtime_ns, boottime_ns = ffi.new("int64_t *"), ffi.new("int64_t *")
        lib.ph_clock_read_system(self.offset, realtime_ns, boottime_ns)
        return realtime_ns[0], boottime_ns[0]


def map_offset(path: str) -> Any:
    """clock.offset_file, mapped, as a cffi buffer. Raises SettingsError."""
    try:
        with open(path, "rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise SettingsError(f"clock.offset_file {path}: {error}") from error
    if len(mapping) < 8:
        raise SettingsError(f"clock.offset_file {path} has less than 8 bytes")
    return ffi.from_buffer(mapping)


def boot_id() -> bytes:
    """16 bytes; zeros when the kernel does not tell."""
    target = ffi.new("uint8_t[16]")
    lib.ph_boot_id(target)
    return bytes(target)


def new_start_id() -> int:
    """Names one host start or one repair. Never a count: counts repeat after a restore."""
    return secrets.randbits(64) or 1


def first_record(clock: Clock) -> Any:
    """What the record of a coordinator that has never been says, as a `struct ph_record *`."""
    first = ffi.new("struct ph_record *")
    # Host time 0 of an unknown boot: a file that was never served from proves no time. It must not bring in a jump of
    # the wall clock that nobody has accepted.
    first.sample.realtime_ns, first.sample.boottime_ns = clock.read()
    first.start_id, first.clean = new_start_id(), 1
    return first


# --- the page


def birth_of(descriptor: int) -> tuple[int, int]:
    """Inode and birth time of a file. Raises OSError."""
    inode, birth_ns = ffi.new("uint64_t *"), ffi.new("int64_t *")
    if lib.ph_file_birth(descriptor, inode, birth_ns):
        raise OSError(ffi.errno, os.strerror(ffi.errno))
    return inode[0], birth_ns[0]


def page_path(state_dir: str) -> str | None:
    """Where the page of a state directory lies, or None: there is no tmpfs for it. Raises OSError."""
    id = manifest.directory_id(state_dir)
    on_memory = process.file_system_type(SHARED_MEMORY_DIR) in MEMORY_FILE_SYSTEMS
    return os.path.join(SHARED_MEMORY_DIR, f"pharaohd-{id.hex()}.positions") if id and on_memory else None


class Page:
    """A mapping of struct ph_host_page, and the file's descriptor, which holds its lock; -1: it has no file."""

    def __init__(self, mapping: mmap.mmap, descriptor: int = -1) -> None:
        self._mapping = mapping
        self.descriptor = descriptor
        self.struct: Any = ffi.from_buffer("struct ph_host_page *", mapping)

    @property
    def address(self) -> int:
        return int(ffi.cast("uintptr_t", self.struct))

    def close(self, state_dir: str, *, remove: bool) -> None:
        """Takes the name away if it is not needed any more. Mapping and lock stay until the process ends."""
        if self.descriptor < 0:
            return
        if remove:
            with contextlib.suppress(OSError):
                path = page_path(state_dir)
                if path is not None and os.stat(path).st_ino == os.fstat(self.descriptor).st_ino:
                    os.unlink(path)
        os.close(self.descriptor)
        self.descriptor = -1


@dataclass(frozen=True, slots=True)
class Found:
    """A page that counts as evidence: of this boot and this state directory."""

    page: Page
    own: bool
    """It is the file that a start made, and not a copy of it: it may be written to again."""


def find_page(state_dir: str, *, owner: int, lock: bool) -> Found | None:
    """The page that an earlier start left, if it counts. What is not ours to read is no evidence.

    lock: for a start, which writes to it. Raises AlreadyRunningError when another process holds it, and OSError.
    """
    path = page_path(state_dir)
    if path is None:
        return None
    flags = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO of that name holds nobody up
    try:
        descriptor = os.open(path, (os.O_RDWR if lock else os.O_RDONLY) | flags)
    except OSError as error:
        if error.errno in NO_PAGE:
            return None
        raise  # out of descriptors, say: that is no answer
    found = None
    try:
        found = examined_page(descriptor, manifest.directory_id(state_dir), owner, lock)
    finally:
        if found is None:
            os.close(descriptor)
    return found


def examined_page(descriptor: int, id: bytes, owner: int, lock: bool) -> Found | None:
    """Raises OSError, AlreadyRunningError."""
    status = os.fstat(descriptor)
    regular = stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_size == PAGE_BYTES
    if not regular or status.st_uid != owner:
        return None
    if lock:
        lock_page(descriptor)
    page = Page(mmap.mmap(descriptor, PAGE_BYTES, access=mmap.ACCESS_WRITE if lock else mmap.ACCESS_READ), descriptor)
    head = page.struct
    if (head.magic, head.version) != (lib.PH_HOST_PAGE_MAGIC, lib.PH_HOST_PAGE_VERSION):
        return None
    if not lib.ph_same_boot(head.boot_id, boot_id()) or bytes(head.directory_id) != id:
        return None
    return Found(page, own=(head.inode, head.birth_ns) == birth_of(descriptor))


def lock_page(descriptor: int) -> None:
    """A process of a killed daemon that is just ending holds it for a moment. Raises AlreadyRunningError."""
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise AlreadyRunningError(
                    "another daemon serves from a copy of this state directory, or a worker has outlived its supervisor"
                ) from None
            time.sleep(0.005)


def anonymous_page() -> Page:
    """Memory that this process shares with those that it forks. Its magic is never stored: nobody else sees it."""
    page = Page(mmap.mmap(-1, PAGE_BYTES))
    ffi.memmove(page.struct.boot_id, boot_id(), 16)
    page.struct.version = lib.PH_HOST_PAGE_VERSION
    return page


class PendingPage:
    """A new page without a name, until `publish`: a start that is killed before leaves nothing behind.

    /proc and lsof go on to show it as `#inode (deleted)`.
    """

    def __init__(self, path: str, id: bytes) -> None:
        """Raises OSError."""
        self._path = path
        descriptor = os.open(os.path.dirname(path), os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.posix_fallocate(descriptor, 0, PAGE_BYTES)  # a full tmpfs shows here and not as SIGBUS later
            self.page = Page(mmap.mmap(descriptor, PAGE_BYTES), descriptor)
            head = self.page.struct
            head.version = lib.PH_HOST_PAGE_VERSION
            head.inode, head.birth_ns = birth_of(descriptor)
            ffi.memmove(head.boot_id, boot_id(), 16)
            ffi.memmove(head.directory_id, id, 16)
        except OSError:
            os.close(descriptor)
            raise

    def publish(self) -> None:
        """Once it is filled in. Where it can have no name it serves this start all the same."""
        self.page.struct.magic = lib.PH_HOST_PAGE_MAGIC
        with contextlib.suppress(OSError):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)  # what was not believed, or a copy whose evidence this page holds
            # src_dir_fd goes unused beside an absolute path, but with it Python calls linkat(), which follows links.
            os.link(f"/proc/self/fd/{self.page.descriptor}", self._path, src_dir_fd=self.page.descriptor)


# --- the evidence


@contextlib.contextmanager
def locked_records(settings: Settings, coordinators: Iterable[int]) -> Iterator[dict[int, Any]]:
    """The newest record of each coordinator's file, `struct ph_record`; all files stay locked meanwhile.

    Raises the StartError that a worker would: a file that is missing, damaged, foreign or in use.
    """
    handles = []
    fault = ffi.new("struct ph_fault *")
    try:
        for coordinator in sorted(coordinators):
            handle = ffi.new("struct ph_obelisk *")
            path = os.fsencode(manifest.obelisk_path(settings.host.state_dir, coordinator))
            if lib.ph_obelisk_open(handle, path, lib.PH_OBELISK_OWN, fault):
                raise named(obelisk.fault_error(fault), coordinator)
            handles.append((coordinator, handle))
            expected = ffi.new("struct ph_identity *")
            obelisk.fill_identity(expected, obelisk.identity_for(settings, coordinator))
            if lib.ph_obelisk_check(handle, expected, fault):
                raise named(obelisk.fault_error(fault), coordinator)
        yield {coordinator: handle.newest for coordinator, handle in handles}
    finally:
        for _, handle in handles:
            lib.ph_obelisk_close(handle)


def named(error: StartError, coordinator: int) -> StartError:
    """The error with the coordinator's number where its remedy says N."""
    error.hint = re.sub(r"\bN\b", str(coordinator), error.hint)
    return error


class Known:
    """`struct ph_known`, and what it points to."""

    def __init__(self, settings: Settings, records: dict[int, Any], found: Found | None, clock: Clock) -> None:
        self._records = ffi.new("struct ph_evidence[]", max(len(records), 1))
        self.coordinators = sorted(records)
        for target, coordinator in zip(self._records, self.coordinators, strict=False):
            record = records[coordinator]
            target.coordinator, target.ceiling, target.start_id = coordinator, record.ceiling, record.start_id
            target.sample = record.sample
        known = self.struct = ffi.new("struct ph_known *")
        known.records, known.count = self._records, len(records)
        self._found = found
        known.page = found.page.struct if found is not None else ffi.NULL
        known.page_is_own = found is not None and found.own
        known.realtime_ns, known.boottime_ns = clock.read()
        ffi.memmove(known.boot_id, boot_id(), 16)
        obelisk.fill_layout(known.layout, settings.cluster.layout, settings.cluster.epoch_ms)
        known.jump_ns_max = settings.clock.forward_jump_ms_max * NS_PER_MS
        known.slew_per_mille = settings.clock.slew_per_mille


def start(settings: Settings, clock: Clock) -> tuple[Page, Started]:
    """A host start: the page that the workers go by. The caller holds the state directory's lock.

    Raises StartError: what keeps a worker from its file keeps the host from starting, for its evidence is missing.
    """
    state_dir = settings.host.state_dir
    made = [coordinator for coordinator, state in manifest.read(state_dir).items() if state == "created"]
    with locked_records(settings, made) as records:
        found = find_page(state_dir, owner=os.geteuid(), lock=True)
        known = Known(settings, records, found, clock)
        check_time(settings, known)
        pending = None if found is not None and found.own else new_page(state_dir)
        page = pending.page if pending else found.page if found and found.own else anonymous_page()
        started = ffi.new("struct ph_started *")
        lib.ph_host_start(known.struct, page.struct, new_start_id(), started)
        if pending:
            pending.publish()
        if found is not None and page is not found.page:
            found.page.close(state_dir, remove=False)
    return page, Started(
        ahead_ms=max(0, started.host_ns - known.struct.realtime_ns) // NS_PER_MS,
        jump_ms=started.jump_ns // NS_PER_MS,
        floor_ms=started.floor_ms + settings.cluster.epoch_ms,
        exact=started.exact,
        wait_ms=started.wait_ns // NS_PER_MS,
    )


def check_time(settings: Settings, known: Known) -> None:
    """Before anything is written. Raises ClockError for a time that no id can have."""
    started = ffi.new("struct ph_started *")
    lib.ph_host_start_time(known.struct, started)
    layout, epoch_ms = settings.cluster.layout, settings.cluster.epoch_ms
    end_ms = epoch_ms + (1 << layout.ms_bits)
    if not epoch_ms < known.struct.realtime_ns // NS_PER_MS < end_ms:
        raise ClockError(
            f"the wall clock is not within the {layout.ms_bits} bits of milliseconds from cluster.epoch on"
        )
    if started.host_ns // NS_PER_MS >= end_ms:
        raise ClockError("a record says a time beyond the layout's end, whatever the clock says", hint=RECORD_HINT)


def new_page(state_dir: str) -> PendingPage | None:
    """None: it cannot have a name."""
    with contextlib.suppress(OSError):
        path = page_path(state_dir)
        return PendingPage(path, manifest.directory_id(state_dir)) if path is not None else None
    return None
