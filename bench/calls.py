"""One call from Python: client.next_id() beside what makes unique values inside a process."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import libpharaoh
from bench.context import Context
from bench.measure import OURS, Bar, Comparison, Sample, Verifier, take_turns
from bench.peers import python_generators

CHUNK = 1000
"""Values that are kept before they are verified and dropped: few, so that memory costs every contestant the same."""
SLOW = {"sonyflake-py": 20}
"""Fewer calls, by this factor: it gives 256 ids in 10 ms, and sleeps."""


def next_id(context: Context) -> list[Comparison]:
    """Nanoseconds per call, the loop around it included, for every contestant alike."""
    daemon = context.daemon()
    peers, skipped = python_generators()
    for what in skipped:
        context.skip(what)
    chunks = 20 if context.quick else 300
    with libpharaoh.connect(daemon.socket) as client:
        contestants = {OURS: timed(client.next_id, chunks, Verifier())}
        contestants |= {name: timed(call, chunks // SLOW.get(name, 1), None) for name, call in peers.items()}
        taken = take_turns(contestants, context.rounds)
    return [Comparison("next-id", "one call in Python", "ns", taken, {"uuid_utils.uuid7": Bar(0.5, True)})]


def timed(call: Callable[[], object], chunks: int, verifier: Verifier | None) -> Callable[[], Sample]:
    def measure() -> Sample:
        total_ns, ids = 0, 0
        gc.disable()
        try:
            for _ in range(chunks):
                before = time.perf_counter_ns()
                values = [call() for _ in range(CHUNK)]
                total_ns += time.perf_counter_ns() - before
                if verifier is not None:
                    ids += verifier.add([int(str(value)) for value in values])
        finally:
            gc.enable()
        return Sample(total_ns / (chunks * CHUNK), {}, ids)

    return measure
