"""pharaohctl against a real daemon: what it shows is what is, and its exit statuses tell the states apart."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import libpharaoh
from libpharaoh.errors import ConnectFailedError, RepairUnsureError
from pharaohd import obelisk
from pharaohd.ctl import common, daemon
from pharaohd.stats import Reader, WorkerState
from tests.support.daemon import remove_host_page

WATCHDOG_S = 20.0
HOUR_NS = 3_600_000_000_000
CONFIG = "[cluster]\ncoordinators = 2\n"


class Daemon:
    """A pharaohd with two coordinators in a short directory of its own (sockets have short paths)."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ph-ctl-"))
        self.config = self.directory / "pharaohd.toml"
        self.config.write_text(CONFIG)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        arguments = ["--dir", str(self.directory / "d"), "--config", str(self.config)]
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen([sys.executable, "-m", "pharaohd", *arguments], stdout=log, stderr=log)
        self.wait_until(lambda: self.states() == [WorkerState.LIVE] * 2)

    def stop(self) -> int:
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(WATCHDOG_S)

    def remove(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.stop()
        remove_host_page(self.directory / "d" / "state")
        shutil.rmtree(self.directory)

    def states(self) -> list[int]:
        try:
            with Reader(str(self.directory / "d")) as page:
                return [worker.state for worker in page.workers()]
        except ConnectFailedError:
            return []

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WATCHDOG_S
        while not condition():
            assert self._process is None or self._process.poll() is None, (self.directory / "log").read_text()
            assert time.monotonic() < deadline, (self.directory / "log").read_text()
            time.sleep(0.01)

    def obelisk(self, coordinator: int) -> Path:
        return self.directory / "d" / "state" / "obelisks" / f"{coordinator:04d}.obelisk"

    def ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pharaohd.ctl", "--dir", str(self.directory / "d"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=WATCHDOG_S, check=False)

    def ctl_json(self, *arguments: str) -> Any:
        done = self.ctl(*arguments, "-o", "json")
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)

    def status(self) -> tuple[int, Any]:
        """Exit status, and what it says."""
        done = self.ctl("status", "-o", "json")
        return done.returncode, json.loads(done.stdout)


@pytest.fixture(scope="module")
def shared() -> Iterator[Daemon]:
    """For tests that change nothing."""
    daemon = Daemon()
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.remove()


@pytest.fixture
def own() -> Iterator[Daemon]:
    daemon = Daemon()
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.remove()


def test_status_of_a_daemon_that_is_well(shared: Daemon) -> None:
    facts = shared.ctl_json("status")
    assert facts["status"] == "ok"
    assert (facts["workers_live"], facts["workers_total"], facts["workers_not_live"]) == (2, 2, [])
    assert facts["first_live"] == 0
    assert facts["clock_alarms"] == []
    assert Path(f"/proc/{facts['supervisor_pid']}").exists()


def test_next_gives_rising_ids_that_decode_shows(shared: Daemon) -> None:
    before_ms = time.time_ns() // 1_000_000
    ids = [int(text) for text in shared.ctl("next", "-n", "20000").stdout.split()]
    assert len(ids) == 20000
    assert all(a < b for a, b in itertools.pairwise(ids))
    rows = shared.ctl_json("decode", str(ids[0]), shared.ctl("next", "--base32").stdout.strip())
    assert libpharaoh.parse(ids[0]).unix_ms >= before_ms - 1000
    assert int(rows[0]["id"]) == ids[0] < int(rows[1]["id"])
    assert {row["coordinator"] for row in rows} <= {0, 1}


def test_the_statistics_show_what_was_issued(shared: Daemon) -> None:
    issued = shared.ctl_json("status")["ids_issued"]
    shared.ctl("next", "-n", "5000")
    assert shared.ctl_json("status")["ids_issued"] >= issued + 5000
    workers = shared.ctl_json("workers")
    assert [worker["coordinator"] for worker in workers] == [0, 1]
    for worker in workers:
        assert worker["state"] == "live"
        assert Path(f"/proc/{worker['pid']}").exists()
        assert worker["ceiling"] >= worker["next_tick"]
        assert 0 <= worker["heartbeat_age_ms"] <= daemon.HEARTBEAT_STALE_MS
    answers = shared.ctl_json("stats")
    assert list(answers) == ["0", "1"]
    assert answers["1"]["pid"] == workers[1]["pid"]


