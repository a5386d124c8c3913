"""The order of strict ids over fail-over and back, and what the host gives once it is over.

Four processes call strictly one after the other, so every two calls of a stream can be compared (M); a nemesis kills
and stops workers meanwhile. Nothing is asserted of time but that calls end: the longest wait is reported.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.support import ledger
from tests.support.daemon import Daemon, wait_until
from tests.support.host import LAYOUT, coordinator_of, impatient, pidfd_of_worker
from tests.support.load_client import load_clients
from tests.support.turns import KEYLESS, Turns, stream_now, turns

COORDINATORS = 4
BLOW_EVERY_S = 0.2
SECONDS = 12.0
SPAN_MS = 100
"""A part of the second of which full rate is asked."""


class Nemesis:
    """Kills a worker, or stops it for a while and lets it go on.

    Half of the kills are seen late: the supervisor is stopped once it has started the successor, which serves whoever
    comes to its own socket, while its siblings take it for dead and stand in.
    """

    def __init__(self, daemon: Daemon, rng: random.Random) -> None:
        self.daemon = daemon
        self.rng = rng
        self.kills = self.stops = self.blind = 0
        self._stopped: list[tuple[float, int]] = []

    def strike(self) -> None:
        self.release(time.monotonic())
        victim = self._victim()
        pidfd = pidfd_of_worker(self.daemon, victim)
        if pidfd is None:
            return
        if self.rng.random() < 0.4:
            self._stop(pidfd)
            self.stops += 1
            return
        before = self.daemon.worker(victim).restart_count
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
        self.kills += 1
        if self.rng.random() < 0.5:
            self._blind(victim, before)

    def _stop(self, pidfd: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
        self._stopped.append((time.monotonic() + self.rng.uniform(0.05, 0.4), pidfd))

    def _blind(self, victim: int, restarts: int) -> None:
        """Stops the supervisor as soon as it has started the successor, if that is soon."""
        deadline = time.monotonic() + BLOW_EVERY_S
        while self.daemon.worker(victim).restart_count == restarts:
            if time.monotonic() > deadline:
                return
        self._stop(os.pidfd_open(self.daemon.pid))
        self.blind += 1

    def _victim(self) -> int:
        """Often the owner of what is called for just now."""
        owners = [*range(self.daemon.coordinators), 0]
        now = owners[stream_now(self.daemon.coordinators)]
        return now if self.rng.random() < 0.5 else self.rng.randrange(self.daemon.coordinators)

    def release(self, until: float) -> None:
        """Lets those go on whose time has come."""
        waiting = []
        for due, pidfd in self._stopped:
            if due > until:
                waiting.append((due, pidfd))
                continue
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGCONT)
            os.close(pidfd)
        self._stopped = waiting

    def rage(self, seconds: float, at_work: Turns) -> None:
        """A blow every 0.2 s; in between those that are stopped go on when they should."""
        try:
            for _ in range(max(1, round(seconds / BLOW_EVERY_S))):
                self.strike()
                for _ in range(20):
                    time.sleep(BLOW_EVERY_S / 20)
                    self.release(time.monotonic())
                at_work.check_alive()
        finally:
            self.release(float("inf"))


def check_streams(at_work: Turns) -> tuple[int, int]:
    """M per stream and U over all. Returns how many calls, and how many stood-in ids there were."""
    calls = stood_in = 0
    streams = at_work.streams()
    for name, ledgers in streams.items():
        calls += ledger.check_real_time_order(ledgers)
        in_order = sorted((run for runs in ledgers for run in runs), key=lambda run: run.called_ns)
        assert in_order, f"nothing of {name}"
        assert all(a.returned_ns <= b.called_ns for a, b in itertools.pairwise(in_order)), "two calls at a time"
        owner = 0 if name == KEYLESS else int(name)
        servers = [coordinator_of(run.first) for run in in_order]
        stood_in += sum(server != owner for server in servers)
        changes = sum(a != b for a, b in itertools.pairwise(servers))
        print(f"{name}: {len(in_order)} calls, served by {dict(Counter(servers))}, {changes} changes")
    every = [runs for ledgers in streams.values() for runs in ledgers]
    assert ledger.check_unique(every, at_least=200) == calls
    assert {coordinator_of(run.first) for runs in every for run in runs} == set(range(at_work.coordinators))
    return calls, stood_in


def longest_waits_ms(at_work: Turns, ways: Sequence[str]) -> dict[str, float]:
    """Per way of calling: a raw request waits as long as the worker stands still that has it, the client goes on."""
    longest = dict.fromkeys(ways, 0.0)
    for ledgers in at_work.streams().values():
        for way, runs in zip(ways, ledgers, strict=True):
            for run in runs:
                longest[way] = max(longest[way], (run.returned_ns - run.called_ns) / 1e6)
    return {way: round(ms, 1) for way, ms in longest.items()}


@pytest.mark.timeout(900)
def test_order_over_fail_over(
    directory: Path, rng: random.Random, effort: float, record_property: Callable[[str, object], None]
) -> None:
    """F12, F26, F43: workers die, stand still and come back; per key and without a key the order stands."""
    daemon = Daemon(directory, coordinators=COORDINATORS, prefix=impatient(directory))
    with daemon:
        # Stand-ins below and above the owner: without a wait before, or after, the one shows it, or the other.
        callers = [(daemon.socket, "ring"), (daemon.own_socket(3), "socket")]
        callers += [(daemon.socket, "direct"), (daemon.own_socket(0), "socket")]
        with turns(directory, callers, COORDINATORS) as at_work:
            at_work.begin()
            wait_until(lambda: all(any(runs) for runs in at_work.streams().values()), "each stream has begun")
            nemesis = Nemesis(daemon, rng)
            nemesis.rage(SECONDS * effort, at_work)
            done = [len(runs) for runs in at_work.stream(KEYLESS)]
            wait_until(lambda: [len(runs) for runs in at_work.stream(KEYLESS)] > done, "it goes on afterwards")
            at_work.check_alive()
        daemon.wait_live()
        calls, stood_in = check_streams(at_work)
        assert stood_in > 0, "no fail-over was seen"
        assert nemesis.kills > 0
        assert nemesis.stops > 0
        figures = {
            "calls": calls, "stood_in": stood_in,
            "longest_waits_ms": longest_waits_ms(at_work, [way for _, way in callers]),
            "kills": nemesis.kills, "stops": nemesis.stops, "blind": nemesis.blind,
        }  # fmt: skip
        for name, value in figures.items():
            record_property(name, value)
        check_full_rate(daemon, directory)
    print(f"order over fail-over: {figures}")


# --- the id space afterwards


def per_ms(runs: Iterable[ledger.Run]) -> Counter[int]:
    """Millisecond → ids received of it."""
    counts: Counter[int] = Counter()
    for run in runs:
        for _, first, last in ledger.pieces(run, LAYOUT):
            counts[first // LAYOUT.sequence_count] += last - first + 1
    return counts


def full_spans(counts: Counter[int]) -> Iterator[float]:
    """The share of the id space that was received, for each span of host time in turn, where it is full."""
    if not counts:
        return
    at, end = min(counts) + 1, max(counts)
    while at + SPAN_MS <= end:
        share = sum(counts[ms] for ms in range(at, at + SPAN_MS)) / (SPAN_MS * LAYOUT.sequence_count)
        if share >= 0.98:
            yield share
        at += SPAN_MS if share >= 0.98 else 1


def check_full_rate(daemon: Daemon, directory: Path) -> None:
    """A second of host time, in parts, of which a ring gives all ids: what nobody was awake to take does not count."""
    place = directory / "after"
    place.mkdir()
    with load_clients(daemon.own_socket(1), place, ["ring"], batch=8192) as [client]:
        wait_until(lambda: len(list(full_spans(per_ms(client.runs())))) >= 1000 // SPAN_MS, "98 % of the id space", 60)
    ledger.check_unique([client.runs()], at_least=1000)
