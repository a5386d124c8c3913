"""A real pharaohd for a test: started, watched, stopped, killed; all by the pids that it started itself."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Self

from libpharaoh.errors import ConnectFailedError, ProtocolViolationError, StartError
from pharaohd import cli, hosttime, manifest
from pharaohd import settings as settings_module
from pharaohd.stats import Reader, WorkerState, WorkerStats, page_name, unlink

ROOT = Path(__file__).parents[2]
WATCHDOG_S = 30.0
SERVING = '"event": "serving"'

Settings = Mapping[str, Mapping[str, object]]


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = WATCHDOG_S) -> None:
    """Returns once `condition()` is true. A watchdog, not a bound on speed."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.005)


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A directory whose name is short enough for sockets. Killed daemons' pages in memory go with it."""
    directory = Path(tempfile.mkdtemp(prefix="ph", dir="/tmp"))
    try:
        yield directory
    finally:
        for page in [page for page, state_dir in host_pages.items() if directory in state_dir.parents]:
            page.unlink(missing_ok=True)
            del host_pages[page]
        for runtime_dir in directory.rglob("run"):
            unlink(page_name(str(runtime_dir)))
        shutil.rmtree(directory, ignore_errors=True)


host_pages: dict[Path, Path] = {}
"""The pages of all daemons that were started, and their state directories, which may be gone before them."""


def remove_host_page(state_dir: Path) -> None:
    """What a killed daemon leaves in /dev/shm."""
    with contextlib.suppress(OSError):
        path = hosttime.page_path(str(state_dir))
        if path is not None:
            os.unlink(path)


