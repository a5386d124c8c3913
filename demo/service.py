"""The two services of the demo, each a real process tree: pharaohd and gunicorn."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from libpharaoh.errors import AlreadyRunningError, ConnectFailedError
from pharaohd.stats import Reader, WorkerState

PATIENCE_S = 20.0
POLL_S = 0.01


class DemoError(Exception):
    """The demo did not go as it must."""


def wait_for(what: str, condition: Callable[[], bool]) -> float:
    """Waits until `condition` holds; returns the milliseconds it took. Raises DemoError when it takes too long."""
    started_s = time.monotonic()
    while not condition():
        if time.monotonic() - started_s > PATIENCE_S:
            raise DemoError(f"waited {PATIENCE_S:.0f} s in vain: {what}")
        time.sleep(POLL_S)
    return (time.monotonic() - started_s) * 1000


def _end(process: subprocess.Popen[bytes]) -> int:
    """Ends a process that this module started, politely and then not; returns its exit status."""
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


class Daemon:
    """`pharaohd --dir DIRECTORY`, started, stopped and killed again and again."""

    def __init__(self, directory: Path, log: IO[bytes]) -> None:
        self.directory = directory
        self.socket_path = directory / "rpc.sock"
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._workers_seen: dict[int, int] = {}  # pid → pidfd, which never means another process (F13)

    @property
    def pid(self) -> int:
        """Of the supervisor."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> float:
        """Starts it and returns the milliseconds until every coordinator was live.

        After kill -9 of a supervisor its workers need a moment to notice; until then they hold their Obelisks (F25)
        and a start may be refused, so it is tried again, as a service manager would.
        """
        started_s = time.monotonic()
        while True:
            process = self._process = subprocess.Popen(
                [sys.executable, "-m", "pharaohd", "--dir", str(self.directory)],
                stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
            )  # fmt: skip
            wait_for("every coordinator is live", lambda: self.workers_live() or process.poll() is not None)  # noqa: B023
            if process.poll() is None:
                return (time.monotonic() - started_s) * 1000
            late = time.monotonic() - started_s > PATIENCE_S
            if process.returncode != AlreadyRunningError.exit_status or late:
                raise DemoError(f"pharaohd ended with exit status {process.returncode}")

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        assert self._process is not None
        return _end(self._process)

    def kill_supervisor(self) -> int:
        """SIGKILL; returns the pid that is gone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        return self._process.pid

    def kill_worker(self, coordinator: int) -> tuple[int, int, float]:
        """SIGKILL to a worker; returns its pid, its successor's, and the milliseconds between kill and service."""
        old = self.workers()[coordinator]
        os.kill(old, signal.SIGKILL)

        def replaced() -> bool:
            return self.workers().get(coordinator, old) != old

        duration_ms = wait_for(f"coordinator {coordinator} has a new worker", replaced)
        return old, self.workers()[coordinator], duration_ms

    def workers(self) -> dict[int, int]:
        """The pid of each live coordinator's worker; {} while no daemon runs."""
        try:
            with Reader(str(self.directory)) as page:
                workers = page.workers()
        except ConnectFailedError:
            return {}
        live = {worker.coordinator: worker.pid for worker in workers if worker.state == WorkerState.LIVE}
        for pid in live.values():
            if pid not in self._workers_seen:
                with contextlib.suppress(ProcessLookupError):
                    self._workers_seen[pid] = os.pidfd_open(pid)
        return live

    def busiest(self) -> tuple[int, int]:
        """The coordinator that serves most rings, and how many: whose death hurts most."""
        with Reader(str(self.directory)) as page:
            worker = max(page.workers(), key=lambda worker: worker.rings)
        return worker.coordinator, worker.rings

    def workers_live(self) -> bool:
        """Whether this process serves with every worker (and not one before it)."""
        try:
            with Reader(str(self.directory)) as page:
                states = [worker.state for worker in page.workers()]
                return page.daemon().supervisor_pid == self.pid and set(states) == {WorkerState.LIVE}
        except ConnectFailedError:
            return False

    def clean_up(self) -> None:
        """Leaves no process behind, whatever happened."""
        if self._process is not None:
            _end(self._process)
        for pidfd in self._workers_seen.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
        self._workers_seen.clear()


class Gunicorn:
    """`gunicorn --preload` with the order service, on a TCP port of the kernel's choice."""

    def __init__(self, daemon_socket: Path, database: Path, worker_count: int, log: IO[bytes]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        descriptor = self._listener.fileno()
        environment = {
            **os.environ,
            "PHARAOH_SOCKET": str(daemon_socket),
            "DEMO_DATABASE": str(database),
            "PYTHONUNBUFFERED": "1",
        }
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "gunicorn", "--preload", "--workers", str(worker_count), "--worker-class", "sync",
                "--bind", f"fd://{descriptor}", "--no-control-socket", "--graceful-timeout", "20",
                "demo.orders:application",
            ],
            env=environment, pass_fds=[descriptor], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
        self._worker_count = worker_count
        try:
            wait_for("gunicorn's workers run", lambda: len(self.workers()) == worker_count)
        except DemoError:
            self.stop()
            raise

    def workers(self) -> set[int]:
        """The pids of gunicorn's own workers: the master's children."""
        if self._process.poll() is not None:
            raise DemoError(f"gunicorn ended with exit status {self._process.returncode}")
        pid = self._process.pid
        return {int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}

    def recycle(self) -> float:
        """HUP: new workers are forked from the preloaded master; returns the milliseconds until the old are gone."""
        old = self.workers()
        self._process.send_signal(signal.SIGHUP)

        def recycled() -> bool:
            now = self.workers()
            return not now & old and len(now) == self._worker_count

        return wait_for("gunicorn has replaced its workers", recycled)

    def add_worker(self) -> None:
        """TTIN: the preloaded master forks one more."""
        self._worker_count += 1
        self._process.send_signal(signal.SIGTTIN)
        wait_for("gunicorn has one worker more", lambda: len(self.workers()) == self._worker_count)

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        self._listener.close()
        return _end(self._process)