def test_workers_are_a_table_with_a_line_each(shared: Daemon) -> None:
    header, first, second = shared.ctl("workers").stdout.splitlines()
    assert header.split()[:4] == ["coord", "state", "pid", "restarts"]
    assert first.split()[:2] == ["0", "live"]
    assert second.split()[:2] == ["1", "live"]


def test_ping(shared: Daemon) -> None:
    assert shared.ctl_json("ping")["answer"] == "pong"
    assert shared.ctl("ping").stdout.startswith("pong from coordinator ")


def test_a_closed_pipe_is_no_traceback(shared: Daemon) -> None:
    common = f"--dir {shared.directory / 'd'}"
    script = f"{sys.executable} -m pharaohd.ctl {common} next -n 200000 | head -n 1"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=WATCHDOG_S, check=True)
    assert done.stdout.strip().isdigit()
    assert done.stderr == ""


def test_clock_accept_without_an_alarm_changes_nothing(shared: Daemon) -> None:
    assert shared.ctl_json("clock", "accept") == {"moved_ms": 0}
    assert shared.ctl("clock", "accept", "1").returncode == 2  # the host has one time


def test_a_restarted_worker_shows_in_the_table(own: Daemon) -> None:
    before = own.ctl_json("workers")[1]
    os.kill(before["pid"], signal.SIGKILL)
    own.wait_until(lambda: own.ctl_json("workers")[1]["restart_count"] == before["restart_count"] + 1)
    own.wait_until(lambda: own.states() == [WorkerState.LIVE] * 2)
    after = own.ctl_json("workers")[1]
    assert after["pid"] != before["pid"]
    assert after["exit_code"] == 128 + signal.SIGKILL


@pytest.mark.parametrize("stopped", [False, True])
def test_a_worker_that_cannot_serve_is_degraded_and_then_repaired(own: Daemon, stopped: bool) -> None:
    """F2, F3: a damaged Obelisk is refused; the remedy that pharaohctl prints leads back, above every id.

    While the daemon serves its page knows how far the lost coordinator came; when it is stopped, the operator is asked.
    """
    ids = [int(text) for text in own.ctl("next", "-n", "3000").stdout.split()]
    position, pid = next(
        (worker["next_tick"], worker["pid"]) for worker in own.ctl_json("workers") if worker["coordinator"] == 1
    )
    own.obelisk(1).write_bytes(bytes(own.obelisk(1).stat().st_size))
    os.kill(pid, signal.SIGKILL)
    own.wait_until(lambda: WorkerState.FAILED in own.states())
    assert own.ctl("status").returncode == common.EXIT_DEGRADED
    assert own.ctl("stats").returncode == common.EXIT_DEGRADED
    verified = own.ctl("obelisk", "verify", "--config", str(own.config))
    assert verified.returncode == common.EXIT_PROBLEMS
    assert "pharaohctl obelisk bump 1 --create" in verified.stdout + verified.stderr
    bump: tuple[str, ...] = ("obelisk", "bump", "1", "--create", "--config", str(own.config), "-o", "json")
    if stopped:
        own.stop()
        assert own.ctl(*bump).returncode == RepairUnsureError.exit_status
        bump = (*bump, "--clock-ok")
    repaired = own.ctl(*bump)
    assert repaired.returncode == 0, repaired.stderr
    assert json.loads(repaired.stdout)[0]["by"] == ("clock" if stopped else "page")
    report = obelisk.inspect(own.obelisk(1))
    assert report.newest is not None
    assert report.newest.ceiling >= position
    if not stopped:
        own.stop()
    assert own.ctl("obelisk", "verify", "--config", str(own.config)).returncode == 0
    own.start()
    assert own.ctl("status").returncode == 0
    assert min(int(own.ctl("next").stdout) for _ in range(4)) > max(ids)


