"""The statistics page: what a reader finds, and what it refuses."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from libpharaoh.errors import ConnectFailedError, ProtocolViolationError
from pharaohd._core import ffi
from pharaohd.stats import NO_COORDINATOR, DaemonStats, Page, Reader, WorkerState, WorkerStats, page_name


@pytest.fixture
def held(tmp_path: Path) -> Iterator[str]:
    """A runtime directory whose lock is held, as by a living supervisor."""
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield str(tmp_path)
    os.close(descriptor)


@pytest.fixture
def page(held: str) -> Iterator[Page]:
    one = Page(held, 8, (1, 5), 0o660, -1)
    yield one
    one.remove()


def test_rows_have_every_field_of_their_struct() -> None:
    for row, name in ((WorkerStats, "struct ph_stats_slot"), (DaemonStats, "struct ph_stats_header")):
        known = [field for field, _ in ffi.typeof(name).fields if not field.startswith("pad")]
        own = list(row.__dataclass_fields__)
        assert own == [field for field in known if field not in ("magic", "version", "slot_count", "slot_bytes")]


def test_reader_sees_what_is_written(held: str, page: Page) -> None:
    with Reader(held) as reader:
        assert [worker.coordinator for worker in reader.workers()] == [1, 5]
        assert reader.workers()[1].state_name == "down"
        assert reader.daemon().modulus == 8
        assert reader.daemon().supervisor_pid == os.getpid()
        assert reader.daemon().first_live == NO_COORDINATOR
        page.slots[1].ids_ring = (1 << 64) - 1
        page.slots[1].state = WorkerState.LIVE
        page.header.first_live = 5
        assert reader.workers()[1].ids_ring == (1 << 64) - 1
        assert reader.workers()[1].state_name == "live"
        assert reader.daemon().first_live == 5
        page.slots[1].state = 77
        assert reader.workers()[1].state_name == "77"


def test_others_may_read_and_not_write(page: Page, held: str) -> None:
    mode = os.stat(f"/dev/shm{page_name(held)}").st_mode
    assert stat.S_IMODE(mode) == 0o640
    assert page.header.magic


def test_no_daemon(tmp_path: Path) -> None:
    with pytest.raises(ConnectFailedError, match="no daemon runs"):
        Reader(str(tmp_path))
    with pytest.raises(ConnectFailedError, match="no daemon runs"):
        Reader(str(tmp_path / "none"))


def test_page_of_a_killed_daemon_is_no_daemon(tmp_path: Path) -> None:
    left = Page(str(tmp_path), 1, (0,), 0o600, -1)
    try:
        with pytest.raises(ConnectFailedError, match="no daemon runs"):
            Reader(str(tmp_path))
        left.slots[0].ids_ring = 7
        left = Page(str(tmp_path), 1, (0,), 0o600, -1)  # the successor starts from an empty page
        assert left.slots[0].ids_ring == 0
    finally:
        left.remove()


def test_not_ready(held: str, page: Page) -> None:
    page.header.magic = 0
    with pytest.raises(ConnectFailedError, match="not ready"):
        Reader(held)
    page.remove()
    with pytest.raises(ConnectFailedError, match="cannot be opened"):
        Reader(held)


@pytest.mark.parametrize(("field", "value"), [("version", 2), ("magic", 5), ("slot_bytes", 1024)])
def test_another_version(held: str, page: Page, field: str, value: int) -> None:
    setattr(page.header, field, value)
    with pytest.raises(ProtocolViolationError, match="version"):
        Reader(held)


def test_page_shorter_than_it_says(held: str, page: Page) -> None:
    page.header.slot_count = 1 << 40
    with pytest.raises(ProtocolViolationError, match="shorter"):
        Reader(held)
