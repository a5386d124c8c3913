"""A client process that draws ids at full tilt into a ledger, through restarts of the daemon, until it is killed.

    python -m tests.support.load_client SOCKET LEDGER KIND [BATCH]

KIND: ring (next_ids from shared memory), single (next_id), socket (next_ids over the socket), strict (get_timestamp),
keyed (timestamps, transactions, sessions and events of many keys, in turn), keyed-socket (these over the socket),
one-key (these of one key), one-key-socket.
Times are noted for all but ring and single. It prints a line once it has its first ids.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import libpharaoh
from libpharaoh import Client
from libpharaoh.errors import PharaohError
from tests.support.daemon import ROOT
from tests.support.ledger import Ledger, Run, read, rows

RETRY_S = 0.002


TIMED = ("socket", "strict", "keyed", "keyed-socket", "one-key", "one-key-socket")
"""The kinds whose ledger notes when each call began and returned."""
KEYED_METHODS = ("get_timestamp", "begin_transaction", "create_session", "next_event_id")
ONE_KEY_CALLS = itertools.cycle([(method, "orders") for method in KEYED_METHODS])
KEYED_CALLS = itertools.cycle([(method, f"key {number}") for number in range(16) for method in KEYED_METHODS])


def draw(client: Client, kind: str, batch: int) -> Sequence[int]:
    if "key" in kind:
        method, key = next(ONE_KEY_CALLS if kind.startswith("one-key") else KEYED_CALLS)
        return [getattr(client, method)(key)]
    if kind == "strict":
        return [client.get_timestamp()]
    if kind == "single":
        return [client.next_id() for _ in range(batch)]
    return client.next_ids(batch)


def connected(path: str, kind: str) -> Client:
    while True:
        with contextlib.suppress(PharaohError):
            # Causal: a ledger's ids are to rise over its keys.
            rings, causal = not kind.endswith("socket"), kind in TIMED
            return libpharaoh.connect(path, name=f"drawer {kind}", timeout=1.0, rings=rings, causal=causal)
        time.sleep(RETRY_S)


def main(path: str, ledger_path: str, kind: str, batch: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ledger = Ledger(ledger_path)
    client = connected(path, kind)
    timed = kind in TIMED
    said = False
    while True:
        called_ns = time.monotonic_ns()
        try:
            ids = draw(client, kind, batch)
        except PharaohError as error:
            if not error.retryable:
                raise
            time.sleep(RETRY_S)
            continue
        ledger.add(ids, *((called_ns, time.monotonic_ns()) if timed else ()))
        if not said:
            said = True
            print("drawing", flush=True)


class LoadClient:
    """The handle of one such process."""

    def __init__(self, socket: str, ledger: Path, kind: str, batch: int = 256) -> None:
        self.socket = socket
        self.ledger = ledger
        self.kind = kind
        self.batch = batch
        self.timed = kind in TIMED
        command = [sys.executable, "-m", "tests.support.load_client", socket, str(ledger), kind, str(batch)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)

    @property
    def pid(self) -> int:
        return self.process.pid

    def runs(self, start: int = 0) -> list[Run]:
        """What it has received, from a row of its ledger on."""
        return read(self.ledger, start)

    def rows(self) -> int:
        return rows(self.ledger)

    def ledgers(self) -> list[Path]:
        return [self.ledger]

    def mark(self) -> object:
        """Another one later means that ids were received meanwhile."""
        return read(self.ledger, max(0, self.rows() - 1))[-1:]

    def successor(self) -> LoadClient:
        """Kills this one by SIGKILL; another one in its place, with a ledger of its own."""
        self.kill()
        return LoadClient(self.socket, self.ledger.with_name(f"{self.ledger.name}+"), self.kind, self.batch)

    def wait_drawing(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"drawing\n", "the client ended"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextlib.contextmanager
def load_clients(socket: str, directory: Path, kinds: Sequence[str], batch: int = 256) -> Iterator[list[LoadClient]]:
    """One process per kind, with ledgers in `directory`; killed at the end."""
    started: list[LoadClient] = []
    try:
        started += [
            LoadClient(socket, directory / f"ledger-{number}-{kind}", kind, batch) for number, kind in enumerate(kinds)
        ]
        yield started
    finally:
        for load_client in started:
            load_client.kill()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]) if len(sys.argv) > 4 else 256)
