"""Coordinators whose clocks differ by ten seconds: order along every chain of calls that pass their ids on (F18)."""

from __future__ import annotations

import itertools
import multiprocessing
import random
import struct
import time
from multiprocessing.connection import Connection, wait
from pathlib import Path

import pytest

import libpharaoh
from libpharaoh import Client, parse
from libpharaoh.errors import AfterTooFarError
from tests.support.daemon import Daemon
from tests.support.drawer import KEYED_METHODS
from tests.support.wire import Wire

SKEW_MS = 5000
COORDINATORS = 3
BEHIND, RIGHT, AHEAD = range(COORDINATORS)
KEY_OF = {libpharaoh.coordinator_for(key, COORDINATORS): key for key in "abcdefgh"}
PROCESSES = 4
CHAINS = 6


def skewed(directory: Path, after_ms_max: int) -> Daemon:
    offsets = directory / "offsets"
    offsets.write_bytes(struct.pack("<3q", *(sign * SKEW_MS * 1_000_000 for sign in (-1, 0, 1))))
    settings = {"clock": {"offset_file": str(offsets), "after_ms_max": after_ms_max}}
    return Daemon(directory, coordinators=COORDINATORS, settings=settings)


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
            (target if len(chain) < steps else ended).send(chain)


def chains_of(daemon: Daemon, steps: int) -> list[list[int]]:
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
            ready = wait([*(pipe[0] for pipe in ended), *(process.sentinel for process in processes)])
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
    """Several processes hand ids to each other; each id is greater than the one before it, whoever issued both."""
    steps = max(50, round(300 * effort))
    with skewed(directory, 4 * SKEW_MS) as daemon:
        with Wire(daemon.own_socket(RIGHT)) as wire:
            early = [parse(wire.ask("get_timestamp", KEY_OF[number])).unix_ms for number in (AHEAD, RIGHT, BEHIND)]
        assert early[0] > early[1] + SKEW_MS / 2 > early[2] + SKEW_MS, "the clocks do not differ"
        chains = chains_of(daemon, steps)
    ids = [id for chain in chains for id in chain[1:]]
    assert len(set(ids)) == len(ids) == CHAINS * (steps - 1)
    assert {parse(id).coordinator for id in ids} == set(range(COORDINATORS))
    for chain in chains:
        assert all(before < after for before, after in itertools.pairwise(chain))


def test_beyond_the_bound_the_chain_is_told(directory: Path) -> None:
    """Ten seconds of difference and a bound of six: the one that is behind refuses, and its clock stays as it was."""
    with skewed(directory, SKEW_MS + 1000) as daemon, Wire(daemon.own_socket(AHEAD)) as wire:
        ahead = wire.ask("begin_transaction", KEY_OF[AHEAD])
        for method in KEYED_METHODS:
            with pytest.raises(AfterTooFarError):
                wire.ask(method, KEY_OF[BEHIND], ahead)
        right = wire.ask("create_session", KEY_OF[RIGHT], ahead)
        assert right > ahead
        assert parse(wire.ask("next_event_id", KEY_OF[BEHIND])).unix_ms < time.time_ns() // 1_000_000 - SKEW_MS / 2
