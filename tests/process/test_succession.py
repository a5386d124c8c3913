"""Who follows whom: a worker after a worker, a daemon after a daemon, with the page, without it, with a false one.

While the page stands a kill moves no position and pushes no time. Where it is gone or not to be believed, the host goes
on from the ceilings on disk, and nothing comes twice.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from libpharaoh.errors import AfterTooFarError
from libpharaoh.scarab import compose
from pharaohd import hosttime
from pharaohd._core import ffi
from tests.support.daemon import Daemon, Settings, wait_until
from tests.support.host import (
    LAYOUT,
    ceilings,
    check_above,
    check_not_ahead,
    impatient,
    keys_of,
    kill_worker,
    next_ms,
    page_path,
    positions,
    wall_ms,
)
from tests.support.wire import Wire

COORDINATORS = 3
AFTER_MS_MAX = 1000
KILLS = 100
KEYS = keys_of(COORDINATORS)


def draw(daemon: Daemon, coordinator: int, count: int = 3) -> list[int]:
    """Ids of one coordinator, of each kind that a socket gives. None is ahead of the clock."""
    with Wire(daemon.own_socket(coordinator)) as wire:
        ids = [int(wire.ask("get_timestamp", KEYS[coordinator])) for _ in range(count)]
        ids += [int(wire.ask("next_id")) for _ in range(count)]
        for first, length in wire.ask("next_ids", 10):
            ids += range(first, first + length)
    for id in ids:
        check_not_ahead(id)
    return ids


def draw_all(daemon: Daemon) -> list[int]:
    return [id for one in range(daemon.coordinators) for id in draw(daemon, one)]


def check_siblings_accept(daemon: Daemon, ids: list[int]) -> list[int]:
    """Each coordinator takes the newest id of any as `after`, without a word. Returns what they gave."""
    newest = max(ids)
    given = []
    for one, key in KEYS.items():
        with Wire(daemon.own_socket(one)) as wire:
            given.append(int(wire.ask("get_timestamp", key, newest)))
    for id in given:
        assert id > newest
        check_not_ahead(id)
    return given


def id_at(ahead_ms: int, coordinator: int) -> int:
    """An id of so many milliseconds from now."""
    return compose(wall_ms() - LAYOUT.epoch_ms + ahead_ms, coordinator)


def ask_at_the_bounds(daemon: Daemon, coordinator: int) -> tuple[Wire, list[int]]:
    """Requests with every `after` that is allowed, and one beyond, refused. Returns the numbers to wait for."""
    wire = Wire(daemon.own_socket(coordinator))
    key = KEYS[coordinator]
    with pytest.raises(AfterTooFarError):
        wire.ask("get_timestamp", key, id_at(60 * AFTER_MS_MAX, coordinator))
    afters = [id_at(ahead_ms, coordinator) for ahead_ms in (0, 1, AFTER_MS_MAX - 1, AFTER_MS_MAX)]
    return wire, wire.post(*(("get_timestamp", [key, after]) for after in afters))


def await_successor(daemon: Daemon, coordinator: int, restarts: int) -> None:
    wait_until(lambda: daemon.worker(coordinator).restart_count > restarts, "a successor")
    daemon.wait_live()


def check_unique(ids: list[int], at_least: int) -> None:
    assert len(set(ids)) == len(ids), "an id was received twice"
    assert len(ids) >= at_least


@pytest.mark.timeout(900)
def test_a_worker_killed_again_and_again(directory: Path, effort: float) -> None:
    """F26, F43: a hundred kills in a row skip no id and push no time, whatever was asked for when they came."""
    ids: list[int] = []
    with Daemon(directory, coordinators=COORDINATORS, prefix=impatient(directory)) as daemon:
        ids += draw_all(daemon)
        for number in range(max(3, round(KILLS * effort))):
            victim = number % COORDINATORS if number % 2 else 0
            restarts = daemon.worker(victim).restart_count
            wire, asked = ask_at_the_bounds(daemon, victim)
            with wire:
                [now] = wire.wait(asked[:1])
                assert now.error is None
                ids.append(int(now.result))
                check_not_ahead(ids[-1])
                kill_worker(daemon, victim)
            at_death = positions(daemon)
            await_successor(daemon, victim, restarts)
            assert positions(daemon) == at_death, "a kill moved a position"
            ids += draw(daemon, victim, 1)
            ids += check_siblings_accept(daemon, ids)
        assert daemon.worker(0).clock_ahead_ms == 0
    check_unique(ids, KILLS)


def test_an_idle_worker_killed(directory: Path) -> None:
    """F43: nobody asks, and the position stays where it was, over deaths of any number."""
    with Daemon(directory, coordinators=COORDINATORS, prefix=impatient(directory)) as daemon:
        ids = draw_all(daemon)
        before = positions(daemon)
        for _ in range(10):
            restarts = daemon.worker(1).restart_count
            kill_worker(daemon, 1)
            await_successor(daemon, 1, restarts)
            assert positions(daemon) == before
        ids += draw_all(daemon)
    check_unique(ids, 50)


def test_the_whole_daemon_killed_again_and_again(directory: Path, effort: float) -> None:
    """F26, F43: it goes on at the millisecond's end above all positions, not at a ceiling."""
    daemon = Daemon(directory, coordinators=COORDINATORS, settings={"obelisk": {"window_ms": 5000}})
    ids: list[int] = []
    with daemon:
        for _ in range(max(2, round(10 * effort))):
            ids += draw_all(daemon)
            ids += check_siblings_accept(daemon, ids)
            wires = [ask_at_the_bounds(daemon, one)[0] for one in range(COORDINATORS)]
            daemon.kill()
            for wire in wires:
                wire.close()
            before = positions(daemon)
            daemon.start()
            floor = next_ms(max(before.values()))
            assert positions(daemon) == {one: max(position, floor) for one, position in before.items()}
            assert floor < min(ceilings(daemon).values()), "it went on at a ceiling"
        ids += draw_all(daemon)
    check_unique(ids, 100)


