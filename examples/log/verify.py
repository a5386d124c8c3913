"""What must hold in a log that nobody writes to at the moment."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from examples.log.files import Batch, Log, State, existing


def findings(log: Log) -> Iterator[str]:
    """A line for everything that is wrong."""
    placed: dict[tuple[str, int], Batch] = {}
    ends = []
    for partition, files in enumerate(log.partitions):
        end = 0
        numbers: dict[str, int] = {}
        for offset in files.numbers():
            batch = existing(files, offset)
            if offset != end:
                yield f"partition {partition}: a batch at {offset}, the one before it ends at {end}"
            if batch.partition != partition or (batch.producer, batch.number) in placed:
                yield f"partition {partition}: the batch at {offset} does not belong there, or is there twice"
            if batch.number <= numbers.get(batch.producer, 0):
                yield f"partition {partition}: the batch at {offset} comes after a later one of {batch.producer}"
            numbers[batch.producer] = batch.number
            placed[batch.producer, batch.number] = batch
            end = offset + len(batch.payloads)
        ends.append(end)
    for producer in log.producers():
        yield from in_journal(log, producer, placed)
    yield from (f"{producer}: batch {number} is not in its journal" for producer, number in placed)
    for group in log.groups():
        yield from in_group(log, group, ends)


def in_journal(log: Log, producer: str, placed: dict[tuple[str, int], Batch]) -> Iterator[str]:
    """Takes the journal's batches out of `placed`."""
    files = log.journal(producer)
    numbers = files.numbers()
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"{producer}: its journal has a gap"
    entries = [existing(files, number) for number in numbers]
    for before, entry in pairwise([Batch(producer, 0, 0, 0, 0, []), *entries]):
        if entry.position != before.position + len(entry.payloads):
            yield f"{producer}: batch {entry.number} does not follow the one before it"
        if entry.session < before.session or (entry.session == before.session) == (not entry.payloads):
            yield f"{producer}: batch {entry.number} is not of the session that had begun"
    unplaced = [entry for entry in entries if entry.payloads and placed.pop((producer, entry.number), None) != entry]
    if unplaced and unplaced != [log.newest(producer)]:
        yield f"{producer}: batches without an offset: {[entry.number for entry in unplaced]}"


def in_group(log: Log, group: str, ends: list[int]) -> Iterator[str]:
    files = log.group(group)
    numbers = files.numbers()
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"group {group}: a gap in its states"
    states = [State(0, {}, 0, [0] * len(ends)), *(existing(files, number) for number in numbers)]
    for before, state in pairwise(states):
        if state.generation < before.generation:
            yield f"group {group}: generation {state.generation} after {before.generation}"
        if state.generation != before.generation and state.committed != before.committed:
            yield f"group {group}: generation {state.generation} began with other offsets than the one before it had"
        if state.generation == before.generation and state.members != before.members:
            yield f"group {group}: the members of generation {state.generation} changed"
        if any(new < old for old, new in zip(before.committed, state.committed, strict=True)):
            yield f"group {group}: offsets went back in generation {state.generation}"
    if any(offset > end for offset, end in zip(states[-1].committed, ends, strict=True)):
        yield f"group {group}: offsets beyond the end"