def test_reload_says_whether_the_daemon_took_the_settings(own: Daemon) -> None:
    serial = own.ctl_json("status")["settings_serial"]
    own.config.write_text(CONFIG + "[ring]\nmax_age_ms = 20\n")
    done = own.ctl("reload")
    assert (done.returncode, done.stderr) == (0, "")
    assert own.ctl_json("status")["settings_serial"] == serial + 1
    own.config.write_text(CONFIG + "[ring]\nmax_age_ms = 0\n")
    refused = own.ctl("reload")
    assert refused.returncode == 80
    assert "SETTINGS_INVALID" in refused.stderr
    assert own.ctl_json("status")["reload_failures"] == 1


def test_clock_accept_follows_a_forward_jump(own: Daemon) -> None:
    """F19: a jump raises an alarm and is not followed; an operator's word ends it, for the whole host."""
    offset = own.directory / "offset"
    offset.write_bytes(bytes(8))
    own.stop()
    own.config.write_text(CONFIG + f'[clock]\noffset_file = "{offset}"\n')
    own.start()
    before = libpharaoh.parse(int(own.ctl("next").stdout)).unix_ms
    offset.write_bytes(struct.pack("<q", HOUR_NS))
    own.wait_until(lambda: own.status()[1]["clock_alarms"] == [0, 1])
    code, facts = own.status()
    assert (code, facts["status"]) == (4, "degraded")
    for _ in range(4):
        assert libpharaoh.parse(int(own.ctl("next").stdout)).unix_ms < before + 60_000
    assert own.ctl_json("clock", "accept")["moved_ms"] > 3_500_000
    for key in ("a", "b"):  # one of each coordinator
        assert libpharaoh.parse(int(own.ctl("timestamp", key).stdout)).unix_ms >= before + 3_500_000
    own.wait_until(lambda: own.status()[1]["clock_alarms"] == [])
    assert own.status()[0] == 0


def test_ids_far_ahead_of_the_clock_are_told(own: Daemon) -> None:
    """F18: a step back by an hour harms no id; who watches shall see that their time is not the wall clock's."""
    offset = own.directory / "offset"
    offset.write_bytes(bytes(8))
    own.stop()
    own.config.write_text(CONFIG + f'[clock]\noffset_file = "{offset}"\n')
    own.start()
    own.ctl("next")
    offset.write_bytes(struct.pack("<q", -HOUR_NS))
    own.wait_until(lambda: own.status()[1]["clock_ahead_ms"] > 3_500_000)
    code, facts = own.status()
    assert (code, facts["status"], facts["clock_alarms"]) == (4, "degraded", [])
    assert own.ctl("next").returncode == 0


# ---- ids by key, dense values, counters ----


def test_ids_by_key_rise(shared: Daemon) -> None:
    last = int(shared.ctl("timestamp").stdout)
    for command in ("timestamp", "begin-transaction", "create-session", "next-event-id"):
        facts = shared.ctl_json(command, "hex:ff00", "--after", str(last))
        assert int(facts["id"]) > last
        assert facts["coordinator"] == shared.ctl_json("route", "hex:ff00")["coordinator"]
        last = int(facts["id"])


def test_a_token_gets_its_offset_again(own: Daemon) -> None:
    """F35."""
    first = own.ctl("create-session", "billing").stdout.strip()
    token = ("--sequence", "0", "--client-id", "billing", "-n", "3")
    assert own.ctl("assign-offset", "orders", "--session", first, *token).stdout == "0\n"
    assert own.ctl("assign-offset", "orders", "--session", first, *token).stdout == "0\n"
    second = own.ctl("create-session", "billing").stdout.strip()
    assert own.ctl("assign-offset", "orders", "--session", second, *token).stdout == "3\n"
    fenced = own.ctl("assign-offset", "orders", "--session", first, *token)
    assert (fenced.returncode, fenced.stdout) == (1, "")
    assert "FENCED" in fenced.stderr
    assert [own.ctl("join-group", "g", "m").stdout for _ in range(3)] == ["1\n", "2\n", "3\n"]


