"""The commands' entry: which packages it asks for, and what it says when they are not there."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pharaohd import cli as daemon_cli
from pharaohd import entry
from pharaohd.ctl import cli as ctl_cli

ROOT = Path(__file__).parents[2]


def test_it_asks_for_the_extra_of_the_daemon() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert tuple(re.split(r"\W", requirement)[0] for requirement in extras["daemon"]) == entry.PACKAGES


def test_with_all_of_them_it_goes_on() -> None:
    entry.require_packages("pharaohd")


@pytest.mark.parametrize(("name", "command"), [("pharaohd", daemon_cli.main), ("pharaohctl", ctl_cli.cli)])
def test_version(name: str, command: click.Command) -> None:
    assert CliRunner().invoke(command, ["--version"]).output == f"{name}, version {version('pharaoh')}\n"


@pytest.mark.parametrize("missing", entry.PACKAGES)
@pytest.mark.parametrize(("name", "command"), [("pharaohd", entry.daemon), ("pharaohctl", entry.control)])
def test_one_that_is_missing_is_named(
    name: str, command: Callable[[], object], missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entry, "find_spec", lambda one: None if one == missing else find_spec(one))
    monkeypatch.setattr(sys, "argv", [name, "--no-such-option"])
    with pytest.raises(SystemExit) as ended:
        command()
    said = f"{name}: packages that it needs are not installed ({missing}): pip install 'pharaoh[daemon]'"
    assert ended.value.code == said
