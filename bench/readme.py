"""`python -m bench.readme [--check]`: writes the table in docs/operating/bench.md from the two committed runs."""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.measure import Bar, Comparison, Series, Verdict
from bench.native import ROOT
from bench.report import REACHED, number

RESULTS = ROOT / "bench" / "results"
README = ROOT / "docs/operating/bench.md"
REASONS = ROOT / "bench" / "reasons.toml"
BEGIN, END = "<!-- speed: python -m bench.readme -->\n", "<!-- /speed -->\n"


def judged(path: Path) -> dict[tuple[str, str], Verdict]:
    """The figures of a run that have a bar, by what they are and beside whom."""
    comparisons = [read_comparison(one) for one in json.loads(path.read_text())["comparisons"]]
    verdicts = [verdict for one in comparisons for verdict in one.verdicts() if verdict.bar is not None]
    return {(verdict.what, verdict.peer): verdict for verdict in verdicts}


def read_comparison(found: dict[str, Any]) -> Comparison:
    values = {name: value for name, value in found.items() if name not in ("ratios", "medians")}
    values["series"] = [Series(**one) for one in found["series"]]
    for bars in ("bars", "extra_bars"):
        values[bars] = {name: Bar(**bar) for name, bar in found[bars].items()}
    return Comparison(**values)


def reasons() -> dict[str, str]:
    """Why a figure falls short, by "what" or "what / beside whom"."""
    return tomllib.loads(REASONS.read_text())


def table(late: dict[tuple[str, str], Verdict], early: dict[tuple[str, str], Verdict]) -> Iterator[str]:
    yield "| what | beside | bar | this run | earlier run | reached |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for key, one in late.items():
        before = f"{number(early[key].value)} {early[key].unit}" if key in early else ""
        cells = [one.what, one.peer, str(one.bar), f"{number(one.value)} {one.unit}", before, REACHED[one.reached]]
        yield f"| {' | '.join(cells)} |"


def short(verdicts: dict[tuple[str, str], Verdict]) -> Iterator[str]:
    """A line for each that falls short. Raises KeyError for one without a reason."""
    why = reasons()
    for (what, peer), one in verdicts.items():
        if not one.reached:
            name = f"{what} / {peer}" if peer else what
            yield f"- **{name}**: {why[name]}"


def section() -> str:
    late = json.loads((RESULTS / "results.json").read_text())["facts"]
    early = json.loads((RESULTS / "earlier.json").read_text())["facts"]
    verdicts = judged(RESULTS / "results.json")
    lines = [
        f"Medians of {late['rounds']} rounds on {late['when'][:10]} (commit {late['commit']}) and {early['when'][:10]}",
        f"({early['commit']}): {late['cpu']}, {late['cores']} cores, {late['file system of the state']}.",
        "Crash safety on, every id verified. All figures: [bench/results](../../bench/results/results.md), and a",
        "[soak](../../bench/results/soak.md) at full rate.",
        "",
        *table(verdicts, judged(RESULTS / "earlier.json")),
        "",
        *short(verdicts),
        "",
        *(f"![{name}](../../bench/results/{name}.png)" for name in ("ratios", "throughput", "latency", "scale")),
    ]
    return "\n".join(lines) + "\n"


def renewed(text: str) -> str:
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + section() + END + after


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.readme")
    parser.add_argument("--check", action="store_true", help="only say whether the page agrees with bench/results")
    options = parser.parse_args(arguments)
    text = README.read_text()
    if options.check:
        return int(renewed(text) != text)
    README.write_text(renewed(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
