"""Blows for daemons and their clients, and the ledgers of all clients that there ever were.

L as progress: after every blow each client that is left receives ids again.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

from tests.support.daemon import Daemon, wait_until
from tests.support.drawer import Drawer
from tests.support.ledger import Run, read, rows


def latest(ledger: Path) -> list[Run]:
    """The last row: another one, or a longer one, means that ids were received."""
    return read(ledger, max(0, rows(ledger) - 1))[-1:]


class Arena:
    """A daemon, its clients, and the ledgers of all clients that there ever were."""

    def __init__(self, daemon: Daemon, clients: list[Drawer]) -> None:
        self.daemon = daemon
        self.clients = clients
        self.graves: list[Path] = []
        for client in clients:
            client.wait_drawing()

    def replace(self, index: int) -> None:
        """Kills a client by SIGKILL and puts a new one in its place."""
        old = self.clients[index]
        old.kill()
        self.graves.append(old.ledger)
        path = old.ledger.with_name(f"{old.ledger.name}+")
        self.clients[index] = Drawer(self.daemon.socket, path, old.kind, batch=64)

    def progress(self) -> None:
        """L: every client receives ids that it did not have yet."""
        before = [latest(client.ledger) for client in self.clients]
        for client, so_far in zip(self.clients, before, strict=True):
            wait_until(lambda c=client, b=so_far: latest(c.ledger) != b, f"{client.kind} goes on")  # type: ignore[misc]

    def endure(self, rounds: int, rng: random.Random) -> list[list[Run]]:
        """All blows so many times over, in random order; then kills the clients. What all ever received."""
        blows = rounds * BLOWS
        rng.shuffle(blows)
        for blow in blows:
            time.sleep(rng.uniform(0.0, 0.1))
            blow(self, rng)
            self.progress()
        for client in self.clients:
            client.kill()
        return self.ledgers()

    def ledgers(self) -> list[list[Run]]:
        return [read(path) for path in [*self.graves, *(client.ledger for client in self.clients)]]


def kill_worker(arena: Arena, rng: random.Random) -> None:
    os.kill(rng.choice(list(arena.daemon.worker_pids().values())), signal.SIGKILL)


def kill_supervisor(arena: Arena, rng: random.Random) -> None:
    """Its workers stop by themselves (F25); until then the next daemon waits for them."""
    process = arena.daemon.process
    assert process is not None
    process.kill()
    process.wait()
    arena.daemon.start()


def kill_everything(arena: Arena, rng: random.Random) -> None:
    arena.daemon.kill()
    arena.daemon.start()


def restart(arena: Arena, rng: random.Random) -> None:
    assert arena.daemon.stop() == 0
    arena.daemon.start()


def kill_client(arena: Arena, rng: random.Random) -> None:
    arena.replace(rng.randrange(len(arena.clients)))


def pause_worker(arena: Arena, rng: random.Random) -> None:
    """F12: taken for dead or not, it goes on where it stood."""
    with_pause(rng.choice(list(arena.daemon.worker_pids().values())), rng.uniform(0.01, 0.4))


def pause_client(arena: Arena, rng: random.Random) -> None:
    with_pause(rng.choice(arena.clients).process.pid, rng.uniform(0.01, 0.1))


def with_pause(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


BLOWS = [
    kill_worker, kill_client, kill_worker, pause_worker, kill_supervisor, kill_worker, pause_client, restart,
    kill_worker, kill_everything,
]  # fmt: skip
