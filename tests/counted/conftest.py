"""Counts and their budgets: what is counted grows by a tenth at most, however slow or busy the machine is."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

BUDGETS = Path(__file__).with_name("budgets.toml")
GROWTH_MAX = 1.1
Check = Callable[[str, float], None]
HEADER = """\
# What tests/counted found when this file was written, by `pytest tests/counted --update-budgets`. A test fails when a
# count is more than a tenth above. Another compiler or Python counts otherwise: there the tests are skipped, unless the
# file is written anew.
"""


def verdict(found: float, budget: float) -> str:
    """Whether that is over, under or within a tenth of the budget."""
    if found > GROWTH_MAX * budget:
        return "over"
    return "under" if found * GROWTH_MAX < budget else "within"


def machine() -> str:
    """What counts depend on besides the code."""
    version = subprocess.run(["cc", "-dumpversion"], capture_output=True, text=True, check=True).stdout.strip()
    return f"{platform.machine()}, cc {version}, Python {sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture(scope="session")
def budgets(request: pytest.FixtureRequest) -> Iterator[dict[str, float]]:
    known: dict[str, Any] = tomllib.loads(BUDGETS.read_text())
    made_on = known.pop("machine", "")
    updating = request.config.getoption("--update-budgets")
    if made_on != machine() and not updating:
        pytest.skip(f"budgets are of {made_on}; this is {machine()}")
    yield known
    if updating:
        lines = [f'machine = "{machine()}"', *(f'"{name}" = {known[name]:g}' for name in sorted(known))]
        BUDGETS.write_text(HEADER + "\n".join(lines) + "\n")


@pytest.fixture
def check(request: pytest.FixtureRequest, budgets: dict[str, float]) -> Check:
    """Called with a name and what was found for it: fails when that is more than a tenth above its budget."""

    def judge(name: str, found: float) -> None:
        print(f"{name}: {found:g} (budget {budgets.get(name, 0):g})")
        assert found > 0, f"{name}: nothing was counted"
        if request.config.getoption("--update-budgets"):
            budgets[name] = float(f"{found:.4g}")
            return
        assert name in budgets, f"{name} has no budget: pytest tests/counted --update-budgets"
        outcome = verdict(found, budgets[name])
        assert outcome != "over", f"{name}: {found:g}, more than a tenth above its budget of {budgets[name]:g}"
        if outcome == "under":
            print(f"{name} is far below its budget: pytest tests/counted --update-budgets")

    return judge


@pytest.fixture
def needs() -> Callable[[str], None]:
    """Skips without a program."""

    def look(program: str) -> None:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")

    return look