# --- false pages


@dataclass
class Scene:
    """A daemon that was killed, its page as it is now, and a copy of the page from before."""

    daemon: Daemon
    page: Path
    older: Path


def deleted(at: Scene) -> None:
    at.page.unlink()


def older_copy(at: Scene) -> None:
    fresh = at.page.with_name(f"{at.page.name}.new")
    shutil.copyfile(at.older, fresh)
    fresh.replace(at.page)


def of_another_user(at: Scene) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    os.chown(at.page, 65534, 65534)


def too_short(at: Scene) -> None:
    os.truncate(at.page, hosttime.PAGE_BYTES - 4096)


def too_long(at: Scene) -> None:
    os.truncate(at.page, hosttime.PAGE_BYTES + 4096)


def symlink(at: Scene) -> None:
    """To the true page, which would count under its own name."""
    aside = at.page.with_name(f"{at.page.name}.aside")
    at.page.rename(aside)
    at.page.symlink_to(aside)


def second_name(at: Scene) -> None:
    os.link(at.page, at.page.with_name(f"{at.page.name}.aside"))


def a_directory(at: Scene) -> None:
    at.page.unlink()
    at.page.mkdir()


def patch(page: Path, field: str, value: bytes) -> None:
    with open(page, "r+b") as file:
        file.seek(ffi.offsetof("struct ph_host_page", field))
        file.write(value)


def of_another_boot(at: Scene) -> None:
    patch(at.page, "boot_id", os.urandom(16))


def of_another_directory(at: Scene) -> None:
    patch(at.page, "directory_id", os.urandom(16))


def unfinished(at: Scene) -> None:
    patch(at.page, "magic", bytes(8))


def of_an_older_life(at: Scene) -> None:
    """The file itself, but each entry names starts that no record names."""
    size = ffi.sizeof("struct ph_position")
    start = ffi.offsetof("struct ph_host_page", "positions")
    with open(at.page, "r+b") as file:
        for one in range(COORDINATORS):
            file.seek(start + one * size + ffi.offsetof("struct ph_position", "start_id"))
            file.write(os.urandom(16))


