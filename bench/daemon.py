"""A pharaohd for the bench, with state on a real disk, and what it costs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import libpharaoh
from bench.native import ROOT, BenchError
from libpharaoh._socket import Connection
from libpharaoh.errors import ConnectFailedError, PharaohError
from pharaohd.stats import Reader, WorkerState, WorkerStats

WATCHDOG_S = 30.0


class Daemon:
    """`pharaohd --dir DIRECTORY`, crash safety on as ever. A context manager: running inside, gone afterwards."""

    def __init__(self, directory: Path, coordinators: int = 1, settings: str = "") -> None:
        """settings: more TOML."""
        self.directory = directory
        self.socket = str(directory / "rpc.sock")
        self._config = directory.with_suffix(".toml")
        self._config.write_text(f"[cluster]\ncoordinators = {coordinators}\n{settings}")
        self._process: subprocess.Popen[bytes] | None = None

    def spawn(self) -> None:
        """Starts it and waits for nothing."""
        command = [sys.executable, "-m", "pharaohd", "--dir", str(self.directory), "--config", str(self._config)]
        with open(self.directory.with_suffix(".log"), "ab") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def __enter__(self) -> Self:
        self.spawn()
        try:
            libpharaoh.connect(self.socket, timeout=WATCHDOG_S).close()
        except PharaohError as error:
            self.stop()
            raise BenchError(f"pharaohd does not serve: {error}; see {self.directory.with_suffix('.log')}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for one that does not heed it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(WATCHDOG_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def kill(self) -> None:
        """As kill -9 of everything. Returns when the supervisor is gone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def endpoint(self, coordinator: int) -> str:
        """The socket of one coordinator."""
        return str(self.directory / "coordinators" / f"{coordinator:04d}.sock")

    def workers(self) -> list[WorkerStats]:
        """The live workers; none while there is no statistics page."""
        with contextlib.suppress(ConnectFailedError), Reader(str(self.directory)) as page:
            return [worker for worker in page.workers() if worker.state == WorkerState.LIVE]
        return []

    def processes(self) -> dict[str, int]:
        """By their titles, as `ps` shows them: supervisor, router, worker 0000 …"""
        assert self._process is not None
        own = self._process.pid
        children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
        pids = [own, *map(int, children)]
        return {Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").removeprefix("pharaohd: "): pid for pid in pids}

    def cpu_seconds(self) -> float:
        """Used so far by all threads of the live workers."""
        return sum(cpu_seconds(worker.pid) for worker in self.workers())


def cpu_seconds(pid: int) -> float:
    """Used so far by all threads of a process, as the scheduler counts it, to the nanosecond."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


class Stopwatch:
    """Seconds passed, and those that the workers computed, from its making on."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._cpu = daemon.cpu_seconds()
        self._start = time.perf_counter()

    def read(self) -> tuple[float, float]:
        """(seconds, share of a core that the workers took)."""
        seconds = time.perf_counter() - self._start
        return seconds, (self._daemon.cpu_seconds() - self._cpu) / seconds


@contextlib.contextmanager
def attached(daemon: Daemon, max_age_ms: int) -> Iterator[list[int]]:
    """A ring's descriptors (grants, client, doorbell), for another process to map; hung up at the end."""
    deadline = time.monotonic() + WATCHDOG_S
    connection = Connection.connect(daemon.socket, deadline)
    try:
        _, owned = connection.request_descriptors("attach", ["bench", max_age_ms], 3, deadline)
        descriptors = owned.detach()
        try:
            yield descriptors
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
    finally:
        connection.close()
