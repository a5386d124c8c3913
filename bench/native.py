"""The C programs of bench/csrc: built at run time, so that no side of a comparison is limited by Python."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RING_C = ROOT / "libpharaoh" / "csrc" / "ph_ring.c"
WITH_RINGS = ("ring", "rings", "soak")
WATCHDOG_S = 120.0


class BenchError(Exception):
    """A program of the bench failed: there is no result."""


@cache
def build(program: str) -> Path:
    """The path of a program of bench/csrc, built anew. Raises BenchError."""
    sources = [str(ROOT / "bench" / "csrc" / f"{program}.c"), *([str(RING_C)] if program in WITH_RINGS else [])]
    target = ROOT / "build" / "bench" / program
    target.parent.mkdir(parents=True, exist_ok=True)
    flags = ["-std=gnu11", "-O3", "-g", "-pthread", "-Wall", "-Wextra", "-Werror", f"-I{RING_C.parent}"]
    finished = target.with_name(f"{program}.{os.getpid()}")  # another run may be using the old one
    command = [os.environ.get("CC", "cc"), *flags, *sources, "-o", str(finished)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise BenchError(f"building {program}: {result.stderr}")
    return finished.rename(target)


@dataclass(frozen=True, slots=True)
class Report:
    """What a program found. It ends without one when an id repeats or does not rise."""

    per_second: float
    ids: int
    """Received and verified."""
    first: int
    last: int
    """The bounds of those ids."""
    cpu_share: float = 0.0
    """Of one core, used by the program itself."""
    latency_ns: dict[str, float] | None = None
    """{"share": nanoseconds}: so much or less in that share of all cases, as are the next."""
    pop_ps: dict[str, float] | None = None


def run(program: str, *arguments: object, descriptors: Sequence[int] = ()) -> Report:
    """Runs one to its end. Raises BenchError, also when the ids it received are not what they have to be."""
    return Report(**run_raw(program, *arguments, descriptors=descriptors))


def run_raw(program: str, *arguments: object, descriptors: Sequence[int] = ()) -> dict[str, Any]:
    """As `run`, for a program whose report is not a `Report`."""
    command = [str(build(program)), *map(str, arguments)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=WATCHDOG_S, pass_fds=tuple(descriptors)
    )
    if result.returncode != 0:
        raise BenchError(f"{' '.join(command[1:])[:200]}: {result.stderr.strip() or result.returncode}")
    found: dict[str, Any] = json.loads(result.stdout)
    return found
