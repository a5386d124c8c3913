"""What issuing costs the worker: processor time by rate, and syncs by the window that is reserved ahead."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import libpharaoh
from bench import native
from bench.context import Context
from bench.daemon import Daemon, Stopwatch, attached
from bench.measure import OURS, Comparison, Sample, Verifier, take_turns
from bench.native import BenchError

RING_RATES = (10_000, 100_000, 1_000_000, 4_000_000, 8_000_000)
SOCKET_RATES = (1_000, 10_000)
WINDOWS_MS = (100, 250, 500, 1000, 2000, 5000)
TURN_S = 0.001
MAX_AGE_MS = 10
SHARE = "worker, % of a core"
SYNCS, STRICT = "syncs per second", "strict p99 meanwhile, µs"


def cpu(context: Context) -> list[Comparison]:
    """A client that takes so many ids a second: what share of a core the worker needs for it."""
    daemon, found = context.daemon(), []
    for kind, rates, rings in (("ring", RING_RATES, True), ("socket", SOCKET_RATES, False)):
        with libpharaoh.connect(daemon.socket, rings=rings) as client:
            verifier = Verifier()
            for rate in rates:
                measure = paced(daemon, client, rate, rings, context.seconds, verifier)
                taken = take_turns({OURS: measure}, min(5, context.rounds))
                what = f"{kind} at {rate:,} ids/s: {SHARE}, {kind}"
                found.append(Comparison("cpu", what, "%", taken, scale=("ids per second", rate)))
    return found


def paced(
    daemon: Daemon, client: libpharaoh.Client, rate: int, rings: bool, seconds: float, verifier: Verifier
) -> Callable[[], Sample]:
    """In turns of a millisecond: a batch out of the ring, or one request after the other."""

    def measure() -> Sample:
        ids: list[int] = []
        client.next_id()
        watch, begun, turns = Stopwatch(daemon), time.perf_counter(), int(seconds / TURN_S)
        for turn in range(turns):
            wanted = int(rate * TURN_S * (turn + 1)) - len(ids)
            ids += client.next_ids(wanted) if rings and wanted else [client.next_id() for _ in range(wanted)]
            time.sleep(max(0.0, begun + (turn + 1) * TURN_S - time.perf_counter()))
        took, share = watch.read()
        return Sample(100 * share, {"ids per second": len(ids) / took}, verifier.add(ids))

    return measure


def window(context: Context) -> list[Comparison]:
    """How far ahead the ceiling is reserved: few syncs beside what a crash burns, with a ring drained at full rate."""
    found = []
    for window_ms in WINDOWS_MS[:2] if context.quick else WINDOWS_MS:
        seconds = max(context.seconds, 3 * window_ms / 1000)  # else there would be no sync to count
        daemon = context.daemon(f"[obelisk]\nwindow_ms = {window_ms}\n")
        taken = take_turns({OURS: drained(daemon, seconds)}, min(2, context.rounds))
        at, scale = f"window of {window_ms} ms", ("window, ms", window_ms)
        rate = Comparison("window", f"{at}: share of the id space", "%", taken, scale=scale)
        found.append(rate)
        for extra, unit in ((SYNCS, "1/s"), (STRICT, "µs"), (SHARE, "%")):
            found.append(Comparison("window", f"{at}: {extra}", unit, rate.told(extra), scale=scale))
    return found


def drained(daemon: Daemon, seconds: float) -> Callable[[], Sample]:
    pops, stamps = Verifier(), Verifier()

    def measure() -> Sample:
        with attached(daemon, MAX_AGE_MS) as ring, timed_strict(daemon, stamps) as durations:
            before, watch = syncs(daemon), Stopwatch(daemon)
            report = native.run("ring", "pop", *ring, MAX_AGE_MS, seconds, descriptors=ring)
            took, share = watch.read()
            after = syncs(daemon)
        durations.sort()
        extra = {
            SYNCS: (after - before) / took,
            STRICT: durations[int(0.99 * (len(durations) - 1))] / 1000,
            SHARE: 100 * share,
        }
        ids = pops.add_range(report.first, report.last, report.ids)
        return Sample(report.per_second / 81920, extra, ids)

    return measure


def syncs(daemon: Daemon) -> int:
    """Of the Obelisk, so far."""
    with libpharaoh.connect(daemon.socket, rings=False) as client:
        return int(client.stats()["syncs"])


@contextmanager
def timed_strict(daemon: Daemon, verifier: Verifier) -> Iterator[list[int]]:
    """A client that asks for a timestamp each millisecond; how many nanoseconds each took."""
    durations: list[int] = []
    ids: list[int] = []
    over = threading.Event()

    def ask() -> None:
        with libpharaoh.connect(daemon.socket) as client:
            while not over.wait(0.001):
                begun = time.perf_counter_ns()
                ids.append(client.get_timestamp())
                durations.append(time.perf_counter_ns() - begun)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield durations
    finally:
        over.set()
        thread.join()
    if not durations:
        raise BenchError("no timestamp came meanwhile")
    verifier.add(ids)
