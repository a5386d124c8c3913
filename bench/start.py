"""How long nobody is served: the daemon starts, a worker is killed."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator

from bench.context import Context
from bench.daemon import Daemon
from bench.etcd import leader_lost_ms
from bench.measure import OURS, Bar, Comparison, Sample, Series, Verifier, series, take_turns
from bench.native import BenchError
from bench.peers import Skipped
from libpharaoh._socket import Connection
from libpharaoh.errors import PharaohError

AGAIN = "ms to the next id after a kill"
DENSE = "ms to the next dense value after a kill"
RESTARTED = "ms to the first id after kill -9 of the daemon"
COUNTER = "bench"
WATCHDOG_S = 30.0
ATTEMPT_S = 0.0005
"""Between two attempts to reach a daemon that is not there yet."""


def start(context: Context) -> list[Comparison]:
    def measure() -> Sample:
        with killed_once(context) as daemon:
            first, started_ms = started_anew(daemon)
            again, again_ms = after_a_kill(daemon, "next_id", [])
            daemon.kill()
            last, restarted_ms = started_anew(daemon)
        with killed_once(context) as daemon:
            started_anew(daemon)
            offset = ask(daemon, "assign_offset", [COUNTER])
            dense, dense_ms = after_a_kill(daemon, "assign_offset", [COUNTER])
        if dense != offset + 1:
            raise BenchError(f"offset {dense} after {offset}")
        ids = Verifier().add([first, again, last])
        return Sample(started_ms, {AGAIN: again_ms, DENSE: dense_ms, RESTARTED: restarted_ms}, ids)

    taken = take_turns({OURS: measure}, context.rounds)
    started = Comparison("start", "daemon started → first id", "ms", taken, {OURS: Bar(300, True, "ms")})
    told = {
        AGAIN: ("worker killed → next id of its coordinator", 50),
        DENSE: ("worker killed → next dense value of its coordinator", 50),
        RESTARTED: ("daemon killed and started → first id", 300),
    }
    found = [
        Comparison("start", what, "ms", started.told(extra), {OURS: Bar(bar, True, "ms")})
        for extra, (what, bar) in told.items()
    ]
    try:
        found[0].series.append(leader_lost(context))
    except Skipped as why:
        context.skip(str(why))
    return [started, *found]


@contextlib.contextmanager
def killed_once(context: Context) -> Iterator[Daemon]:
    """A new one each time: a supervisor whose workers keep dying starts them ever later."""
    daemon = context.idle_daemon()
    try:
        yield daemon
    finally:
        daemon.stop()


def leader_lost(context: Context) -> Series:
    """Etcd's three members on this host, whose leader is killed."""
    rounds = range(context.rounds)
    samples = [Sample(leader_lost_ms(context.scratch / f"etcd-{number}"), {}, 2) for number in rounds]
    return series("etcd: leader killed → next put", samples)


def started_anew(daemon: Daemon) -> tuple[int, float]:
    """(first id, milliseconds from the start of the process to it)."""
    begun = time.perf_counter()
    daemon.spawn()
    id = ask(daemon, "next_id", [])
    return id, 1000 * (time.perf_counter() - begun)


def after_a_kill(daemon: Daemon, method: str, params: list[str]) -> tuple[int, float]:
    """(result, milliseconds from SIGKILL for the only worker to it)."""
    while not (workers := daemon.workers()):
        time.sleep(ATTEMPT_S)  # it served before the supervisor had noted that it does
    pidfd = os.pidfd_open(workers[0].pid)
    try:
        killed = time.perf_counter()
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [])  # until then the dying one may still answer
    finally:
        os.close(pidfd)
    result = ask(daemon, method, params)
    return result, 1000 * (time.perf_counter() - killed)


def ask(daemon: Daemon, method: str, params: list[str]) -> int:
    """The result from coordinator 0 as soon as it gives one. Raises BenchError."""
    deadline = time.monotonic() + WATCHDOG_S
    while time.monotonic() < deadline:
        if os.path.exists(daemon.endpoint(0)):
            with contextlib.suppress(PharaohError):
                connection = Connection.connect(daemon.endpoint(0), time.monotonic() + ATTEMPT_S)
                try:
                    return int(connection.request(method, params, deadline))
                finally:
                    connection.close()
        time.sleep(ATTEMPT_S)
    raise BenchError(f"no {method} from a starting daemon")
