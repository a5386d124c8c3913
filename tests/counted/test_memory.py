"""Bytes of memory for each thing that a worker holds: what the second half of many adds, by its own page tables."""

from __future__ import annotations

import re
import resource
from contextlib import ExitStack
from pathlib import Path

import pytest

import libpharaoh
from tests.counted.conftest import Check
from tests.counted.lone import Lone, lone_worker
from tests.support.wire import Wire

MANY = 450
NAMES = 40_000


def private_bytes(lone: Lone) -> int:
    """Memory that is this process's alone, and its rings'."""
    text = Path(f"/proc/{lone.pid}/smaps_rollup").read_text()
    return 1024 * sum(map(int, re.findall(r"^(?:Private_Dirty|Shared_Dirty): +(\d+) kB", text, re.MULTILINE)))


@pytest.fixture
def lone(directory: Path) -> object:
    with lone_worker(directory / "w") as worker:
        yield worker


def test_connections(lone: Lone, check: Check) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with ExitStack() as stack:
        found = []
        for _ in range(3):
            for _ in range(MANY):
                stack.enter_context(Wire(lone.socket)).ask("next_id")
            found.append(private_bytes(lone))
    check("bytes.connection", (found[2] - found[0]) / (2 * MANY))


def test_rings(lone: Lone, check: Check) -> None:
    """Once the heap that a worker begins with is used up: a ring's connection counts too."""
    with ExitStack() as stack:
        found = []
        for rings in (110, 35, 35):
            for _ in range(rings):
                stack.enter_context(libpharaoh.connect(lone.socket)).next_id()
            found.append(private_bytes(lone))
    check("bytes.ring", (found[2] - found[0]) / 70)


def test_counters(lone: Lone, check: Check) -> None:
    """Each with a name of its own."""
    found = []
    with Wire(lone.socket) as wire:
        for part in range(4):
            names = [f"name {part * NAMES + number:07}" for number in range(NAMES)]
            for at in range(0, NAMES, 500):
                wire.wait(wire.post(*(("assign_offset", [name]) for name in names[at : at + 500])))
            found.append(private_bytes(lone))
    check("bytes.counter", (found[3] - found[0]) / (3 * NAMES))


def test_worker(lone: Lone, check: Check) -> None:
    """The whole process, Python included."""
    with Wire(lone.socket) as wire:
        wire.ask("next_id")
    check("bytes.worker", private_bytes(lone))
