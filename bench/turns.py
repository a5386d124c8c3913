"""One client that asks for different things in turn, beside the same calls each alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle

import libpharaoh
from bench.context import Context
from bench.measure import OURS, Bar, Comparison, Sample, Verifier, take_turns

ALONE = "the sum of each alone"
COORDINATORS = 8
BAR = {ALONE: Bar(1.2, True)}

Call = Callable[[], int]


def turns(context: Context) -> list[Comparison]:
    """One client with rings: what a call costs may not depend on the call before it."""
    daemon = context.daemon(coordinators=COORDINATORS)
    with libpharaoh.connect(daemon.socket) as client:
        sets = {
            "timestamps of two keys": keyed(client, 2),
            "timestamps of six keys": keyed(client, 6),
            "next_id and next_event_id": [client.next_id, lambda: client.next_event_id("orders")],
        }
        return [in_turn(what, calls, context) for what, calls in sets.items()]


def keyed(client: libpharaoh.Client, count: int) -> list[Call]:
    """Timestamps of so many keys, each of another coordinator."""
    keys = {client.route(key)["coordinator"]: key for key in (f"key {number}" for number in range(200))}
    return [lambda key=key: client.get_timestamp(key) for key in list(keys.values())[:count]]  # type: ignore[misc]


def in_turn(what: str, calls: Sequence[Call], context: Context) -> Comparison:
    verifier = Verifier()

    def together() -> Sample:
        return timed(cycle(calls), len(calls), context.seconds, verifier)

    def alone() -> Sample:
        spent = [timed(cycle([call]), 1, context.seconds / len(calls), None) for call in calls]
        return Sample(sum(sample.value for sample in spent))

    taken = take_turns({OURS: together, ALONE: alone}, context.rounds)
    return Comparison("turns", f"{what} in turn, one turn of all", "ns", taken, BAR)


def timed(calls: Iterator[Call], each: int, seconds: float, verifier: Verifier | None) -> Sample:
    """Nanoseconds that `each` calls one after the other take."""
    ids = []
    begun = now = time.perf_counter()
    while now - begun < seconds:
        ids += [next(calls)() for _ in range(100 * each)]
        now = time.perf_counter()
    count = 0 if verifier is None else verifier.add(sorted(ids))
    return Sample(1e9 * (now - begun) * each / len(ids), {}, count)
