"""The Unix socket, from a load generator in C that treats both sides alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Protocol

from bench import native
from bench.context import Context
from bench.measure import OURS, Bar, Comparison, Sample, Verifier, take_turns

REDIS, REDIS_DURABLE = "Redis INCR, no persistence", "Redis INCR, appendfsync always"
BARE = "a server that only answers"
MANY = 50
IN_FLIGHT = 16
# Bars of throughput: (connections, in flight) → peer → bar.
BARS: Mapping[tuple[int, int], dict[str, Bar]] = {
    (MANY, 1): {BARE: Bar(0.93, False)},
    (MANY, IN_FLIGHT): {BARE: Bar(0.88, False), REDIS_DURABLE: Bar(6, False)},
}
P50, P99, P999 = itemgetter("0.5"), itemgetter("0.99"), itemgetter("0.999")


def socket(context: Context) -> list[Comparison]:
    """The round trip of one connection; throughput by connections; and with many requests in flight."""
    daemon = context.daemon()
    peers = {REDIS: context.redis(durable=False), REDIS_DURABLE: context.redis(durable=True)}
    bare = context.bare()
    verifiers = {name: Verifier() for name in (OURS, BARE, *peers)}
    found = []
    for connections, in_flight in shapes(context):
        contestants = {OURS: loaded("pharaoh", daemon, connections, in_flight, context, verifiers[OURS])}
        contestants[BARE] = loaded("pharaoh", bare, connections, in_flight, context, verifiers[BARE])
        for name, peer in peers.items():
            if peer is not None:
                contestants[name] = loaded("redis", peer, connections, in_flight, context, verifiers[name])
        taken = take_turns(contestants, context.rounds)
        what = f"{connections} connection{'s' if connections > 1 else ''}"
        if in_flight > 1:
            what += f" × {in_flight} in flight"
        bars = dict(BARS.get((connections, in_flight), {}))
        throughput = Comparison("socket", what, "requests/s", taken, bars, latency_plot=f"socket: {what}")
        if in_flight == 1:
            throughput.connections = connections
        found.append(throughput)
        if (connections, in_flight) == (1, 1):
            found.append(round_trip(throughput))
    return found


def shapes(context: Context) -> list[tuple[int, int]]:
    """(connections, requests in flight on each)."""
    if context.quick:
        return [(1, 1), (MANY, 1), (MANY, IN_FLIGHT)]
    return [(1, 1), (4, 1), (16, 1), (MANY, 1), (200, 1), (MANY, IN_FLIGHT)]


class Server(Protocol):
    """What the load generator can ask."""

    socket: str


def loaded(
    protocol: str, server: Server, connections: int, in_flight: int, context: Context, verifier: Verifier
) -> Callable[[], Sample]:
    def measure() -> Sample:
        report = native.run("load", protocol, server.socket, connections, in_flight, context.seconds)
        ids = verifier.add_range(report.first, report.last, report.ids)
        assert report.latency_ns is not None
        extra = {f"{name}, µs": pick(report.latency_ns) / 1000 for name, pick in PERCENTILES.items()}
        return Sample(report.per_second, extra, ids, report.latency_ns)

    return measure


PERCENTILES = {"p50": P50, "p99": P99, "p99.9": P999}


def round_trip(throughput: Comparison) -> Comparison:
    """The same rounds of one connection, told as the time that half the requests took at most."""
    return Comparison("socket", "round trip, p50", "µs", throughput.told("p50, µs"), {REDIS: Bar(0.5, True)})
