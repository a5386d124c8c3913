"""A host's time and positions as an onlooker sees them, and ways to harm the page that holds them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import zlib
from pathlib import Path
from typing import Any

from libpharaoh.scarab import Layout, parse
from pharaohd import hosttime, obelisk
from tests.support.daemon import Daemon, children, ended, wait_until
from tests.support.ledger import tick_of

LAYOUT = Layout()
IMPATIENT = """\
from pharaohd import policy
policy.DELAY_MAX_S = 0.0
"""


def impatient(directory: Path) -> tuple[str, ...]:
    """A `prefix` for Daemon: a dead worker's successor is started at once, however many died before it."""
    place = directory / "impatient"
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text(IMPATIENT)
    before = os.environ.get("PYTHONPATH")
    return ("env", f"PYTHONPATH={place}{os.pathsep + before if before else ''}")


def keys_of(coordinators: int) -> dict[int, str]:
    """A key of each coordinator."""
    keys: dict[int, str] = {}
    for number in range(100 * coordinators):
        keys.setdefault(zlib.crc32(f"key {number}".encode()) % coordinators, f"key {number}")
    assert len(keys) == coordinators
    return keys


# --- what an id says


def unix_ms(id: int) -> int:
    return LAYOUT.epoch_ms + parse(id).milliseconds


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


def wall_tick() -> int:
    return (wall_ms() - LAYOUT.epoch_ms) * LAYOUT.sequence_count


def check_not_ahead(id: int) -> None:
    """For an id that has been received: its time has come."""
    assert unix_ms(id) <= wall_ms(), f"an id {unix_ms(id) - wall_ms()} ms ahead of the wall clock"


def next_ms(tick: int) -> int:
    """The first tick of the first whole millisecond above everything that lies below `tick`."""
    return ((tick - 1) // LAYOUT.sequence_count + 1) * LAYOUT.sequence_count


# --- the page


def page_path(daemon: Daemon) -> Path:
    path = hosttime.page_path(str(daemon.state_dir))
    assert path is not None, "no tmpfs for the page"
    return Path(path)


def positions(daemon: Daemon) -> dict[int, int]:
    """How far each coordinator has come, by the page that a start made."""
    found = hosttime.find_page(str(daemon.state_dir), owner=os.geteuid(), lock=False)
    assert found is not None, "no page that counts"
    assert found.own, "a copy of a page"
    try:
        return {one: int(found.page.struct.positions[one].next_tick) for one in range(daemon.coordinators)}
    finally:
        found.page.close(str(daemon.state_dir), remove=False)


def ceilings(daemon: Daemon) -> dict[int, int]:
    """What the newest record of each file says."""
    found = {}
    for one in range(daemon.coordinators):
        newest = obelisk.inspect(daemon.obelisk(one)).newest
        assert newest is not None
        found[one] = newest.ceiling
    return found


def coordinator_of(id: int) -> int:
    return parse(id).coordinator


def check_above(ids: list[int], bounds: dict[int, int]) -> None:
    """Each id lies at or above its own coordinator's bound, a tick."""
    for id in ids:
        assert tick_of(id, LAYOUT) >= bounds[coordinator_of(id)], f"{id} is below what could have been issued"


# --- processes


def pidfd_of_worker(daemon: Daemon, coordinator: int) -> int | None:
    """Of the live worker; None when there is none at the moment. The caller closes it."""
    pid = daemon.worker_pids().get(coordinator, 0)
    if not pid or pid not in children(daemon.pid):
        return None
    with contextlib.suppress(ProcessLookupError):
        return os.pidfd_open(pid)
    return None


def kill_worker(daemon: Daemon, coordinator: int) -> None:
    """SIGKILL, and waits until the worker is gone; not for its successor."""
    pidfd: Any = pidfd_of_worker(daemon, coordinator)
    assert pidfd is not None, "no worker to kill"
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        wait_until(lambda: ended(pidfd), "the killed worker's end")
    finally:
        os.close(pidfd)
