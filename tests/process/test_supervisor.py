"""The supervisor as a process, with small fake workers: fake_daemon.py says what each can be made to do."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from libpharaoh.errors import (
    AlreadyRunningError,
    ConnectFailedError,
    GroupUnknownError,
    ManifestError,
    ObeliskCorruptError,
    ObeliskMissingError,
    PharaohError,
    RuntimeDirError,
    SettingsError,
    SocketPathError,
    SocketTakenError,
    StateDirError,
)
from pharaohd import hosttime
from pharaohd.stats import NO_COORDINATOR, Reader, WorkerState, WorkerStats, page_name, unlink
from tests.support.daemon import remove_host_page

ROOT = Path(__file__).parents[2]
WATCHDOG_S = 30.0


def eventually(what: Callable[[], object], said: str) -> None:
    deadline = time.monotonic() + WATCHDOG_S
    while not what():
        assert time.monotonic() < deadline, f"never came true: {said}"
        time.sleep(0.01)


class Daemon:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "pharaohd.toml"
        self.process: subprocess.Popen[bytes] | None = None
        self.log = directory / "log"
        self.umask = -1
        self.environment: dict[str, str] = {}

    def configure(self, text: str) -> None:
        self.config.write_text(text)

    def mood(self, text: str, whose: int | str | None = None) -> None:
        """whose: a coordinator or "router"; None: every worker."""
        name = "mood" if whose is None else f"mood-{whose:04d}" if isinstance(whose, int) else f"mood-{whose}"
        (self.directory / name).write_text(text)

    def launch(self) -> subprocess.Popen[bytes]:
        arguments = [sys.executable, str(ROOT / "tests/process/fake_daemon.py"), str(self.directory)]
        if self.config.exists():
            arguments.append(str(self.config))
        path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                arguments,
                env={**os.environ, "PYTHONPATH": path, **self.environment},
                stderr=log,
                umask=self.umask,
            )
        return self.process

    def start(self) -> None:
        self.launch()
        eventually(lambda: self.said("serving") or self.has_ended(), "serving")
        assert not self.has_ended(), self.log.read_text()

    def fails_with(self, error: type[PharaohError]) -> str:
        """The message, after checking the exit status and that a remedy is named."""
        assert self.launch().wait(WATCHDOG_S) == error.exit_status, self.log.read_text()
        text = self.log.read_text()
        assert f"pharaohd: {error.name}: {error.message}" in text
        assert f"remedy: {error.hint}" in text
        return text

    def said(self, event: str) -> list[dict[str, object]]:
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [entry for entry in map(json.loads, lines) if entry["event"] == event]

    def workers(self) -> list[WorkerStats]:
        with Reader(str(self.directory)) as reader:
            return reader.workers()

    def first_live(self) -> int:
        with Reader(str(self.directory)) as reader:
            return reader.daemon().first_live

    def live(self, coordinator: int = 0) -> WorkerStats:
        """The slot of a worker once it is live."""
        eventually(lambda: self.workers()[coordinator].state == WorkerState.LIVE, f"worker {coordinator} live")
        return self.workers()[coordinator]

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def has_ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def ended(self) -> int:
        assert self.process is not None
        return self.process.wait(WATCHDOG_S)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(WATCHDOG_S)

    def forget(self) -> None:
        """A killed daemon leaves its pages for its successor; here there is none."""
        self.kill()
        unlink(page_name(str(self.directory)))
        remove_host_page(self.directory / "state")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    one = Daemon(tmp_path)
    yield one
    one.forget()
    # The workers see their supervisor's end and go: leave none behind.
    eventually(lambda: not pids_with(tmp_path), "no process left")


def pids_with(directory: Path) -> list[int]:
    """The fake workers that were ever started for a directory and still run (as such: pids are reused)."""
    started = [int(line) for file in directory.glob("started-*") for line in file.read_text().split()]
    return [pid for pid in started if runs(pid)]


def runs(pid: int) -> bool:
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return title.startswith((b"pharaohd: worker", b"pharaohd: router"))


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def test_serves_and_stops_by_signal(daemon: Daemon) -> None:
    daemon.start()
    workers = daemon.workers()
    assert [worker.coordinator for worker in workers] == [0, 1, 2, 3]
    assert {worker.state_name for worker in workers} == {"live"}
    assert daemon.first_live() == 0
    assert daemon.process is not None
    assert Path(f"/proc/{daemon.process.pid}/cmdline").read_bytes().startswith(b"pharaohd: supervisor\0")
    assert Path(f"/proc/{workers[2].pid}/cmdline").read_bytes().startswith(b"pharaohd: worker 0002\0")
    for path in (daemon.directory / "rpc.sock", *(daemon.directory / "coordinators").iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert connects(path)
    daemon.signal(signal.SIGTERM)
    assert daemon.ended() == 0
    assert not (daemon.directory / "rpc.sock").exists()
    assert not list((daemon.directory / "coordinators").iterdir())
    assert not pids_with(daemon.directory)
    assert "stop" in (daemon.directory / "told-0000").read_text()
    with pytest.raises(ConnectFailedError):
        Reader(str(daemon.directory))


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_socket_mode_does_not_depend_on_umask(daemon: Daemon, umask: int) -> None:
    daemon.configure('[rpc]\nmode = "0666"\n')
    daemon.umask = umask
    daemon.start()
    assert stat.S_IMODE((daemon.directory / "rpc.sock").stat().st_mode) == 0o666
    assert stat.S_IMODE((daemon.directory / "coordinators/0003.sock").stat().st_mode) == 0o666
    assert stat.S_IMODE((daemon.directory / "coordinators").stat().st_mode) == 0o755


def test_worker_keeps_only_its_own_descriptors(daemon: Daemon) -> None:
    """F24: no worker holds a sibling's socket, or the supervisor's end of any stream."""
    daemon.start()
    os.kill(daemon.workers()[1].pid, signal.SIGKILL)
    eventually(lambda: daemon.workers()[1].restart_count == 1, "replaced")
    daemon.live(1)
    for name in ("descriptors-0003", "descriptors-0001"):
        held: dict[str, str] = json.loads((daemon.directory / name).read_text().splitlines()[-1])
        others = [target for fd, target in held.items() if int(fd) > 2]
        sockets = [target for target in others if target.startswith("socket:")]
        assert len(sockets) == 5  # rpc.sock, its own two, its stream, the directory's name
        page = hosttime.page_path(str(daemon.directory / "state"))
        assert page is not None
        # Free when the last worker has gone. A file that was made without a name is never shown under the one it got.
        locks = {f"/dev/shm/#{os.stat(page).st_ino} (deleted)", str(daemon.directory / "coordinators")}
        assert set(others) - set(sockets) == locks


def test_killed_worker_is_replaced(daemon: Daemon) -> None:
    daemon.start()
    before = daemon.workers()
    os.kill(before[0].pid, signal.SIGKILL)
    eventually(lambda: daemon.workers()[0].restart_count == 1, "replaced")
    after = daemon.live(0)
    assert after.pid != before[0].pid
    assert after.exit_code == 128 + signal.SIGKILL
    assert [worker.pid for worker in daemon.workers()[1:]] == [worker.pid for worker in before[1:]]
    assert daemon.said("worker ended")[0]["restart_in_s"] == 0
    assert connects(daemon.directory / "coordinators/0000.sock")


def test_first_live_follows_deaths(daemon: Daemon) -> None:
    daemon.start()
    assert daemon.first_live() == 0
    daemon.mood("crash", 0)
    os.kill(daemon.workers()[0].pid, signal.SIGKILL)
    eventually(lambda: daemon.first_live() == 1, "1 is the first that is live")
    daemon.mood("fatal", 1)
    os.kill(daemon.workers()[1].pid, signal.SIGKILL)
    eventually(lambda: daemon.first_live() == 2, "2 is the first that is live")
    daemon.mood("serve", 0)
    eventually(lambda: daemon.first_live() == 0, "0 is back")


def test_crash_loop_backs_off(daemon: Daemon) -> None:
    daemon.start()
    daemon.mood("crash", 2)
    os.kill(daemon.workers()[2].pid, signal.SIGKILL)
    eventually(lambda: len(daemon.said("worker ended")) >= 5, "five deaths")
    assert [end["restart_in_s"] for end in daemon.said("worker ended")][:5] == [0.0, 0.05, 0.1, 0.2, 0.4]
    daemon.mood("serve", 2)
    daemon.live(2)


def test_fatal_error_at_start_stops_everything(daemon: Daemon) -> None:
    daemon.mood("fatal", 3)
    text = daemon.fails_with(ObeliskCorruptError)
    assert "coordinator 3: both records are bad" in text
    assert not (daemon.directory / "rpc.sock").exists()
    assert (daemon.directory / "started-0003").read_text().count("\n") == 1


def test_fatal_error_later_stops_one_worker(daemon: Daemon) -> None:
    daemon.start()
    daemon.mood("fatal", 2)
    os.kill(daemon.workers()[2].pid, signal.SIGKILL)
    eventually(lambda: daemon.workers()[2].state == WorkerState.FAILED, "failed")
    time.sleep(0.5)  # longer than the first delays of a crash loop
    assert (daemon.directory / "started-0002").read_text().count("\n") == 2
    assert not (daemon.directory / "coordinators/0002.sock").exists()
    assert daemon.workers()[2].exit_code == ObeliskCorruptError.exit_status
    assert daemon.workers()[2].pid == 0
    assert daemon.first_live() == 0
    assert connects(daemon.directory / "coordinators/0001.sock")


def test_all_failed_ends_the_daemon(daemon: Daemon) -> None:
    daemon.start()
    daemon.mood("fatal")
    for worker in daemon.workers():
        os.kill(worker.pid, signal.SIGKILL)
    assert daemon.ended() == ObeliskCorruptError.exit_status
    assert "OBELISK_CORRUPT" in daemon.log.read_text()
    assert not (daemon.directory / "rpc.sock").exists()


def test_workers_end_with_a_killed_supervisor_and_a_new_one_waits_for_them(daemon: Daemon) -> None:
    """F25: orphaned workers still hold their Obelisks; the next daemon starts when the last is gone."""
    daemon.mood("slow-stop")
    daemon.start()
    orphans = [worker.pid for worker in daemon.workers()]
    daemon.kill()
    assert all(runs(pid) for pid in orphans)
    with pytest.raises(ConnectFailedError):  # the page is there, and no daemon
        Reader(str(daemon.directory))
    daemon.log.unlink()
    daemon.start()
    assert not any(runs(pid) for pid in orphans)
    assert daemon.first_live() == 0
    assert all(worker.restart_count == 0 for worker in daemon.workers())


def test_deaf_worker_is_killed_at_stop(daemon: Daemon) -> None:
    daemon.configure("[worker]\nstop_ms_max = 200\n")
    daemon.mood("deaf", 1)
    daemon.start()
    daemon.signal(signal.SIGINT)
    assert daemon.ended() == 0
    assert daemon.said("killed")[0]["children"] == ["coordinator 1"]


def test_sigquit_does_not_wait(daemon: Daemon) -> None:
    daemon.configure("[worker]\nstop_ms_max = 600000\n")
    daemon.mood("deaf")
    daemon.start()
    daemon.signal(signal.SIGQUIT)
    assert daemon.ended() == 0
    assert not (daemon.directory / "rpc.sock").exists()


def test_hanging_worker_is_replaced(daemon: Daemon) -> None:
    daemon.configure("[worker]\nhang_ms_max = 2000\n")
    daemon.mood("hang", 1)
    daemon.start()
    hanging = daemon.workers()[1].pid
    daemon.mood("serve", 1)
    eventually(lambda: daemon.workers()[1].restart_count == 1, "replaced")
    assert daemon.live(1).exit_code == 128 + signal.SIGKILL  # it ignores SIGABRT
    assert not runs(hanging)
    assert [end["coordinator"] for end in daemon.said("worker ended")] == [1]


def test_frozen_supervisor_blames_no_worker(daemon: Daemon) -> None:
    """F20: whoever did not run itself cannot tell who else did not."""
    daemon.configure("[worker]\nhang_ms_max = 2000\n")
    daemon.start()
    pids = [worker.pid for worker in daemon.workers()]
    everyone = [daemon.process.pid if daemon.process else 0, *pids]
    for pid in everyone:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(4.5)
    for pid in everyone:
        os.kill(pid, signal.SIGCONT)
    time.sleep(1.5)
    assert [worker.pid for worker in daemon.workers()] == pids


def test_reload(daemon: Daemon) -> None:
    daemon.configure("[ring]\nmax_age_ms = 10\n")
    daemon.start()
    daemon.configure('[ring]\nmax_age_ms = 20\n[obelisk]\nwindow_ms = 500\n[log]\nlevel = "debug"\n')
    daemon.signal(signal.SIGHUP)
    eventually(lambda: daemon.said("reloaded"), "reloaded")
    assert daemon.said("reloaded")[0]["changed"] == ["ring.max_age_ms", "log.level"]
    assert daemon.said("these settings need a restart")[0]["keys"] == ["obelisk.window_ms"]
    eventually(lambda: all((daemon.directory / f"told-000{n}").exists() for n in range(4)), "all told")
    told = json.loads((daemon.directory / "told-0003").read_text())
    assert told["do"] == "reload"
    assert told["settings"]["ring"] == {"max_age_ms": 20, "strict_spin_us": 50}
    with Reader(str(daemon.directory)) as reader:
        assert (reader.daemon().settings_serial, reader.daemon().reload_failures) == (1, 0)


def test_invalid_reload_changes_nothing(daemon: Daemon) -> None:
    daemon.configure("[ring]\nmax_age_ms = 10\n")
    daemon.start()
    pids = [worker.pid for worker in daemon.workers()]
    daemon.configure("[ring]\nmax_age = 20\n")
    daemon.signal(signal.SIGHUP)
    eventually(lambda: daemon.said("reload refused; the old settings stay"), "refused")
    assert "did you mean ring.max_age_ms?" in str(daemon.said("reload refused; the old settings stay")[0]["error"])
    with Reader(str(daemon.directory)) as reader:
        assert (reader.daemon().settings_serial, reader.daemon().reload_failures) == (0, 1)
    assert [worker.pid for worker in daemon.workers()] == pids
    assert not list(daemon.directory.glob("told-*"))


def test_notifies_systemd_and_hides_it_from_workers(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    address = daemon.directory / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications:
        notifications.bind(str(address))
        notifications.settimeout(WATCHDOG_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(address))
        monkeypatch.setenv("WATCHDOG_USEC", "1000000")
        daemon.start()
        assert notifications.recv(4096) == b"READY=1"
        daemon.signal(signal.SIGHUP)
        assert notifications.recv(4096).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert notifications.recv(4096) == b"READY=1"
        daemon.signal(signal.SIGTERM)
        assert notifications.recv(4096) == b"STOPPING=1"
        assert daemon.ended() == 0


def test_idle_supervisor_sleeps(daemon: Daemon) -> None:
    daemon.start()
    time.sleep(0.5)
    assert daemon.process is not None
    status = Path(f"/proc/{daemon.process.pid}/status")

    def sleeps() -> int:
        return int(status.read_text().partition("\nvoluntary_ctxt_switches:")[2].split()[0])

    before = sleeps()
    time.sleep(4)
    assert sleeps() - before <= 4


# The router


def router_starts(daemon: Daemon) -> list[int]:
    file = daemon.directory / "started-router"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def test_router_runs_beside_the_workers(daemon: Daemon) -> None:
    daemon.start()
    [pid] = router_starts(daemon)
    assert Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"pharaohd: router\0")
    assert stat.S_IMODE((daemon.directory / "private/router.sock").stat().st_mode) == 0o600
    assert [worker.coordinator for worker in daemon.workers()] == [0, 1, 2, 3]
    daemon.signal(signal.SIGTERM)
    assert daemon.ended() == 0
    assert not Path(f"/proc/{pid}").exists()


def test_router_s_socket_is_the_daemon_s_own(daemon: Daemon) -> None:
    daemon.configure('[rpc]\nmode = "0666"\n')
    daemon.start()
    assert stat.S_IMODE((daemon.directory / "private/router.sock").stat().st_mode) == 0o600


def test_killed_router_is_replaced_and_no_worker_notices(daemon: Daemon) -> None:
    daemon.start()
    pids = [worker.pid for worker in daemon.workers()]
    for deaths in (1, 2):
        os.kill(router_starts(daemon)[-1], signal.SIGKILL)
        eventually(lambda starts=deaths + 1: len(router_starts(daemon)) == starts, "replaced")  # type: ignore[misc]
    assert [end["restart_in_s"] for end in daemon.said("router ended")] == [0.0, 0.05]
    assert [worker.pid for worker in daemon.workers()] == pids
    assert daemon.first_live() == 0
    assert connects(daemon.directory / "private/router.sock")


def test_a_router_that_cannot_serve_keeps_the_daemon_from_starting(daemon: Daemon) -> None:
    daemon.mood("fatal", "router")
    assert "router: it cannot be" in daemon.fails_with(SettingsError)


def test_the_daemon_has_started_when_its_router_has(daemon: Daemon) -> None:
    daemon.mood("crash", "router")
    daemon.launch()
    eventually(lambda: len(daemon.said("router ended")) >= 3, "three deaths")
    assert {worker.state_name for worker in daemon.workers()} == {"live"}
    assert not daemon.said("serving")
    daemon.mood("serve", "router")
    eventually(lambda: daemon.said("serving"), "serving")


def test_a_router_that_fails_later_takes_no_worker_with_it(daemon: Daemon) -> None:
    daemon.start()
    daemon.mood("fatal", "router")
    os.kill(router_starts(daemon)[-1], signal.SIGKILL)
    eventually(lambda: daemon.said("router failed"), "failed")
    assert not (daemon.directory / "private/router.sock").exists()
    assert {worker.state_name for worker in daemon.workers()} == {"live"}
    daemon.signal(signal.SIGTERM)
    assert daemon.ended() == 0


def test_hanging_router_is_replaced(daemon: Daemon) -> None:
    daemon.configure("[worker]\nhang_ms_max = 2000\n")
    daemon.mood("hang", "router")
    daemon.start()
    daemon.mood("serve", "router")
    eventually(lambda: len(router_starts(daemon)) == 2, "replaced")
    time.sleep(3)  # longer than a hang may last: the new one's heart beats
    assert len(router_starts(daemon)) == 2
    assert daemon.said("router hangs")


def test_the_router_stops_after_the_workers(daemon: Daemon) -> None:
    daemon.configure("[worker]\nstop_ms_max = 300\n")
    daemon.mood("deaf", "router")
    daemon.mood("deaf", 2)
    daemon.start()
    daemon.signal(signal.SIGTERM)
    assert daemon.ended() == 0
    assert [entry["children"] for entry in daemon.said("killed")] == [["coordinator 2"], ["router"]]


def test_a_killed_supervisor_s_router_ends(daemon: Daemon) -> None:
    daemon.start()
    [pid] = router_starts(daemon)
    daemon.kill()
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "no router left")


# Refusals


def test_double_start(daemon: Daemon) -> None:
    """F25: the second is refused, and the first does not notice."""
    daemon.start()
    pids = [worker.pid for worker in daemon.workers()]
    second = Daemon(daemon.directory)
    second.log = daemon.directory / "second.log"
    text = second.fails_with(AlreadyRunningError)
    assert f"another supervisor holds {daemon.directory}" in text
    assert [worker.pid for worker in daemon.workers()] == pids
    assert connects(daemon.directory / "rpc.sock")


def test_lock_survives_a_cleaner(daemon: Daemon) -> None:
    """F25: there is no lock file to unlink; removing the socket does not let a second daemon in."""
    daemon.start()
    (daemon.directory / "rpc.sock").unlink()
    second = Daemon(daemon.directory)
    second.log = daemon.directory / "second.log"
    second.fails_with(AlreadyRunningError)


def test_socket_taken_by_a_program(daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as program:
        program.bind(str(daemon.directory / "rpc.sock"))
        program.listen()
        assert "another program listens on" in daemon.fails_with(SocketTakenError)
    daemon.start()  # now it is stale


def test_socket_taken_by_a_file(daemon: Daemon) -> None:
    (daemon.directory / "rpc.sock").write_text("precious")
    assert "is not a socket" in daemon.fails_with(SocketTakenError)
    assert (daemon.directory / "rpc.sock").read_text() == "precious"


def test_socket_path_too_long(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * (107 - len(f"{tmp_path}//coordinators/0000.sock")))
    directory.mkdir()
    assert len(f"{directory}/coordinators/0000.sock") == 107
    fits = Daemon(directory)
    fits.start()
    fits.signal(signal.SIGTERM)
    assert fits.ended() == 0
    longer = directory.with_name(directory.name + "d")
    longer.mkdir()
    assert "has 108 bytes" in Daemon(longer).fails_with(SocketPathError)


def test_unusable_state_dir(daemon: Daemon) -> None:
    (daemon.directory / "state").write_text("a file")
    assert "/state" in daemon.fails_with(StateDirError)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_private_directory_of_another_kind(daemon: Daemon, tmp_path: Path, kind: str) -> None:
    """F51: nobody else's file or directory stands in the way of what the daemon's processes say to each other."""
    private = daemon.directory / "private"
    if kind == "file":
        private.write_text("precious")
    else:
        (tmp_path / "elsewhere").mkdir()
        private.symlink_to(tmp_path / "elsewhere")
    assert "private is not a directory of this user's" in daemon.fails_with(RuntimeDirError)
    assert private.is_symlink() or private.read_text() == "precious"


def test_private_directory_is_closed_again(daemon: Daemon) -> None:
    (daemon.directory / "private").mkdir(mode=0o777)
    daemon.start()
    assert stat.S_IMODE((daemon.directory / "private").stat().st_mode) == 0o700


@pytest.mark.root
def test_unwritable_directories() -> None:
    # Not under tmp_path, whose parents are closed to other users: only what is made here is opened.
    with tempfile.TemporaryDirectory(prefix="pharaohd-") as name:
        daemon = Daemon(Path(name))
        daemon.environment["FAKE_USER"] = "65534"  # nobody
        (daemon.directory / "state").mkdir(mode=0o755)
        daemon.directory.chmod(0o777)
        assert "/state" in daemon.fails_with(StateDirError)
        daemon.directory.chmod(0o755)
        daemon.log.unlink()
        daemon.fails_with(RuntimeDirError)


def test_unknown_group(daemon: Daemon) -> None:
    daemon.configure('[rpc]\ngroup = "no-such-group"\n')
    assert "there is no group no-such-group" in daemon.fails_with(GroupUnknownError)


def test_invalid_settings(daemon: Daemon) -> None:
    daemon.configure("[cluster]\ncoordinators = 2000\n")
    assert "cluster.coordinators = 2000: permitted is 1 to 1024" in daemon.fails_with(SettingsError)


def test_missing_obelisk(daemon: Daemon) -> None:
    """F3: the file of a known coordinator is missing: refuse, never start from zero."""
    daemon.start()
    daemon.signal(signal.SIGTERM)
    assert daemon.ended() == 0
    obelisk = daemon.directory / "state/obelisks/0002.obelisk"
    obelisk.rename(obelisk.with_suffix(".moved"))
    assert "coordinator 2" in daemon.fails_with(ObeliskMissingError)
    assert not obelisk.exists()
    daemon.log.unlink()
    obelisk.with_suffix(".moved").rename(obelisk)
    (daemon.directory / "state/manifest.json").unlink()
    daemon.fails_with(ManifestError)


def test_no_live_worker_has_no_first(daemon: Daemon) -> None:
    daemon.configure("[cluster]\ncoordinators = 1\n")
    daemon.start()
    daemon.mood("crash")
    os.kill(daemon.workers()[0].pid, signal.SIGKILL)
    eventually(lambda: daemon.first_live() == NO_COORDINATOR, "none is live")
