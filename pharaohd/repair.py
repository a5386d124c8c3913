"""Repairs of Obelisks: whatever is lost or restored, the repaired file reaches beyond everything that was issued.

Invariants
- There is no margin. Where a daemon serves, its page tells exactly how far the coordinator came. Otherwise no file can
  tell what became of the clock and of files that are lost, so the operator says it; without a word the repair refuses.
- The file is locked meanwhile, and the state directory too where no daemon holds it.
- The new file is whole before it has the name: temporary file, fsync, rename, fsync of the directory.
- One repaired file lifts all coordinators at the next start: nobody issues below the highest bound (csrc/evidence.h).
Source: host-time rules 14 and 15.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from libpharaoh.errors import (
    AlreadyRunningError,
    ConnectFailedError,
    ObeliskChangedError,
    ObeliskCorruptError,
    ObeliskForeignError,
    ObeliskMissingError,
    ObeliskTooNewError,
    ProtocolViolationError,
    RepairUnsureError,
    StateDirError,
)
from pharaohd import hosttime, manifest, obelisk, sole
from pharaohd._core import ffi, lib
from pharaohd.obelisk import Identity, ObeliskReport, Record
from pharaohd.settings import COORDINATORS_MAX, Settings
from pharaohd.stats import Reader, WorkerState


@dataclass(frozen=True, slots=True)
class ClockOk:
    """The operator: since the newest surviving record the clock was not set back, and no repair is missing."""


@dataclass(frozen=True, slots=True)
class Above:
    """The operator: nobody has an id of this host above this time."""

    unix_ms: int
    even_in_the_future: bool = False
    """It may lie more than a day ahead of all clocks. A wrong year would be for good."""


Answer = ClockOk | Above | None

FUTURE_MS = 86_400_000
"""An answer so far ahead of all clocks is more likely a wrong date than a careful one."""
ABOVE_HINT = "name the highest id that anybody has, or a time after the last one was issued: --above ID|TIME"
END_HINT = "a record, or the answer, names a time far in the future: repair that file first, by --create and --above"


@dataclass(frozen=True, slots=True)
class Repaired:
    ceiling: int
    """A tick."""
    by: str
    """What it rests on: "page", "clock" or "operator"."""


def bump(
    settings: Settings, coordinator: int, answer: Answer, *, create_missing: bool = False, drop_counters: bool = False
) -> Repaired:
    """Writes the file of a coordinator anew, above everything that it can have issued. Its ceiling never sinks.

    create_missing: also for a file that is missing, truncated, damaged or another coordinator's. drop_counters: puts
    the journal of its counters out of the way, which must be whole otherwise.
    Raises RepairUnsureError when an answer is needed, and StartError.
    """
    path = Path(manifest.obelisk_path(settings.host.state_dir, coordinator))
    identity = obelisk.identity_for(settings, coordinator)
    with obelisk.exclusively(path):
        try:
            report = obelisk.inspect(path)
        except ObeliskMissingError:
            if not create_missing:
                raise
            own, newest = [], None
        else:
            check_bump(report, identity, create_missing)
            own = [record for record in report.records if record.valid] or obelisk.salvaged(path, identity)
            newest = report.newest if report.identity == identity else None
        if not drop_counters:
            obelisk.inspect_counters(path, identity, newest)
        return rewrite(settings, coordinator, own, answer, drop_counters)


def adopt(settings: Settings, coordinator: int, answer: Answer, *, drop_counters: bool = False) -> Repaired:
    """Makes a foreign file this host's own, above whatever its original may have issued.

    The file must be whole and of the same coordinator and layout, and so must the journal of its counters, unless
    `drop_counters` puts that out of the way. Raises RepairUnsureError when an answer is needed, and StartError.
    """
    path = Path(manifest.obelisk_path(settings.host.state_dir, coordinator))
    identity = obelisk.identity_for(settings, coordinator)
    with obelisk.exclusively(path):
        report = obelisk.inspect(path)
        if report.identity is None or report.newest is None:
            raise ObeliskCorruptError("; ".join(report.problems))
        same = replace(report.identity, host_id=identity.host_id, cluster_id=identity.cluster_id)
        if found := list(obelisk.differences(same, identity)):
            raise ObeliskChangedError("; ".join(found))
        if not drop_counters:
            obelisk.inspect_counters(path, identity, report.newest)
        own = [record for record in report.records if record.valid]
        return rewrite(settings, coordinator, own, answer, drop_counters)


def rewrite(
    settings: Settings, coordinator: int, own: Sequence[Record], answer: Answer, drop_counters: bool
) -> Repaired:
    """Computes the new record and makes the file. `own`: the valid records that its old file still has.

    It takes over the journal of counters that lies beside it, which the caller has checked; or drops it.
    """
    state_dir = settings.host.state_dir
    clock = hosttime.Clock(settings)
    with contextlib.ExitStack() as kept:
        alive = kept.enter_context(daemon_kept_out(state_dir))
        if alive and is_served(settings, coordinator):
            raise AlreadyRunningError(f"a daemon holds {state_dir}, and coordinator {coordinator} may still be served")
        found = kept.enter_context(page_of(state_dir, orphans=not alive))
        records = surviving(settings, coordinator)
        if own:
            records[coordinator] = raw_record(max(own, key=lambda record: record.number))
        known = hosttime.Known(settings, records, found, clock)
        way, above_ms = chosen_way(settings, known, found if alive else None, coordinator, answer)
        repaired = ffi.new("struct ph_repaired *")
        own_ceiling = max((record.ceiling for record in own), default=0)
        lib.ph_repair(known.struct, coordinator, way, above_ms, own_ceiling, repaired)
        if repaired.ceiling >= 1 << (settings.cluster.layout.ms_bits + settings.cluster.layout.sequence_bits):
            raise RepairUnsureError("the file would begin after the last time that the layout can hold", hint=END_HINT)
        first = ffi.new("struct ph_record *")
        first.ceiling, first.sample, first.clean = repaired.ceiling, repaired.sample, 1
        first.start_id = repaired.start_id or hosttime.new_start_id()
        path = manifest.obelisk_path(state_dir, coordinator)
        if drop_counters:
            put_away_counters(path)
        obelisk.create(path, obelisk.identity_for(settings, coordinator), first)
        by = {lib.PH_REPAIR_LIVE: "page", lib.PH_REPAIR_CLOCK_OK: "clock", lib.PH_REPAIR_ABOVE: "operator"}[way]
        return Repaired(first.ceiling, by)


@contextlib.contextmanager
def page_of(state_dir: str, orphans: bool) -> Iterator[hosttime.Found | None]:
    """The host's page, to read. Raises OSError.

    orphans: no supervisor is left, so neither may a worker be. Raises AlreadyRunningError.
    """
    owner = os.stat(state_dir).st_uid
    with contextlib.ExitStack() as held:
        id = manifest.directory_id(state_dir)
        if orphans and id:
            with contextlib.suppress(sole.HeldByOtherUser):
                held.enter_context(sole.hold(id, owner))
        found = hosttime.find_page(state_dir, owner=owner, lock=False)
        if found is not None:
            held.callback(found.page.close, state_dir, remove=False)
            if orphans:
                hosttime.lock_page(found.page.descriptor)
        yield found


@contextlib.contextmanager
def daemon_kept_out(state_dir: str) -> Iterator[bool]:
    """Yields whether a daemon serves from this directory. Otherwise none can start meanwhile. Raises StateDirError."""
    try:
        descriptor = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise StateDirError(f"{state_dir}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        alive = False
    except BlockingIOError:
        alive = True
    try:
        yield alive
    finally:
        os.close(descriptor)


def is_served(settings: Settings, coordinator: int) -> bool:
    """Whether a worker may still issue: one whose file was taken away does until its next sync."""
    try:
        with Reader(settings.host.runtime_dir) as page:
            states = {worker.coordinator: worker.state for worker in page.workers()}
    except (ConnectFailedError, ProtocolViolationError):
        return True  # a daemon runs, and nobody can say
    return states.get(coordinator, WorkerState.FAILED) not in (WorkerState.FAILED, WorkerState.DOWN)


def chosen_way(
    settings: Settings, known: hosttime.Known, live: hosttime.Found | None, coordinator: int, answer: Answer
) -> tuple[int, int]:
    """What the repair rests on, and for ABOVE the time since the epoch. Raises RepairUnsureError."""
    if live is not None and live.own:
        position = live.page.struct.positions[coordinator]
        if position.start_id != 0 and position.start_id == live.page.struct.start_id:
            return lib.PH_REPAIR_LIVE, 0
    if isinstance(answer, Above):
        return lib.PH_REPAIR_ABOVE, checked_above(settings, known, answer)
    newest = lib.ph_newest_evidence(known.struct)
    if newest < 0:
        raise RepairUnsureError(
            "no record survives, so --clock-ok says nothing" if answer else "no record survives", hint=ABOVE_HINT
        )
    record = known.struct.records[newest]
    set_back_ns = record.sample.realtime_ns - known.struct.realtime_ns
    if set_back_ns > 0:
        seen, behind_s = text_of_ns(record.sample.realtime_ns), set_back_ns / 1e9
        raise RepairUnsureError(
            f"--clock-ok is not true: the record of coordinator {record.coordinator} saw the wall clock at {seen}, and "
            f"it is {behind_s:.3f} s behind that now: it was set back",
            hint=ABOVE_HINT,
        )
    if answer is None:
        raise RepairUnsureError(question(record))
    return lib.PH_REPAIR_CLOCK_OK, 0


def checked_above(settings: Settings, known: hosttime.Known, answer: Above) -> int:
    """In milliseconds since the epoch. Raises RepairUnsureError for a time that can hardly be meant."""
    above_ms = answer.unix_ms - settings.cluster.epoch_ms
    if not 0 <= above_ms < (1 << settings.cluster.layout.ms_bits) - 1:
        raise RepairUnsureError("--above names a time that no id of this layout can have", hint=ABOVE_HINT)
    same_boot = ffi.new("int *")
    seen_ns = max(known.struct.realtime_ns, lib.ph_host_estimate(known.struct, same_boot))
    ahead_ms = answer.unix_ms - seen_ns // hosttime.NS_PER_MS
    if ahead_ms > FUTURE_MS and not answer.even_in_the_future:
        raise RepairUnsureError(
            f"--above lies {ahead_ms / 1000:.0f} s ahead of the wall clock and of every record: ids would carry that "
            "time from the next start on, and nothing brings it back",
            hint="correct the time; if somebody really has ids of that time, add --even-in-the-future",
        )
    return above_ms


def question(record: Any) -> str:
    """What the operator has to know to answer."""
    seen = text_of_ns(record.sample.realtime_ns)
    lead_ms = max(0, record.sample.host_ns - record.sample.realtime_ns) // hosttime.NS_PER_MS
    lead = f", and ids were {lead_ms} ms ahead of it" if lead_ms else ""
    return f"""
  The newest record that is left is of coordinator {record.coordinator}. The wall clock showed {seen} then{lead}.
  --clock-ok says that both are true: nobody has set the wall clock back since then, also not while the daemon was
    stopped; and nobody has repaired a file since then whose result is lost now.
  --above ID|TIME says: nobody has an id of this host above that one, or of a later time."""


def text_of_ns(unix_ns: int) -> str:
    return datetime.fromtimestamp(unix_ns // hosttime.NS_PER_MS / 1000, UTC).isoformat(timespec="milliseconds")


def surviving(settings: Settings, coordinator: int) -> dict[int, Any]:
    """The newest record of each other coordinator's file whose ticks mean the same, as `struct ph_record *`."""
    identity = obelisk.identity_for(settings, coordinator)
    records: dict[int, Any] = {}
    for path in sorted(Path(manifest.obelisks_dir(settings.host.state_dir)).glob("[0-9][0-9][0-9][0-9].obelisk")):
        number = int(path.stem)
        report = obelisk.inspect(path) if number != coordinator and number < COORDINATORS_MAX else None
        if report is None or report.identity is None or report.newest is None:
            continue
        if (report.identity.layout, report.identity.epoch_ms) == (identity.layout, identity.epoch_ms):
            records[number] = raw_record(report.newest)
    return records


