"""Transactions over several files: what is promised of snapshots, whoever dies, and whatever the oracle does."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from examples.snapshot_isolation.store import ConflictError, Store
from examples.snapshot_isolation.transactions import ABANDONED_MS, Oracle, Transaction
from libpharaoh.testing import FakeClient
from tests.support.daemon import ROOT, Daemon, short_directory, wait_until

ACCOUNTS = 20
BALANCE = 100
MOVERS = 6
AUDITORS = 2
SECONDS = 8.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.create(tmp_path / "store", shards=3)
    yield store
    store.close()


@pytest.fixture
def oracle(store: Store) -> FakeClient:
    """It has served a first transaction, which wrote 50 to a and to b."""
    client = FakeClient()
    write(store, client, a=50, b=50)
    return client


def write(store: Store, oracle: Oracle, **values: int) -> Transaction:
    transaction = Transaction(store, oracle)
    for key, value in values.items():
        transaction.put(key, value)
    transaction.commit()
    return transaction


def read(store: Store, oracle: Oracle, *keys: str) -> list[int | None]:
    transaction = Transaction(store, oracle)
    return [transaction.get(key) for key in keys]


def test_a_snapshot_stays_what_it_was(store: Store, oracle: FakeClient) -> None:
    reader = Transaction(store, oracle)
    write(store, oracle, a=0, b=100)
    assert (reader.get("a"), reader.get("b"), reader.get("c")) == (50, 50, None)
    assert read(store, oracle, "a", "b") == [0, 100]


def test_the_second_of_two_updates_is_refused(store: Store, oracle: FakeClient) -> None:
    first, second = Transaction(store, oracle), Transaction(store, oracle)
    for transaction in (first, second):
        transaction.put("a", (transaction.get("a") or 0) + 1)
    first.commit()
    with pytest.raises(ConflictError):
        second.commit()
    assert read(store, oracle, "a") == [51]


def test_an_update_meets_another_at_work(store: Store, oracle: FakeClient) -> None:
    first, second = Transaction(store, oracle), Transaction(store, oracle)
    first.put("a", 1)
    second.put("a", 2)
    first.prewrite()
    with pytest.raises(ConflictError):
        second.commit()
    assert first.commit_primary(first.commit_timestamp())
    assert read(store, oracle, "a") == [1]


def test_write_skew_is_not_prevented(store: Store, oracle: FakeClient) -> None:
    """As the example's page says: that takes serializable transactions."""
    first, second = Transaction(store, oracle), Transaction(store, oracle)
    for transaction, key in ((first, "a"), (second, "b")):
        if (transaction.get("a") or 0) + (transaction.get("b") or 0) >= 100:
            transaction.put(key, 0)
        transaction.commit()
    assert read(store, oracle, "a", "b") == [0, 0]


@pytest.mark.parametrize("key", ["a", "b"])
def test_who_died_before_its_commit_is_rolled_back(store: Store, oracle: FakeClient, key: str) -> None:
    dead = Transaction(store, oracle)
    dead.put("a", 0)
    dead.put("b", 100)
    dead.prewrite()
    timestamp = dead.commit_timestamp()
    oracle.advance(ABANDONED_MS + 1)
    assert read(store, oracle, key) == [50]
    assert not dead.commit_primary(timestamp), "it was only slow, and must notice"
    assert read(store, oracle, "a", "b") == [50, 50]


def test_who_died_after_its_commit_is_rolled_forward(store: Store, oracle: FakeClient) -> None:
    dead = Transaction(store, oracle)
    dead.put("a", 0)
    dead.put("b", 100)
    dead.prewrite()
    before = Transaction(store, oracle)
    timestamp = dead.commit_timestamp()
    assert dead.commit_primary(timestamp)
    assert read(store, oracle, "b", "a") == [100, 0]
    assert [before.get("a"), before.get("b")] == [50, 50]
    assert write(store, oracle, b=7).start > timestamp


def test_a_transaction_that_was_too_slow_fails_whole(store: Store, oracle: FakeClient) -> None:
    slow = Transaction(store, oracle)
    slow.put("a", 0)
    slow.put("b", 100)
    slow.prewrite()
    oracle.advance(ABANDONED_MS + 1)
    write(store, oracle, a=51)
    assert not slow.commit_primary(slow.commit_timestamp())
    assert read(store, oracle, "a", "b") == [51, 50]


class FailingOver:
    """Two hosts with clocks half a second apart; whichever is live answers."""

    def __init__(self) -> None:
        self.behind = FakeClient(start=1_000_000, coordinator=0)
        self.ahead = FakeClient(start=1_000_500, coordinator=1)
        self.live = self.behind
        self.layout = self.behind.layout

    def begin_transaction(self, key: str, *, after: int | None = None) -> int:
        return self.live.begin_transaction(key, after=after)

    def get_timestamp(self, key: str, *, after: int | None = None) -> int:
        return self.live.get_timestamp(key, after=after)


