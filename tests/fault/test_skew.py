"""Chains of calls that pass their ids on, over coordinators and processes, while the wall clock steps back (F18).

All coordinators of a host go by one time. So each id of a chain is accepted everywhere, the next one is greater, and
the chain stays at the clock however long it gets. Only an id from elsewhere can be ahead: within the bound it waits.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import random
import struct
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path

import pytest

import libpharaoh
from libpharaoh import Client, Layout, compose, parse
from libpharaoh.errors import AfterTooFarError
from tests.support.daemon import Daemon
from tests.support.load_client import KEYED_METHODS
from tests.support.wire import Wire

COORDINATORS = 3
AFTER_MS_MAX = 1000
KEY_OF = {libpharaoh.coordinator_for(key, COORDINATORS): key for key in "abcdefgh"}
PROCESSES = 4
CHAINS = 6


@contextlib.contextmanager
def stepping_daemon(directory: Path) -> Iterator[tuple[Daemon, Callable[[int], None]]]:
    """A daemon, and what sets its wall clock."""
    offset = directory / "offset"

    def step_to(offset_ms: int) -> None:
        with open(offset, "r+b" if offset.exists() else "wb") as file:
            file.write(struct.pack("<q", offset_ms * 1_000_000))

    step_to(0)
    settings = {"clock": {"offset_file": str(offset)}}
    with Daemon(directory, coordinators=COORDINATORS, settings=settings) as daemon:
        yield daemon, step_to


def now_ms() -> int:
    """Of this process. No clock of a daemon here is ever ahead of it."""
    return time.time_ns() // 1_000_000


def link_of_chain(client: Client, wire: Wire, rng: random.Random, after: int) -> int:
    """By ring, by a client without rings, or raw: there only the `after` of this call makes the order."""
    method, key = rng.choice(KEYED_METHODS), rng.choice(list(KEY_OF.values()))
    if rng.random() < 0.5:
        id: int = wire.ask(method, key, after)
        return id
    return int(getattr(client, method)(key, after=after))


def pass_on(daemon: Daemon, number: int, source: Connection, target: Connection, ended: Connection, steps: int) -> None:
    """Goes on with each chain that comes and hands it to the next process; one that is long enough goes to the test."""
    rng = random.Random(number)
    with (
        libpharaoh.connect(daemon.own_socket(number % COORDINATORS), rings=number % 2 == 0) as client,
        Wire(daemon.own_socket((number + 1) % COORDINATORS)) as wire,
    ):
        while True:
            chain = source.recv()
            chain.append(link_of_chain(client, wire, rng, chain[-1]))
            assert parse(chain[-1]).unix_ms <= now_ms(), "ahead of the clock"
            (target if len(chain) < steps else ended).send(chain)


def chains_of(daemon: Daemon, steps: int, meanwhile: Callable[[], None]) -> list[list[int]]:
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(PROCESSES)]
    ended = [context.Pipe(duplex=False) for _ in range(PROCESSES)]
    processes = []
    for number in range(PROCESSES):
        ends = pipes[number][0], pipes[(number + 1) % PROCESSES][1], ended[number][1]
        processes.append(context.Process(target=pass_on, args=(daemon, number, *ends, steps)))
    chains: list[list[int]] = []
    try:
        for process in processes:
            process.start()
        for chain in range(CHAINS):
            pipes[chain % PROCESSES][1].send([0])
        while len(chains) < CHAINS:
            ready = wait([*(pipe[0] for pipe in ended), *(process.sentinel for process in processes)], timeout=0.02)
            meanwhile()
            assert all(process.is_alive() for process in processes), "a call failed"
            chains += [one.recv() for one in ready if isinstance(one, Connection)]
    finally:
        for process in processes:
            process.kill()
            process.join()
        for end in itertools.chain.from_iterable(pipes + ended):
            end.close()
    return chains


def test_order_along_every_chain(directory: Path, effort: float) -> None:
    """Several processes hand ids to each other; each id is greater than the one before it, whoever issued both.

    None is ahead of the clock. Meanwhile that steps back again and again, and up to where it was.
    """
    steps = max(50, round(300 * effort))
    with stepping_daemon(directory) as (daemon, step_to):
        offsets_ms = itertools.cycle([0, -3_600_000, -50, -10_000, -7_200_000])
        began_ms = now_ms()
        chains = chains_of(daemon, steps, lambda: step_to(next(offsets_ms)))
        with Wire(daemon.socket) as wire:
            assert parse(wire.ask("get_timestamp")).unix_ms <= now_ms(), "the chains pushed the time"
    ids = [id for chain in chains for id in chain[1:]]
    assert len(set(ids)) == len(ids) == CHAINS * (steps - 1)
    assert {parse(id).coordinator for id in ids} == set(range(COORDINATORS))
    assert min(parse(id).unix_ms for id in ids) >= began_ms - 1000
    for chain in chains:
        assert all(before < after for before, after in itertools.pairwise(chain))


@pytest.mark.parametrize("rings", [True, False], ids=["rings", "socket"])
def test_an_id_from_elsewhere_is_waited_for_within_the_bound(directory: Path, rings: bool) -> None:
    """Of a host whose clock is ahead of this one's, or before this one's was set back.

    What is asked for after it waits until this host's time is there; the time itself stays what it was, for everybody.
    Beyond the bound it is refused at once by every coordinator. A worker that waits is not taken for a silent one.
    """
    with (
        stepping_daemon(directory) as (daemon, _),
        libpharaoh.connect(daemon.socket, rings=rings) as client,
        Wire(daemon.socket) as other,
    ):
        accepted = sum(worker.accepts for worker in daemon.workers())
        for number, method in enumerate(KEYED_METHODS):
            key = KEY_OF[number % COORDINATORS]
            elsewhere = compose(now_ms() - Layout().epoch_ms + AFTER_MS_MAX // 2, 1023, 8191)
            id = getattr(client, method)(key, after=elsewhere)
            assert elsewhere < id
            assert parse(id).unix_ms <= now_ms()
            for far_ms in (AFTER_MS_MAX + 500, 3_600_000):
                with pytest.raises(AfterTooFarError):
                    getattr(client, method)(key, after=compose(now_ms() - Layout().epoch_ms + far_ms))
            for sibling in KEY_OF.values():
                assert parse(other.ask("get_timestamp", sibling)).unix_ms <= now_ms()
        if not rings:  # its connection, and those between siblings
            assert sum(worker.accepts for worker in daemon.workers()) - accepted <= COORDINATORS**2


def test_afters_in_a_row_do_not_climb(directory: Path) -> None:
    """Each asks for more than the answer before it by all that the bound allows: the bound is against the clock."""
    with stepping_daemon(directory) as (daemon, _), Wire(daemon.socket) as wire:
        id = wire.ask("get_timestamp", "a")
        for key in itertools.islice(itertools.cycle(KEY_OF.values()), 4):
            after = id + ((AFTER_MS_MAX - 400) << 23)
            id = wire.ask("get_timestamp", key, after)
            assert id > after
            assert parse(id).unix_ms <= now_ms()
