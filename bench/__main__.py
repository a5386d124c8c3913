"""`python -m bench [--quick] [--rounds N] [--out DIRECTORY] [PART…]`; without parts, all of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench import plots, report
from bench.calls import next_id
from bench.context import Context
from bench.cost import cpu, window
from bench.dense import dense
from bench.etcd import etcd
from bench.measure import Comparison
from bench.native import ROOT, BenchError
from bench.peers import Skipped
from bench.rings import next_ids, ring_c, strict
from bench.scale import scale
from bench.sockets import socket
from bench.start import start
from bench.tsoracle import tsoracle
from bench.turns import turns
from libpharaoh.errors import PharaohError

PARTS: Mapping[str, Callable[[Context], list[Comparison]]] = {
    "ring-c": ring_c,
    "next-id": next_id,
    "next-ids": next_ids,
    "socket": socket,
    "dense": dense,
    "etcd": etcd,
    "tsoracle": tsoracle,
    "strict": strict,
    "turns": turns,
    "start": start,
    "cpu": cpu,
    "window": window,
    "scale": scale,
}


def chosen(words: Sequence[str]) -> list[str]:
    """Parts by their names or the beginnings of these ("ring" is ring-c). Raises BenchError for a name of none."""
    for word in words:
        if not any(name.startswith(word) for name in PARTS):
            raise BenchError(f"no part {word}; there are {', '.join(PARTS)}")
    return [name for name in PARTS if not words or matches(name, words)]


def matches(name: str, words: Sequence[str]) -> bool:
    """Whether the part is meant: "next-id" is not "next-ids" too."""
    return any(name == word or (word not in PARTS and name.startswith(word)) for word in words)


def run(parts: Sequence[str], context: Context) -> list[Comparison]:
    """What all parts found. One that fails is named among what was skipped, and spoils no other."""
    found = []
    for name in parts:
        print(f"{name} …", file=sys.stderr, flush=True)
        try:
            found += PARTS[name](context)
        except (BenchError, PharaohError) as error:
            context.fail(f"{name}: {error}")
        context.end_part()
    return found


def publish(comparisons: Sequence[Comparison], facts: dict[str, str], skipped: list[str], directory: Path) -> str:
    """Writes the files; returns the table."""
    directory.mkdir(parents=True, exist_ok=True)
    try:
        pictures = plots.draw(comparisons, directory)
    except Skipped as why:
        pictures = []
        skipped.append(f"plots: {why}")
    (directory / "results.json").write_text(report.to_json(comparisons, facts, skipped))
    page = report.markdown(comparisons, facts, skipped)
    page += "".join(f"![{picture.stem}]({picture.name})\n" for picture in pictures)
    (directory / "results.md").write_text(page)
    return page


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Speed beside peers.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="a smoke test: its figures mean nothing")
    parser.add_argument("--rounds", type=int, help="turns of each contestant (default: 7, or 2 when quick)")
    parser.add_argument("--out", type=Path, help="where results.json, results.md and the plots go")
    options = parser.parse_args(arguments)
    rounds = options.rounds or (2 if options.quick else 7)
    directory: Path = options.out or ROOT / "build" / "bench" / "results"
    facts = report.machine() | {
        "rounds": str(rounds),
        "mode": "quick: the figures mean nothing" if options.quick else "full",
    }
    try:
        parts = chosen(options.parts)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    with Context(quick=options.quick, rounds=rounds) as context:
        comparisons = run(parts, context)
    page = publish(
        comparisons,
        facts | ({"redis": context.redis_version} if context.redis_version else {}),
        context.skipped,
        directory,
    )
    print(page)
    print(f"written to {directory}", file=sys.stderr)
    for failure in context.failures:
        print(f"bench: {failure}", file=sys.stderr)
    return 1 if context.failures else 0


if __name__ == "__main__":
    sys.exit(main())
