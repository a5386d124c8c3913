"""`python -m bench.soak [SECONDS]`: full rate on all paths at once. Nothing grows, nothing twice.

One coordinator. Clients in C (bench/csrc/soak.c) and one in Python; all their ids are marked in one bitmap. The memory
and the descriptors of every process are looked at each second. Ends with status 1 when a check fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import libpharaoh
from bench import native, plots, report
from bench.context import Context
from bench.daemon import Daemon, attached
from bench.native import ROOT, BenchError
from bench.peers import Skipped

MAX_AGE_MS = 10
SLICES = 60
BYTES_PER_MS = 1024
"""Of the bitmap: 8192 ids."""
LEAD_MS, TAIL_MS = 2000, 15_000
MEMORY_GROWTH = 1.02
MEMORY_SLACK_KB = 1024
"""A thread's first use of a buffer, a page here and there; a leak of a byte per thousand requests is far more."""
NOISE = 2.0
"""By how much latency may grow and rate fall between two fifths of the time: two cores for all, and a noisy machine."""


@dataclass
class Watched:
    """A process, second by second."""

    name: str
    pid: int
    kind_of_memory: str
    """A line of /proc/PID/status. A client's: not what it shares, for the bitmap is as large as the soak is long."""
    memory_kb: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def look(self) -> None:
        """Raises nothing for one that has just ended."""
        with contextlib.suppress(OSError, KeyError):
            self._look()

    def _look(self) -> None:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines())
        self.memory_kb.append(int(status[self.kind_of_memory].split()[0]))
        self.descriptors.append(len(os.listdir(f"/proc/{self.pid}/fd")))


@dataclass(frozen=True)
class Finding:
    """One check: "worker 0000: memory", early and late figures, and whether that is flat."""

    what: str
    early: float
    late: float
    unit: str
    flat: bool


def fifths(values: Sequence[float]) -> tuple[float, float]:
    """The medians of the second and of the last fifth: the first one is for warming up."""
    size = max(1, len(values) // 5)
    return median(values[size : 2 * size] or values), median(values[-size:])


def judged_process(process: Watched) -> list[Finding]:
    early, late = fifths(process.memory_kb)
    flat = late <= early * MEMORY_GROWTH + MEMORY_SLACK_KB
    held = fifths(process.descriptors)
    return [
        Finding(f"{process.name}: memory", early, late, "KiB", flat),
        Finding(f"{process.name}: descriptors", *held, "", held[0] == held[1]),
    ]


def judged_client(name: str, slices: Sequence[dict[str, float]], slice_s: float) -> list[Finding]:
    early, late = fifths([one["ids"] / slice_s for one in slices])
    found = [Finding(f"{name}: rate", early, late, "ids/s", late * NOISE >= early > 0)]
    for share in ("p50", "p99", "p99.9"):
        times = [one[f"{share}_ns"] / 1000 for one in slices if one.get(f"{share}_ns")]
        if times:
            early, late = fifths(times)
            found.append(Finding(f"{name}: {share}", early, late, "µs", late <= early * NOISE))
    return found


class Soak:
    """One run. `clients` gives each client's report when it has ended."""

    def __init__(self, daemon: Daemon, seconds: float) -> None:
        self._daemon, self._seconds = daemon, seconds
        self._running: dict[str, subprocess.Popen[str]] = {}
        self.watched: list[Watched] = []
        self.clients: dict[str, list[dict[str, float]]] = {}

    def run(self) -> None:
        bitmap = os.memfd_create("ids")
        os.truncate(bitmap, BYTES_PER_MS * (LEAD_MS + int(1000 * self._seconds) + TAIL_MS))
        self._bitmap = f"/proc/{os.getpid()}/fd/{bitmap}"
        with libpharaoh.connect(self._daemon.socket) as client:
            self._base_ms = libpharaoh.parse(client.next_id()).milliseconds - LEAD_MS
        with ExitStack() as stack:
            try:
                self._start(stack)
                self._watch()
            finally:
                for process in self._running.values():
                    process.terminate()
                    process.wait()
                os.close(bitmap)

    def _start(self, stack: ExitStack) -> None:
        for name, kind in (("ring in C", "ring"), ("second ring in C", "ring"), ("strict in C", "strict")):
            ring = stack.enter_context(attached(self._daemon, MAX_AGE_MS))
            self._client(name, kind, *ring, MAX_AGE_MS, descriptors=ring)
        self._client("socket, 50 connections", "socket", self._daemon.socket, 50, 1)
        self._client("socket, 10 × 16 in flight", "socket", self._daemon.socket, 10, 16)
        python = [sys.executable, "-m", "bench.soak_client", self._daemon.socket, str(self._seconds)]
        ours = subprocess.Popen(python, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self._running["Python"] = ours
        assert ours.stdout is not None
        self._client("ids of Python", "stdin", stdin=ours.stdout)
        ours.stdout.close()  # the checker's alone
        ours.stdout = None
        self.watched = [Watched(name, process.pid, "RssAnon") for name, process in self._running.items()]
        self.watched += [Watched(name, pid, "VmRSS") for name, pid in self._daemon.processes().items()]

    def _client(self, name: str, kind: str, *more: object, descriptors: Sequence[int] = (), stdin: Any = None) -> None:
        common = (self._bitmap, self._base_ms, self._seconds, SLICES)
        command = [str(native.build("soak")), kind, *map(str, (*common, *more))]
        self._running[name] = subprocess.Popen(
            command, stdin=stdin or subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            pass_fds=tuple(descriptors),
        )  # fmt: skip

    def _watch(self) -> None:
        while all(process.poll() is None for process in self._running.values()):
            for watched in self.watched:
                watched.look()
            time.sleep(min(1.0, self._seconds / 20))
        for name, process in self._running.items():
            output, errors = process.communicate(timeout=native.WATCHDOG_S)
            if process.returncode != 0:
                raise BenchError(f"{name}: {errors or process.returncode}")
            if name != "Python":
                self.clients[name] = json.loads(output)["slices"]

    def findings(self) -> Iterator[Finding]:
        for process in self.watched:
            yield from judged_process(process)
        for name, slices in self.clients.items():
            yield from judged_client(name, slices, self._seconds / SLICES)

    @property
    def ids(self) -> int:
        return int(sum(one["ids"] for slices in self.clients.values() for one in slices))


def page(soak: Soak, findings: Sequence[Finding], seconds: float) -> str:
    facts = "; ".join(f"{name}: {value}" for name, value in report.machine().items())
    rows = [
        f"| {one.what} | {one.early:,.6g} | {one.late:,.6g} | {one.unit} | {'yes' if one.flat else '**no**'} |"
        for one in findings
    ]
    return "\n".join(
        [
            "# Soak",
            "",
            f"{facts}; {seconds:g} s at full rate, all clients at once on one coordinator.",
            f"Ids received, each seen once: {soak.ids:,}.",
            "",
            "Medians of the second and of the last fifth of the time. Flat: memory + 2 % + 1 MiB at most, descriptors",
            "equal, latency and rate within a factor of 2.",
            "",
            "| what | early | late | unit | flat |",
            "| --- | --- | --- | --- | --- |",
            *rows,
            "",
            "![soak](soak.png)",
            "",
        ]
    )


def publish(soak: Soak, findings: Sequence[Finding], seconds: float, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "soak.md").write_text(page(soak, findings, seconds))
    memory = {process.name: process.memory_kb for process in soak.watched}
    (directory / "soak.json").write_text(json.dumps({"memory_kb": memory, "clients": soak.clients}) + "\n")
    try:
        plots.soak(memory, soak.clients, seconds, directory / "soak.png")
    except Skipped as why:
        print(f"no plot: {why}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description="A soak; see docs/operating/bench.md.")
    parser.add_argument("seconds", nargs="?", type=float, default=600.0)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench" / "soak")
    options = parser.parse_args(arguments)
    try:
        with Context(quick=False, rounds=1) as context:
            soak = Soak(context.daemon(), options.seconds)
            soak.run()
    except BenchError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1
    findings = list(soak.findings())
    publish(soak, findings, options.seconds, options.out)
    print(page(soak, findings, options.seconds))
    return 0 if all(one.flat for one in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
