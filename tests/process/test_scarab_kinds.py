"""Timestamps, transactions, sessions and events: ids of a key, over kills, in order, and beyond what `after` names.

How requests find their coordinator is in test_routing.py; clocks that step are in tests/fault/test_skew.py.
"""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from libpharaoh import Layout, compose, parse
from libpharaoh.errors import AfterTooFarError, BadRequestError
from libpharaoh.scarab import ID_MAX
from tests.support.arena import Arena
from tests.support.crowd import ids_of_a_crowd
from tests.support.daemon import Daemon, short_directory
from tests.support.ledger import Run, check_real_time_order, check_rising, check_unique, pieces, read, tick_of
from tests.support.load_client import KEYED_METHODS, load_clients
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
        load_clients(daemon.socket, directory, ("keyed", "keyed-socket") * 4) as clients,
    ):
        paths = Arena(daemon, clients).endure(max(1, round(effort)), rng)
    ledgers = [read(path) for path in paths]
    total = check_unique(ledgers, at_least=2000)
    for ledger in ledgers:
        check_rising(ledger)
    assert total == sum(check_real_time_order(of_coordinator(ledgers, number)) for number in range(3))


@pytest.mark.parametrize("kinds", [("one-key", "one-key-socket"), ("strict",)], ids=["a key", "no key"])
def test_one_order_over_kills(directory: Path, rng: random.Random, effort: float, kinds: tuple[str, ...]) -> None:
    """M in real time for one key, and for the host without one, whoever asks and whoever issues: the owner of the key
    is killed and paused, others stand in for it meanwhile, and it comes back (F12, F31, F32).
    """
    with (
        Daemon(directory, coordinators=3) as daemon,
        load_clients(daemon.socket, directory, kinds * (6 // len(kinds))) as clients,
    ):
        paths = Arena(daemon, clients).endure(max(1, round(effort)), rng)
    ledgers = [read(path) for path in paths]
    total = check_unique(ledgers, at_least=2000)
    assert check_real_time_order(ledgers) == total
    issued_by = {coordinator for ledger in ledgers for run in ledger for coordinator, *_ in pieces(run, LAYOUT)}
    if kinds != ("strict",):  # whether the one owner of those without a key is struck is a matter of luck
        assert len(issued_by) > 1, "nobody stood in"


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


AT_ONCE = 50  # of one connection; more wait for their turn
NEAR_MS = 900  # within clock.after_ms_max, and the host may be slow


@pytest.mark.parametrize("method", KEYED_METHODS)
def test_the_answer_exceeds_after(wire: Wire, rng: random.Random, effort: float, method: str) -> None:
    """Ids of either coordinator, past and of the second to come, with every sequence: what comes is greater.

    It comes when host time is there, and not before: no answer is ahead of the clock. Nothing behind it is held up,
    and what others are given meanwhile is at the clock.
    """
    for _ in range(max(1, round(6 * effort))):
        afters = []
        for _ in range(AT_ONCE):
            ms = since_epoch_ms() + rng.randrange(-2000, NEAR_MS)
            afters.append(compose(ms, rng.choice((0, 1, 1023)), rng.choice((0, 8191, rng.randrange(8192)))))
        far = compose(since_epoch_ms() + NEAR_MS, 1023, 8191)
        numbers = wire.post(*((method, [rng.choice("abcd"), after]) for after in [*afters, far]))
        for key in "abcd":
            assert parse(wire.ask(method, key)).unix_ms <= time.time_ns() // 1_000_000
        assert not set(numbers) <= set(wire.arrived), "the one that waits longest was answered first"
        for after, number in zip([*afters, far], numbers, strict=True):
            [reply] = wire.wait([number])
            assert reply.error is None
            assert after < reply.result
            assert parse(reply.result).unix_ms <= time.time_ns() // 1_000_000


def test_a_crowd_that_waits(daemon: Daemon, effort: float) -> None:
    """U, L, F51: thousands wait for one moment and half of them hang up; each of the others has one answer, once."""
    pids = daemon.worker_pids()
    ids: list[int] = []
    for _ in range(max(1, round(effort))):
        ids += ids_of_a_crowd([daemon.own_socket(0), daemon.own_socket(1)])
    assert len(set(ids)) == len(ids)
    assert daemon.worker_pids() == pids, daemon.log()


@pytest.mark.parametrize("method", KEYED_METHODS)
@pytest.mark.parametrize("key", ["a", "b"])
def test_after_beyond_the_bound_moves_nothing(daemon: Daemon, wire: Wire, method: str, key: str) -> None:
    """F19: AFTER_TOO_FAR for two seconds ahead, an hour, the layout's end, and what another layout's id says here.

    At once: one that is asked for later and waits for less is answered later.
    """
    coordinator = zlib.crc32(key.encode()) % 2
    foreign = compose(since_epoch_ms(), layout=Layout.from_text("40-10-14"))
    hour = compose(since_epoch_ms() + 3_600_000)
    for after in (compose(since_epoch_ms() + 2000), hour, foreign, ID_MAX, 2**64 - 1, 1 << 63):
        with pytest.raises(AfterTooFarError):
            wire.ask(method, key, after)
        id = wire.ask(method, key)
        assert id < after
        assert id < compose(since_epoch_ms() + 1)
    near, far = (compose(since_epoch_ms() + ms, 1023) for ms in (NEAR_MS // 2, 10_000))
    waits, refused = wire.post((method, [key, near]), (method, [key, far]))
    assert isinstance(wire.wait([waits, refused])[1].error, AfterTooFarError)
    assert wire.arrived[-2:] == [refused, waits]
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
