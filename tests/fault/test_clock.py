"""A daemon whose wall clock is set back, strobed and set far ahead while clients draw (F18, F19, F20, F21, F22)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import libpharaoh
from libpharaoh.scarab import Layout
from pharaohd import obelisk
from tests.support import ledger
from tests.support.daemon import Daemon, short_directory, wait_until
from tests.support.drawer import Drawer, drawers

HOUR_MS = 3_600_000
LAYOUT = Layout.from_text("41-10-13")
KINDS = ("ring", "single", "socket", "strict")
SPAN_S = 0.6
SLACK_MS = 60_000  # between what two processes call now; far below any step made here


class WallClock:
    """What `clock.offset_file` adds to the wall clock of coordinator 0."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(8))

    def step_to(self, offset_ms: int) -> None:
        with open(self.path, "r+b") as file:
            file.write((offset_ms * 1_000_000).to_bytes(8, "little", signed=True))


@dataclass
class Scene:
    daemon: Daemon
    clock: WallClock
    directory: Path


@contextlib.contextmanager
def scene() -> Iterator[Scene]:
    with short_directory() as directory:
        clock = WallClock(directory / "offset")
        settings = {"clock": {"offset_file": str(clock.path)}}
        with Daemon(directory, coordinators=1, settings=settings) as daemon:
            yield Scene(daemon, clock, directory)


def draw_id(daemon: Daemon) -> int:
    with libpharaoh.connect(daemon.socket, rings=False, timeout=10.0) as client:
        return client.next_id()


def offset_ms_of(id: int) -> int:
    """How far an id's time is from this process's wall clock."""
    return libpharaoh.parse(id).unix_ms - time.time_ns() // 1_000_000


def counts(clients: Sequence[Drawer]) -> dict[str, int]:
    return {client.kind: ledger.count_of([client.runs()]) for client in clients}


def drawn_in_a_span(clients: Sequence[Drawer]) -> dict[str, int]:
    before = counts(clients)
    time.sleep(SPAN_S)
    return {kind: count - before[kind] for kind, count in counts(clients).items()}


def check_ledgers(clients: Sequence[Drawer], at_least: int) -> None:
    ledgers = [client.runs() for client in clients]
    ledger.check_unique(ledgers, at_least)
    for runs in ledgers:
        ledger.check_rising(runs)
    timed = [client.runs() for client in clients if client.kind in ("socket", "strict")]
    assert ledger.check_real_time_order(timed) > 100


def test_an_hour_back_is_no_outage() -> None:
    with scene() as at:
        with drawers(at.daemon.socket, at.directory, KINDS) as clients:
            for client in clients:
                client.wait_drawing()
            before = drawn_in_a_span(clients)
            at.clock.step_to(-HOUR_MS)
            after = drawn_in_a_span(clients)
            wait_until(lambda: at.daemon.worker(0).clock_ahead_ms > HOUR_MS - SLACK_MS, "the page shows the step")
            assert at.daemon.worker(0).clock_steps_back >= 1
            assert offset_ms_of(draw_id(at.daemon)) > -SLACK_MS
        # Ratios between two spans of one run; a halt, or running at the wall clock's pace, would leave next to nothing.
        for kind in KINDS:
            assert after[kind] > before[kind] / 5, f"{kind}: {before[kind]} ids before the step, {after[kind]} after"
        check_ledgers(clients, at_least=20_000)


def test_strobing_clock() -> None:
    """Steps of either sign within and beyond the bound, every few milliseconds, one of them across a pause (F20)."""
    with scene() as at:
        with drawers(at.daemon.socket, at.directory, KINDS) as clients:
            for client in clients:
                client.wait_drawing()
            drawn = counts(clients)
            for step in range(100):
                at.clock.step_to((-HOUR_MS, 100_000, -1, HOUR_MS, 5, -100_000)[step % 6])
                if step == 50:
                    pid = at.daemon.worker(0).pid
                    os.kill(pid, signal.SIGSTOP)
                    try:
                        time.sleep(0.3)
                        at.clock.step_to(-2 * HOUR_MS)
                    finally:
                        os.kill(pid, signal.SIGCONT)
                time.sleep(0.007)
            at.clock.step_to(0)
            # followed to 100 s ahead once, not once per strobe, and never to an hour
            assert -SLACK_MS < offset_ms_of(draw_id(at.daemon)) < 100_000 + SLACK_MS
            assert all(count > drawn[kind] for kind, count in counts(clients).items())
        check_ledgers(clients, at_least=20_000)


