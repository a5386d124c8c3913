"""A whole state directory put back, copied or not mounted: F25, F27, F60, F61.

Nothing local can tell how far a host came when all its files are old. Within a boot its page can. So the daemon goes on
by the page, or the operator answers; it never guesses, and nothing comes twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from libpharaoh.errors import AlreadyRunningError, RepairUnsureError, StateDirEmptyError
from pharaohd import manifest, obelisk, sole
from tests.support.daemon import Daemon, Settings, check_refused, wait_until
from tests.support.host import LAYOUT, ceilings, keys_of, next_ms, page_path, positions, unix_ms, wall_tick
from tests.support.ledger import tick_of
from tests.support.loopfs import MISSING, loop_fs
from tests.support.wire import Wire

HOUR_MS = 3_600_000


@dataclass
class Scene:
    """A daemon whose wall clock a test sets, and what it has given so far."""

    daemon: Daemon
    offset: Path
    ids: list[int]

    def set_clock(self, offset_ms: int) -> None:
        with open(self.offset, "r+b") as file:
            file.write((offset_ms * 1_000_000).to_bytes(8, "little", signed=True))

    def draw(self, count: int = 200) -> list[int]:
        """Of every coordinator, by every way; all are noted."""
        new: list[int] = []
        for one, key in keys_of(self.daemon.coordinators).items():
            with Wire(self.daemon.own_socket(one)) as wire:
                new += [int(wire.ask("get_timestamp", key)) for _ in range(3)]
                new += [int(wire.ask("next_id")) for _ in range(3)]
                for first, length in wire.ask("next_ids", count):
                    new += range(first, first + length)
        self.ids += new
        return new

    def check_unique(self) -> None:
        assert len(set(self.ids)) == len(self.ids), "an id was received twice"
        assert len(self.ids) > 1000

    def bump(self, *arguments: str, status: int = 0) -> str:
        """`obelisk bump`, without a daemon that knows better; what it says."""
        done = self.daemon.ctl("--config", str(self.daemon.config), "obelisk", "bump", *arguments)
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr


@contextmanager
def scene(directory: Path, coordinators: int = 3, window_ms: int = 500) -> Iterator[Scene]:
    offset = directory / "offset"
    offset.write_bytes(bytes(8))
    settings: Settings = {"clock": {"offset_file": str(offset)}, "obelisk": {"window_ms": window_ms}}
    daemon = Daemon(directory, coordinators=coordinators, settings=settings)
    with daemon:
        yield Scene(daemon, offset, [])


def restore(at: Scene, backup: Path) -> None:
    """The disk was lost; what the backup holds is put in its place."""
    shutil.rmtree(at.daemon.state_dir)
    shutil.copytree(backup, at.daemon.state_dir)


def live_through_a_loss(at: Scene, directory: Path, *, ahead: bool) -> None:
    """Gives ids, is copied, gives more, is killed, and finds the copy. ahead: ids are an hour ahead of the clock."""
    at.draw()
    if ahead:
        at.set_clock(-HOUR_MS)
        wait_until(lambda: records_lead(at.daemon), "each file tells of the lead")
    at.draw()
    shutil.copytree(at.daemon.state_dir, directory / "backup")
    copied = max(ceilings(at.daemon).values())
    while max(tick_of(id, LAYOUT) for id in at.draw()) <= copied:
        time.sleep(0.1)
    at.daemon.kill()
    restore(at, directory / "backup")


def records_lead(daemon: Daemon) -> bool:
    """Whether the newest record of each file says that ids are ahead of the wall clock."""
    newest = [obelisk.inspect(daemon.obelisk(one)).newest for one in range(daemon.coordinators)]
    return all(one is not None and one.host_ns - one.realtime_ns > HOUR_MS / 2 * 1_000_000 for one in newest)


def remove_page(at: Scene) -> None:
    """As a reboot would."""
    page_path(at.daemon).unlink()


@pytest.mark.parametrize("ahead", [False, True])
def test_the_page_saves_a_restore_in_the_same_boot(directory: Path, ahead: bool) -> None:
    """F27, F61: nobody thought of a repair; the positions stand in the page, and ids go on above them."""
    with scene(directory) as at:
        live_through_a_loss(at, directory, ahead=ahead)
        before = positions(at.daemon)
        assert max(before.values()) > max(ceilings(at.daemon).values()), "the copy is not old enough to show anything"
        at.daemon.start()
        after = positions(at.daemon)
        assert min(after.values()) >= next_ms(max(before.values()))
        new = at.draw()
        assert min(tick_of(id, LAYOUT) for id in new) >= max(before.values())
        if ahead:
            # Another wall clock would have to be believed to fall back.
            assert unix_ms(min(new)) > time.time_ns() // 1_000_000 - 60_000
        at.check_unique()


def test_a_bump_asks(directory: Path) -> None:
    """F61: without a daemon no file can tell how far the ids came; it says what it has to know, and changes nothing."""
    with scene(directory) as at:
        live_through_a_loss(at, directory, ahead=True)
        was = ceilings(at.daemon)
        said = at.bump("--all", status=RepairUnsureError.exit_status or 0)
        assert "--clock-ok says that both are true: nobody has set the wall clock back since then" in said
        assert "--above ID|TIME says: nobody has an id of this host above that" in said
        [ahead] = [int(text.split()[0]) for text in said.split("ids were ")[1:]]
        assert abs(ahead - HOUR_MS) < 60_000
        assert ceilings(at.daemon) == was


def test_clock_ok_when_the_clock_was_set_back(directory: Path) -> None:
    """F61: an answer that the files show to be false is refused."""
    with scene(directory) as at:
        at.draw()
        shutil.copytree(at.daemon.state_dir, directory / "backup")
        at.draw()
        at.daemon.kill()
        at.set_clock(-HOUR_MS)
        restore(at, directory / "backup")
        said = at.bump("--all", "--clock-ok", status=RepairUnsureError.exit_status or 0)
        assert "--clock-ok is not true" in said


@pytest.mark.parametrize("answer", ["clock-ok", "above id", "above time"])
def test_the_answers(directory: Path, answer: str) -> None:
    """F27, F61: each true answer is enough, page or not; ids go on above all that anybody has."""
    with scene(directory) as at:
        live_through_a_loss(at, directory, ahead=True)
        remove_page(at)
        # The clock was set back before the backup's newest record, so --clock-ok is true.
        newest_ms = max(unix_ms(id) for id in at.ids)
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(newest_ms // 1000 + 1)) + "Z"
        words = {
            "clock-ok": ["--clock-ok"], "above id": ["--above", str(max(at.ids))], "above time": ["--above", text]
        }[answer]  # fmt: skip
        was = ceilings(at.daemon)
        at.bump("--all", *words)
        repaired = ceilings(at.daemon)
        if answer != "clock-ok":  # which is at the clock of each repair
            bound = min(repaired.values())
            assert repaired == {one: max(bound, own) for one, own in was.items()}, "repairs in turn drive them apart"
        assert min(repaired.values()) > max(tick_of(id, LAYOUT) for id in at.ids)
        at.daemon.start()
        wait_for_time_of(at, min(repaired.values()))
        new = at.draw()
        assert min(tick_of(id, LAYOUT) for id in new) >= min(repaired.values())
        assert unix_ms(min(new)) - newest_ms < 120_000, "the repair pushed time"
        at.check_unique()


def wait_for_time_of(at: Scene, tick: int) -> None:
    """A repaired host may have to wait until its time gets to the ceiling."""
    ms = tick // LAYOUT.sequence_count
    wait_until(lambda: at.daemon.worker(0).virtual_ms >= ms, "host time reaches the repaired ceiling")


def test_eight_coordinators_bumped_in_turn(directory: Path) -> None:
    """F61, case bk2: one ceiling for all, and each accepts the others' ids; a true --clock-ok for each."""
    with scene(directory, coordinators=8) as at:
        at.draw()
        assert at.daemon.stop() == 0
        for one in range(8):
            at.bump(str(one), "--clock-ok")
        repaired = ceilings(at.daemon)
        spread_ms = (max(repaired.values()) - min(repaired.values())) // LAYOUT.sequence_count
        # Each is at the clock of its own repair: no margin is taken for evidence by the next one.
        assert max(repaired.values()) // LAYOUT.sequence_count + LAYOUT.epoch_ms <= time.time_ns() // 1_000_000 + 1
        at.daemon.start()
        assert set(positions(at.daemon).values()) == {next_ms(max(repaired.values()))}, "one ceiling for all"
        newest = max(at.draw())
        for one, key in keys_of(8).items():
            with Wire(at.daemon.own_socket(one)) as wire:
                at.ids.append(int(wire.ask("get_timestamp", key, newest)))
        assert all(worker.clock_ahead_ms == 0 for worker in at.daemon.workers())
        at.check_unique()
    print(f"spread of the repaired ceilings before the start: {spread_ms} ms")


