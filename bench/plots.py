"""The plots of a run: ratios beside their bars, throughput by connections, latencies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.measure import Bar, Comparison, Verdict
from bench.peers import module
from bench.report import number

SCALE = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)


def draw(comparisons: Sequence[Comparison], directory: Path) -> list[Path]:
    """Writes PNG files; returns those that there was something to draw for. Raises Skipped without matplotlib."""
    module("matplotlib").use("Agg")
    pyplot = module("matplotlib.pyplot")
    drawings = {"ratios": ratios, "throughput": throughput, "latency": latencies, "scale": scales}
    paths = []
    for name, drawing in drawings.items():
        figure = drawing(pyplot, comparisons)
        if figure is not None:
            path = directory / f"{name}.png"
            figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
            pyplot.close(figure)
            paths.append(path)
    return paths


def progress(bar: Bar, value: float) -> float:
    """How far a figure is: 1 at the bar, more beyond it, whichever direction is the good one."""
    if bar.at_most:
        return bar.limit / value if value else float("inf")
    return value / bar.limit


def ratios(pyplot: Any, comparisons: Sequence[Comparison]) -> Any:
    """How far each figure is, in bars: right of the line is reached."""
    judged: list[tuple[Verdict, Bar]] = [
        (verdict, verdict.bar)
        for comparison in comparisons
        for verdict in comparison.verdicts()
        if verdict.bar is not None
    ]
    if not judged:
        return None
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.45 * len(judged)))
    names = [f"{one.what}{' / ' + one.peer if one.peer else ''}  ({bar})" for one, bar in judged]
    lengths = [progress(bar, one.value) for one, bar in judged]
    colours = ["tab:green" if one.reached else "tab:red" for one, _ in judged]
    axes.barh(names, lengths, color=colours)
    for row, (one, _) in enumerate(judged):
        axes.text(lengths[row], row, f" {number(one.value)} {one.unit}", va="center", fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    low, high = 0.7 * min(1, *lengths), 2 * max(1, *lengths)
    axes.set_xlim(low, high)
    ticks = [tick for tick in SCALE if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.invert_yaxis()
    axes.set_xlabel("figure beside its bar (1 = the bar; to the right is better)")
    return figure


def throughput(pyplot: Any, comparisons: Sequence[Comparison]) -> Any:
    group = [comparison for comparison in comparisons if comparison.connections]
    if not group:
        return None
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for name in [series.name for series in group[0].series]:
        points = [(one.connections, series) for one in group for series in one.series if series.name == name]
        middles = [series.median for _, series in points]
        below = [series.median - min(series.values) for _, series in points]
        above = [max(series.values) - series.median for _, series in points]
        axes.errorbar([at for at, _ in points], middles, yerr=[below, above], marker="o", capsize=3, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks([one.connections for one in group], [f"{one.connections}" for one in group])
    axes.minorticks_off()
    axes.set_xlabel("connections, one request in flight on each")
    axes.set_ylabel("requests per second (median, all rounds)")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def grid_of(pyplot: Any, count: int) -> tuple[Any, list[Any]]:
    """A figure of so many panels, three in a row."""
    columns = min(3, count)
    rows = -(-count // columns)
    figure, grid = pyplot.subplots(rows, columns, figsize=(5 * columns, 3.6 * rows), squeeze=False)
    for axes in grid.flat[count:]:
        axes.axis("off")
    return figure, list(grid.flat[:count])


def latencies(pyplot: Any, comparisons: Sequence[Comparison]) -> Any:
    """Latency over the share of slower cases, both on log axes: 0.01 is p99."""
    timed = [one for one in comparisons if one.latency_plot]
    if not timed:
        return None
    figure, panels = grid_of(pyplot, len(timed))
    for axes, comparison in zip(panels, timed, strict=True):
        for series in comparison.series:
            points = {1 - float(share): ns / 1000 for share, ns in (series.latency_ns or {}).items() if share != "1"}
            axes.plot(points.keys(), points.values(), marker=".", label=series.name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.invert_xaxis()
        axes.set_title(comparison.latency_plot, fontsize=9)
        axes.set_xlabel("share of slower cases", fontsize=8)
        axes.set_ylabel("µs", fontsize=8)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.tight_layout()
    return figure


def scales(pyplot: Any, comparisons: Sequence[Comparison]) -> Any:
    """Figures by how many workers, connections, rings … there are: one plot for each kind of figure."""
    groups: dict[tuple[str, str, str], list[tuple[float, Comparison]]] = {}
    for one in comparisons:
        if one.scale:
            kind = one.what.split(": ")[-1] if ": " in one.what else "rate"
            groups.setdefault((one.scale[0], kind, one.unit), []).append((one.scale[1], one))
    if not groups:
        return None
    figure, panels = grid_of(pyplot, len(groups))
    for axes, ((by, kind, unit), points) in zip(panels, groups.items(), strict=True):
        middles = [one.ours.median for _, one in points]
        below = [one.ours.median - min(one.ours.values) for _, one in points]
        above = [max(one.ours.values) - one.ours.median for _, one in points]
        axes.errorbar([at for at, _ in points], middles, yerr=[below, above], marker="o", capsize=3)
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_title(f"{kind}", fontsize=9)
        axes.set_xlabel(by, fontsize=8)
        axes.set_ylabel(unit, fontsize=8)
        axes.grid(alpha=0.3)
    figure.tight_layout()
    return figure


def soak(memory_kb: Mapping[str, Sequence[int]], clients: Mapping[str, Any], seconds: float, path: Path) -> None:
    """Memory, rates and percentiles over the time of a soak. Raises Skipped without matplotlib."""
    module("matplotlib").use("Agg")
    pyplot = module("matplotlib.pyplot")
    figure, (memory, rates, times) = pyplot.subplots(3, 1, figsize=(9, 11), sharex=True)
    for name, sizes in memory_kb.items():
        memory.plot(
            [at * seconds / len(sizes) for at in range(len(sizes))], [size / 1024 for size in sizes], label=name
        )
    for name, slices in clients.items():
        slice_s = seconds / len(slices)
        at = [slice_s * number for number in range(len(slices))]
        rates.plot(at, [one["ids"] / slice_s for one in slices], label=name)
        for share, style in (("p50", "-"), ("p99", "--"), ("p99.9", ":")):
            values = [one.get(f"{share}_ns", 0) / 1000 or None for one in slices]
            if any(values):
                times.plot(at, values, style, label=f"{name}, {share}")
    memory.set_ylabel("memory of its own, MiB")
    rates.set_ylabel("ids per second")
    times.set_ylabel("µs")
    times.set_xlabel("seconds")
    for axes in (memory, rates, times):
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)