HARMS = [
    deleted, older_copy, of_another_user, too_short, too_long, symlink, second_name, a_directory, of_another_boot,
    of_another_directory, unfinished, of_an_older_life,
]  # fmt: skip


@pytest.mark.parametrize("harm", HARMS)
def test_a_page_that_is_not_to_be_believed(directory: Path, harm: Callable[[Scene], None]) -> None:
    """F13, F27, F61: the host goes on from the ceilings, and puts a page of its own in the place."""
    window_ms = 1500
    daemon = Daemon(directory, coordinators=COORDINATORS, settings={"obelisk": {"window_ms": window_ms}})
    page: Path | None = None
    try:
        with daemon:
            page = page_path(daemon)
            at = Scene(daemon, page, directory / "older")
            ids = draw_all(daemon)
            shutil.copyfile(page, at.older)
            ids += draw_all(daemon)
            daemon.kill()
            was = ceilings(daemon)
            harm(at)
            daemon.start()
            ids += check_starts_from(daemon, was, has_page=harm is not a_directory)
            again = positions(daemon) if harm is not a_directory else None
            daemon.kill()
            was = ceilings(daemon)
            daemon.start()
            ids += draw_all(daemon) if again is not None else check_starts_from(daemon, was, has_page=False)
            assert again is None or max(positions(daemon).values()) >= max(again.values())
        check_unique(ids, 60)
    finally:
        if page is not None:
            remove_all(page)


def check_starts_from(daemon: Daemon, was: dict[int, int], *, has_page: bool) -> list[int]:
    """Nobody issues below the millisecond above all ceilings that there were. Returns ids."""
    floor = next_ms(max(was.values()))
    if has_page:
        assert min(positions(daemon).values()) >= floor, "it believed the page"
    ids: list[int] = []
    wait_until(lambda: floor // LAYOUT.sequence_count + LAYOUT.epoch_ms <= wall_ms(), "host time reaches the ceiling")
    ids += draw_all(daemon)
    check_above(ids, dict.fromkeys(was, floor))
    return ids


def remove_all(page: Path) -> None:
    """What a test put beside a page or in its place; each by its own name."""
    page.with_name(f"{page.name}.aside").unlink(missing_ok=True)
    if page.is_dir() and not page.is_symlink():
        page.rmdir()
    page.unlink(missing_ok=True)


def another_boot(directory: Path) -> tuple[str, ...]:
    """A `prefix`: the kernel's boot id is another one for this daemon."""
    boot_id = directory / "boot_id"
    boot_id.write_text("12345678-1234-4234-8234-123456789abc\n")
    script = f'mount --bind {boot_id} /proc/sys/kernel/random/boot_id && exec "$@"'
    return ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh")


@pytest.mark.root
def test_another_boot_with_the_clock_set_back(directory: Path, rng: random.Random) -> None:
    """F18, F27: the page of the boot before is no evidence, and time begins where the newest record says."""
    offset = directory / "offset"
    offset.write_bytes(bytes(8))
    settings: Settings = {"clock": {"offset_file": str(offset)}, "obelisk": {"window_ms": 1000}}
    daemon = Daemon(directory, coordinators=COORDINATORS, settings=settings)
    with daemon:
        ids = draw_all(daemon)
        time.sleep(rng.uniform(0, 0.3))
        ids += draw_all(daemon)
        daemon.kill()
        was = ceilings(daemon)
        offset.write_bytes((-3_600_000_000_000).to_bytes(8, "little", signed=True))
        daemon.prefix = another_boot(directory)
        daemon.start()
        assert min(positions_in_any_boot(daemon).values()) >= next_ms(max(was.values()))
        with Wire(daemon.socket) as wire:
            later = [int(wire.ask("next_id"))]
            later += [int(wire.ask("get_timestamp")) for _ in range(3)]
        check_above(later, dict.fromkeys(was, next_ms(max(was.values()))))
    check_unique(ids + later, 60)


def positions_in_any_boot(daemon: Daemon) -> dict[int, int]:
    with open(page_path(daemon), "rb") as file:
        page = ffi.from_buffer("struct ph_host_page *", file.read())
        return {one: int(page.positions[one].next_tick) for one in range(daemon.coordinators)}