def test_a_snapshot_holds_over_a_fail_over_to_a_clock_behind(store: Store) -> None:
    """A reader with a start from the future has looked at a; a commit from the past must not show it b."""
    oracle = FailingOver()
    write(store, oracle, a=50, b=50)
    writer = Transaction(store, oracle)
    writer.put("a", 0)
    writer.put("b", 100)
    oracle.live = oracle.ahead
    reader = Transaction(store, oracle)
    seen = [reader.get("a")]
    oracle.live = oracle.behind
    assert writer.commit() > reader.start
    assert [*seen, reader.get("b")] == [50, 50]


def test_a_commit_shows_after_a_fail_over_to_a_clock_behind(store: Store) -> None:
    oracle = FailingOver()
    oracle.live = oracle.ahead
    write(store, oracle, a=50)
    oracle.live = oracle.behind
    assert read(store, oracle, "a") == [50]
    write(store, oracle, a=51)
    assert read(store, oracle, "a") == [51]


# --- real processes


class Write(NamedTuple):
    """A key's version."""

    committed: int
    start: int
    key: str
    value: int


class Bank:
    """The processes, each with a file for what it printed; whoever is killed is replaced."""

    def __init__(self, directory: Path, daemon: Daemon) -> None:
        self.daemon = daemon
        self.store = directory / "bank"
        self.directory = directory
        self.outputs: dict[str, list[Path]] = defaultdict(list)
        self.processes: list[tuple[str, subprocess.Popen[bytes]]] = []

    def spawn(self, command: str, *options: str) -> subprocess.Popen[bytes]:
        path = self.directory / f"{command}-{len(self.outputs[command])}"
        self.outputs[command].append(path)
        words = ["-m", "examples.snapshot_isolation", "--store", str(self.store), "--socket", self.daemon.socket]
        with open(path, "wb") as output:
            return subprocess.Popen(
                [sys.executable, *words, command, *options],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip

    def run(self, command: str, *options: str) -> None:
        assert self.spawn(command, *options).wait() == 0, self.outputs[command][-1].read_text()

    def start(self, command: str) -> None:
        self.processes.append((command, self.spawn(command, "--seconds", "1000")))

    def kill(self, index: int) -> str:
        command, process = self.processes.pop(index)
        assert process.poll() is None, "it ended by itself: " + "".join(map(Path.read_text, self.outputs[command]))
        process.kill()
        process.wait()
        return command

    def kill_all(self) -> None:
        for _, process in self.processes:
            process.kill()
            process.wait()

    def lines(self, command: str) -> list[list[str]]:
        return [line.split() for path in self.outputs[command] for line in path.read_text().splitlines()]

    def history(self) -> list[Write]:
        rows: list[tuple[int, int, str, int]] = []
        for path in self.store.glob("*.sqlite"):
            with sqlite3.connect(path) as db:
                rows += db.execute("SELECT committed, start, key, value FROM writes JOIN versions USING (key, start)")
                assert db.execute("SELECT count(*) FROM locks").fetchone() == (0,)
            db.close()
        return sorted(map(Write._make, rows))


def strike(bank: Bank, rng: random.Random) -> None:
    """Kills somebody."""
    daemon = bank.daemon
    victim = rng.choice(["client", "client", "client", "worker", "worker", "daemon"])
    if victim == "client":
        bank.start(bank.kill(rng.randrange(len(bank.processes))))
    elif victim == "worker":
        os.kill(rng.choice(list(daemon.worker_pids().values())), signal.SIGKILL)
        wait_until(daemon.live, "every worker live again")
    else:
        daemon.kill()
        daemon.start()


def check_history(history: list[Write]) -> dict[int, set[str]]:
    """The oracle: no update lost, and the same total at every commit. Returns who was written when."""
    balances: dict[str, int] = {}
    newest: dict[str, int] = {}
    written: dict[int, set[str]] = defaultdict(set)
    for write in history:
        written[write.committed].add(write.key)
    for index, write in enumerate(history):
        assert write.start > newest.get(write.key, 0), f"{write} overlaps with the write before it"
        newest[write.key], balances[write.key] = write.committed, write.value
        if index + 1 == len(history) or history[index + 1].committed != write.committed:
            total = balances.pop("total")
            assert sum(balances.values()) == total == ACCOUNTS * BALANCE, write
            balances["total"] = total
    return written


def test_every_snapshot_adds_up_over_kills_of_everybody(rng: random.Random, effort: float) -> None:
    with short_directory() as directory, Daemon(directory) as daemon:
        bank = Bank(directory, daemon)
        bank.run("init", "--accounts", str(ACCOUNTS), "--balance", str(BALANCE))
        try:
            for command in ["transfer"] * MOVERS + ["audit"] * AUDITORS:
                bank.start(command)
            deadline_s = time.monotonic() + SECONDS * effort
            while time.monotonic() < deadline_s:
                time.sleep(rng.uniform(0.05, 0.4))
                strike(bank, rng)
        finally:
            bank.kill_all()
        bank.run("audit")
        written = check_history(bank.history())
        snapshots = bank.lines("audit")
        assert all(line[0] == "snapshot" for line in snapshots), snapshots
        moved = bank.lines("transfer")
        for line in moved:
            assert written[int(line[0])] == set(line[1:]), f"{line} was acknowledged, and is not there"
        assert len(moved) > 50, "too few to show anything"
        assert len(snapshots) > 10, "too few to show anything"