@pytest.mark.parametrize("repaired", [0, 2])
def test_one_repaired_file_lifts_all(directory: Path, repaired: int) -> None:
    """F44, F61: the others are as old as the backup, and nobody issues below what the operator said."""
    with scene(directory) as at:
        live_through_a_loss(at, directory, ahead=False)
        remove_page(at)
        at.bump(str(repaired), "--above", str(max(at.ids)))
        at.daemon.start()
        assert min(positions(at.daemon).values()) >= next_ms(max(tick_of(id, LAYOUT) for id in at.ids) + 1)
        at.draw()
        at.check_unique()


def test_a_lost_file_made_anew_while_the_daemon_runs(directory: Path) -> None:
    """F44: the page tells exactly how far it came, so nobody is asked and no time is lost."""
    with scene(directory, window_ms=20_000) as at:
        at.draw()
        at.daemon.obelisk(1).unlink()
        os.kill(at.daemon.worker(1).pid, signal.SIGKILL)
        wait_until(lambda: "OBELISK_LOST" in at.daemon.log() or at.daemon.worker(1).state_name == "failed", "a loss")
        before = positions(at.daemon)
        said = at.bump("1", "--create")
        assert "page" in said
        assert ceilings(at.daemon)[1] >= before[1]  # its siblings may have issued for it
        at.daemon.kill()
        at.daemon.start()
        assert max(positions(at.daemon).values()) < wall_tick() + 2 * LAYOUT.sequence_count, "the page was not believed"
        at.draw()
        at.check_unique()


