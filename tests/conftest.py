"""What every test may use: `--seed`, `--effort`, `directory`, and the mark `root`."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.support.daemon import short_directory

# Neither a slow machine nor an unlucky seed is a failure: hypothesis is not to judge how long a test takes.
hypothesis.settings.register_profile(
    "house",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)
hypothesis.settings.load_profile("house")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="seed of the randomised tests (default: a new one)")
    parser.addoption("--effort", type=float, default=1.0, help="factor on the rounds of the randomised tests")
    parser.addoption("--update-budgets", action="store_true", help="write tests/counted/budgets.toml from this run")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--seed") is None:
        config.option.seed = random.randrange(1 << 32)


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.getoption('--seed')} (repeat with --seed)"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """A generator of its own for each test: the same for the same `--seed`, whatever else runs."""
    return random.Random(f"{request.config.getoption('--seed')} {request.node.nodeid}")


@pytest.fixture
def directory() -> Iterator[Path]:
    """One whose name is short enough for the sockets of a daemon."""
    with short_directory() as path:
        yield path


@pytest.fixture(scope="session")
def effort(request: pytest.FixtureRequest) -> float:
    """How much to do: 1.0 for every day, more for a long night. Rounds = max(1, round(n * effort))."""
    value: float = request.config.getoption("--effort")
    return value
