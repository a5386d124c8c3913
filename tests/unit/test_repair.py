"""Repairs of Obelisks: nothing comes twice after one, and no margin is added; the operator says what no file tells.

Invariants
- A repair without an answer, or with one that is plainly untrue, changes nothing and says what has to be known.
- A repaired ceiling is above everything that the answer leaves possible, never below the file's own, and no higher.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from libpharaoh.errors import (
    AlreadyRunningError,
    ObeliskChangedError,
    ObeliskCorruptError,
    ObeliskForeignError,
    ObeliskMissingError,
    ObeliskTooNewError,
    RepairUnsureError,
    StartError,
)
from pharaohd import hosttime, manifest, obelisk, repair, stats
from pharaohd._core import ffi, lib
from pharaohd.repair import Above, Answer, ClockOk, Repaired
from pharaohd.settings import Settings, load
from pharaohd.stats import WorkerState
from tests.support.daemon import remove_host_page
from tests.support.records import first_record

PAGE = 4096
NS = 1_000_000
HOUR_MS = 3_600_000
OWNS = (0, 1, 2)
FAR_MS = 3_000_000_000_000
"""Far above the clock: what a ceiling is after the clock was set back by decades."""


def now_ms() -> int:
    return time.time_ns() // NS


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 * (crc & 1))
    return crc ^ 0xFFFFFFFF


class Host:
    """A state directory of three coordinators that were never served from, and a wall clock that can be set."""

    def __init__(self, directory: Path) -> None:
        self.state_dir = directory / "state"
        self.state_dir.mkdir()
        self.runtime_dir = directory / "run"
        self.runtime_dir.mkdir()
        self._offset = directory / "offset"
        self.set_wall_clock(0)
        self.settings = self.load()
        manifest.ensure(str(self.state_dir), OWNS, self._create, may_be_new=True)

    def load(self, **cluster: str) -> Settings:
        variables = {
            "PHARAOHD_CLUSTER_COORDINATORS": str(len(OWNS)),
            "PHARAOHD_HOST_STATE_DIR": str(self.state_dir),
            "PHARAOHD_HOST_RUNTIME_DIR": str(self.runtime_dir),
            "PHARAOHD_CLOCK_OFFSET_FILE": str(self._offset),
        }
        return load(None, None, variables | {f"PHARAOHD_CLUSTER_{key.upper()}": text for key, text in cluster.items()})

    def set_wall_clock(self, offset_ms: int) -> None:
        self._offset.write_bytes(struct.pack("<q", offset_ms * NS))

    def _create(self, coordinator: int, path: str) -> None:
        obelisk.create(path, obelisk.identity_for(self.settings, coordinator), first_record(clean=True))

    def path(self, coordinator: int) -> Path:
        return Path(manifest.obelisk_path(str(self.state_dir), coordinator))

    def tick(self, unix_ms: int) -> int:
        return (unix_ms - self.settings.cluster.epoch_ms) << self.settings.cluster.layout.sequence_bits

    def make(self, coordinator: int, *ceilings: int, lead_ms: int = 0, age_ms: int = 0, **identity: Any) -> None:
        """A file whose records hold these ceilings, the last one newest; ids were lead_ms ahead of the wall clock."""
        realtime_ns = (now_ms() - age_ms) * NS
        first = first_record(ceilings[0], host_ns=realtime_ns + lead_ms * NS, realtime_ns=realtime_ns)
        path = self.path(coordinator)
        obelisk.create(str(path), obelisk.identity_for(self.load(**identity), coordinator), first)
        handle, fault = ffi.new("struct ph_obelisk *"), ffi.new("struct ph_fault *")
        assert lib.ph_obelisk_open(handle, os.fsencode(path), lib.PH_OBELISK_OWN, fault) == 0
        for ceiling in ceilings[1:]:
            sample = ffi.addressof(first, "sample")
            assert lib.ph_obelisk_write(handle, ceiling, sample, 0, fault) == 0
        lib.ph_obelisk_close(handle)

    def bump(self, answer: Answer, coordinator: int = 1, *, create: bool = False) -> Repaired:
        repaired = repair.bump(self.settings, coordinator, answer, create_missing=create)
        assert self.ceiling(coordinator) == repaired.ceiling
        assert obelisk.verify(self.path(coordinator), self.identity(coordinator)).problems == ()
        return repaired

    def identity(self, coordinator: int) -> obelisk.Identity:
        return obelisk.identity_for(self.settings, coordinator)

    def newest(self, coordinator: int) -> obelisk.Record:
        newest = obelisk.inspect(self.path(coordinator)).newest
        assert newest is not None
        return newest

    def ceiling(self, coordinator: int) -> int:
        return self.newest(coordinator).ceiling

    @contextmanager
    def served(self, state: WorkerState = WorkerState.FAILED) -> Iterator[Any]:
        """A daemon holds the directory; yields its page. state: of all its workers."""
        runtime_dir = self.settings.host.runtime_dir
        descriptors = [os.open(path, os.O_RDONLY) for path in (self.state_dir, runtime_dir)]
        statistics = stats.Page(runtime_dir, len(OWNS), OWNS, 0o600, -1)
        try:
            for descriptor in descriptors:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            for number in range(len(OWNS)):
                statistics.slots[number].state = state
            page, _ = hosttime.start(self.settings, hosttime.Clock(self.settings))
            try:
                yield page.struct
            finally:
                page.close(str(self.state_dir), remove=False)
        finally:
            statistics.remove()
            for descriptor in descriptors:
                os.close(descriptor)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    one = Host(tmp_path)
    try:
        yield one
    finally:
        remove_host_page(one.state_dir)


def damage(path: Path, *pages: int) -> None:
    content = bytearray(path.read_bytes())
    for page in pages:
        content[page * PAGE + 40] ^= 1
    path.write_bytes(content)


# ---- the answer ----


def test_without_an_answer_a_repair_refuses_and_asks(host: Host) -> None:
    """Of the record with the latest host time: when its wall clock was what, and how far ids were ahead of it."""
    host.make(0, 8192, lead_ms=2 * HOUR_MS, age_ms=HOUR_MS)
    host.make(1, 8192)
    before = host.path(1).read_bytes()
    with pytest.raises(RepairUnsureError) as caught:
        host.bump(None)
    text = caught.value.detail or ""
    assert "coordinator 0" in text
    assert f"{2 * HOUR_MS} ms ahead" in text
    assert repair.text_of_ns((now_ms() - HOUR_MS) * NS)[:13] in text  # to the hour
    assert "--clock-ok says" in text
    assert "--above ID|TIME says" in text
    assert host.path(1).read_bytes() == before


def test_clock_ok_reaches_beyond_the_clock_and_the_greatest_lead(host: Host) -> None:
    """After a backward step ids may have been two hours ahead: the siblings tell it of the lost file too (F18)."""
    host.make(0, 8192, lead_ms=2 * HOUR_MS, age_ms=HOUR_MS)
    host.make(2, 8192, lead_ms=60_000)
    host.path(1).unlink()
    before = now_ms()
    repaired = host.bump(ClockOk(), create=True)
    assert repaired.by == "clock"
    assert host.tick(before + 2 * HOUR_MS) < repaired.ceiling <= host.tick(now_ms() + 2 * HOUR_MS + 1)
    assert abs(host.newest(1).host_ns // NS - before - 2 * HOUR_MS) < HOUR_MS / 2


def test_clock_ok_is_refused_when_a_record_shows_that_it_is_not_true(host: Host) -> None:
    host.make(1, 8192)
    host.set_wall_clock(-60_000)
    before = host.path(1).read_bytes()
    with pytest.raises(RepairUnsureError, match=r"--clock-ok is not true: .* s behind that now: it was set back"):
        host.bump(ClockOk())
    with pytest.raises(RepairUnsureError, match="it was set back"):
        host.bump(None)
    assert host.path(1).read_bytes() == before


def test_with_no_record_left_only_above_is_an_answer(host: Host) -> None:
    for coordinator in OWNS:
        host.path(coordinator).unlink()
    for answer in (None, ClockOk()):
        with pytest.raises(RepairUnsureError) as caught:
            host.bump(answer, create=True)
        assert "--above" in caught.value.hint
    at = now_ms() + HOUR_MS
    assert host.bump(Above(at), create=True) == Repaired(host.tick(at + 1), "operator")


@pytest.mark.parametrize("ahead_ms", [-HOUR_MS, 0, HOUR_MS])
def test_above_is_taken_at_its_word(host: Host, ahead_ms: int) -> None:
    """The whole of its millisecond is below the ceiling, and nothing is added."""
    at = now_ms() + ahead_ms
    assert host.bump(Above(at)).ceiling == host.tick(at + 1)
    assert host.newest(1).host_ns >= at * NS


def test_above_names_a_time_that_an_id_can_have(host: Host) -> None:
    epoch_ms, end_ms = host.settings.cluster.epoch_ms, host.settings.cluster.epoch_ms + (1 << 41)
    for unix_ms in (-1, epoch_ms - 1, end_ms - 1, end_ms):
        with pytest.raises(RepairUnsureError, match="no id of this layout"):
            host.bump(Above(unix_ms, even_in_the_future=True))
    assert host.bump(Above(end_ms - 2, even_in_the_future=True)).ceiling == host.tick(end_ms - 1)
    host.set_wall_clock(end_ms - now_ms() - 1)
    with pytest.raises(RepairUnsureError, match="after the last time"):
        host.bump(ClockOk(), 0)


def test_above_may_not_be_days_ahead_by_mistake(host: Host) -> None:
    with pytest.raises(RepairUnsureError, match="ahead of the wall clock and of every record"):
        host.bump(Above(now_ms() + 26 * HOUR_MS))
    host.bump(Above(now_ms() - 10_000 * HOUR_MS))
    host.bump(Above(now_ms() + 22 * HOUR_MS))


def test_repairs_in_turn_do_not_drive_coordinators_apart(host: Host) -> None:
    """No margin: the tenth repair of a file is where its first one was, and where its siblings' are."""
    for _ in range(10):
        for coordinator in OWNS:
            host.bump(ClockOk(), coordinator)
    assert all(host.ceiling(coordinator) <= host.tick(now_ms() + 1) for coordinator in OWNS)


