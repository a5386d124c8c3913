"""Disks that fail, hang, fill up, and journals of counters that are taken away or put back: F4, F7, F8, F9, F27.

Tokens make every check exact: whatever happened, the request repeated with its token gets the value that is due.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import libpharaoh
from libpharaoh._framing import encode_request
from libpharaoh.errors import (
    CeilingStalledError,
    CountersCorruptError,
    CountersMissingError,
    PharaohError,
    StartError,
    StorageFullError,
    SyncFailedError,
)
from libpharaoh.scarab import coordinator_for
from pharaohd import obelisk
from pharaohd.obelisk import CountersReport
from pharaohd.stats import WorkerState
from tests.support.arena import Arena
from tests.support.counter import asking, check_counted, counters
from tests.support.daemon import WATCHDOG_S, Daemon, Settings, check_refused, fill, wait_until
from tests.support.loopfs import MISSING, loop_fs, small_memory_disk, state_of

BLOCK = 4096
NAMES = ("group-0", "group-1", "part-4", "part-5")
ON_0, ON_1 = "part-6", "part-0"
SETTINGS: Settings = {
    "rpc": {"stall_ms_max": 300},
    "obelisk": {"window_ms": 60_000},  # Scarab ids need no disk in this time
    "counters": {"reserve": "offset:fast-*"},
}


def test_the_names_are_where_they_are_used() -> None:
    assert [coordinator_for(name, 2) for name in (*NAMES, "fast-2", "fast-3", ON_0, ON_1)] == [0] * 7 + [1]


def journal_of(daemon: Daemon, coordinator: int) -> CountersReport:
    report = obelisk.verify(daemon.obelisk(coordinator)).counters
    assert report is not None
    return report


def wait_noted(daemon: Daemon, coordinator: int) -> None:
    """Until the Obelisk knows of the journal's last batch."""

    def noted() -> bool:
        report = obelisk.verify(daemon.obelisk(coordinator))
        assert report.newest is not None
        assert report.counters is not None
        return report.newest.counters_batch == report.counters.batch

    wait_until(noted, "the Obelisk is told of the last batch")


def count(daemon: Daemon, partition: str, number: int) -> int:
    """The `number`th value of a partition that is counted with tokens."""
    with libpharaoh.connect(daemon.socket, timeout=WATCHDOG_S, rings=False) as client:
        return client.assign_offset(partition, token=(1, number))


def check_fails(daemon: Daemon, partition: str, number: int) -> None:
    """The same request, once, without a value."""
    with asking(daemon.socket) as ask, pytest.raises(PharaohError):
        ask("assign_offset", partition, 1, [1, number])


@pytest.mark.root
@pytest.mark.skipif(MISSING is not None, reason=f"needs {MISSING}")
def test_a_failing_sync_ends_the_worker_and_nothing_is_lost(directory: Path) -> None:
    """F4: the disk has no room for the next batch; a second sync would succeed, and lie."""
    with small_memory_disk(directory / "tmpfs", 20) as memory, loop_fs(memory) as file_system:
        file_system.fill_image()
        daemon = Daemon(directory, state_dir=file_system.mount_point / "state", settings=SETTINGS)
        with daemon:
            assert count(daemon, ON_1, 0) == 0
            number = 0
            while number == 0 or journal_of(daemon, 0).bytes % BLOCK:  # the next batch begins a block
                assert count(daemon, ON_0, number) == number
                number += 1
            wait_noted(daemon, 0)
            at = journal_of(daemon, 0).bytes // BLOCK
            fill(memory / "filler")
            for block in range(at, at + 4):
                file_system.punch(daemon.journal(0), block)
            fill(memory / "filler")
            check_fails(daemon, ON_0, number)
            wait_until(lambda: daemon.worker(0).exit_code == SyncFailedError.exit_status, "the worker's end")
            assert count(daemon, ON_1, 1) == 1
            (memory / "filler").unlink()
            wait_until(lambda: daemon.worker(0).state == WorkerState.LIVE, "a successor")
            assert count(daemon, ON_0, number) == number
            file_system.cut()  # what was acknowledged does not stand in memory alone
            daemon.kill()
            file_system.remount()
            daemon.start()
            for again in (number, number + 1):
                assert count(daemon, ON_0, again) == again