def test_a_counter_is_read_and_raised_but_never_lowered(own: Daemon) -> None:
    assert "COUNTER_UNKNOWN" in own.ctl("counters", "read", "offset", "orders").stderr
    assert own.ctl("counters", "raise", "offset", "orders", "100").returncode == 0
    assert own.ctl("assign-offset", "orders").stdout == "100\n"
    assert own.ctl_json("counters", "read", "offset", "orders")["next"] == 101
    lower = own.ctl("counters", "raise", "offset", "orders", "100")
    assert (lower.returncode, "COUNTER_LOWER" in lower.stderr) == (1, True)
    assert own.ctl_json("counters", "read", "offset", "orders")["next"] == 101
    for number in (0, 1):
        own.ctl("counters", "raise", "schema", str(number), str(number + 5))
        facts = own.ctl_json("counters", "read", "schema", str(number))
        assert (facts["name"], facts["coordinator"], facts["next"]) == ("", number, number + 5)


NAMES = [f"partition {number}" for number in range(3000)]


def read_export(file: Path) -> dict[tuple[str, str, int], int]:
    found = {}
    for line in file.read_text().splitlines():
        row = json.loads(line)
        found[row["kind"], row.get("name_hex", row["name"]), row["coordinator"]] = row["next"]
    return found


def test_a_lost_host_s_counters_go_on_from_an_export(own: Daemon) -> None:
    """F27: what was handed out is not handed out again by the successor that imports the export."""
    with libpharaoh.connect(own.directory / "d" / "rpc.sock") as client:
        for name in NAMES:
            client.assign_offset(name, 7)
        client.join_group(b"\xff", "member")
    own.ctl("counters", "raise", "schema", "1", "9")
    export = own.directory / "export"
    assert own.ctl("counters", "export", str(export)).returncode == 0
    before = read_export(export)
    assert {name: value for (kind, name, _), value in before.items() if kind == "offset"} == dict.fromkeys(NAMES, 7)
    assert {key: value for key, value in before.items() if key[0] != "offset"} == {
        ("group", "ff", libpharaoh.coordinator_for(b"\xff", 2)): 2,
        ("schema", "", 1): 9,
    }
    own.stop()
    shutil.rmtree(own.directory / "d" / "state")
    own.start()
    own.ctl("assign-offset", NAMES[0], "-n", "1000")
    assert own.ctl_json("counters", "import", str(export)) == {"counters": 3002, "raised": 3001, "left": 1}
    assert own.ctl_json("counters", "import", str(export)) == {"counters": 3002, "raised": 0, "left": 3002}
    assert own.ctl("assign-offset", NAMES[0]).stdout == "1000\n"
    assert own.ctl("assign-offset", NAMES[1]).stdout == "7\n"
    assert own.ctl("join-group", "hex:ff", "member").stdout == "2\n"
    assert own.ctl_json("counters", "import", str(export), "--add", "500")["raised"] == 3001
    assert own.ctl("assign-offset", NAMES[1]).stdout == "507\n"
    listed = own.ctl_json("counters", "list", "--kind", "offset", "--prefix", "partition 12")
    assert sorted(row["name"] for row in listed) == sorted(name for name in NAMES if name.startswith("partition 12"))
    assert len(own.ctl("counters", "list").stdout.splitlines()) == 1 + len(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_counters_are_raised_by_root_and_the_daemon_s_user_alone(own: Daemon) -> None:
    for path in (own.directory, own.directory / "d"):
        path.chmod(0o755)
    for path in (own.directory / "d").rglob("*.sock"):
        path.chmod(0o666)
    (own.directory / "d" / "coordinators").chmod(0o755)
    # As root first, so that every module is loaded: others may not read this interpreter's files.
    script = """if True:
        import os, sys
        from pharaohd.ctl import cli
        assert cli.main([*sys.argv[1:], "counters", "raise", "offset", "orders", "10"]) == 0
        assert cli.main([*sys.argv[1:], "counters", "raise", "offset", "orders", "1"]) == 1
        os.setgid(65534)
        os.setuid(65534)
        sys.exit(cli.main([*sys.argv[1:], "counters", "raise", "offset", "orders", "100"]))
    """
    command = [sys.executable, "-c", script, "--dir", str(own.directory / "d")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WATCHDOG_S, check=False)
    assert done.returncode == 1, done.stderr
    assert "PERMISSION_DENIED" in done.stderr
    assert own.ctl_json("counters", "read", "offset", "orders")["next"] == 10
