"""How long nobody is served: the daemon starts, a worker is killed."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time

from bench.context import Context
from bench.daemon import Daemon
from bench.etcd import leader_lost_ms
from bench.measure import OURS, Bar, Comparison, Sample, Series, Verifier, series, take_turns
from bench.native import BenchError
from bench.peers import Skipped
from libpharaoh._socket import Connection
from libpharaoh.errors import PharaohError

AGAIN = "ms to the next id after a kill"
WATCHDOG_S = 30.0
ATTEMPT_S = 0.0005
"""Between two attempts to reach a daemon that is not there yet."""


def start(context: Context) -> list[Comparison]:
    """Each from a new daemon, since one whose workers keep dying starts them ever later."""

    def measure() -> Sample:
        daemon = context.idle_daemon()
        begun = time.perf_counter()
        daemon.spawn()
        try:
            first = next_id(daemon)
            started_ms = 1000 * (time.perf_counter() - begun)
            again_ms = kill(daemon, first)
        finally:
            daemon.stop()
        return Sample(started_ms, {AGAIN: again_ms}, 2)

    taken = take_turns({OURS: measure}, context.rounds)
    started = Comparison("start", "daemon started → first id", "ms", taken, {OURS: Bar(300, True, "ms")})
    what = "worker killed → next id of its coordinator"
    again = Comparison("start", what, "ms", started.told(AGAIN), {OURS: Bar(50, True, "ms")})
    try:
        again.series.append(leader_lost(context))
    except Skipped as why:
        context.skip(str(why))
    return [started, again]


def leader_lost(context: Context) -> Series:
    """Etcd's three members on this host, whose leader is killed."""
    rounds = range(context.rounds)
    samples = [Sample(leader_lost_ms(context.scratch / f"etcd-{number}"), {}, 2) for number in rounds]
    return series("etcd: leader killed → next put", samples)


def kill(daemon: Daemon, before: int) -> float:
    """Milliseconds from SIGKILL for the only worker to an id, which has to be greater than the one `before`."""
    while not (workers := daemon.workers()):
        time.sleep(ATTEMPT_S)  # it served before the supervisor had noted that it does
    pidfd = os.pidfd_open(workers[0].pid)
    try:
        killed = time.perf_counter()
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [])  # until then the dying one may still answer
    finally:
        os.close(pidfd)
    id = next_id(daemon)
    took_ms = 1000 * (time.perf_counter() - killed)
    Verifier().add([before, id])
    return took_ms


def next_id(daemon: Daemon) -> int:
    """An id from coordinator 0 as soon as it gives one. Raises BenchError."""
    deadline = time.monotonic() + WATCHDOG_S
    while time.monotonic() < deadline:
        if os.path.exists(daemon.endpoint(0)):
            with contextlib.suppress(PharaohError):
                connection = Connection.connect(daemon.endpoint(0), time.monotonic() + ATTEMPT_S)
                try:
                    return int(connection.request("next_id", [], deadline))
                finally:
                    connection.close()
        time.sleep(ATTEMPT_S)
    raise BenchError("no id from a starting daemon")
