"""Rounds, medians and ratios: what a comparison is made of, whatever it compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from operator import lt
from statistics import median
from typing import Any

from bench.native import BenchError

OURS = "pharaoh"


@dataclass(frozen=True, slots=True)
class Sample:
    """One contestant in one round."""

    value: float
    extra: Mapping[str, float] = field(default_factory=dict)
    """Other figures of the same round: {"worker_cpu_share": 0.05}."""
    ids: int = 0
    """Received and verified unique and rising."""
    latency_ns: Mapping[str, float] | None = None
    """{"share": nanoseconds}: so much or less in that share of all cases."""


@dataclass(frozen=True, slots=True)
class Bar:
    """What docs/operating/bench.md asks of a figure."""

    limit: float
    at_most: bool
    unit: str = "×"

    def reached(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.limit:g} {self.unit}"


def spread(values: Sequence[float]) -> float:
    """(largest - smallest) / median: what the machine's noise did to it."""
    middle = median(values)
    return (max(values) - min(values)) / middle if middle else 0.0


@dataclass(frozen=True, slots=True)
class Series:
    """One contestant over all rounds."""

    name: str
    values: list[float]
    extra: dict[str, list[float]]
    ids: int
    latency_ns: dict[str, float] | None
    """Medians over the rounds, share by share."""

    @property
    def median(self) -> float:
        return median(self.values)

    def extra_medians(self) -> dict[str, float]:
        return {name: median(values) for name, values in self.extra.items()}

    @property
    def spread(self) -> float:
        return spread(self.values)


@dataclass(slots=True)
class Comparison:
    """Contestants that took turns, round by round. The first is ours."""

    part: str
    what: str
    unit: str
    series: list[Series]
    bars: dict[str, Bar] = field(default_factory=dict)
    """Contestant → what the ratio ours / theirs has to be; under our own name, what our figure has to be."""
    extra_bars: dict[str, Bar] = field(default_factory=dict)
    """The same for entries of our `extra`."""
    connections: int = 0
    """Not 0: a point of the plot of throughput by connections."""
    scale: tuple[str, float] | None = None
    """A point of the plots of scale: what there were more and more of, and how many."""
    latency_plot: str = ""
    """Not "": the title of a plot of latencies."""

    @property
    def ours(self) -> Series:
        return self.series[0]

    def ratios(self, peer: Series) -> list[float]:
        """Ours / theirs, each from one round, so that both had the same weather."""
        return [mine / theirs for mine, theirs in zip(self.ours.values, peer.values, strict=True)]

    def told(self, extra: str) -> list[Series]:
        """The same rounds by another of their figures; their ids are not counted again."""
        return [replace(one, values=one.extra[extra], extra={}, ids=0) for one in self.series]

    def verdicts(self) -> list[Verdict]:
        """Our figure beside each peer's, and beside its bar if it has one."""
        ours, what = self.ours, f"{self.part}: {self.what}"
        found = [Verdict(what, "", ours.median, self.unit, ours.spread, self.bars.get(ours.name))]
        for name, bar in self.extra_bars.items():
            values = ours.extra[name]
            found.append(Verdict(f"{what}; {name}", "", median(values), bar.unit, spread(values), bar))
        for peer in self.series[1:]:
            ratios = self.ratios(peer)
            found.append(Verdict(what, peer.name, median(ratios), "×", spread(ratios), self.bars.get(peer.name)))
        return found

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "ratios": {peer.name: self.ratios(peer) for peer in self.series[1:]},
            "medians": {series.name: series.median for series in self.series},
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line of the table of ratios."""

    what: str
    peer: str
    value: float
    unit: str
    spread: float
    bar: Bar | None

    @property
    def reached(self) -> bool | None:
        return None if self.bar is None else self.bar.reached(self.value)


def series(name: str, samples: Sequence[Sample]) -> Series:
    """What a contestant's samples come to."""
    extra = {key: [sample.extra[key] for sample in samples] for key in samples[0].extra}
    latencies = [sample.latency_ns for sample in samples if sample.latency_ns is not None]
    latency = {share: median(one[share] for one in latencies) for share in latencies[0]} if latencies else None
    return Series(name, [sample.value for sample in samples], extra, sum(sample.ids for sample in samples), latency)


def take_turns(contestants: Mapping[str, Callable[[], Sample]], rounds: int) -> list[Series]:
    """Ours, theirs, ours, theirs …: every contestant once in each round. Raises BenchError when ours had no ids."""
    samples: dict[str, list[Sample]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, measure in contestants.items():
            samples[name].append(measure())
    found = [series(name, taken) for name, taken in samples.items()]
    if found[0].ids == 0:
        raise BenchError(f"{found[0].name}: no id was verified, so nothing was measured")
    return found


class Verifier:
    """Ids of one source over all rounds: rising within a round, and no round touches what another one received."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []
        self.count = 0

    def add(self, ids: Sequence[int]) -> int:
        """Ids in the order of their arrival; returns how many. Raises BenchError."""
        if not ids or not all(map(lt, ids, islice(ids, 1, None))):
            raise BenchError("ids do not rise, or there are none")
        return self.add_range(ids[0], ids[-1], len(ids))

    def add_range(self, first: int, last: int, count: int) -> int:
        """`count` ids that were verified elsewhere, from `first` to `last`; returns the count. Raises BenchError."""
        if count < 1 or first < 1 or last - first < count - 1:
            raise BenchError(f"{count} different ids cannot lie between {first} and {last}")
        if self._ranges and first <= self._ranges[-1][1]:
            raise BenchError(
                f"an id of an earlier round came again, or a smaller one: {first} <= {self._ranges[-1][1]}"
            )
        self._ranges.append((first, last))
        self.count += count
        return count