class Daemon:
    """`pharaohd --config` with its sockets in `directory`/run and its state there too, or in `state_dir`.

    settings: {"section": {"key": value}}, laid over the few that make it this user's own. As a context manager it is
    started on entry, and killed on exit if it still runs. prefix: a command that executes the daemon in its own place.
    """

    def __init__(
        self,
        directory: Path,
        *,
        coordinators: int = 2,
        state_dir: Path | None = None,
        settings: Settings | None = None,
        prefix: tuple[str, ...] = (),
    ) -> None:
        self.directory = directory
        self.coordinators = coordinators
        self.state_dir = state_dir or directory / "state"
        self.runtime_dir = directory / "run"
        self.socket = str(self.runtime_dir / "rpc.sock")
        self.config = directory / "pharaohd.toml"
        self.log_path = directory / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.prefix = prefix
        self.may_init = True
        """Whether the next start may make the state directory, as an operator does once with --init."""
        self.configure(settings or {})

    def configure(self, settings: Settings) -> None:
        """Writes the settings file anew."""
        base: dict[str, dict[str, object]] = {
            "cluster": {"coordinators": self.coordinators},
            "host": {"state_dir": str(self.state_dir), "runtime_dir": str(self.runtime_dir)},
            "rpc": {"mode": "0600", "group": ""},
        }
        for section, values in settings.items():
            base.setdefault(section, {}).update(values)
        lines = []
        for section, values in base.items():
            lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
        self.config.write_text("\n".join(lines) + "\n")

    def init(self) -> subprocess.CompletedProcess[str]:
        """`pharaohd --init`: makes the state directory and exits."""
        self.may_init = False
        command = [*self.prefix, sys.executable, "-m", "pharaohd", "--config", str(self.config), "--init"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WATCHDOG_S, check=False)
        self.note_host_page()
        return done

    def spawn(self) -> subprocess.Popen[bytes]:
        """Starts it and waits for nothing. The first start makes the state directory, unless it is there."""
        if self.may_init and not self.state_dir.exists():
            cli.init(settings_module.load(self.config, None, {}))
        self.may_init = False
        self.note_host_page()
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", "pharaohd", "--config", str(self.config)],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        return self.process

    def start(self) -> None:
        """Returns once it serves: every worker is live, and the router ready. Before that any failure would stop it."""
        served = self.log().count(SERVING)
        self.spawn()
        self.wait_live()
        wait_until(lambda: self.log().count(SERVING) > served or not self.alive(), "the daemon serves")
        assert self.alive(), f"pharaohd ended: {self.log()}"

    def live(self) -> bool:
        """Whether every worker serves."""
        workers = self.workers()
        return bool(workers) and all(worker.state == WorkerState.LIVE for worker in workers)

    def wait_live(self) -> None:
        def all_live() -> bool:
            assert self.alive(), f"pharaohd ended: {self.log()}"
            return self.live()

        wait_until(all_live, "every worker live")

    def stop(self) -> int:
        """A clean stop by SIGTERM; the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(WATCHDOG_S)

    def wait(self) -> int:
        """Waits for it to end by itself; the exit status."""
        assert self.process is not None
        return self.process.wait(WATCHDOG_S)

    def kill(self) -> None:
        """SIGKILL for the supervisor and all that it has forked, and waits until they are gone."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGSTOP)  # so that it forks no more
        wait_until(lambda: stopped(self.pid), "a supervisor that stands still")
        # Itself last: a child that sees it gone stops cleanly.
        pidfds = [os.pidfd_open(pid) for pid in (*children(self.pid), self.pid)]
        for pidfd in pidfds:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        self.process.wait(WATCHDOG_S)
        for pidfd in pidfds:
            wait_until(lambda fd=pidfd: ended(fd), "killed processes gone")  # type: ignore[misc]
            os.close(pidfd)

    @property
    def pid(self) -> int:
        """The supervisor's."""
        assert self.process is not None
        return self.process.pid

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def workers(self) -> list[WorkerStats]:
        """The statistics page's rows; [] while there is no page."""
        with contextlib.suppress(ConnectFailedError, ProtocolViolationError), Reader(str(self.runtime_dir)) as page:
            return page.workers()
        return []

    def worker(self, coordinator: int) -> WorkerStats:
        return next(worker for worker in self.workers() if worker.coordinator == coordinator)

    def worker_pids(self) -> dict[int, int]:
        """The live worker processes: coordinator → pid."""
        return {worker.coordinator: worker.pid for worker in self.workers() if worker.pid}

    def own_socket(self, coordinator: int) -> str:
        """The path of a coordinator's own socket."""
        return str(self.runtime_dir / "coordinators" / f"{coordinator:04d}.sock")

    def private_socket(self, coordinator: int) -> str:
        """The path of the socket over which the daemon's other processes ask a coordinator."""
        return str(self.runtime_dir / "private" / f"{coordinator:04d}.sock")

    def note_host_page(self) -> None:
        with contextlib.suppress(OSError, AssertionError):
            host_pages[self.host_page()] = self.state_dir

    def host_page(self) -> Path:
        """What is lost when the power goes: the page in memory. The manifest has to be there."""
        path = hosttime.page_path(str(self.state_dir))
        assert path is not None
        return Path(path)

    def obelisk(self, coordinator: int) -> Path:
        return Path(manifest.obelisk_path(str(self.state_dir), coordinator))

    def journal(self, coordinator: int) -> Path:
        """The file of its dense counters."""
        return Path(manifest.counters_path(str(self.state_dir), coordinator))

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`pharaohctl` with this daemon's socket. `obelisk …` commands want `"--config", str(daemon.config)` too."""
        command = [sys.executable, "-m", "pharaohd.ctl", "--socket", self.socket, *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WATCHDOG_S, check=False)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def check_refused(daemon: Daemon, error: type[StartError]) -> None:
    """It does not start, and says why: exit status, name and remedy."""
    before = len(daemon.log())
    daemon.spawn()
    try:
        wait_until(lambda: not daemon.alive() or " serving " in daemon.log()[before:], f"{error.name} or serving")
        assert not daemon.alive(), f"it serves instead of {error.name}"
        assert daemon.wait() == error.exit_status, daemon.log()
    finally:
        daemon.kill()
    said = daemon.log()[before:]
    assert f"pharaohd: {error.name}: {error.message}" in said
    hint = re.sub(r"\bN\b", r"(N|\\d+)", re.escape(error.hint))  # N: the coordinator's number, where it is known
    assert re.search(f"remedy: {hint}", said)
    assert "Traceback" not in said


def fill(path: Path) -> None:
    """Writes to a file until its disk is full."""
    with contextlib.suppress(OSError), open(path, "ab", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def ended(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], 0)[0])


def stopped(pid: int) -> bool:
    """Stopped by a signal, or dead and not yet waited for."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "TtZX"


def children(pid: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
