"""Timestamps, transactions, sessions and events: ids of a key, over kills, in order, and beyond what `after` names.

How requests find their coordinator is in test_routing.py; several clocks are in tests/fault/test_skew.py.
"""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from libpharaoh import Layout, compose
from libpharaoh.errors import AfterTooFarError, BadRequestError
from libpharaoh.scarab import ID_MAX
from tests.support.arena import Arena
from tests.support.daemon import Daemon, short_directory
from tests.support.drawer import KEYED_METHODS, drawers
from tests.support.ledger import Run, check_real_time_order, check_rising, check_unique, pieces, read, tick_of
from tests.support.wire import Wire

LAYOUT = Layout()


def of_coordinator(ledgers: list[list[Run]], coordinator: int) -> list[list[Run]]:
    return [[run for run in ledger if next(pieces(run, LAYOUT))[0] == coordinator] for ledger in ledgers]


def test_kinds_over_kills(directory: Path, rng: random.Random, effort: float) -> None:
    """F11, F12, F25, F26, F31, F35: eight processes draw all four kinds while workers, daemons and clients are killed.

    U over all kinds together; each client's ids rise, over each fail-over of each key; what one coordinator issues is
    in real-time order whoever asks, over its restarts too; and after each blow everybody goes on (L, in `Arena`).
    """
    with (
        Daemon(directory, coordinators=3) as daemon,
        drawers(daemon.socket, directory, ("keyed", "keyed-socket") * 4) as clients,
    ):
        paths = Arena(daemon, clients).endure(max(1, round(effort)), rng)
    ledgers = [read(path) for path in paths]
    total = check_unique(ledgers, at_least=2000)
    for ledger in ledgers:
        check_rising(ledger)
    assert total == sum(check_real_time_order(of_coordinator(ledgers, number)) for number in range(3))


# --- `after`


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with short_directory() as directory, Daemon(directory, coordinators=2) as daemon:
        yield daemon


@pytest.fixture
def wire(daemon: Daemon) -> Iterator[Wire]:
    with Wire(daemon.own_socket(0)) as wire:
        yield wire


def since_epoch_ms() -> int:
    return time.time_ns() // 1_000_000 - LAYOUT.epoch_ms


@pytest.mark.parametrize("method", KEYED_METHODS)
def test_the_answer_exceeds_after(wire: Wire, rng: random.Random, effort: float, method: str) -> None:
    """Ids of either coordinator, past and of the seconds to come, with every sequence: what comes is greater."""
    for _ in range(max(1, round(300 * effort))):
        ms = since_epoch_ms() + rng.randrange(-2000, 2000)
        low = compose(ms, rng.choice((0, 1, 1023)), rng.choice((0, 8191, rng.randrange(8192))))
        assert wire.ask(method, rng.choice("abcd"), low) > low


@pytest.mark.parametrize("method", KEYED_METHODS)
@pytest.mark.parametrize("key", ["a", "b"])
def test_after_beyond_the_bound_moves_nothing(daemon: Daemon, wire: Wire, method: str, key: str) -> None:
    """F19: AFTER_TOO_FAR for an hour ahead, for the layout's end, and for what another layout's id says here."""
    coordinator = zlib.crc32(key.encode()) % 2
    foreign = compose(since_epoch_ms(), layout=Layout.from_text("40-10-14"))
    hour = compose(since_epoch_ms() + 3_600_000)
    for after in (hour, foreign, ID_MAX, 2**64 - 1, 1 << 63):
        with pytest.raises(AfterTooFarError):
            wire.ask(method, key, after)
        id = wire.ask(method, key)
        assert id < after
        assert id < compose(since_epoch_ms() + 60_000)
    past = compose(since_epoch_ms(), layout=Layout.from_text("42-10-12"))
    assert past < wire.ask(method, key, past) < hour
    assert daemon.worker(coordinator).ceiling < tick_of(hour, LAYOUT)


@pytest.mark.parametrize("method", KEYED_METHODS)
@pytest.mark.parametrize("after", [-1, -(2**63), 1.5, "1", b"1", [1], {}, True, 1e300])
def test_after_that_is_no_id(wire: Wire, method: str, after: object) -> None:
    for key in ("a", "b"):
        with pytest.raises(BadRequestError):
            wire.ask(method, key, after)
    assert wire.ask("ping") == "pong"
