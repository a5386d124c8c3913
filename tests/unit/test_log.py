"""Log lines: as JSON, for a person, for the journal."""

from __future__ import annotations

import json
import os

import pytest

from pharaohd import log


@pytest.fixture(autouse=True)
def no_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)


def test_json_lines(capfd: pytest.CaptureFixture[str]) -> None:
    log.configure("info", "auto")
    logger = log.logger("worker", 42)
    logger.debug("not said")
    logger.warning("said", path="/x", error=ValueError("odd"))
    line = json.loads(capfd.readouterr().err)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "said", "level": "warning", "process": "worker", "coordinator": 42, "path": "/x", "error": "odd",
    }  # fmt: skip


def test_a_reload_changes_the_level_of_loggers_that_exist(capfd: pytest.CaptureFixture[str]) -> None:
    log.configure("error", "json")
    logger = log.logger("supervisor")
    logger.info("before")
    log.configure("debug", "json")
    logger.debug("after")
    assert json.loads(capfd.readouterr().err)["event"] == "after"


def test_console(capfd: pytest.CaptureFixture[str]) -> None:
    log.configure("info", "console")
    log.logger("supervisor").info("serving", socket="/x")
    said = capfd.readouterr().err
    assert "serving" in said
    assert "socket=/x" in said
    assert "\x1b" not in said


@pytest.mark.parametrize(("method", "priority"), [("debug", 7), ("info", 6), ("warning", 4), ("error", 3)])
def test_journal_priorities(
    method: str, priority: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    log.configure("debug", "json")
    getattr(log.logger("supervisor"), method)("said")
    assert capfd.readouterr().err.startswith(f'<{priority}>{{"')


def test_no_priorities_when_the_journal_is_somebody_elses(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:1")
    log.configure("info", "json")
    log.logger("supervisor").info("said")
    assert capfd.readouterr().err.startswith("{")


def test_a_reader_that_is_gone_stops_no_one() -> None:
    saved = os.dup(2)
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        os.dup2(write_end, 2)
        log.configure("info", "json")
        log.logger("supervisor").info("into the void")
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(write_end)