def test_a_repair_is_of_a_start_of_its_own_and_exact(host: Host) -> None:
    """Drawn, never counted: an older page must not be believed by a number that came again."""
    drawn = set()
    for _ in range(20):
        host.bump(ClockOk())
        assert host.newest(1).clean
        assert host.newest(1).boot_id == hosttime.boot_id().hex()
        drawn.add(host.newest(1).start_id)
    assert len(drawn) == 20


# ---- a daemon serves ----


def test_where_a_daemon_serves_its_page_answers(host: Host) -> None:
    with host.served() as page:
        page.positions[1].next_tick = host.tick(now_ms()) + 77
        for answer in (None, ClockOk(), Above(now_ms() + HOUR_MS)):
            assert host.bump(answer, create=True) == Repaired(page.positions[1].next_tick, "page")


@pytest.mark.parametrize("state", [WorkerState.LIVE, WorkerState.STARTING, WorkerState.STOPPING])
def test_a_worker_whose_file_was_taken_away_may_still_issue(host: Host, state: WorkerState) -> None:
    """F8: it notices at its next sync. What the page says of it now is not the last word."""
    with host.served(state):
        host.path(1).unlink()
        with pytest.raises(AlreadyRunningError):
            host.bump(Above(now_ms() + HOUR_MS), create=True)
    assert not host.path(1).exists()


