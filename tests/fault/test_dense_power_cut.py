"""Power cuts (injection A) on a real ext4 under daemons that count: F1, F2, F3, F35.

What decides is `check_counted`: every value that any client received survives every cut, none comes twice, and with
tokens none is missing.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from libpharaoh.errors import PharaohError
from tests.support.arena import Arena
from tests.support.counter import asking, check_counted, counters, flooded, long_to_rewrite
from tests.support.daemon import Daemon, wait_until
from tests.support.loopfs import MISSING, LoopFs, Shim, loop_fs

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(600),
    pytest.mark.skipif(MISSING is not None, reason=f"needs {MISSING}"),
]

EXACT = ("group-0", "group-4", "part-0", "part-2")
PLAIN = ("group-1", "group-5", "part-1", "part-4")


@pytest.fixture
def file_system(directory: Path) -> Iterator[LoopFs]:
    with loop_fs(directory, megabytes=64) as mounted:
        yield mounted


def new_daemon(directory: Path, file_system: LoopFs, coordinators: int) -> Daemon:
    """Its state on the faulty disk; its sockets, log and settings, and all ledgers, beside it."""
    return Daemon(directory, coordinators=coordinators, state_dir=file_system.mount_point / "state")


def cut(daemon: Daemon, file_system: LoopFs, pause_s: float) -> None:
    """The power goes, and what clients are still told in `pause_s` counts as well."""
    file_system.cut()
    time.sleep(pause_s)
    daemon.kill()
    file_system.remount()


def test_what_was_acknowledged_survives(
    directory: Path, file_system: LoopFs, rng: random.Random, effort: float
) -> None:
    """F1, F2, F35: many cuts in a row, at random moments, while clients count."""
    (directory / "exact").mkdir()
    with (
        new_daemon(directory, file_system, 2) as daemon,
        counters([daemon.socket], directory / "exact", ["token"] * 3, EXACT) as exact,
        counters([daemon.socket], directory, ["plain"] * 3, PLAIN) as plain,
    ):
        arena = Arena(daemon, [*exact, *plain])
        for _ in range(max(2, round(6 * effort))):
            time.sleep(rng.uniform(0, 0.3))
            cut(daemon, file_system, rng.choice((0, 0, rng.uniform(0, 0.1))))
            daemon.start()
            arena.progress()
        for client in arena.clients:
            client.finish()
        assert check_counted(daemon.socket, [path for client in exact for path in client.ledgers()], 500) == 0
        check_counted(daemon.socket, [path for client in plain for path in client.ledgers()], 500)


def test_cuts_in_the_middle_of_a_rewrite(
    directory: Path, file_system: LoopFs, rng: random.Random, effort: float
) -> None:
    """F1, F3: of two files, or of one in the other's place, what stands on the disk is enough."""
    met = 0
    with new_daemon(directory, file_system, 1) as daemon:
        following = daemon.journal(0).with_suffix(".counters.next")
        with asking(daemon.socket) as ask:
            long_to_rewrite(ask)
        with flooded(daemon.socket), counters([daemon.socket], directory, ["token"] * 3, EXACT) as clients:
            arena = Arena(daemon, clients)
            for _ in range(max(2, round(5 * effort))):
                wait_until(lambda: not following.exists(), "the end of a rewrite")
                wait_until(following.exists, "a rewrite")
                time.sleep(rng.choice((0, rng.uniform(0, 0.03))))
                cut(daemon, file_system, 0)
                met += following.exists()
                daemon.start()
                arena.progress()
            for client in clients:
                client.finish()
        assert check_counted(daemon.socket, arena.ledgers(), 100) == 0
        with asking(daemon.socket) as ask:
            assert ask("counter_read", "offset", "long-7".ljust(4096, "."))["next"] == 1
    assert met, "no cut came in the middle"


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Shim:
    return Shim(tmp_path_factory.mktemp("shim"))


def count_until_cut(daemon: Daemon, shim: Shim) -> int:
    """Counts with tokens from a first start on until it meets its cut; how many requests were answered."""
    daemon.spawn()
    answered = 0
    while not shim.has_cut() and daemon.alive():
        with contextlib.suppress(PharaohError), asking(daemon.socket) as ask:
            while not shim.has_cut():
                assert ask("assign_offset", "part-0", 5, [1, answered]) == 5 * answered
                answered += 1
    daemon.kill()
    return answered


def test_a_cut_at_each_step_of_the_first_counting(directory: Path, file_system: LoopFs, shim: Shim) -> None:
    """F3, F1: before each write, sync and rename from the first request that counts on, the power goes."""
    daemon = new_daemon(directory, file_system, 1)
    daemon.prefix = shim.prefix(file_system, 0)
    with daemon:
        before = shim.steps()
        with asking(daemon.socket) as ask:
            for number in range(3):
                assert ask("assign_offset", "part-0") == number
        after = shim.steps()
    assert after - before > 8, "the steps of a first journal are not seen"
    most = 0
    for cut_at in range(before, after + 2):
        file_system.unmount()
        file_system.make()
        file_system.mount()
        daemon.may_init = True
        daemon.prefix = shim.prefix(file_system, cut_at)
        try:
            answered = count_until_cut(daemon, shim)
            file_system.remount()
            daemon.prefix = ()
            daemon.start()
            with asking(daemon.socket) as ask:
                for number in range(max(0, answered - 1), answered + 2):
                    assert ask("assign_offset", "part-0", 5, [1, number]) == 5 * number, f"cut at step {cut_at}"
        finally:
            daemon.kill()
        most = max(most, answered)
    assert most > 1, "no cut came after the first values"
