"""What is committed of a run: JSON with every round, a Markdown table of medians and ratios."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.measure import Comparison, Verdict
from bench.native import ROOT

REACHED = {True: "yes", False: "**no**", None: ""}


def machine() -> dict[str, str]:
    """What has to be known of a machine to read its figures."""
    cpu = next((line for line in read("/proc/cpuinfo").splitlines() if line.startswith("model name")), ": unknown")
    return {
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": command("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"),
        "cpu": cpu.split(":", 1)[1].strip(),
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "file system of the state": command("df", "--output=fstype", str(ROOT / "build")).split()[-1],
        "load average at the start": f"{os.getloadavg()[0]:.1f}",
    }


def read(path: str) -> str:
    return Path(path).read_text() if os.path.exists(path) else ""


def command(*words: str) -> str:
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else "unknown"


def to_json(comparisons: Sequence[Comparison], facts: dict[str, str], skipped: Sequence[str]) -> str:
    found: dict[str, Any] = {
        "facts": facts,
        "comparisons": [comparison.to_json() for comparison in comparisons],
        "skipped": list(skipped),
    }
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f}" if abs(value) < 10 else f"{value:.1f}"


def markdown(comparisons: Sequence[Comparison], facts: dict[str, str], skipped: Sequence[str]) -> str:
    """The page of one run; docs/operating/bench.md says how to read it."""
    verdicts = [verdict for comparison in comparisons for verdict in comparison.verdicts()]
    ids = sum(one.ids for comparison in comparisons for one in comparison.series[:1])
    lines = [
        "# Results of one run",
        "",
        "; ".join(f"{name}: {value}" for name, value in facts.items()) + ".",
        f"Ids received and verified unique and rising: {ids:,}.",
        "How to read this page: [docs/operating/bench.md](../../docs/operating/bench.md).",
        "",
        "## Beside the bars",
        "",
        *table([verdict for verdict in verdicts if verdict.bar is not None]),
        "",
        "## Other ratios and figures",
        "",
        *table([verdict for verdict in verdicts if verdict.bar is None]),
        "",
        "## Every contestant",
        "",
        *contestants(comparisons),
        "",
    ]
    if skipped:
        lines += ["## Skipped", "", *(f"- {what}" for what in skipped), ""]
    return "\n".join(lines)


def table(verdicts: Sequence[Verdict]) -> list[str]:
    lines = ["| what | beside | median | spread | bar | reached |", "| --- | --- | --- | --- | --- | --- |"]
    for one in verdicts:
        bar = "" if one.bar is None else str(one.bar)
        cells = [one.what, one.peer, f"{number(one.value)} {one.unit}", f"{one.spread:.0%}", bar, REACHED[one.reached]]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def contestants(comparisons: Sequence[Comparison]) -> list[str]:
    lines = ["| what | who | median | smallest … largest round | besides |", "| --- | --- | --- | --- | --- |"]
    for comparison in comparisons:
        for one in comparison.series:
            besides = "; ".join(f"{name} {number(middle)}" for name, middle in one.extra_medians().items())
            cells = [
                f"{comparison.part}: {comparison.what}",
                one.name,
                f"{number(one.median)} {comparison.unit}",
                f"{number(min(one.values))} … {number(max(one.values))}",
                besides,
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines
