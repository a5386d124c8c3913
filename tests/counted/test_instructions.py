"""Instructions per id in user space, by valgrind's callgrind: the same on every machine that runs the same code."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.counted.conftest import Check
from tests.counted.lone import BATCH, Lone, exchange, lone_worker
from tests.support.daemon import ROOT
from tests.support.wire import Request, Wire

WATCHDOG_S = 100
BATCHES = 60
CALLGRIND = ("valgrind", "--tool=callgrind")
# What the loop does for its clients. None of them calls another one.
SERVING = ("stream_ready", "rung", "ph_rings_feed", "ph_counting_answer", "ph_tally_commit")
REQUESTS: list[tuple[str, Request]] = [
    ("next_id", ("next_id", [])),
    ("get_timestamp", ("get_timestamp", ["orders"])),
    ("assign_offset", ("assign_offset", ["orders"])),
]


def summary(file: Path) -> int:
    return int(re.findall(r"^summary: (\d+)", file.read_text(), re.MULTILINE)[0])


@pytest.fixture
def worker(directory: Path, needs: Callable[[str], None]) -> Iterator[Lone]:
    """Under callgrind, which counts what serves clients."""
    needs("valgrind")
    counting = [f"--toggle-collect={function}" for function in SERVING]
    with lone_worker(directory / "w", *CALLGRIND, f"--callgrind-out-file={directory}/out", *counting) as lone:
        yield lone


def dump(lone: Lone) -> None:
    """Writes what was counted since the last time to out.1, out.2 …"""
    command = ["callgrind_control", "--dump", str(lone.pid)]
    subprocess.run(command, check=True, capture_output=True, timeout=WATCHDOG_S)


def test_requests(worker: Lone, directory: Path, check: Check) -> None:
    """From what has been read to what is written, the system calls themselves left out."""
    parts = 0
    with Wire(worker.socket) as wire:
        for name, request in REQUESTS:
            exchange(wire, request, BATCHES)
            dump(worker)
            exchange(wire, request, BATCHES)
            dump(worker)
            parts += 2
            check(f"instructions.request.{name}", summary(directory / f"out.{parts}") / (BATCHES * BATCH))


@pytest.mark.parametrize(
    ("method", "function", "count"),
    [("next_id", "client_next_id", 20_000), ("next_ids", "source_take", 200_000)],
)
def test_client(
    directory: Path, check: Check, needs: Callable[[str], None], method: str, function: str, count: int
) -> None:
    """One id out of a ring, in Python, what it takes to fill the ring again included."""
    needs("valgrind")
    out = directory / "out"
    with lone_worker(directory / "w") as lone:
        client = [sys.executable, "-m", "tests.counted.lone_client", lone.socket, method, str(count)]
        command = [*CALLGRIND, f"--callgrind-out-file={out}", f"--toggle-collect={function}", *client]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=WATCHDOG_S)
    check(f"instructions.{method}", summary(out) / count)
