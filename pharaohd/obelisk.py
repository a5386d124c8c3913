"""The Obelisk from Python: made, looked at, judged and repaired here; while a worker serves, only C touches it.

The file itself, and what makes it safe, is csrc/obelisk.c. Ceilings are ticks: `milliseconds << sequence_bits`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from libpharaoh.errors import (
    AlreadyRunningError,
    CountersCorruptError,
    CountersMissingError,
    InternalError,
    ObeliskMissingError,
    StartError,
    by_code,
)
from pharaohd._core import ffi, lib
from pharaohd.settings import Layout, Settings

MACHINE_ID = Path("/etc/machine-id")
NO_HOST = bytes(16)
AHEAD_WARNING_MS = 70_000
"""A ceiling so far ahead of the clock is worth a warning: the largest reach of a ceiling, and some."""
RECORD_FILE_ID = slice(16, 24)


@dataclass(frozen=True, slots=True)
class Identity:
    """What an Obelisk says of whose it is. Fixed when the file is made."""

    coordinator: int
    modulus: int
    layout: Layout
    epoch_ms: int
    cluster_id: bytes
    host_id: bytes
    """16 bytes; all zero for a host without a machine-id, which is not compared."""


@dataclass(frozen=True, slots=True)
class Record:
    """One of the two ceiling records."""

    slot: int
    valid: bool
    number: int
    ceiling: int
    ceiling_ms: int
    """The ceiling as Unix time in milliseconds."""
    clean: bool
    host_ns: int
    """Host time when the record was asked for, and the clocks at that moment."""
    realtime_ns: int
    boottime_ns: int
    boot_id: str
    start_id: int
    """The host start, or the repair, that wrote it; 0: a version that knew none."""
    counters_id: int
    """Which journal of dense counters belongs to this file; 0: none."""
    counters_batch: int
    """A batch that the journal must have."""


@dataclass(frozen=True, slots=True)
class CountersReport:
    """What a journal of dense counters holds: docs/internals/counters.md."""

    path: str
    id: int
    batch: int
    """The number of the last one."""
    bytes: int
    counters: int
    sessions: int


@dataclass(frozen=True, slots=True)
class ObeliskReport:
    """What a file holds, whatever its state. `newest` is the record that a start would go by."""

    path: str
    version: int
    identity: Identity | None
    records: tuple[Record, ...]
    newest: Record | None
    problems: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    counters: CountersReport | None = None
    counters_error: StartError | None = None
    """What a start would say of the journal beside the file."""


@cache
def digest(kind: str, text: str) -> bytes:
    return hashlib.sha256(f"pharaoh {kind} {text}".encode()).digest()[:16]


@cache  # so that of a thousand workers none needs the library that digests
def host_id() -> bytes:
    """A digest of the machine-id: a hint that a file was copied, never proof of anything (F28)."""
    with contextlib.suppress(OSError):
        text = MACHINE_ID.read_text().strip()
        if text and text != "uninitialized":
            return digest("host", text)
    return NO_HOST


def identity_for(settings: Settings, coordinator: int) -> Identity:
    """What the settings say that the Obelisk of a coordinator must be."""
    cluster = settings.cluster
    return Identity(
        coordinator, cluster.coordinators, cluster.layout, cluster.epoch_ms, digest("cluster", cluster.name), host_id()
    )


def fill_identity(target: Any, identity: Identity) -> None:
    """Copies an identity into a `struct ph_identity`."""
    target.coordinator = identity.coordinator
    target.modulus = identity.modulus
    fill_layout(target.layout, identity.layout, identity.epoch_ms)
    ffi.memmove(target.cluster_id, identity.cluster_id, 16)
    ffi.memmove(target.host_id, identity.host_id, 16)


def fill_layout(target: Any, layout: Layout, epoch_ms: int) -> None:
    """Copies a layout into a `struct ph_layout`."""
    target.ms_bits = layout.ms_bits
    target.coordinator_bits = layout.coordinator_bits
    target.sequence_bits = layout.sequence_bits
    target.epoch_ms = epoch_ms


def fault_error(fault: Any) -> StartError:
    """The exception of a `struct ph_fault`."""
    detail = ffi.string(fault.detail).decode(errors="replace")
    error_class = by_code.get(fault.code, InternalError)
    return error_class(detail) if issubclass(error_class, StartError) else InternalError(detail)


def create(path: str, identity: Identity, first: Any) -> None:
    """Makes the file, durably and at once: it has its name only when it is whole. Raises StateDirError.

    first: a `struct ph_record *` of which ceiling, sample, start_id and clean count.
    """
    target = ffi.new("struct ph_identity *")
    fault = ffi.new("struct ph_fault *")
    fill_identity(target, identity)
    if lib.ph_obelisk_create(os.fsencode(path), target, first, fault):
        raise fault_error(fault)


def inspect(path: str | Path) -> ObeliskReport:
    """Reads a file without judging its owner. Damage is reported, not raised; raises ObeliskMissingError if absent."""
    try:
        data = Path(path).read_bytes()[: lib.PH_OBELISK_BYTES]
    except FileNotFoundError as error:
        raise ObeliskMissingError(str(path)) from error
    problems = []
    if len(data) < lib.PH_OBELISK_BYTES:
        problems.append(f"truncated: {len(data)} bytes of {lib.PH_OBELISK_BYTES}")
        data = data.ljust(lib.PH_OBELISK_BYTES, b"\0")
    raw = ffi.new("struct ph_identity *")
    file_id, version = ffi.new("uint64_t *"), ffi.new("uint32_t *")
    if not lib.ph_obelisk_decode_identity(data, raw, file_id, version):
        foreign = version[0] not in (0, lib.PH_OBELISK_VERSION)
        what = f"format version {version[0]} is not known" if foreign else "damaged"
        return ObeliskReport(str(path), version[0], None, (), None, (*problems, f"identity page: {what}"))
    identity = read_identity(raw)
    records = tuple(decode_record(data, slot, raw, file_id[0], identity) for slot in (0, 1))
    valid = [record for record in records if record.valid]
    newest = max(valid, key=lambda record: record.number) if valid else None
    if newest is None:
        problems.append("no valid ceiling record")
    # The second slot of a file that has never been served is still empty.
    elif len(valid) == 1 and newest.number > 1:
        problems.append(f"ceiling record {1 - newest.slot} is not valid (the other one stands)")
    return ObeliskReport(str(path), version[0], identity, records, newest, tuple(problems))


def read_identity(raw: Any) -> Identity:
    layout = Layout(raw.layout.ms_bits, raw.layout.coordinator_bits, raw.layout.sequence_bits)
    return Identity(
        raw.coordinator, raw.modulus, layout, raw.layout.epoch_ms, bytes(raw.cluster_id), bytes(raw.host_id)
    )


def decode_record(data: bytes, slot: int, raw_identity: Any, file_id: int, identity: Identity) -> Record:
    record = ffi.new("struct ph_record *")
    lib.ph_obelisk_decode_record(data, slot, raw_identity, file_id, record)
    sample = record.sample
    return Record(
        slot,
        bool(record.valid),
        record.number,
        record.ceiling,
        (record.ceiling >> identity.layout.sequence_bits) + identity.epoch_ms,
        bool(record.clean),
        sample.host_ns,
        sample.realtime_ns,
        sample.boottime_ns,
        bytes(sample.boot_id).hex(),
        record.start_id,
        record.counters_id,
        record.counters_batch,
    )


def counters_beside(path: str | Path) -> Path:
    """The journal of dense counters that goes with an Obelisk; it is made when it is first needed."""
    return Path(path).with_suffix(".counters")


def inspect_counters(path: str | Path, identity: Identity, newest: Record | None) -> CountersReport | None:
    """Reads the journal beside an Obelisk whole. None: there is none, and `newest` knows of none.

    Raises CountersMissingError, CountersCorruptError, ObeliskTooNewError.
    """
    journal = counters_beside(path)
    known_id, known_batch = (newest.counters_id, newest.counters_batch) if newest is not None else (0, 0)
    if known_id == 0 and not journal.exists():
        return None
    target, report = ffi.new("struct ph_identity *"), ffi.new("struct ph_dense_report *")
    fault = ffi.new("struct ph_fault *")
    fill_identity(target, identity)
    if lib.ph_dense_inspect(os.fsencode(journal), target, report, fault):
        raise fault_error(fault)
    if known_id not in (0, report.id):
        raise CountersCorruptError(f"{journal} is not the file that the Obelisk names")
    if report.batch < known_batch:
        raise CountersMissingError(f"{journal} ends with batch {report.batch}; the Obelisk knows of {known_batch}")
    return CountersReport(str(journal), report.id, report.batch, report.bytes, report.counters, report.sessions)


def verify(path: str | Path, expected: Identity | None = None, end_warning_days: int = 1825) -> ObeliskReport:
    """`inspect`, and what a start under `expected` would refuse, and warnings of what is still to come."""
    report = inspect(path)
    identity = report.identity
    if identity is None:
        return report
    problems = list(report.problems)
    counters, counters_error = None, None
    if expected is not None:
        problems += differences(identity, expected)
    try:
        counters = inspect_counters(path, identity, report.newest)
    except StartError as error:
        counters_error = error
        problems.append(f"counters: {error.detail or error.message}")
    warnings = []
    end_ms = (1 << identity.layout.ms_bits) + identity.epoch_ms
    days_left = (end_ms - time.time() * 1000) / 86_400_000
    if days_left < end_warning_days:
        warnings.append(f"the layout's milliseconds end in {days_left:.0f} days")
    ahead_ms = report.newest.ceiling_ms - time.time_ns() // 1_000_000 if report.newest else 0
    if ahead_ms > AHEAD_WARNING_MS:
        warnings.append(f"the ceiling is {ahead_ms} ms ahead of this host's clock")
    return replace(
        report,
        problems=tuple(problems),
        warnings=tuple(warnings),
        counters=counters,
        counters_error=counters_error,
    )


def differences(found: Identity, expected: Identity) -> Iterator[str]:
    if found.coordinator != expected.coordinator:
        yield f"it is of coordinator {found.coordinator}, not {expected.coordinator}"
    if found.cluster_id != expected.cluster_id:
        yield "it is of another cluster (cluster.name)"
    if NO_HOST not in (found.host_id, expected.host_id) and found.host_id != expected.host_id:
        yield "it was made on another host (machine-id)"
    if (found.layout, found.epoch_ms) != (expected.layout, expected.epoch_ms):
        settings = f"{expected.layout}, {expected.epoch_ms} ms"
        yield f"its layout and epoch are {found.layout}, {found.epoch_ms} ms; the settings say {settings}"
    if found.modulus != expected.modulus:
        yield f"its modulus is {found.modulus}; cluster.coordinators is {expected.modulus}"


def is_file_of(path: str | Path, descriptor: int) -> bool:
    """Whether the path still names the file that was opened."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def exclusively(path: str | Path) -> Iterator[None]:
    """Nobody serves this file meanwhile. Raises AlreadyRunningError. A missing file is nobody's."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not is_file_of(path, descriptor):
            raise AlreadyRunningError(f"{path} was replaced in this moment")
        yield
    except BlockingIOError as error:
        raise AlreadyRunningError(f"{path} is locked") from error
    finally:
        os.close(descriptor)


def salvaged(path: str | Path, identity: Identity) -> list[Record]:
    """The whole records of this coordinator in a file whose identity page is damaged."""
    data = Path(path).read_bytes()[: lib.PH_OBELISK_BYTES].ljust(lib.PH_OBELISK_BYTES, b"\0")
    raw = ffi.new("struct ph_identity *")
    fill_identity(raw, identity)
    records = []
    for slot in (0, 1):
        sector = data[(1 + slot) * lib.PH_OBELISK_PAGE :]
        file_id = int.from_bytes(sector[RECORD_FILE_ID], "little")
        records.append(decode_record(data, slot, raw, file_id, identity))
    return [record for record in records if record.valid]
