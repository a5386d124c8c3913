"""Spin checks every model, and finds each mistake that is put back in (F1, F2, F4, F5, F10, F12, F15)."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MODELS = sorted(path.stem for path in HERE.glob("*.pml"))
BUGS = [
    (model, bug)
    for model in MODELS
    for bug in sorted(set(re.findall(r"^#ifn?def (BUG_\w+)", (HERE / f"{model}.pml").read_text(), re.MULTILINE)))
]

SECONDS = 550  # the largest search takes 17 by itself, and ten times that beside other work
pytestmark = [pytest.mark.skipif(shutil.which("spin") is None, reason="needs spin"), pytest.mark.timeout(600)]


def errors_found(model: str, directory: Path, *options: str) -> int:
    """How many errors an exhaustive search finds; it stops at the first."""
    for command in (
        ["spin", *options, "-a", str(HERE / f"{model}.pml")],
        ["cc", "-O0", "-w", "-DSAFETY", "-DCOLLAPSE", "-o", "pan", "pan.c"],
    ):
        subprocess.run(command, cwd=directory, check=True, capture_output=True, timeout=SECONDS)
    search = subprocess.run(
        ["./pan", "-m1000000"], cwd=directory, check=True, capture_output=True, text=True, timeout=SECONDS
    )
    assert "max search depth too small" not in search.stdout
    found = re.search(r"errors: (\d+)", search.stdout)
    assert found is not None, search.stdout
    assert "out of memory" not in search.stdout
    return int(found[1])


@pytest.mark.parametrize("model", MODELS)
def test_model_holds(model: str, tmp_path: Path) -> None:
    assert errors_found(model, tmp_path) == 0


@pytest.mark.parametrize(("model", "bug"), BUGS)
def test_mistake_is_found(model: str, bug: str, tmp_path: Path) -> None:
    assert errors_found(model, tmp_path, f"-D{bug}") == 1
