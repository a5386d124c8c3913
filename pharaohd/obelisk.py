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
from pathlib import Path
from typing import Any

from libpharaoh.errors import (
    AlreadyRunningError,
    InternalError,
    ObeliskChangedError,
    ObeliskCorruptError,
    ObeliskForeignError,
    ObeliskMissingError,
    ObeliskTooNewError,
    StartError,
    by_code,
)
from pharaohd._core import ffi, lib
from pharaohd.settings import Layout, Settings

MACHINE_ID = Path("/etc/machine-id")
NO_HOST = bytes(16)
BUMP_MARGIN_MS = 70_000
"""How far above the clock a repaired Obelisk starts at least: the largest window, the default of clock.after_ms_max."""
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
    virtual_ns: int
    realtime_ns: int
    boottime_ns: int
    boot_id: str


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


def digest(kind: str, text: str) -> bytes:
    return hashlib.sha256(f"pharaoh {kind} {text}".encode()).digest()[:16]


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
    layout = identity.layout
    target.coordinator = identity.coordinator
    target.modulus = identity.modulus
    target.layout.ms_bits = layout.ms_bits
    target.layout.coordinator_bits = layout.coordinator_bits
    target.layout.sequence_bits = layout.sequence_bits
    target.layout.epoch_ms = identity.epoch_ms
    ffi.memmove(target.cluster_id, identity.cluster_id, 16)
    ffi.memmove(target.host_id, identity.host_id, 16)


def fault_error(fault: Any) -> StartError:
    """The exception of a `struct ph_fault`."""
    detail = ffi.string(fault.detail).decode(errors="replace")
    error_class = by_code.get(fault.code, InternalError)
    return error_class(detail) if issubclass(error_class, StartError) else InternalError(detail)


def create(path: str, identity: Identity, ceiling: int = 0) -> None:
    """Makes the file, durably and at once: it has its name only when it is whole. Raises StateDirError."""
    target = ffi.new("struct ph_identity *")
    fault = ffi.new("struct ph_fault *")
    fill_identity(target, identity)
    if lib.ph_obelisk_create(os.fsencode(path), target, ceiling, fault):
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
        sample.virtual_ns,
        sample.realtime_ns,
        sample.boottime_ns,
        bytes(sample.boot_id).hex(),
    )


def verify(path: str | Path, expected: Identity | None = None, end_warning_days: int = 1825) -> ObeliskReport:
    """`inspect`, and what a start under `expected` would refuse, and warnings of what is still to come."""
    report = inspect(path)
    identity = report.identity
    if identity is None:
        return report
    problems = list(report.problems)
    if expected is not None:
        problems += differences(identity, expected)
    warnings = []
    end_ms = (1 << identity.layout.ms_bits) + identity.epoch_ms
    days_left = (end_ms - time.time() * 1000) / 86_400_000
    if days_left < end_warning_days:
        warnings.append(f"the layout's milliseconds end in {days_left:.0f} days")
    ahead_ms = report.newest.ceiling_ms - time.time_ns() // 1_000_000 if report.newest else 0
    if ahead_ms > BUMP_MARGIN_MS:
        warnings.append(f"the ceiling is {ahead_ms} ms ahead of this host's clock")
    return replace(report, problems=tuple(problems), warnings=tuple(warnings))


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
        yield
    except BlockingIOError as error:
        raise AlreadyRunningError(f"{path} is locked") from error
    finally:
        os.close(descriptor)


def repair_margin_ms(settings: Settings) -> int:
    """How far ahead of the clock ids may have been issued under these settings, or the defaults."""
    return max(BUMP_MARGIN_MS, settings.obelisk.window_ms + settings.clock.after_ms_max)


def adopt(path: str | Path, identity: Identity, *, bump: bool, margin_ms: int = BUMP_MARGIN_MS) -> int:
    """Makes a foreign file this host's own; returns its ceiling. With `bump`, above whatever its original may issue.

    The file must be whole and of the same coordinator and layout. Raises StartError.
    """
    with exclusively(path):
        report = inspect(path)
        if report.identity is None or report.newest is None:
            raise ObeliskCorruptError("; ".join(report.problems))
        same = replace(report.identity, host_id=identity.host_id, cluster_id=identity.cluster_id)
        if found := list(differences(same, identity)):
            raise ObeliskChangedError("; ".join(found))
        ceiling = report.newest.ceiling
        if bump:
            ceiling = max(ceiling, ceiling_from_clock(identity)) + (margin_ms << identity.layout.sequence_bits)
        create(str(path), identity, ceiling)
        return ceiling


def bump(path: str | Path, identity: Identity, *, create_missing: bool = False, margin_ms: int = BUMP_MARGIN_MS) -> int:
    """Raises the ceiling to `margin_ms` above the clock, every valid record and the siblings'; returns it. Never lower.

    The siblings' ceilings tell how far virtual time was ahead of the clock, which a lost file no longer can.

    create_missing: also for a file that is missing, truncated, damaged or another coordinator's. Raises StartError.
    """
    with exclusively(path):
        try:
            report = inspect(path)
        except ObeliskMissingError:
            if not create_missing:
                raise
            known = []
        else:
            check_bump(report, identity, create_missing)
            known = [record.ceiling for record in report.records if record.valid] or salvaged_ceilings(path, identity)
        least = max([ceiling_from_clock(identity), *known, *sibling_ceilings(path, identity)])
        ceiling = least + (margin_ms << identity.layout.sequence_bits)
        create(str(path), identity, ceiling)
        return ceiling


def sibling_ceilings(path: str | Path, identity: Identity) -> Iterator[int]:
    """Of the other Obelisks in the directory whose ticks mean the same."""
    for sibling in Path(path).parent.glob("*.obelisk"):
        if sibling != Path(path):
            report = inspect(sibling)
            found = report.identity
            if found is not None and (found.layout, found.epoch_ms) == (identity.layout, identity.epoch_ms):
                yield from (record.ceiling for record in report.records if record.valid)


def check_bump(report: ObeliskReport, identity: Identity, create_missing: bool) -> None:
    """Raises StartError when the file is not the bump's to replace, or its ceilings are in other units."""
    if report.version > lib.PH_OBELISK_VERSION:
        raise ObeliskTooNewError(f"{report.path} has format version {report.version}")
    if (report.identity is None or report.newest is None or report.problems) and not create_missing:
        raise ObeliskCorruptError("; ".join(report.problems))
    if report.identity is None:
        return
    found = report.identity
    units = replace(identity, modulus=found.modulus, layout=found.layout, epoch_ms=found.epoch_ms)
    if changed := list(differences(units, identity)):
        raise ObeliskChangedError("; ".join(changed))
    if (foreign := list(differences(found, identity))) and not create_missing:
        raise ObeliskForeignError("; ".join(foreign))


def salvaged_ceilings(path: str | Path, identity: Identity) -> list[int]:
    """The ceilings of whole records of this coordinator in a file whose identity page is damaged."""
    data = Path(path).read_bytes()[: lib.PH_OBELISK_BYTES].ljust(lib.PH_OBELISK_BYTES, b"\0")
    raw = ffi.new("struct ph_identity *")
    fill_identity(raw, identity)
    records = []
    for slot in (0, 1):
        sector = data[(1 + slot) * lib.PH_OBELISK_PAGE :]
        file_id = int.from_bytes(sector[RECORD_FILE_ID], "little")
        records.append(decode_record(data, slot, raw, file_id, identity))
    return [record.ceiling for record in records if record.valid]


def ceiling_from_clock(identity: Identity) -> int:
    return (time.time_ns() // 1_000_000 - identity.epoch_ms) << identity.layout.sequence_bits