def test_far_future_is_followed_only_on_command() -> None:
    """+8 h is neither followed nor let in by a crash or a clean restart, until an operator accepts it (F19)."""
    ahead_ms = 8 * HOUR_MS
    with scene() as at:
        ids = [draw_id(at.daemon)]
        at.clock.step_to(ahead_ms)

        def not_followed() -> None:
            ids.append(draw_id(at.daemon))
            assert abs(offset_ms_of(ids[-1])) < SLACK_MS
            wait_until(lambda: at.daemon.worker(0).clock_jump_ms > ahead_ms - SLACK_MS, "the alarm in the page")
            ids.append(draw_id(at.daemon))
            assert abs(offset_ms_of(ids[-1])) < SLACK_MS

        not_followed()
        assert "is not followed" in at.daemon.log()
        workers = at.daemon.ctl("-o", "json", "workers")
        assert json.loads(workers.stdout)[0]["clock_jump_ms"] > ahead_ms - SLACK_MS, workers.stderr
        status = json.loads(at.daemon.ctl("-o", "json", "status").stdout)
        assert status["clock_alarms"] == [0]
        crash_worker(at.daemon)
        not_followed()
        assert at.daemon.stop() == 0
        at.daemon.start()
        not_followed()
        accepted = at.daemon.ctl("-o", "json", "clock", "accept")
        assert accepted.returncode == 0, accepted.stderr
        assert json.loads(accepted.stdout)[0]["moved_ms"] > ahead_ms - SLACK_MS
        accepted_tick = ledger.tick_of(ids[-1], LAYOUT) + (ahead_ms - SLACK_MS) * LAYOUT.sequence_count
        wait_until(
            lambda: ceiling_in(at.daemon.obelisk(0)) > accepted_tick, "it is durable, though nobody asks for ids"
        )
        crash_worker(at.daemon)
        ids.append(draw_id(at.daemon))
        assert abs(offset_ms_of(ids[-1]) - ahead_ms) < SLACK_MS
        wait_until(lambda: at.daemon.worker(0).clock_jump_ms == 0, "the alarm is over")
        at.clock.step_to(0)  # it was wrong after all: there is no way back, and no duplicate
        crash_worker(at.daemon)
        ids.append(draw_id(at.daemon))
        assert abs(offset_ms_of(ids[-1]) - ahead_ms) < SLACK_MS
        assert ids == sorted(set(ids))


def crash_worker(daemon: Daemon) -> None:
    pid = daemon.worker(0).pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: daemon.worker(0).pid not in (0, pid), "a new worker")
    daemon.wait_live()


def test_restart_with_the_clock_set_back() -> None:
    """The whole daemon dies; the clock goes back an hour; the new one goes on above the ceiling it finds (F18)."""
    with scene() as at:
        for offset_ms in (-HOUR_MS, -2 * HOUR_MS, 0):
            with drawers(at.daemon.socket, at.directory, ("ring", "socket")) as clients:
                for client in clients:
                    client.wait_drawing()
                at.daemon.kill()
                at.clock.step_to(offset_ms)
                found = ceiling_in(at.daemon.obelisk(0))
                highest = ledger.highest_ticks([client.runs() for client in clients], LAYOUT)[0]
                assert highest < found, "an id at or above the durable ceiling"
                at.daemon.start()
                assert ledger.tick_of(draw_id(at.daemon), LAYOUT) >= found
                wait_until_all_draw(clients)
            check_ledgers_of_restart(clients)
            for client in clients:
                client.ledger.unlink()


def wait_until_all_draw(clients: Sequence[Drawer]) -> None:
    drawn = counts(clients)
    wait_until(lambda: all(counts(clients)[kind] > drawn[kind] for kind in drawn), "every client draws")


def check_ledgers_of_restart(clients: Sequence[Drawer]) -> None:
    ledgers = [client.runs() for client in clients]
    ledger.check_unique(ledgers, at_least=1000)
    for runs in ledgers:
        ledger.check_rising(runs)


def ceiling_in(path: Path) -> int:
    newest = obelisk.inspect(path).newest
    assert newest is not None
    return newest.ceiling