@pytest.mark.root
@pytest.mark.skipif(MISSING is not None, reason=f"needs {MISSING}")
def test_a_hanging_disk_stalls_counting_alone(directory: Path) -> None:
    """F9: an error in time; Scarab ids and what was reserved ahead go on; after that nothing is lost or repeated."""
    with loop_fs(directory) as file_system:
        daemon = Daemon(directory, state_dir=file_system.mount_point / "state", settings=SETTINGS)
        with (
            daemon,
            counters([daemon.socket], directory, ["plain", "plain", "token", "token"], NAMES) as clients,
            asking(daemon.own_socket(0)) as ask,
        ):
            arena = Arena(daemon, clients)
            assert ask("assign_offset", "fast-2") == ask("assign_offset", "fast-3") == 0
            pids = daemon.worker_pids()
            try:
                file_system.freeze()
                with pytest.raises(CeilingStalledError):
                    ask("assign_offset", "fast-3", 5000)  # more than is reserved
                for name in (ON_0, ON_0, ON_1):
                    with pytest.raises(CeilingStalledError):
                        ask("assign_offset", name, 1, [1, 1])
                wait_until(lambda: state_of(pids[0]) == "D", "a commit thread that sleeps for the disk")
                with libpharaoh.connect(daemon.own_socket(0), rings=False) as client:
                    assert client.get_timestamp() < client.next_id()
                assert [ask("assign_offset", "fast-2") for _ in range(300)] == list(range(1, 301))
                with pytest.raises(CeilingStalledError):
                    ask("assign_offset", "fast-2", 1000)
                time.sleep(0.2)
            finally:
                file_system.thaw()
            arena.progress()
            for name in (ON_0, ON_1):
                assert ask("assign_offset", name, 1, [1, 1]) == 0
            for client_process in clients:
                client_process.finish()
            assert daemon.worker_pids() == pids
            check_counted(daemon.socket, arena.ledgers(), at_least=20)


@pytest.mark.root
@pytest.mark.skipif(MISSING is not None, reason=f"needs {MISSING}")
def test_who_hung_up_while_the_disk_hung_is_answered_nowhere(directory: Path) -> None:
    """F9, F41: the replies of clients that are gone reach no other client, neither in time nor late."""
    with loop_fs(directory) as file_system:
        daemon = Daemon(directory, state_dir=file_system.mount_point / "state", settings=SETTINGS)
        with daemon, contextlib.ExitStack() as later:
            with asking(daemon.own_socket(0)) as ask:  # there is a journal
                assert ask("assign_offset", ON_0) == 0
            wait_until(lambda: daemon.worker(0).connections == 0, "nobody is connected")
            try:
                file_system.freeze()
                for number in range(50):
                    with socket.socket(socket.AF_UNIX) as sock:
                        sock.connect(daemon.own_socket(0))
                        sock.sendall(encode_request(1000 + number, "assign_offset", ["part-4"]))
                wait_until(lambda: daemon.worker(0).connections == 0, "the worker sees that they are gone")
                asks = [later.enter_context(asking(daemon.own_socket(0))) for _ in range(50)]
                assert [ask("ping") for ask in asks] == ["pong"] * 50
                time.sleep(0.4)  # now they are given up
                assert [ask("ping") for ask in asks] == ["pong"] * 50
            finally:
                file_system.thaw()
            assert count(daemon, ON_0, 0) == 1
            assert sorted(ask("assign_offset", ON_0) for ask in asks) == list(range(2, 52))
            assert daemon.worker(0).restart_count == 0


@pytest.mark.root
@pytest.mark.skipif(MISSING is not None, reason=f"needs {MISSING}")
def test_a_full_disk_refuses_new_room(directory: Path) -> None:
    """F7: STORAGE_FULL, and nothing was counted; Scarab ids go on; with room again, so does counting."""
    with loop_fs(directory, options=("-N", "64")) as file_system:
        settings = {**SETTINGS, "rpc": {"stall_ms_max": 10_000}}
        daemon = Daemon(directory, state_dir=file_system.mount_point / "state", settings=settings)
        with daemon, counters([daemon.own_socket(0)], directory, ["plain", "token"], NAMES) as clients:
            arena = Arena(daemon, clients)
            filler = file_system.mount_point / "filler"
            fill(filler)
            pids = daemon.worker_pids()
            with asking(daemon.socket) as ask:
                with pytest.raises(StorageFullError):
                    ask("assign_offset", ON_1)  # the first one of all: there is not even a journal
                use_up(ask)
                for name in (ON_0, ON_1):
                    with pytest.raises(StorageFullError):
                        ask("assign_offset", name)
            assert daemon.worker_pids() == pids
            assert daemon.stop() == 0
            daemon.start()
            with libpharaoh.connect(daemon.socket) as client:
                client.next_ids(10_000)
            filler.unlink()
            arena.progress()
            for name in (ON_0, ON_1):
                assert count(daemon, name, 0) == 0
            for client_process in clients:
                client_process.finish()
            missing = check_counted(daemon.socket, arena.ledgers(), at_least=20)
        assert missing == 0, "a refused request was counted"


