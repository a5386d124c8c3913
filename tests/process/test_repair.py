"""A lost, old or foreign journal of dense counters: what the daemon says, and the remedy that it names, carried out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import libpharaoh
from libpharaoh.errors import CountersCorruptError, CountersMissingError
from pharaohd import obelisk
from tests.support.daemon import Daemon, short_directory

NAMES = [f"log-{number}" for number in range(20)]


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """One that has counted, and was stopped cleanly."""
    with short_directory() as directory, Daemon(directory) as running:
        count(running, 10)
        assert running.stop() == 0
        yield running


def count(daemon: Daemon, times: int) -> list[int]:
    """The last offset of each name."""
    with libpharaoh.connect(daemon.socket) as client:
        for _ in range(times):
            last = [client.assign_offset(name) for name in NAMES]
    return last


def journal(daemon: Daemon, coordinator: int) -> Path:
    return obelisk.counters_beside(daemon.obelisk(coordinator))


def verify(daemon: Daemon) -> dict[str, object]:
    """The row of coordinator 1; coordinator 0 has to be sound."""
    done = daemon.ctl("--config", str(daemon.config), "obelisk", "verify", "-o", "json")
    rows: list[dict[str, object]] = json.loads(done.stdout)
    assert rows[0]["verdict"] == "ok"
    assert done.returncode == (0 if rows[1]["verdict"] == "ok" else 5)
    return rows[1]


def refused(daemon: Daemon) -> int:
    daemon.spawn()
    return daemon.wait()


def test_a_sound_journal_is_counted(daemon: Daemon) -> None:
    rows = json.loads(daemon.ctl("--config", str(daemon.config), "obelisk", "verify", "-o", "json").stdout)
    assert sum(row["counters"] for row in rows) == len(NAMES)


@pytest.mark.parametrize("harm", ["lost", "old", "foreign", "damaged"])
def test_dropping_what_cannot_be_mended(daemon: Daemon, harm: str) -> None:
    """F2, F27: refused until an operator says that the counters shall start anew; and the warning to raise them."""
    path = journal(daemon, 1)
    exported = daemon.directory / "export"
    daemon.start()
    assert daemon.ctl("counters", "export", str(exported)).returncode == 0
    if harm == "old":
        shutil.copy(path, f"{path}.copy")
        count(daemon, 1)
    assert daemon.stop() == 0
    if harm == "lost":
        path.unlink()
    elif harm == "old":
        shutil.copy(f"{path}.copy", path)
    elif harm == "foreign":
        shutil.copy(journal(daemon, 0), path)
    else:
        path.write_bytes(path.read_bytes().replace(b"log-", b"lag-"))
    missing = harm in ("lost", "old")
    error = CountersMissingError if missing else CountersCorruptError
    assert refused(daemon) == error.exit_status, daemon.log()
    row = verify(daemon)
    assert "obelisk bump 1 --drop-counters" in str(row["remedy"])
    bump = ("--config", str(daemon.config), "obelisk", "bump", "1", "--clock-ok")
    assert daemon.ctl(*bump).returncode == error.exit_status
    dropped = daemon.ctl(*bump, "--drop-counters")
    assert dropped.returncode == 0
    assert "raise them" in dropped.stderr
    assert verify(daemon)["verdict"] == "ok"
    daemon.start()
    imported = daemon.ctl("counters", "import", "--add", "1", str(exported))
    assert imported.returncode == 0, imported.stderr
    # Ten or eleven had been handed out of each; those of the sound coordinator were raised past that too.
    assert min(count(daemon, 1)) >= 11


def test_a_bump_keeps_the_counters(daemon: Daemon) -> None:
    assert daemon.ctl("--config", str(daemon.config), "obelisk", "bump", "1", "--clock-ok").returncode == 0
    daemon.start()
    assert count(daemon, 1) == [10] * len(NAMES)
