"""A disk whose syncs take seconds: ids go on after the first ones, and the status says so (F9, F59, F62)."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import ledger, loopfs, throttle
from tests.support.daemon import Daemon, Settings, wait_until
from tests.support.load_client import LoadClient, load_clients
from tests.support.loopfs import LoopFs, loop_fs

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(loopfs.MISSING is not None, reason=f"needs {loopfs.MISSING}"),
    pytest.mark.timeout(600),
]

SLOW_NS = 1_000_000_000
PULSE_S = 2.5
THAWED_S = 0.2
PULSES = 6
KINDS = ("ring", "single", "socket", "strict")
SETTINGS: Settings = {"obelisk": {"window_ms": 250}, "rpc": {"stall_ms_max": 60_000}}
DEGRADED = 4
THREE = 3
"""Coordinators that share two writes a second."""
SYNCS = 2 * THREE


@contextmanager
def scene(
    directory: Path, coordinators: int = 1, options: tuple[str, ...] = ()
) -> Iterator[tuple[LoopFs, Daemon, list[LoadClient]]]:
    """A daemon on a file system of its own, and clients of each coordinator that draw all the time."""
    with loop_fs(directory, 64, options) as file_system:
        state_dir = file_system.mount_point / "state"
        daemon = Daemon(directory, coordinators=coordinators, state_dir=state_dir, settings=SETTINGS)
        try:
            with daemon, contextlib.ExitStack() as held:
                drawn: list[LoadClient] = []
                for number, kind in enumerate(KINDS):
                    (directory / kind).mkdir()
                    socket = daemon.own_socket(number % coordinators)
                    drawn += held.enter_context(load_clients(socket, directory / kind, [kind], batch=64))
                for client in drawn:
                    client.wait_drawing()
                try:
                    yield file_system, daemon, drawn
                finally:
                    file_system.thaw()
                for client in drawn:
                    client.kill()
                check_ledgers(drawn)
        finally:
            file_system.thaw()


def check_ledgers(drawn: Sequence[LoadClient]) -> None:
    runs = [client.runs() for client in drawn]
    count = ledger.check_unique(runs, at_least=10_000)
    for one in runs:
        ledger.check_rising(one)
    print(f"{count} ids, none twice")


def pulse(file_system: LoopFs, daemon: Daemon, drawn: Sequence[LoadClient]) -> list[bool]:
    """The disk hangs for a while, then ends a sync. Returns whether each client got something in the last half."""
    syncs = daemon.worker(0).syncs
    file_system.freeze()
    try:
        time.sleep(PULSE_S / 2)
        rows = [client.rows() for client in drawn]
        counts = [client.mark() for client in drawn]
        time.sleep(PULSE_S / 2)
        gone_on = [
            client.rows() > row or client.mark() != mark for client, row, mark in zip(drawn, rows, counts, strict=True)
        ]
    finally:
        file_system.thaw()
    wait_until(lambda: daemon.worker(0).syncs > syncs, "a sync that ends")
    time.sleep(THAWED_S)
    return gone_on


def test_pulses(directory: Path, effort: float) -> None:
    """F59, F62: the disk hangs for 2.5 s again and again: after two such syncs no id waits for one any more."""
    with scene(directory) as (file_system, daemon, drawn):
        for _ in range(3):
            pulse(file_system, daemon, drawn)
        assert daemon.worker(0).sync_ns_max > SLOW_NS
        stalls = daemon.worker(0).stalls
        for _ in range(max(2, round(PULSES * effort))):
            assert all(pulse(file_system, daemon, drawn)), "a client got nothing while the disk hung"
        assert daemon.worker(0).stalls == stalls, "an id waited for a sync"
        print(f"slowest sync {daemon.worker(0).sync_ns_max / 1e9:.1f} s, stalls at first {stalls}")


@pytest.mark.skipif(throttle.MISSING is not None, reason=f"needs {throttle.MISSING}")
def test_few_writes_a_second(directory: Path, effort: float) -> None:
    """F59, F62, case cg7: each sync takes seconds, for as long as it lasts; ids go on after the first ones."""
    with (
        scene(directory, THREE, ("-O", "^has_journal")) as (file_system, daemon, drawn),
        throttle.throttled(daemon, file_system.mount_point, 2),
    ):
        wait_until(lambda: stalls_during(daemon, SYNCS) == 0, "ids that wait for no sync", 300)
        if max(worker.sync_ns_max for worker in daemon.workers()) < SLOW_NS:
            pytest.skip("the block controller does not slow this disk down")
        for _ in range(max(1, round(2 * effort))):
            marks = [client.mark() for client in drawn]
            assert stalls_during(daemon, SYNCS) == 0, "an id waited for a sync"
            assert all(client.mark() != mark for client, mark in zip(drawn, marks, strict=True))
        syncs_s = [round(worker.sync_ns_last / 1e9, 1) for worker in daemon.workers()]
        print(f"syncs of {syncs_s} s, stalls at first {[worker.stalls for worker in daemon.workers()]}")


def stalls_during(daemon: Daemon, count: int) -> int:
    """The stalls of all coordinators while they sync so often together: one that no client asks any more does not."""
    before = daemon.workers()
    syncs, stalls = sum(worker.syncs for worker in before), sum(worker.stalls for worker in before)
    wait_until(lambda: sum(worker.syncs for worker in daemon.workers()) >= syncs + count, "syncs", 180)
    return sum(worker.stalls for worker in daemon.workers()) - stalls


def status(daemon: Daemon) -> tuple[int, list[int]]:
    done = daemon.ctl("status", "-o", "json")
    return done.returncode, json.loads(done.stdout)["ceilings_stale"]


def test_the_status_tells(directory: Path) -> None:
    """F9, F62: degraded as soon as a ceiling has been outstanding for a second, and not any more afterwards."""
    with scene(directory) as (file_system, daemon, _):
        assert status(daemon) == (0, [])
        file_system.freeze()
        try:
            wait_until(lambda: daemon.worker(0).ceiling_wait_ms > 1000, "a ceiling that is overdue")
            assert status(daemon) == (DEGRADED, [0])
        finally:
            file_system.thaw()
        wait_until(lambda: daemon.worker(0).ceiling_wait_ms == 0, "the ceiling")
        wait_until(lambda: status(daemon) == (0, []), "all well")
