"""Blows to a daemon and its clients, while these go on drawing or counting: the killer of processes."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

from tests.support.daemon import Daemon, wait_until


class Client(Protocol):
    """A client process that works until it is killed; its ledgers outlive it."""

    @property
    def pid(self) -> int: ...

    def wait_drawing(self) -> None: ...

    def successor(self) -> Self: ...

    def kill(self) -> None: ...

    def mark(self) -> object: ...

    def ledgers(self) -> list[Path]: ...


C = TypeVar("C", bound=Client)


class Arena(Generic[C]):
    """A daemon, its clients, and the ledgers of all clients that there ever were."""

    def __init__(self, daemon: Daemon, clients: list[C]) -> None:
        self.daemon = daemon
        self.clients = clients
        self.graves: list[Path] = []
        for client in clients:
            client.wait_drawing()

    def replace(self, index: int) -> None:
        """Kills a client by SIGKILL and puts a new one in its place."""
        self.graves += self.clients[index].ledgers()
        self.clients[index] = self.clients[index].successor()

    def progress(self) -> None:
        """L: every client receives something that it did not have yet."""
        before = [client.mark() for client in self.clients]
        for number, (client, mark) in enumerate(zip(self.clients, before, strict=True)):
            wait_until(lambda c=client, m=mark: c.mark() != m, f"client {number} goes on")  # type: ignore[misc]

    def endure(self, rounds: int, rng: random.Random) -> list[Path]:
        """All blows so many times over, in random order; then kills the clients. The ledgers of all."""
        blows = rounds * BLOWS
        rng.shuffle(blows)
        for blow in blows:
            time.sleep(rng.uniform(0.0, 0.1))
            blow(self, rng)
            self.progress()
        for client in self.clients:
            client.kill()
        return self.ledgers()

    def ledgers(self) -> list[Path]:
        return [*self.graves, *(path for client in self.clients for path in client.ledgers())]


def kill_worker(arena: Arena[Any], rng: random.Random) -> None:
    os.kill(rng.choice(list(arena.daemon.worker_pids().values())), signal.SIGKILL)


def kill_supervisor(arena: Arena[Any], rng: random.Random) -> None:
    """Its workers stop by themselves (F25); until then the next daemon waits for them."""
    process = arena.daemon.process
    assert process is not None
    process.kill()
    process.wait()
    arena.daemon.start()


def kill_everything(arena: Arena[Any], rng: random.Random) -> None:
    arena.daemon.kill()
    arena.daemon.start()


def restart(arena: Arena[Any], rng: random.Random) -> None:
    assert arena.daemon.stop() == 0
    arena.daemon.start()


def kill_client(arena: Arena[Any], rng: random.Random) -> None:
    arena.replace(rng.randrange(len(arena.clients)))


def pause_worker(arena: Arena[Any], rng: random.Random) -> None:
    """F12: taken for dead or not, it goes on where it stood."""
    with_pause(rng.choice(list(arena.daemon.worker_pids().values())), rng.uniform(0.01, 0.4))


def pause_client(arena: Arena[Any], rng: random.Random) -> None:
    with_pause(rng.choice(arena.clients).pid, rng.uniform(0.01, 0.1))


def with_pause(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


BLOWS = [
    kill_worker, kill_client, kill_worker, pause_worker, kill_supervisor, kill_worker, pause_client, restart,
    kill_worker, kill_everything,
]  # fmt: skip
