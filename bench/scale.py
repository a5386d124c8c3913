"""One host, more and more of everything: workers, connections, rings. What grows faster than its number shows here."""

from __future__ import annotations

import resource
import statistics
import time
from contextlib import ExitStack
from pathlib import Path

from bench import native
from bench.context import Context
from bench.daemon import Daemon, Stopwatch, attached, cpu_seconds
from bench.measure import OURS, Bar, Comparison, Sample, Verifier, take_turns
from bench.native import BenchError
from libpharaoh._socket import Connection

ID_SPACE = 8_192_000
"""Ids per second and coordinator."""
WORKERS = (1, 2, 4, 16, 64, 256, 1024)
CONNECTIONS = (1, 10, 100, 1000, 5000)
RINGS = (1, 2, 4, 16, 64, 256)
MAX_AGE_MS = 10
IDLE_S = 3.0
WATCHDOG_S = 120.0
PSS, CPU, FIRST_ID = "memory of a worker", "processor time of all while idle", "to the first id"
SHARE, FAIR = "share of the id space", "fairness: least / most that a ring got"
PER_REQUEST = "worker per request"


def scale(context: Context) -> list[Comparison]:
    """Each number in a daemon of its own; fewer rounds than elsewhere, for a thousand processes take their time."""
    rounds = min(3, context.rounds)
    found = []
    for count in WORKERS[:3] if context.quick else WORKERS:
        found += workers(context, count, rounds)
    for count in CONNECTIONS[:2] if context.quick else CONNECTIONS:
        found.append(connections(context, count, rounds))
    for count in RINGS[:3] if context.quick else RINGS:
        found += rings(context, count, rounds)
    return found


def workers(context: Context, count: int, rounds: int) -> list[Comparison]:
    def measure() -> Sample:
        daemon = context.idle_daemon(count)
        begun = time.perf_counter()
        daemon.spawn()
        try:
            wait_until_live(daemon, count)
            live_ms = 1000 * (time.perf_counter() - begun)
            verifier, ids = Verifier(), first_ids(daemon, count)
            verifier.add(sorted(ids))
            return Sample(live_ms, idle(daemon, context.seconds * IDLE_S), verifier.count)
        finally:
            daemon.stop()

    taken = take_turns({OURS: measure}, rounds)
    what = f"{count} worker{'s' if count > 1 else ''}"
    many = count == max(WORKERS)
    started = Comparison("scale", f"{what}: start → all live", "ms", taken, scale=("workers", count))
    memory = Comparison(
        "scale", f"{what}, idle: {PSS}", "MiB", started.told(PSS), {OURS: Bar(2, True, "MiB")} if many else {},
        scale=("workers", count),
    )  # fmt: skip
    cpu = Comparison(
        "scale", f"{what}, idle: {CPU}", "% of a core", started.told(CPU), {OURS: Bar(1, True, "%")} if many else {}
    )
    return [started, memory, cpu]


def wait_until_live(daemon: Daemon, count: int) -> None:
    deadline = time.monotonic() + WATCHDOG_S
    while len(daemon.workers()) < count:
        if time.monotonic() > deadline:
            raise BenchError(f"{count} workers are not live within {WATCHDOG_S:g} s")
        time.sleep(0.005)


def first_ids(daemon: Daemon, count: int) -> list[int]:
    """One from each worker."""
    ids = []
    for coordinator in range(count):
        connection = Connection.connect(daemon.endpoint(coordinator), time.monotonic() + WATCHDOG_S)
        try:
            ids.append(int(connection.request("next_id", [], time.monotonic() + WATCHDOG_S)))
        finally:
            connection.close()
    return ids


def idle(daemon: Daemon, seconds: float) -> dict[str, float]:
    """Memory of one worker in MiB (the median), and per cent of a core that all processes take."""
    time.sleep(2.0)  # what the first ids called for is done
    pids = list(daemon.processes().values())
    before = [cpu_seconds(pid) for pid in pids]
    begun = time.perf_counter()
    time.sleep(seconds)
    took = time.perf_counter() - begun
    busy = sum(cpu_seconds(pid) for pid in pids) - sum(before)
    memory = statistics.median(pss_bytes(worker.pid) for worker in daemon.workers())
    return {PSS: memory / 2**20, CPU: 100 * busy / took}


def pss_bytes(pid: int) -> int:
    """Its memory, what it shares counted in proportion."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def connections(context: Context, count: int, rounds: int) -> Comparison:
    """One request in flight on each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        daemon = context.daemon("[rpc]\nconnections_per_uid_max = 8192\n")
        verifier = Verifier()

        def measure() -> Sample:
            watch = Stopwatch(daemon)
            report = native.run("load", "pharaoh", daemon.socket, count, 1, context.seconds)
            seconds, share = watch.read()
            ids = verifier.add_range(report.first, report.last, report.ids)
            return Sample(report.per_second, {f"{PER_REQUEST}, ns": 1e9 * share * seconds / report.ids}, ids)

        taken = take_turns({OURS: measure}, rounds)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    what = f"{count} connection{'s' if count > 1 else ''}"
    return Comparison("scale", what, "requests/s", taken, scale=("connections", count))


def rings(context: Context, count: int, rounds: int) -> list[Comparison]:
    """All of one coordinator, drained by one thread."""
    daemon, verifier = context.daemon(f"[ring]\nrings_max = {4 * count}\n"), Verifier()  # a user may have half

    def measure() -> Sample:
        with ExitStack() as stack:
            descriptors = [fd for _ in range(count) for fd in stack.enter_context(attached(daemon, MAX_AGE_MS))]
            watch = Stopwatch(daemon)
            report = native.run_raw("rings", MAX_AGE_MS, context.seconds, *descriptors, descriptors=descriptors)
            _, share = watch.read()
        verifier.add_range(report["first"], report["last"], report["ids"])
        extra = {FAIR: min(report["got"]) / max(report["got"]), "worker, % of a core": 100 * share}
        return Sample(100 * report["per_second"] / ID_SPACE, extra, report["ids"])

    taken = take_turns({OURS: measure}, rounds)
    what = f"{count} ring{'s' if count > 1 else ''} on one coordinator"
    shared = Comparison("scale", f"{what}: {SHARE}", "%", taken, scale=("rings", count))
    return [shared, Comparison("scale", f"{what}: {FAIR}", "", shared.told(FAIR), scale=("rings", count))]