def test_a_page_of_a_daemon_that_is_gone_is_no_answer(host: Host) -> None:
    with host.served():
        pass
    with pytest.raises(RepairUnsureError):
        host.bump(None)


def test_the_page_does_not_answer_for_a_coordinator_that_its_start_did_not_know(host: Host) -> None:
    with host.served() as page:
        for start_id in (0, page.start_id ^ 1):
            page.positions[1].start_id = start_id
            with pytest.raises(RepairUnsureError):
                host.bump(None)


def test_no_daemon_starts_during_a_repair(host: Host) -> None:
    """What the repair computes from is all there is, until it is done."""
    with repair.daemon_kept_out(str(host.state_dir)) as alive:
        assert not alive
        descriptor = os.open(host.state_dir, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
    with host.served(), repair.daemon_kept_out(str(host.state_dir)) as alive:
        assert alive


def test_one_repaired_file_lifts_all_at_the_next_start(host: Host) -> None:
    """Nobody issues below what one of them may have issued: the coordinator stands above the sequence in an id."""
    at = now_ms() + HOUR_MS
    host.bump(Above(at))
    with host.served() as page:
        assert {page.positions[coordinator].next_tick for coordinator in OWNS} == {host.tick(at + 1)}


# ---- a ceiling never sinks ----


@pytest.mark.parametrize("answer", [ClockOk(), Above(1_735_689_600_000)])
@pytest.mark.parametrize("newest_ms", [1_735_689_600_002, FAR_MS])
def test_bump_is_not_below_any_record(host: Host, newest_ms: int, answer: Answer) -> None:
    host.make(1, 8192, host.tick(newest_ms), host.tick(newest_ms) + 5)
    old = host.ceiling(1)
    assert host.bump(answer).ceiling >= old
    assert host.bump(answer).ceiling >= old


@pytest.mark.parametrize("pages", [(1,), (2,), (0,), (0, 1), (0, 2)])
def test_bump_never_lowers_while_one_record_is_whole(host: Host, pages: tuple[int, ...]) -> None:
    """F2: also when only the identity page is damaged, and when the clock is far below the ceiling."""
    far = host.tick(FAR_MS)
    host.make(1, 8192, far, far)
    damage(host.path(1), *pages)
    with pytest.raises(ObeliskCorruptError):
        host.bump(ClockOk())
    assert host.bump(ClockOk(), create=True).ceiling >= far


def test_bump_takes_no_record_of_another_coordinator_for_its_own(host: Host) -> None:
    host.make(0, host.tick(FAR_MS))
    host.path(1).write_bytes(host.path(0).read_bytes())
    damage(host.path(1), 0)
    assert host.bump(ClockOk(), create=True).ceiling < host.tick(FAR_MS)


def lose(path: Path) -> None:
    path.unlink()


def cut_short(path: Path) -> None:
    os.truncate(path, 3 * PAGE - 1)


def zero(path: Path) -> None:
    path.write_bytes(bytes(4 * PAGE))


@pytest.mark.parametrize("harm", [lose, cut_short, zero])
def test_only_bump_create_makes_a_lost_file_anew(host: Host, harm: Callable[[Path], None]) -> None:
    harm(host.path(1))
    with pytest.raises((ObeliskMissingError, ObeliskCorruptError)):
        host.bump(ClockOk())
    with pytest.raises(RepairUnsureError):
        host.bump(None, create=True)
    before = now_ms()
    assert host.bump(ClockOk(), create=True).ceiling > host.tick(before)


def test_bump_leaves_ceilings_of_other_units_alone(host: Host) -> None:
    """A ceiling counts in ticks of its file's layout and epoch: in another it may be lower."""
    content = host.path(1).read_bytes()
    for other in (host.load(layout="40-10-14"), host.load(epoch="2024-01-01T00:00:00Z")):
        with pytest.raises(ObeliskChangedError):
            repair.bump(other, 1, ClockOk(), create_missing=True)
    assert host.path(1).read_bytes() == content


def test_siblings_of_other_units_are_no_evidence(host: Host) -> None:
    host.make(0, 8192, lead_ms=HOUR_MS, layout="40-10-14")
    assert host.bump(ClockOk()).ceiling <= host.tick(now_ms() + 1)


def test_bump_replaces_a_foreign_file_only_when_told_to(host: Host) -> None:
    host.path(1).write_bytes(host.path(0).read_bytes())
    with pytest.raises(ObeliskForeignError):
        host.bump(ClockOk())
    host.bump(ClockOk(), create=True)


def test_no_repair_touches_the_file_of_a_newer_version(host: Host) -> None:
    content = bytearray(host.path(1).read_bytes())
    content[8] = 2
    content[508:512] = crc32c(bytes(content[:508])).to_bytes(4, "little")
    host.path(1).write_bytes(content)
    with pytest.raises(ObeliskTooNewError):
        repair.bump(host.settings, 1, ClockOk(), create_missing=True)
    with pytest.raises(StartError):
        repair.adopt(host.settings, 1, ClockOk())
    assert host.path(1).read_bytes() == content


@pytest.mark.parametrize("newest_ms", [1_735_689_600_002, FAR_MS])
def test_adopt_changes_the_owner_and_never_lowers(host: Host, newest_ms: int) -> None:
    """F27: another's file says nothing of what became of its original, so the operator does."""
    host.make(1, 8192, host.tick(newest_ms), name="other")
    assert obelisk.verify(host.path(1), host.identity(1)).problems != ()
    before = host.path(1).read_bytes()
    with pytest.raises(RepairUnsureError):
        repair.adopt(host.settings, 1, None)
    assert host.path(1).read_bytes() == before
    at = now_ms() + HOUR_MS
    assert repair.adopt(host.settings, 1, Above(at)).ceiling == max(host.tick(newest_ms), host.tick(at + 1))
    assert obelisk.inspect(host.path(1)).identity == host.identity(1)


def test_adopt_takes_only_whole_files_of_this_coordinator_and_layout(host: Host) -> None:
    with pytest.raises(ObeliskChangedError):
        repair.adopt(host.load(layout="40-10-14"), 1, ClockOk())
    host.path(2).write_bytes(host.path(1).read_bytes())
    with pytest.raises(ObeliskChangedError):
        repair.adopt(host.settings, 2, ClockOk())
    damage(host.path(1), 1)
    with pytest.raises(ObeliskCorruptError):
        repair.adopt(host.settings, 1, ClockOk())


def test_a_file_in_use_is_refused(host: Host) -> None:
    """F25."""
    content = host.path(1).read_bytes()
    with open(host.path(1), "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(AlreadyRunningError):
            repair.bump(host.settings, 1, ClockOk(), create_missing=True)
        with pytest.raises(AlreadyRunningError):
            repair.adopt(host.settings, 1, ClockOk())
    assert host.path(1).read_bytes() == content


def test_counters_are_put_away_only_by_a_repair_that_is_done(host: Host) -> None:
    journal = obelisk.counters_beside(host.path(1))
    journal.write_bytes(b"damaged")
    with pytest.raises(StartError):
        repair.bump(host.settings, 1, ClockOk())
    with pytest.raises(RepairUnsureError):
        repair.bump(host.settings, 1, None, drop_counters=True)
    assert journal.read_bytes() == b"damaged"
    repair.bump(host.settings, 1, ClockOk(), drop_counters=True)
    assert not journal.exists()
    assert journal.with_name(f"{journal.name}.dropped").read_bytes() == b"damaged"
    journal.write_bytes(b"begun anew, and lost again")
    repair.bump(host.settings, 1, ClockOk(), drop_counters=True)
    assert journal.with_name(f"{journal.name}.dropped").read_bytes() == b"damaged", "what was put away before"
    assert journal.with_name(f"{journal.name}.dropped.2").read_bytes() == b"begun anew, and lost again"


def test_a_file_that_is_replaced_while_it_is_locked_is_left_alone(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """F25: whoever replaced it may serve the new one; the lock is of the old one."""
    path = host.path(1)
    flock = fcntl.flock

    def replace_first(descriptor: int, how: int) -> None:
        other = path.with_suffix(".other")
        other.write_bytes(path.read_bytes())
        other.rename(path)
        flock(descriptor, how)

    monkeypatch.setattr("pharaohd.obelisk.fcntl.flock", replace_first)
    with pytest.raises(AlreadyRunningError, match="replaced"), obelisk.exclusively(path):
        pass
