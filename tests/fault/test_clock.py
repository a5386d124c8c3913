"""A daemon whose wall clock is set back, strobed and set far ahead while clients draw (F18, F19, F20, F21, F22)."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import libpharaoh
from libpharaoh.scarab import Layout
from pharaohd import obelisk
from tests.support import ledger
from tests.support.daemon import Daemon, remove_host_page, short_directory, wait_until
from tests.support.load_client import LoadClient, load_clients
from tests.support.wire import Wire

HOUR_MS = 3_600_000
LAYOUT = Layout.from_text("41-10-13")
KINDS = ("ring", "single", "socket", "strict")
SPAN_S = 0.6
SLACK_MS = 60_000  # between what two processes call now; far below any step made here


class WallClock:
    """What `clock.offset_file` adds to the wall clock of a daemon."""

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
def scene(coordinators: int = 1) -> Iterator[Scene]:
    with short_directory() as directory:
        clock = WallClock(directory / "offset")
        settings = {"clock": {"offset_file": str(clock.path)}}
        with Daemon(directory, coordinators=coordinators, settings=settings) as daemon:
            yield Scene(daemon, clock, directory)


def draw_id(daemon: Daemon, coordinator: int = 0) -> int:
    with libpharaoh.connect(daemon.own_socket(coordinator), rings=False, timeout=10.0) as client:
        return client.next_id()


def offset_ms_of(id: int) -> int:
    """How far an id's time is from this process's wall clock."""
    return libpharaoh.parse(id).unix_ms - time.time_ns() // 1_000_000


def counts(clients: Sequence[LoadClient]) -> dict[str, int]:
    return {client.kind: ledger.count_of([client.runs()]) for client in clients}


def drawn_in_a_span(clients: Sequence[LoadClient]) -> dict[str, int]:
    before = counts(clients)
    time.sleep(SPAN_S)
    return {kind: count - before[kind] for kind, count in counts(clients).items()}


def check_ledgers(clients: Sequence[LoadClient], at_least: int) -> None:
    ledgers = [client.runs() for client in clients]
    ledger.check_unique(ledgers, at_least)
    for runs in ledgers:
        ledger.check_rising(runs)
    timed = [client.runs() for client in clients if client.kind in ("socket", "strict")]
    assert ledger.check_real_time_order(timed) > 100


def test_an_hour_back_is_no_outage() -> None:
    with scene() as at:
        with load_clients(at.daemon.socket, at.directory, KINDS) as clients:
            for client in clients:
                client.wait_drawing()
            before = drawn_in_a_span(clients)
            at.clock.step_to(-HOUR_MS)
            after = drawn_in_a_span(clients)
            if any(after[kind] <= before[kind] / 5 for kind in KINDS):  # a machine that stood still is no outage
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
        with load_clients(at.daemon.socket, at.directory, KINDS) as clients:
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
    """+8 h is neither followed nor let in by a crash or a restart, until an operator accepts it, for all workers (F19).

    Then it is kept, over crashes of workers and of the whole host, although only one worker was told.
    """
    ahead_ms = 8 * HOUR_MS
    everyone = (0, 1)
    with scene(coordinators=len(everyone)) as at:
        ids: list[int] = []

        def draw(expected_ms: int) -> None:
            for coordinator in everyone:
                ids.append(draw_id(at.daemon, coordinator))
                assert abs(offset_ms_of(ids[-1]) - expected_ms) < SLACK_MS

        def not_followed() -> None:
            draw(0)
            wait_until(lambda: alarms(at.daemon) == list(everyone), "the alarm of every worker")
            assert all(at.daemon.worker(number).clock_jump_ms > ahead_ms - SLACK_MS for number in everyone)
            draw(0)

        draw(0)
        at.clock.step_to(ahead_ms)
        not_followed()
        assert "is not followed" in at.daemon.log()
        crash_worker(at.daemon)
        not_followed()
        assert at.daemon.stop() == 0
        at.daemon.start()
        not_followed()
        assert "the wall clock is ahead of all evidence and is not followed" in at.daemon.log()
        at.daemon.kill()
        at.daemon.start()
        not_followed()
        accepted = at.daemon.ctl("-o", "json", "clock", "accept")
        assert accepted.returncode == 0, accepted.stderr
        assert json.loads(accepted.stdout)["moved_ms"] > ahead_ms - SLACK_MS
        draw(ahead_ms)
        wait_until(lambda: alarms(at.daemon) == [], "the alarm is over")
        wait_until(lambda: recorded_offset_ms(at.daemon) > ahead_ms - SLACK_MS, "it is durable")
        crash_worker(at.daemon)
        draw(ahead_ms)
        at.clock.step_to(0)  # it was wrong after all: there is no way back, and no duplicate
        crash_worker(at.daemon)
        draw(ahead_ms)
        lose_power(at.daemon)
        at.daemon.start()
        draw(ahead_ms)
        assert sorted(set(ids)) == sorted(ids)


def test_an_accepted_jump_is_durable_though_nobody_asks_for_ids() -> None:
    """The power goes right after the operator's word; what was told then is not forgotten (F19)."""
    with scene() as at:
        first = draw_id(at.daemon)
        at.clock.step_to(8 * HOUR_MS)
        wait_until(lambda: alarms(at.daemon) == [0], "the alarm")
        assert at.daemon.ctl("clock", "accept").returncode == 0
        wait_until(lambda: recorded_offset_ms(at.daemon) > 8 * HOUR_MS - SLACK_MS, "it is durable")
        lose_power(at.daemon)
        at.clock.step_to(0)
        at.daemon.start()
        assert offset_ms_of(draw_id(at.daemon)) > 8 * HOUR_MS - SLACK_MS
        assert draw_id(at.daemon) > first


