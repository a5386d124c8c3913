"""Ids over kills of everybody, and the order of ids between processes.

Real daemons and real client processes, each with a ledger that outlives it. The oracles are in tests/support/ledger.py:
U (nothing twice), M (order), and L as progress: after every blow each client that is left receives ids again.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections import defaultdict
from pathlib import Path

import pytest

import libpharaoh
from libpharaoh import Layout, parse
from tests.support.arena import Arena
from tests.support.daemon import ROOT, Daemon, wait_until
from tests.support.ledger import Run, check_real_time_order, check_rising, check_unique, pieces, read
from tests.support.load_client import load_clients

KINDS = ("ring", "single", "socket", "strict", "ring", "single", "socket", "strict")


def test_unique_over_kills(directory: Path, rng: random.Random, effort: float) -> None:
    """F10, F11, F12, F25, F26: clients, workers, supervisors are killed and paused; eight processes go on drawing."""
    with (
        Daemon(directory, coordinators=2) as daemon,
        load_clients(daemon.socket, directory, KINDS, batch=64) as clients,
    ):
        paths = Arena(daemon, clients).endure(max(1, round(2 * effort)), rng)
    ledgers = [read(path) for path in paths]
    check_unique(ledgers, at_least=50_000)
    for ledger in ledgers:
        check_rising(ledger)


@pytest.mark.parametrize("round_number", range(2))
def test_worker_killed_in_the_middle_of_a_push(
    directory: Path, rng: random.Random, effort: float, round_number: int
) -> None:
    """F11: a worker that feeds wrapping rings at full rate is killed again and again; each ring's successor goes on.

    Few kills in a row: a worker that keeps dying is started ever later.
    """
    kills = max(5, min(8, round(5 * effort)))
    with (
        Daemon(directory, coordinators=1) as daemon,
        load_clients(daemon.socket, directory, ("ring", "ring"), batch=4096) as clients,
    ):
        arena = Arena(daemon, clients)
        for _ in range(kills):
            time.sleep(rng.uniform(0.01, 0.08))
            pid = daemon.worker(0).pid
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda pid=pid: daemon.worker(0).pid not in (0, pid), "the worker is replaced")  # type: ignore[misc]
            arena.progress()
        for client in clients:
            client.kill()
        ledgers = [read(path) for path in arena.ledgers()]
        assert daemon.worker(0).restart_count == kills
    check_unique(ledgers, at_least=100_000)
    for ledger in ledgers:
        check_rising(ledger)


def unix_ms(id: int) -> int:
    """When the daemon says that the id was made."""
    return Layout().epoch_ms + libpharaoh.parse(id).milliseconds


SLEEPER = """
import os, signal, sys, time
import libpharaoh
with libpharaoh.connect(sys.argv[1], max_age_ms=int(sys.argv[2])) as client:
    client.next_ids(50)
    print("sleeping", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
    before_ms = time.time_ns() // 1_000_000
    print(before_ms, *[client.next_id() for _ in range(50)], flush=True)
"""


def test_expired_grants_are_not_handed_out(directory: Path) -> None:
    """F12: a client that slept past its grants' deadline throws them away; they burn, and nobody else gets them."""
    max_age_ms = 20
    with Daemon(directory, coordinators=1) as daemon, libpharaoh.connect(daemon.socket) as other:
        sleeper = subprocess.Popen(
            [sys.executable, "-c", SLEEPER, daemon.socket, str(max_age_ms)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        try:
            assert sleeper.stdout is not None
            assert sleeper.stdout.readline() == "sleeping\n"
            os.waitid(os.P_PID, sleeper.pid, os.WSTOPPED)
            time.sleep(5 * max_age_ms / 1000)
            others = list(other.next_ids(5000))
            sleeper.send_signal(signal.SIGCONT)
            before_ms, *ids = map(int, sleeper.stdout.readline().split())
            assert sleeper.wait(10) == 0
        finally:
            sleeper.kill()
            sleeper.communicate()
    assert len(ids) == 50
    assert not set(ids) & set(others)
    assert all(before_ms - unix_ms(id) <= max_age_ms for id in ids)


def test_age_of_ring_ids(directory: Path, effort: float) -> None:
    """An id of a ring, counted from its millisecond's start, was no older than max_age_ms when it was asked for."""
    max_age_ms = 5
    oldest_ms = 0
    rng = random.Random(1)
    with (
        Daemon(directory, coordinators=1) as daemon,
        libpharaoh.connect(daemon.socket, max_age_ms=max_age_ms) as client,
    ):
        for number in range(max(1, round(2000 * effort))):
            asked_ms = time.time_ns() // 1_000_000
            age_ms = asked_ms - unix_ms(client.next_id())
            oldest_ms = max(oldest_ms, age_ms)
            if number % 5 == 0:
                time.sleep(rng.uniform(0, 0.004))
        from_rings = daemon.worker(0).ids_ring
    assert oldest_ms <= max_age_ms
    assert from_rings >= 1000 * effort


CALLER = """
import itertools, sys, time
import libpharaoh
from tests.support.load_client import KEYED_METHODS
from tests.support.ledger import Ledger
methods = itertools.cycle(KEYED_METHODS)
path, ledger_path, what, rings, calls = sys.argv[1:]
client = libpharaoh.connect(path, rings=rings == "rings")
ledger = Ledger(ledger_path)
call = {
    "keyless": client.get_timestamp,
    "keyed": lambda: getattr(client, next(methods))("orders"),
    "next_id": client.next_id,
}[what]
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(calls)):
    called_ns = time.monotonic_ns()
    id = call()
    ledger.add([id], called_ns, time.monotonic_ns())
"""


def call_together(directory: Path, callers: list[tuple[str, str, str]], calls: int) -> list[list[Run]]:
    """One process per (socket, what, "rings" or "socket"), all at once; their ledgers."""
    processes: list[subprocess.Popen[str]] = []
    paths = [directory / f"calls-{number}" for number in range(len(callers))]
    try:
        for path, (socket, what, rings) in zip(paths, callers, strict=True):
            command = [sys.executable, "-c", CALLER, socket, str(path), what, rings, str(calls)]
            processes.append(
                subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        assert [process.wait(60) for process in processes] == [0] * len(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                stream.close()
    return [read(path) for path in paths]


@pytest.mark.parametrize("paths", [("rings", "rings"), ("socket", "socket"), ("rings", "socket")])
@pytest.mark.parametrize("what", ["keyless", "keyed"])
def test_strict_order_between_processes(directory: Path, what: str, paths: tuple[str, ...], effort: float) -> None:
    """M: a timestamp asked for after another one was returned is the greater one: for the whole host without a key.

    With a key, whatever it is asked as: timestamp, transaction, session, event. Workers other than the one that serves
    it forward what came by socket, and move rings on.
    """
    calls = max(1, round(1500 * effort))
    with Daemon(directory, coordinators=3) as daemon:
        # One worker may accept all that come to rpc.sock: most callers go to one that has to forward.
        sockets = [daemon.runtime_dir / f"coordinators/{coordinator:04d}.sock" for coordinator in (1, 2)]
        callers = [(str(sockets[number // 2]), what, path) for number, path in enumerate(2 * paths)]
        callers[0] = (daemon.socket, what, paths[0])
        ledgers = call_together(directory, callers, calls)
        forwarded = sum(worker.requests_forwarded for worker in daemon.workers())
    check_unique(ledgers, at_least=4 * calls)
    assert check_real_time_order(ledgers) == 4 * calls
    assert forwarded > 0 or paths == ("rings", "rings")
    issued_by = {coordinator for ledger in ledgers for run in ledger for coordinator, *_ in pieces(run, Layout())}
    owner = 0 if what == "keyless" else libpharaoh.coordinator_for("orders", 3)
    assert owner in issued_by  # others too, where a busy machine held the owner up for longer than a worker waits


def test_next_id_by_socket_is_ordered_per_coordinator(directory: Path, effort: float) -> None:
    """M for next_id by socket, and strict calls on rings among them: one coordinator, one order."""
    calls = max(1, round(1500 * effort))
    with Daemon(directory, coordinators=1) as daemon:
        callers = [
            (daemon.socket, what, path)
            for what, path in [("next_id", "socket"), ("next_id", "socket"), ("keyless", "rings")]
        ]
        ledgers = call_together(directory, callers, calls)
    check_unique(ledgers, at_least=3 * calls)
    assert check_real_time_order(ledgers) == 3 * calls


@pytest.mark.parametrize("causal", [False, True])
def test_one_client_on_all_paths(directory: Path, effort: float, causal: bool) -> None:
    """M per client: ids of next_id rise, and those of each key. All ids of a causal client rise, by whatever path.

    Prefetched ids are good for a second here, so that some are older than a strict id that came before them.
    """
    ids: list[int] = []
    fast: list[int] = []
    strict: dict[str | None, list[int]] = defaultdict(list)
    keys = {zlib.crc32(key.encode()) % 3: key for key in "abcdefgh"}
    assert len(keys) == 3
    with (
        Daemon(directory, coordinators=3) as daemon,
        libpharaoh.connect(daemon.socket, max_age_ms=1000, causal=causal) as client,
    ):
        for _ in range(max(1, round(200 * effort))):
            for key in (None, *keys.values()):
                strict[key].append(client.get_timestamp(key))
                fast += [client.next_id(), *client.next_ids(10)]
                ids += [strict[key][-1], *fast[-11:]]
    assert len(ids) >= 50
    assert {parse(id).coordinator for id in ids} == {0, 1, 2}
    assert len(set(ids)) == len(ids)
    for one_order in (fast, *strict.values(), *([ids] if causal else [])):
        assert all(before < after for before, after in itertools.pairwise(one_order))
