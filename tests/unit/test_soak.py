"""bench/soak.py: each of its checks can fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from array import array
from pathlib import Path

import pytest

from bench import native, soak
from bench.native import ROOT
from bench.soak import Watched, judged_client, judged_process

BASE_MS = 1000
EARLY = [10] * 10


def watched(memory: list[int], descriptors: list[int]) -> Watched:
    return Watched("p", os.getpid(), "VmRSS", memory, descriptors)


def flat(process: Watched) -> list[bool]:
    return [one.flat for one in judged_process(process)]


def test_memory_and_descriptors() -> None:
    assert flat(watched([90_000] + [100_000] * 9, [1] + [10] * 9)) == [True, True]  # warming up is not judged
    assert flat(watched([100_000] * 5 + [104_000] * 5, EARLY)) == [False, True]
    assert flat(watched([1000] * 5 + [3000] * 5, EARLY)) == [False, True]
    assert flat(watched([1000] * 5 + [2000] * 5, EARLY)) == [True, True]  # within the slack
    assert flat(watched(EARLY, [10] * 5 + [11] * 5)) == [True, False]


def test_a_process_is_looked_at() -> None:
    process = watched([], [])
    process.look()
    assert process.memory_kb[0] > 1000
    assert process.descriptors[0] >= 3


@pytest.mark.parametrize(
    ("late", "kept"),
    [
        ({}, [True, True, True, True]),
        ({"ids": 40}, [False, True, True, True]),
        ({"p50_ns": 2100}, [True, False, True, True]),
        ({"p99_ns": 4200}, [True, True, False, True]),
        ({"p99.9_ns": 9000}, [True, True, True, False]),
    ],
)
def test_rates_and_latencies(late: dict[str, float], kept: list[bool]) -> None:
    early = {"ids": 100.0, "p50_ns": 1000.0, "p99_ns": 2000.0, "p99.9_ns": 4000.0}
    found = judged_client("c", [early] * 5 + [early | late] * 5, 1.0)
    assert [one.flat for one in found] == kept


@pytest.fixture
def bitmap(tmp_path: Path) -> Path:
    path = tmp_path / "bitmap"
    with open(path, "wb") as file:
        file.truncate(10 * soak.BYTES_PER_MS)
    return path


def checked(bitmap: Path, ids: list[int]) -> subprocess.CompletedProcess[bytes]:
    command = [str(native.build("soak")), "stdin", str(bitmap), str(BASE_MS), "1", "1"]
    return subprocess.run(command, input=array("Q", ids).tobytes(), capture_output=True, check=False)


def test_an_id_that_another_client_had(bitmap: Path) -> None:
    id = (BASE_MS + 3) << 23 | 77
    assert checked(bitmap, [id - 1, id, id + 1]).returncode == 0
    assert checked(bitmap, [id + 2, id + 3]).returncode == 0
    found = checked(bitmap, [id - 3, id + 1, id + 9])
    assert found.returncode == 1
    assert b"twice" in found.stderr


def test_ids_that_do_not_rise_or_come_from_elsewhere(bitmap: Path) -> None:
    id = (BASE_MS + 3) << 23
    assert b"not greater" in checked(bitmap, [id, id]).stderr
    assert b"outside" in checked(bitmap, [(BASE_MS - 1) << 23]).stderr
    assert b"outside" in checked(bitmap, [(BASE_MS + 10) << 23]).stderr


def test_a_short_soak(tmp_path: Path) -> None:
    """Two seconds are no soak: whether figures are flat is not asked, but nothing may come twice and all has to run."""
    command = [sys.executable, "-m", "bench.soak", "2", "--out", str(tmp_path)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "each seen once" in found.stdout, found.stderr
    clients = json.loads((tmp_path / "soak.json").read_text())["clients"]
    assert len(clients) == 6
    assert all(sum(one["ids"] for one in slices) > 0 for slices in clients.values())