def alarms(daemon: Daemon) -> list[int]:
    done = daemon.ctl("-o", "json", "status")
    found: list[int] = json.loads(done.stdout)["clock_alarms"]
    return found


def recorded_offset_ms(daemon: Daemon) -> int:
    """How far the host time that the files know of is ahead of this process's wall clock."""
    records = [newest_in(daemon.obelisk(number)) for number in range(daemon.coordinators)]
    return max(record.host_ns for record in records) // 1_000_000 - time.time_ns() // 1_000_000


def crash_worker(daemon: Daemon) -> None:
    pid = daemon.worker(0).pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: daemon.worker(0).pid not in (0, pid), "a new worker")
    daemon.wait_live()


def lose_power(daemon: Daemon) -> None:
    """As far as processes can see: what was in memory is gone. Of the same boot, so boottime goes on."""
    daemon.kill()
    remove_host_page(daemon.state_dir)


@pytest.mark.parametrize("end", [Daemon.kill, lose_power], ids=["killed", "the page is lost too"])
def test_restart_with_the_clock_set_back(end: Callable[[Daemon], None]) -> None:
    """The whole daemon dies; the clock goes back an hour, and more: the new one's time goes on where it was (F18).

    With the page it goes on exactly after the last id: a kill burns none. Without it, above the ceiling that it finds.
    """
    with scene() as at:
        for offset_ms in (-HOUR_MS, -2 * HOUR_MS, 0):
            with load_clients(at.daemon.socket, at.directory, ("ring", "socket")) as clients:
                for client in clients:
                    client.wait_drawing()
                position = newest_position(at.daemon)
                end(at.daemon)
                at.clock.step_to(offset_ms)
                found = newest_in(at.daemon.obelisk(0)).ceiling
                highest = ledger.highest_ticks([client.runs() for client in clients], LAYOUT)[0]
                assert highest < found, "an id at or above the durable ceiling"
                at.daemon.start()
                first = draw_id(at.daemon)
                least = found if end is lose_power else max(highest, position)
                assert ledger.tick_of(first, LAYOUT) >= least
                assert -SLACK_MS < offset_ms_of(first) < SLACK_MS
                assert at.daemon.worker(0).clock_ahead_ms >= max(0, -offset_ms - SLACK_MS)
                wait_until_all_draw(clients)
            check_ledgers_of_restart(clients)
            for client in clients:
                client.ledger.unlink()


def newest_position(daemon: Daemon) -> int:
    """As of the last heartbeat."""
    return daemon.worker(0).next_tick


def test_a_kill_loop_pushes_no_time() -> None:
    """If a start took the ceiling that it found for the time, each would be a window further ahead (F18)."""
    with scene() as at:
        ids = [draw_id(at.daemon)]
        for number in range(6):
            (lose_power if number % 2 else Daemon.kill)(at.daemon)
            at.daemon.start()
            ids.append(draw_id(at.daemon))
            assert offset_ms_of(ids[-1]) <= 0
        assert ids == sorted(set(ids))


def test_siblings_accept_each_other_s_ids_whatever_the_clock_did(rng: random.Random) -> None:
    """Steps back, crashes, restarts and lost pages; each id is accepted as `after` everywhere, at the clock (F18)."""
    coordinators = 3
    keys = {libpharaoh.coordinator_for(key, coordinators): key for key in "abcdefgh"}
    with scene(coordinators) as at:

        def restart(daemon: Daemon) -> None:
            assert daemon.stop() == 0

        ids = [draw_id(at.daemon)]
        for offset_ms, end in (
            (-HOUR_MS, None), (-2 * HOUR_MS, crash_worker), (0, restart), (-HOUR_MS, Daemon.kill),
            (-60_000, lose_power), (-3 * HOUR_MS, restart), (0, crash_worker),
        ):  # fmt: skip
            at.clock.step_to(offset_ms)
            if end is not None:
                end(at.daemon)
            if not at.daemon.alive():
                at.daemon.start()
            for entry in rng.sample(range(coordinators), coordinators):
                with Wire(at.daemon.own_socket(entry)) as wire:
                    for key in rng.sample(sorted(keys.values()), coordinators):
                        ids.append(wire.ask("get_timestamp", key, ids[-1]))
                        assert -SLACK_MS < offset_ms_of(ids[-1]) <= 0
        assert {libpharaoh.parse(id).coordinator for id in ids} == set(range(coordinators))
        assert ids == sorted(set(ids))


def wait_until_all_draw(clients: Sequence[LoadClient]) -> None:
    drawn = counts(clients)
    wait_until(lambda: all(counts(clients)[kind] > drawn[kind] for kind in drawn), "every client draws")


def check_ledgers_of_restart(clients: Sequence[LoadClient]) -> None:
    ledgers = [client.runs() for client in clients]
    ledger.check_unique(ledgers, at_least=1000)
    for runs in ledgers:
        ledger.check_rising(runs)


def newest_in(path: Path) -> obelisk.Record:
    newest = obelisk.inspect(path).newest
    assert newest is not None
    return newest
