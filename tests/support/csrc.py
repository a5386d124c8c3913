"""The programs of tests/csrc, for tests that compare C with Python."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def build(program: str) -> Path:
    """The path of a program of tests/csrc, built anew if need be."""
    command = ["make", "-C", str(ROOT / "tests/csrc"), "build-plain", f"TESTS={program}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    return ROOT / "build/csrc/plain" / program
