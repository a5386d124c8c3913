"""Ledgers: what each client process received, in order, kept where neither its death nor a faulty disk takes it.

A ledger is a file mapped by one writer: rows of (first id, length, called at, returned at) behind the number of rows.
It survives SIGKILL of its writer at any instruction; a row counts only once the number says so. The checks are the
oracles: U (`check_unique`), M (`check_rising`, `check_real_time_order`), what C needs (`highest_ticks`), and that dense
values are so (`check_dense`): for these a row is written before the call, and its first value filled in afterwards.
"""

from __future__ import annotations

import array
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from libpharaoh.scarab import Layout

ROW_WORDS = 4
ROWS_MAX = 1 << 23
UNKNOWN = (1 << 64) - 1
"""Stands for the first value of a call that was sent and not answered: it may have taken as many as it asked for."""


class Run(NamedTuple):
    """Consecutive ids that one call returned. Times are CLOCK_MONOTONIC in ns; 0: not noted."""

    first: int
    length: int
    called_ns: int
    returned_ns: int

    @property
    def last(self) -> int:
        return self.first + self.length - 1


class Ledger:
    """The writer's side; one process, one thread."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, 8 * (1 + ROW_WORDS * ROWS_MAX))
            self._words = memoryview(mmap.mmap(descriptor, 0)).cast("Q")
        finally:
            os.close(descriptor)

    def add(self, ids: Sequence[int], called_ns: int = 0, returned_ns: int = 0) -> None:
        """Notes ids in the order in which they came."""
        for first, count in runs_of(array.array("Q", ids)):
            rows = self._words[0]
            at = 1 + ROW_WORDS * rows
            if rows and not called_ns and self._words[at - 4] + self._words[at - 3] == first:
                self._words[at - 3] += count
                continue
            assert rows < ROWS_MAX, "the ledger is full"
            self._words[at : at + ROW_WORDS] = array.array("Q", (first, count, called_ns, returned_ns))
            self._words[0] = rows + 1

    def ask(self, count: int, called_ns: int) -> None:
        """Notes a call that is about to be sent."""
        rows = self._words[0]
        assert rows < ROWS_MAX, "the ledger is full"
        at = 1 + ROW_WORDS * rows
        self._words[at : at + ROW_WORDS] = array.array("Q", (UNKNOWN, count, called_ns, 0))
        self._words[0] = rows + 1

    def answer(self, first: int, returned_ns: int) -> None:
        """Notes the answer to the last one asked."""
        at = 1 + ROW_WORDS * (self._words[0] - 1)
        self._words[at + 3] = returned_ns
        self._words[at] = first

    def withdraw(self) -> None:
        """The last one asked was refused, and took nothing."""
        self._words[0] -= 1


def runs_of(ids: array.array[int]) -> Iterator[tuple[int, int]]:
    """(first, count) of consecutive ids, in the order of `ids`; nothing is taken for granted about them."""
    if not ids:
        return
    first, count = ids[0], len(ids)
    if ids == array.array("Q", range(first, min(first + count, 1 << 64))):
        yield first, count
    else:
        yield from runs_of(ids[: count // 2])
        yield from runs_of(ids[count // 2 :])


def rows(path: str | os.PathLike[str]) -> int:
    """How many rows a ledger has; 0 for a file that is not there yet."""
    if not os.path.exists(path):
        return 0
    with open(path, "rb") as file:
        return int.from_bytes(file.read(8), "little")


def read(path: str | os.PathLike[str], start: int = 0) -> list[Run]:
    """The runs of a ledger from a row on. Its writer may still be at work, and may still lengthen the last one."""
    count = rows(path) - start
    if count <= 0:
        return []
    with open(path, "rb") as file:
        file.seek(8 * (1 + ROW_WORDS * start))
        words = array.array("Q")
        words.fromfile(file, ROW_WORDS * count)
    return list(map(Run._make, zip(*[iter(words)] * ROW_WORDS, strict=True)))


def count_of(ledgers: Iterable[Sequence[Run]]) -> int:
    """How many ids were received in all."""
    return sum(run.length for ledger in ledgers for run in ledger)


def check_unique(ledgers: Iterable[Sequence[Run]], at_least: int) -> int:
    """U: no id was received twice; and at least so many were received. Returns how many."""
    runs = sorted((run.first, run.length) for ledger in ledgers for run in ledger)
    total = 0
    end = -1
    for first, count in runs:
        assert first >= end, f"id {first} was received twice"
        end = first + count
        total += count
    assert total >= at_least, f"{total} ids received: too few to prove anything"
    return total


def check_rising(ledger: Sequence[Run]) -> None:
    """M for one client: each id is greater than all that it received before."""
    end = -1
    for run in ledger:
        assert run.first >= end, f"id {run.first} came after {end - 1}"
        end = run.first + run.length


def check_real_time_order(ledgers: Iterable[Sequence[Run]]) -> int:
    """M between clients: if call A returned before call B began, A's last < B's first. Returns the calls compared.

    Only runs with times take part. Pass runs of one coordinator (or of calls without a key) only.
    """
    timed = [run for ledger in ledgers for run in ledger if run.called_ns]
    by_return = sorted(timed, key=lambda run: run.returned_ns)
    returned = 0
    greatest = -1
    for run in sorted(timed, key=lambda run: run.called_ns):
        while by_return[returned].returned_ns < run.called_ns:
            greatest = max(greatest, by_return[returned].last)
            returned += 1
        assert run.first > greatest, f"id {run.first} was asked for after {greatest} had been returned"
    return len(timed)


def check_dense(ledgers: Iterable[Sequence[Run]], start: int, end: int) -> int:
    """One counter that began at `start` and stands at `end`: no value was received twice, and none is missing but what
    calls without an answer, sent before a later value came, may have taken. Returns how many are missing.
    """
    runs = [run for ledger in ledgers for run in ledger]
    received = sorted(run for run in runs if run.first != UNKNOWN)
    unanswered = sorted((run.called_ns, run.length) for run in runs if run.first == UNKNOWN)
    position, missing = start, 0
    for run in [*received, Run(end, 0, UNKNOWN, UNKNOWN)]:
        assert run.first >= position, f"{run.first} was received twice, or is beyond the end"
        missing += run.first - position
        if run.first > position:
            lost = sum(length for called_ns, length in unanswered if called_ns < run.returned_ns)
            assert missing <= lost, f"{missing} values up to {run.first} are missing; {lost} may be lost"
        position = run.first + run.length
    return missing


def pieces(run: Run, layout: Layout) -> Iterator[tuple[int, int, int]]:
    """(coordinator, first tick, last tick) of a run, cut where an id's coordinator changes."""
    first = run.first
    while first <= run.last:
        last = min(run.last, first | (layout.sequence_count - 1))
        coordinator = first >> layout.sequence_bits & ((1 << layout.coordinator_bits) - 1)
        yield coordinator, tick_of(first, layout), tick_of(last, layout)
        first = last + 1


def tick_of(id: int, layout: Layout) -> int:
    """The id without its coordinator: what ceilings are counted in."""
    milliseconds = id >> (layout.coordinator_bits + layout.sequence_bits)
    return milliseconds << layout.sequence_bits | id & (layout.sequence_count - 1)


def highest_ticks(ledgers: Iterable[Sequence[Run]], layout: Layout) -> dict[int, int]:
    """For C: coordinator → the highest tick received."""
    highest: dict[int, int] = {}
    for ledger in ledgers:
        for run in ledger:
            for coordinator, _, last in pieces(run, layout):
                highest[coordinator] = max(highest.get(coordinator, -1), last)
    return highest
