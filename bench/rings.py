"""Shared memory: pops and batches from one ring, and strict requests."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from operator import itemgetter

import libpharaoh
from bench import native
from bench.context import Context
from bench.daemon import Stopwatch, attached
from bench.measure import OURS, Bar, Comparison, Sample, Verifier, take_turns
from bench.peers import Skipped, module

MAX_AGE_MS = 10
"""The daemon's default."""
BATCH = 10_000
SHARES = ("0", "0.01", "0.05", "0.1", "0.25", "0.5", "0.75", "0.9", "0.95", "0.99", "0.999", "0.9999", "0.99999", "1")
PERCENT = "% of the id space"
CPU = "worker's share of a core"
CLIENT_CPU = "client's share of a core"
POP = "one pop, ns"
CPU_BAR = {CPU: Bar(10, True, "%")}
P50, P99 = itemgetter("0.5"), itemgetter("0.99")


def share_of_space(ids_per_second: float) -> float:
    """In percent of what the default layout has for one coordinator."""
    ids_per_ms = 1 << libpharaoh.Layout().sequence_bits
    return ids_per_second / (10 * ids_per_ms)


def ring_c(context: Context) -> list[Comparison]:
    """One ring, popped from C as fast as it is filled."""
    daemon, verifier = context.daemon(), Verifier()

    def measure() -> Sample:
        with attached(daemon, MAX_AGE_MS) as ring:
            watch = Stopwatch(daemon)
            report = native.run("ring", "pop", *ring, MAX_AGE_MS, context.seconds, descriptors=ring)
            _, cpu = watch.read()
        verifier.add_range(report.first, report.last, report.ids)
        assert report.pop_ps is not None
        pop_ns = {share: ps / 1000 for share, ps in report.pop_ps.items()}
        extra = {CPU: 100 * cpu, CLIENT_CPU: 100 * report.cpu_share, POP: P50(pop_ns)}
        return Sample(share_of_space(report.per_second), extra, report.ids, pop_ns)

    ids = Comparison("ring-c", "ids from one ring", PERCENT, take_turns({OURS: measure}, context.rounds))
    ids.bars, ids.extra_bars = {OURS: Bar(98, False, PERCENT)}, CPU_BAR
    pop = Comparison("ring-c", "one pop, checked", "ns", ids.told(POP), {OURS: Bar(8, True, "ns")})
    pop.latency_plot = "ring-c: one pop, mean of a run of them"
    return [ids, pop]


def next_ids(context: Context) -> list[Comparison]:
    """Batches from Python as fast as they come."""
    daemon, verifier = context.daemon(), Verifier()
    with libpharaoh.connect(daemon.socket) as client:

        def measure() -> Sample:
            batches: list[array[int]] = []
            client.next_ids(BATCH)
            watch = Stopwatch(daemon)
            end = time.perf_counter() + context.seconds
            while time.perf_counter() < end:
                batches.append(client.next_ids(BATCH))
            seconds, cpu = watch.read()
            ids = array("Q")
            for batch in batches:
                ids.extend(batch)
            return Sample(share_of_space(len(ids) / seconds), {CPU: 100 * cpu}, verifier.add(ids))

        taken = take_turns({OURS: measure}, context.rounds)
    what = f"batches of {BATCH:,}"
    return [Comparison("next-ids", what, PERCENT, taken, {OURS: Bar(98, False, PERCENT)}, CPU_BAR)]


def quantiles(durations_ns: list[int]) -> dict[str, float]:
    """{"share": nanoseconds}, as bench.h prints them."""
    ordered = sorted(durations_ns)
    return {share: float(ordered[int(float(share) * (len(ordered) - 1))]) for share in SHARES}


def strict(context: Context) -> list[Comparison]:
    """A timestamp that is asked for and issued now: one after the other, the worker awake."""
    return [*strict_c(context), *strict_python(context)]


def strict_c(context: Context) -> list[Comparison]:
    daemon, verifier, redis = context.daemon(), Verifier(), context.redis(durable=False)

    def ours() -> Sample:
        with attached(daemon, MAX_AGE_MS) as ring:
            report = native.run("ring", "strict", *ring, MAX_AGE_MS, context.seconds, descriptors=ring)
        return latency_sample(report, verifier)

    contestants: dict[str, Callable[[], Sample]] = {OURS: ours}
    if redis is not None:
        peer, values = redis, Verifier()
        contestants["Redis INCR"] = lambda: latency_sample(
            native.run("load", "redis", peer.socket, 1, 1, context.seconds), values
        )
    bars = {OURS: Bar(1500, True, "ns"), "Redis INCR": Bar(0.2, True)}
    taken = take_turns(contestants, context.rounds)
    return [Comparison("strict", "one timestamp, C, p50", "ns", taken, bars, latency_plot="strict: one timestamp, C")]


def latency_sample(report: native.Report, verifier: Verifier) -> Sample:
    assert report.latency_ns is not None
    extra = {"p99, ns": P99(report.latency_ns), "per second": report.per_second}
    ids = verifier.add_range(report.first, report.last, report.ids)
    return Sample(P50(report.latency_ns), extra, ids, report.latency_ns)


def strict_python(context: Context) -> list[Comparison]:
    daemon, redis = context.daemon(), context.redis(durable=False)
    calls: dict[str, Callable[[], int]] = {}
    with libpharaoh.connect(daemon.socket) as client:
        calls[OURS] = client.get_timestamp
        if redis is not None:
            try:
                connection = module("redis").Redis(unix_socket_path=redis.socket)
                calls["redis-py INCR"] = lambda: int(connection.incr("python"))
            except Skipped as why:
                context.skip(str(why))
        contestants = {name: timed(call, context.seconds) for name, call in calls.items()}
        taken = take_turns(contestants, context.rounds)
    plot = "strict: one timestamp, Python"
    return [Comparison("strict", "one timestamp, Python, p50", "ns", taken, latency_plot=plot)]


def timed(call: Callable[[], int], seconds: float) -> Callable[[], Sample]:
    """Measures single calls that return rising values."""
    verifier = Verifier()

    def measure() -> Sample:
        ids, durations = array("Q"), []
        clock = time.perf_counter_ns
        before = clock()
        end = before + int(seconds * 1e9)
        while before < end:
            id = call()
            after = clock()
            durations.append(after - before)
            ids.append(id)
            before = clock()
        found = quantiles(durations)
        return Sample(P50(found), {"p99, ns": P99(found)}, verifier.add(ids), found)

    return measure
