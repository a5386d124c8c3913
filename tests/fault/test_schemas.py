"""Schemas on a disk that loses power, fills up, or hangs: F1, F3, F7, F9. The clients' ledgers lie on another one."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

import libpharaoh
from libpharaoh.errors import PharaohError, SchemasUnusableError, StorageFullError, SyncFailedError
from tests.support.daemon import Daemon, wait_until
from tests.support.loopfs import BLOCK, MISSING, LoopFs, loop_fs, small_memory_disk
from tests.support.registrar import Answer, check, read, registrars

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(600),
    pytest.mark.skipif(MISSING is not None, reason=f"needs {MISSING}"),
]

COORDINATORS = 2


@pytest.fixture
def file_system(directory: Path) -> Iterator[LoopFs]:
    with loop_fs(directory, megabytes=48) as mounted:
        yield mounted


@pytest.fixture
def daemon(directory: Path, file_system: LoopFs) -> Iterator[Daemon]:
    one = Daemon(directory, coordinators=COORDINATORS, state_dir=file_system.mount_point / "state")
    yield one
    file_system.thaw()
    one.kill()


def told_before_a_cut(file_system: LoopFs, daemon: Daemon, ledgers: Sequence[Path]) -> list[Answer]:
    """Cuts the power. A sync that is under way in that moment may be reported as done although its data is gone: ext4
    says so to anybody. With the power gone nobody would hear of it, so what is told afterwards does not count.
    """
    told = read(ledgers)
    file_system.cut()
    daemon.kill()
    return told


def test_what_was_told_survives_cuts(
    directory: Path, file_system: LoopFs, daemon: Daemon, rng: random.Random, effort: float
) -> None:
    """F1: one id per schema and one schema per id over all cuts together, and nothing that was told is missing."""
    answers: list[Answer] = []
    daemon.start()
    for turn in range(max(2, round(6 * effort))):
        with registrars(daemon.socket, directory, f"faulty-{turn}", 4) as ledgers:
            wait_until(lambda: len(read(ledgers)) > 20, "answers")
            time.sleep(rng.uniform(0, 0.4))
            answers += told_before_a_cut(file_system, daemon, ledgers)
        file_system.remount()
        daemon.start()
        with libpharaoh.connect(daemon.socket, timeout=30) as client:
            check(answers, client, COORDINATORS, at_least=5)


def test_cuts_while_the_first_schemas_are_registered(
    directory: Path, file_system: LoopFs, daemon: Daemon, rng: random.Random, effort: float
) -> None:
    """F3: the file is made while the power goes. Afterwards it is whole or was never needed."""
    told = 0
    for turn in range(max(3, round(12 * effort))):
        file_system.unmount()
        file_system.make(48)
        file_system.mount()
        daemon.may_init = True
        daemon.start()
        with registrars(daemon.socket, directory, f"faulty-first-{turn}", 2, subjects=2) as ledgers:
            # In turn: around the first registration, wherever it happens to be, and soon after the first answer.
            wait_until(partial(read if turn % 2 else existing, ledgers), "clients at work")
            time.sleep(rng.uniform(0, 0.06))
            answers = told_before_a_cut(file_system, daemon, ledgers)
        told += len(answers)
        file_system.remount()
        daemon.start()
        with libpharaoh.connect(daemon.socket, timeout=30) as client:
            check(answers, client, COORDINATORS, at_least=0)
            client.register_schema("s", "afterwards")
        assert daemon.stop() == 0
    assert told >= turn // 2, "a cut came before the first answer"


def existing(ledgers: Sequence[Path]) -> list[Path]:
    return [ledger for ledger in ledgers if ledger.exists()]


def test_a_full_disk_is_an_error_until_there_is_room(file_system: LoopFs, daemon: Daemon) -> None:
    """F7: what was registered is still served; no number and no id is lost by trying."""
    daemon.start()
    with libpharaoh.connect(daemon.socket, timeout=3) as client:
        id = client.register_schema("s", "before")
        filler = file_system.mount_point / "filler"
        fill(filler)
        with pytest.raises(StorageFullError):
            register_many(client)
        count = len(client.list_schemas())
        assert client.get_schema(id)["schema"] == "before"
        assert client.register_schema("s", "before") == id
        assert client.next_id() > 0
        filler.unlink()
        wait_until(lambda: registers(client, "room again"), "room again")
        rows = client.list_schemas("s")
        assert [row.version for row in rows] == [*range(1, count + 2)]
        numbers = [row.id // COORDINATORS for row in rows]
        assert numbers == [*range(1, count + 2)], "numbers were lost"


def register_many(client: libpharaoh.Client) -> None:
    for number in range(2000):
        client.register_schema("s", f"{number}" * 10_000)


def fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
        os.fsync(file.fileno())


def registers(client: libpharaoh.Client, schema: str) -> bool:
    try:
        client.register_schema("s", schema)
    except PharaohError as error:
        if not error.retryable and not isinstance(error, SchemasUnusableError):
            raise
        return False
    return True


def test_a_hanging_disk_hangs_no_ids(file_system: LoopFs, daemon: Daemon) -> None:
    """F9: a registration ends in a retryable error in time, and is carried out, once, when the disk is back."""
    daemon.configure({"rpc": {"stall_ms_max": 100}, "obelisk": {"window_ms": 60_000}})
    daemon.start()
    with libpharaoh.connect(daemon.socket, timeout=30) as client:
        id = client.register_schema("s", "before")
        outcome: list[PharaohError | int] = []

        def register() -> None:
            with libpharaoh.connect(daemon.socket, timeout=1) as other:
                try:
                    outcome.append(other.register_schema("s", "meanwhile"))
                except PharaohError as error:
                    outcome.append(error)

        file_system.freeze()
        try:
            thread = threading.Thread(target=register)
            thread.start()
            thread.join(30)
            assert client.next_id() > 0
        finally:
            file_system.thaw()
        [error] = outcome
        assert isinstance(error, PharaohError)
        assert error.retryable
        wait_until(lambda: registers(client, "meanwhile"), "the disk's return")
        assert [row.version for row in client.list_schemas("s")] == [1, 2]
        assert client.get_schema(id)["schema"] == "before"


def test_a_failing_sync_is_not_believed_the_second_time(directory: Path) -> None:
    """F4: the log's room on the disk is gone when it is synced. The page cache shows what the disk does not have; what
    a successor tells from it must be on the disk first.
    """
    lost = "lost by the disk " * 2000
    with small_memory_disk(directory / "tmpfs", 40) as memory, loop_fs(memory) as file_system:
        file_system.fill_image()
        with Daemon(directory, coordinators=1, state_dir=file_system.mount_point / "state") as daemon:
            file, filler = daemon.obelisk(0).with_suffix(".schemas"), memory / "filler"
            log = file.with_suffix(".schemas-wal")
            with libpharaoh.connect(daemon.socket, timeout=3) as client:
                for number in range(10):
                    client.register_schema("s", f"{number}" * 10_000)
                rewind(file)
                client.register_schema("s", "the log's new beginning")
                fill(filler)
                for block in range(8, log.stat().st_size // BLOCK):
                    file_system.punch(log, block)
                fill(filler)
                assert not registers(client, lost)
                wait_until(lambda: f'"status": {SyncFailedError.exit_status}' in daemon.log(), "the router's end")
                filler.unlink()
                wait_until(lambda: registers(client, lost), "a disk that works")
                id = client.register_schema("s", lost)
            file_system.cut()
            daemon.kill()
            file_system.remount()
            daemon.start()
            with libpharaoh.connect(daemon.socket, timeout=3) as client:
                assert client.get_schema(id)["schema"] == lost
                assert client.register_schema("s", lost) == id
                assert [row.version for row in client.list_schemas("s")] == [*range(1, 13)]


def rewind(file: Path) -> None:
    """The next commit is written over the beginning of the log."""
    db = sqlite3.connect(file, isolation_level=None)
    assert db.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0] == 0
    db.close()
