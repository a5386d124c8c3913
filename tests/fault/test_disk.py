"""Disks that fail, hang, fill up, and files that are taken away underneath a real daemon: F4, F7, F8, F9."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import libpharaoh
from libpharaoh._socket import Connection
from libpharaoh.errors import (
    CeilingStalledError,
    ObeliskMissingError,
    ObeliskTruncatedError,
    StartError,
    SyncFailedError,
)
from libpharaoh.scarab import Layout
from pharaohd import obelisk
from pharaohd.stats import WorkerState
from tests.support import ledger
from tests.support.daemon import WATCHDOG_S, Daemon, fill, wait_until
from tests.support.load_client import LoadClient, load_clients
from tests.support.loopfs import MISSING, LoopFs, loop_fs, read_medium, small_memory_disk, state_of

pytestmark = [pytest.mark.root, pytest.mark.skipif(MISSING is not None, reason=f"needs {MISSING}")]

LAYOUT = Layout()
STALL_MS = 100
SETTINGS = {"rpc": {"stall_ms_max": STALL_MS}, "obelisk": {"window_ms": 100}}


def own_socket(daemon: Daemon, coordinator: int) -> str:
    return str(daemon.runtime_dir / "coordinators" / f"{coordinator:04d}.sock")


def newest_on_medium(path: Path, copy: Path) -> obelisk.Record:
    """The newest record that the disk holds, whatever the page cache shows."""
    copy.write_bytes(read_medium(path, 16384))
    newest = obelisk.inspect(copy).newest
    assert newest is not None
    return newest


def more_rows(load_client: LoadClient) -> Callable[[], bool]:
    """Whether this client has received anything since."""
    before = load_client.rows()
    return lambda: load_client.rows() > before


def check(drawn: list[LoadClient], at_least: int = 10_000) -> list[list[ledger.Run]]:
    runs = [load_client.runs() for load_client in drawn]
    ledger.check_unique(runs, at_least)
    for client_runs in runs:
        ledger.check_rising(client_runs)
    return runs


def check_below_medium(daemon: Daemon, drawn: list[LoadClient], copy: Path) -> None:
    """C: everything received lies below what the disk itself holds."""
    received = ledger.highest_ticks([load_client.runs() for load_client in drawn], LAYOUT)
    assert received
    for coordinator, tick in received.items():
        assert tick < newest_on_medium(daemon.obelisk(coordinator), copy).ceiling


def let_the_next_record_fail(file_system: LoopFs, daemon: Daemon, filler: Path) -> None:
    """Takes the room for coordinator 0's next record from the disk, just after it has written one."""
    syncs = daemon.worker(0).syncs
    wait_until(lambda: daemon.worker(0).syncs > syncs, "a renewal")
    newest = obelisk.inspect(daemon.obelisk(0)).newest
    assert newest is not None
    file_system.punch(daemon.obelisk(0), 1 + (1 - newest.slot))
    fill(filler)


def test_a_failing_sync_ends_the_worker_and_nothing_is_repeated(directory: Path) -> None:
    """F4: the disk has no room for what is synced; a second sync would succeed, and lie."""
    # A renewal each second: time enough to take the next record's room away.
    settings = {**SETTINGS, "obelisk": {"window_ms": 2000}}
    with small_memory_disk(directory / "tmpfs", 20) as memory, loop_fs(memory) as file_system:
        file_system.fill_image()
        daemon = Daemon(directory, state_dir=file_system.mount_point / "state", settings=settings)
        with daemon, contextlib.ExitStack() as clients:
            on_0 = clients.enter_context(load_clients(own_socket(daemon, 0), directory, ["ring", "socket", "strict"]))
            (directory / "other").mkdir()
            on_1 = clients.enter_context(load_clients(own_socket(daemon, 1), directory / "other", ["ring"]))
            for load_client in [*on_0, *on_1]:
                load_client.wait_drawing()
            sibling = daemon.worker_pids()[1]
            filler = memory / "filler"
            fill(filler)
            let_the_next_record_fail(file_system, daemon, filler)
            wait_until(lambda: daemon.worker(0).exit_code == SyncFailedError.exit_status, "the worker's end")
            check_below_medium(daemon, on_0, directory / "copy")
            wait_until(lambda: daemon.worker(0).restart_count >= 2, "a successor that fails as well")
            check_below_medium(daemon, on_0, directory / "copy")
            wait_until(more_rows(on_1[0]), "the sibling's client served")
            assert daemon.worker_pids()[1] == sibling
            filler.unlink()
            for load_client in on_0:
                wait_until(more_rows(load_client), "each client served again")
            check_below_medium(daemon, on_0, directory / "copy")
        check([*on_0, *on_1])


def test_a_hanging_disk_stalls_within_the_ceiling(directory: Path) -> None:
    """F9: the workers spend what is durable, then say so; nobody hangs, and afterwards all go on."""
    with loop_fs(directory) as file_system:
        daemon = Daemon(directory, state_dir=file_system.mount_point / "state", settings=SETTINGS)
        with daemon, load_clients(own_socket(daemon, 0), directory, ["ring", "socket", "strict"]) as drawn:
            for load_client in drawn:
                load_client.wait_drawing()
            pids = daemon.worker_pids()
            try:
                file_system.freeze()
                for coordinator in (0, 1):
                    wait_until(lambda one=coordinator: stalled(daemon, one), "CEILING_STALLED")  # type: ignore[misc]
                wait_until(lambda: state_of(pids[0]) == "D", "a sync thread that sleeps for the disk")
                check_below_medium(daemon, drawn, directory / "copy")
                with libpharaoh.connect(own_socket(daemon, 0), rings=False) as client:
                    client.ping()
                    assert client.stats()["stalls"] > 0
                rows = [load_client.rows() for load_client in drawn]
                time.sleep(0.2)
                assert rows == [load_client.rows() for load_client in drawn], "ids without a durable ceiling"
            finally:
                file_system.thaw()
            for load_client in drawn:
                wait_until(more_rows(load_client), "each client served again")
            assert daemon.worker_pids() == pids
        check(drawn)