def use_up(ask: Callable[..., Any]) -> None:
    """Counts until both coordinators have no room for one more counter."""
    for coordinator in (0, 1):
        names = (name for number in range(100_000) if coordinator_for(name := f"{number:04096}", 2) == coordinator)
        with contextlib.suppress(StorageFullError):
            while ask("assign_offset", next(names)) == 0:
                pass


# ---- harms to the journal of coordinator 1 ----


def unlink(path: Path) -> None:
    path.unlink()


def rename(path: Path) -> None:
    path.rename(path.with_suffix(".away"))


def replace(path: Path) -> None:
    shutil.copy(path, path.with_suffix(".copy"))
    path.with_suffix(".copy").rename(path)


def cut_to_header(path: Path) -> None:
    os.truncate(path, BLOCK)


def cut_to_nothing(path: Path) -> None:
    os.truncate(path, 0)


def patch(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        [byte] = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def damage_header(path: Path) -> None:
    patch(path, 33)


def damage_first_batch(path: Path) -> None:
    patch(path, BLOCK + 40)


def take_the_sibling_s(path: Path) -> None:
    shutil.copy(path.with_name("0000.counters"), path)


@pytest.mark.parametrize(
    ("harm", "end"),
    [
        (unlink, CountersMissingError),
        (rename, CountersMissingError),
        (cut_to_header, CountersMissingError),
        (cut_to_nothing, CountersCorruptError),
        (replace, None),
    ],
)
def test_a_journal_taken_away_underneath(
    directory: Path, harm: Callable[[Path], None], end: type[StartError] | None
) -> None:
    """F8: the worker gives up the file that it holds; its sibling lives on; the successor goes by what it finds."""
    with Daemon(directory) as daemon:
        for number in range(3):
            assert count(daemon, ON_0, number) == count(daemon, ON_1, number) == number
        wait_noted(daemon, 1)
        sibling = daemon.worker_pids()[0]
        harm(daemon.journal(1))
        check_fails(daemon, ON_1, 3)
        wait_until(lambda: "OBELISK_LOST" in daemon.log(), "the worker's end")
        state = WorkerState.LIVE if end is None else WorkerState.FAILED
        wait_until(lambda: daemon.worker(1).state == state, "a successor, or a refusal")
        if end is None:
            assert [count(daemon, ON_1, number) for number in (2, 3)] == [2, 3]
        else:
            assert daemon.worker(1).exit_code == end.exit_status
            check_fails(daemon, ON_1, 3)
        assert count(daemon, ON_0, 3) == 3
        assert daemon.worker_pids()[0] == sibling


@pytest.mark.parametrize(
    ("harm", "error"),
    [
        (unlink, CountersMissingError),
        (cut_to_header, CountersMissingError),
        (cut_to_nothing, CountersCorruptError),
        (damage_header, CountersCorruptError),
        (damage_first_batch, CountersCorruptError),
        (take_the_sibling_s, CountersCorruptError),
    ],
)
def test_a_start_refuses_another_journal_than_its_own(
    directory: Path, harm: Callable[[Path], None], error: type[StartError]
) -> None:
    """F2, F3, F27: with its exit status, name and remedy; with the right file again, counting goes on."""
    daemon = Daemon(directory)
    with daemon:
        for number in range(3):
            assert count(daemon, ON_0, number) == count(daemon, ON_1, number) == number
        assert daemon.stop() == 0
        kept = directory / "kept"
        shutil.copy(daemon.journal(1), kept)
        harm(daemon.journal(1))
        check_refused(daemon, error)
        check_refused(daemon, error)  # a refusal changes nothing
        shutil.copy(kept, daemon.journal(1))
        daemon.start()
        assert [count(daemon, ON_1, number) for number in (2, 3)] == [2, 3]


@pytest.mark.parametrize("crash", [False, True])
def test_an_older_copy_is_refused(directory: Path, crash: bool) -> None:
    """F27: put back after a clean stop, or after a crash: the Obelisk knows how far its journal had come."""
    with Daemon(directory) as daemon:
        assert count(daemon, ON_1, 0) == 0
        wait_noted(daemon, 1)
        older = directory / "older"
        shutil.copy(daemon.journal(1), older)
        assert count(daemon, ON_1, 1) == 1
        wait_noted(daemon, 1)
        if crash:
            daemon.kill()
        else:
            assert daemon.stop() == 0
        newer = daemon.journal(1).read_bytes()
        shutil.copy(older, daemon.journal(1))
        check_refused(daemon, CountersMissingError)
        daemon.journal(1).write_bytes(newer)
        daemon.start()
        assert [count(daemon, ON_1, number) for number in (1, 2)] == [1, 2]