def raw_record(record: Record) -> Any:
    """A `struct ph_record *` of what a start reads in it."""
    raw = ffi.new("struct ph_record *")
    raw.ceiling, raw.start_id = record.ceiling, record.start_id
    raw.sample.host_ns, raw.sample.realtime_ns = record.host_ns, record.realtime_ns
    raw.sample.boottime_ns = record.boottime_ns
    ffi.memmove(raw.sample.boot_id, bytes.fromhex(record.boot_id), 16)
    return raw


def put_away_counters(path: str) -> None:
    """Puts the journal of counters beside an Obelisk out of the way: its counters start anew. None is overwritten."""
    journal = obelisk.counters_beside(path)
    for file in (journal, journal.with_name(f"{journal.name}.next")):
        with contextlib.suppress(FileNotFoundError):
            file.rename(unused(file.with_name(f"{file.name}.dropped")))


def unused(path: Path) -> Path:
    """This one, or the first of `path.2`, `path.3` ... that does not exist: what was put away before stays."""
    names = itertools.chain([path], (path.with_name(f"{path.name}.{number}") for number in itertools.count(2)))
    return next(one for one in names if not one.exists())


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
    if changed := list(obelisk.differences(units, identity)):
        raise ObeliskChangedError("; ".join(changed))
    if (foreign := list(obelisk.differences(found, identity))) and not create_missing:
        raise ObeliskForeignError("; ".join(foreign))