def stalled(daemon: Daemon, coordinator: int) -> bool:
    """Whether one request, as it goes over the wire, is answered with the error; those before may still get ids."""
    deadline = time.monotonic() + WATCHDOG_S
    connection = Connection.connect(own_socket(daemon, coordinator), deadline)
    try:
        connection.hello("stalled?", deadline)
        connection.request("next_ids", [8192], deadline)
    except CeilingStalledError:
        return True
    finally:
        connection.close()
    return False


def is_full(mount_point: Path) -> bool:
    left = os.statvfs(mount_point)
    return left.f_bavail == left.f_ffree == 0


def fill_for_good(mount_point: Path) -> None:
    """Takes all inodes and all blocks. What waits to be written back reserves more than it takes in the end: again."""
    files: list[Path] = []
    with contextlib.suppress(OSError):
        for number in range(1000):
            file = mount_point / f"inode-{number}"
            file.touch()
            files.append(file)
    for file in files:
        fill(file)
        with open(file, "rb") as filled:
            os.fsync(filled.fileno())
        if is_full(mount_point):
            return
    raise AssertionError("the disk does not fill up")


def test_a_full_disk_goes_unnoticed(directory: Path) -> None:
    """F7: neither blocks nor inodes are left; the file was made whole, so renewals and even restarts need none."""
    with loop_fs(directory, options=("-N", "64")) as file_system:
        daemon = Daemon(directory, state_dir=file_system.mount_point / "state", settings=SETTINGS)
        with daemon, load_clients(own_socket(daemon, 0), directory, ["ring", "socket"]) as drawn:
            for load_client in drawn:
                load_client.wait_drawing()
            pids = daemon.worker_pids()
            fill_for_good(file_system.mount_point)
            # The next record may have been on its way already; those after it begin on a full disk.
            on_its_way = newest_on_medium(daemon.obelisk(0), directory / "copy").number + 1
            wait_until(
                lambda: newest_on_medium(daemon.obelisk(0), directory / "copy").number >= on_its_way + 5,
                "renewals on a full disk",
            )
            assert is_full(file_system.mount_point)
            for load_client in drawn:
                wait_until(more_rows(load_client), "each client served")
            assert daemon.worker_pids() == pids
            assert daemon.stop() == 0
            daemon.start()
            for load_client in drawn:
                wait_until(more_rows(load_client), "each client served after a restart")
        check(drawn)


def cut_short(path: Path) -> None:
    os.truncate(path, 4096)


def unlink(path: Path) -> None:
    path.unlink()


def rename(path: Path) -> None:
    path.rename(path.with_suffix(".away"))


def replace(path: Path) -> None:
    copy = path.with_suffix(".copy")
    shutil.copy(path, copy)
    copy.rename(path)


@pytest.mark.parametrize(
    ("harm", "end"),
    [
        (cut_short, ObeliskTruncatedError),
        (unlink, ObeliskMissingError),
        (rename, ObeliskMissingError),
        (replace, None),
    ],
)
def test_a_file_taken_away_underneath(
    directory: Path, harm: Callable[[Path], None], end: type[StartError] | None
) -> None:
    """F8: the worker gives up the file that it holds; its sibling lives on; the successor goes by what it finds."""
    daemon = Daemon(directory, settings=SETTINGS)
    (directory / "1").mkdir()
    with (
        daemon,
        load_clients(own_socket(daemon, 0), directory, ["ring", "socket"]) as on_0,
        load_clients(own_socket(daemon, 1), directory / "1", ["ring", "socket"]) as on_1,
    ):
        for load_client in [*on_0, *on_1]:
            load_client.wait_drawing()
        sibling = daemon.worker_pids()[0]
        harm(daemon.obelisk(1))
        wait_until(lambda: "OBELISK_LOST" in daemon.log(), "the worker's end")
        if end is None:
            wait_until(lambda: daemon.worker(1).state == WorkerState.LIVE, "a successor")
            for load_client in on_1:
                wait_until(more_rows(load_client), "its clients served again")
        else:
            wait_until(lambda: daemon.worker(1).state == WorkerState.FAILED, "a refusal")
            assert daemon.worker(1).exit_code == end.exit_status
            rows = [load_client.rows() for load_client in on_1]
            for load_client in on_1:
                wait_until(more_rows(load_client), "its clients served by its sibling")
            served = [run for load_client, row in zip(on_1, rows, strict=True) for run in load_client.runs(row)]
            assert {coordinator for run in served for coordinator, *_ in ledger.pieces(run, LAYOUT)} == {0}
        for load_client in on_0:
            wait_until(more_rows(load_client), "the sibling's clients served")
        assert daemon.worker_pids()[0] == sibling
    check([*on_0, *on_1])