def test_no_repair_while_an_orphan_may_issue(directory: Path) -> None:
    """F25, F31: the supervisor is killed, a worker stands still: it may go on, so its file is not made anew."""
    with scene(directory) as at:
        at.draw()
        orphan = at.daemon.worker_pids()[2]
        os.kill(orphan, signal.SIGSTOP)
        try:
            os.kill(at.daemon.pid, signal.SIGKILL)
            at.daemon.wait()
            at.daemon.obelisk(2).unlink()
            said = at.bump("2", "--create", "--clock-ok", status=AlreadyRunningError.exit_status or 0)
            assert "outlived" in said
            assert not at.daemon.obelisk(2).exists()
        finally:
            os.kill(orphan, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{orphan}").exists(), "the orphan is gone")
        at.bump("2", "--create", "--clock-ok")
        at.daemon.start()
        at.draw()
        at.check_unique()


def test_two_daemons_on_copies(directory: Path) -> None:
    """F25, F27: on one host the second is refused, whichever of the two directories it has, and the first lives on."""
    with scene(directory) as at:
        at.draw()
        other_place = directory / "o"
        other_place.mkdir()
        shutil.copytree(at.daemon.state_dir, other_place / "state")
        other = Daemon(other_place, coordinators=at.daemon.coordinators)
        check_refused(other, AlreadyRunningError)
        at.draw()
        at.daemon.kill()
        with other:
            mine = Scene(other, at.offset, at.ids)
            mine.draw()
            check_refused(at.daemon, AlreadyRunningError)
            mine.draw()
        at.check_unique()


OWN_SHM = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs none /dev/shm && exec "$@"', "sh")


@pytest.mark.parametrize("hidden", ["unlinked", pytest.param("private", marks=pytest.mark.root)])
def test_two_daemons_on_copies_whose_page_is_out_of_sight(directory: Path, hidden: str) -> None:
    """F27: the page's name was cleaned away, or the second daemon has a /dev/shm of its own."""
    with scene(directory) as at:
        at.draw()
        other_place = directory / "o"
        other_place.mkdir()
        shutil.copytree(at.daemon.state_dir, other_place / "state")
        if hidden == "unlinked":
            page_path(at.daemon).unlink()
        prefix = OWN_SHM if hidden == "private" else ()
        other = Daemon(other_place, coordinators=at.daemon.coordinators, prefix=prefix)
        check_refused(other, AlreadyRunningError)
        at.draw()
        at.check_unique()


def test_an_orphan_holds_the_name(directory: Path) -> None:
    """F25, F27: a worker that has outlived its supervisor, and a copy of the directory, with the page's name gone."""
    with scene(directory) as at:
        at.draw()
        other_place = directory / "o"
        other_place.mkdir()
        shutil.copytree(at.daemon.state_dir, other_place / "state")
        other = Daemon(other_place, coordinators=at.daemon.coordinators)
        orphan = at.daemon.worker_pids()[1]
        os.kill(orphan, signal.SIGSTOP)
        try:
            os.kill(at.daemon.pid, signal.SIGKILL)
            at.daemon.wait()
            page_path(at.daemon).unlink()
            check_refused(other, AlreadyRunningError)
        finally:
            os.kill(orphan, signal.SIGKILL)


def test_who_asks_for_the_name_without_end(directory: Path) -> None:
    """F27, F36: a full queue would make the daemon look like a stranger."""
    with scene(directory) as at:
        name = sole.name_of(manifest.directory_id(str(at.daemon.state_dir)))
        for _ in range(3):
            with contextlib.suppress(BlockingIOError):
                for _ in range(2 * sole.BACKLOG):
                    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as asking:
                        asking.connect(name)
            id = manifest.directory_id(str(at.daemon.state_dir))
            wait_until(lambda id=id: sole.user_of(id) == os.geteuid(), "a queue with room")  # type: ignore[misc]


@pytest.mark.root
@pytest.mark.parametrize("listening", [True, False])
def test_a_stranger_with_the_directory_s_name_keeps_nobody_out(directory: Path, listening: bool) -> None:
    """F27, F36: any user may take the name of an abstract socket."""
    with scene(directory) as at:
        at.draw()
        id = manifest.directory_id(str(at.daemon.state_dir))
        assert at.daemon.stop() == 0
        squat = f"""
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
taken = socket.socket(socket.AF_UNIX)
taken.bind({sole.name_of(id)!r})
{"taken.listen(1)" if listening else ""}
print("taken", flush=True)
sys.stdin.read()
"""
        with subprocess.Popen([sys.executable, "-c", squat], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as stranger:
            assert stranger.stdout is not None
            assert stranger.stdout.readline() == b"taken\n"
            at.daemon.start()
            at.draw()
            stranger.kill()
        assert "another user holds the name" in at.daemon.log()
        at.check_unique()


@pytest.mark.parametrize("there", ["empty", "missing", "strangers"])
def test_without_a_manifest(directory: Path, there: str) -> None:
    """F60: a volume that is not mounted, or a typo, is not taken for a new host; nothing is made in it."""
    daemon = Daemon(directory)
    daemon.may_init = False
    if there != "missing":
        daemon.state_dir.mkdir()
    if there == "strangers":
        (daemon.state_dir / "lost+found").mkdir()
    check_refused(daemon, StateDirEmptyError)
    found = [path.name for path in daemon.state_dir.rglob("*")] if daemon.state_dir.exists() else []
    assert found == (["lost+found"] if there == "strangers" else [])
    assert daemon.state_dir.exists() == (there != "missing")


@pytest.mark.root
@pytest.mark.skipif(MISSING is not None, reason=f"needs {MISSING}")
def test_a_volume_that_is_not_mounted(directory: Path) -> None:
    """F60, case fs6: counters go on where they were once the volume is there again; meanwhile nothing begins at 0."""
    with loop_fs(directory) as volume:
        daemon = Daemon(directory, state_dir=volume.mount_point, coordinators=1)
        # A mount point is there already, so it must be made into a state directory by word.
        daemon.may_init = False
        assert run_init(daemon) == 0
        with daemon:
            with Wire(daemon.socket) as wire:
                assert [wire.ask("assign_offset", "p") for _ in range(3)] == [0, 1, 2]
            assert daemon.stop() == 0
            volume.unmount()
            try:
                check_refused(daemon, StateDirEmptyError)
                assert os.listdir(volume.mount_point) == []
            finally:
                volume.mount()
            daemon.start()
            with Wire(daemon.socket) as wire:
                assert wire.ask("assign_offset", "p") == 3


def run_init(daemon: Daemon) -> int:
    """`pharaohd --init`, the one explicit word."""
    command = [sys.executable, "-m", "pharaohd", "--init", "--config", str(daemon.config)]
    return subprocess.run(command, capture_output=True, check=False).returncode


def test_status_is_json(directory: Path) -> None:
    """A restored host says that all is well once it serves."""
    with scene(directory) as at:
        live_through_a_loss(at, directory, ahead=False)
        at.daemon.start()
        done = at.daemon.ctl("status", "-o", "json")
        assert done.returncode == 0
        assert json.loads(done.stdout)["status"] == "ok"
