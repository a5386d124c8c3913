"""A client process that counts: generations of groups and offsets of partitions, through restarts of the daemon.

    python -m tests.support.counter SOCKET DIRECTORY KIND NUMBER NAME...

KIND: plain (no tokens: each call is one request, whose outcome may stay unknown) or token (a session of its own; each
request is repeated with its token until it is answered). Names that begin with "group" are groups, the others
partitions. One ledger per name in DIRECTORY. SIGTERM ends it after the call under way. It prints a line once it has
been answered.
"""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import libpharaoh
from libpharaoh._framing import encode_request
from libpharaoh._socket import Connection
from libpharaoh.errors import ShuttingDownError, StorageFullError
from tests.support.daemon import ROOT, WATCHDOG_S
from tests.support.ledger import UNKNOWN, Ledger, Run, check_dense, check_real_time_order, read, rows

RETRY_S = 0.002
PATIENCE_S = 10.0
NOT_COUNTED = (StorageFullError, ShuttingDownError)
"""After these nothing may be missing. Others may come after the value was counted."""


def is_group(name: str) -> bool:
    return name.startswith("group")


class Plain:
    """Raw requests, one attempt each."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.connection: Connection | None = None

    def count(self, name: str, count: int, ledger: Ledger) -> None:
        deadline = time.monotonic() + PATIENCE_S
        if self.connection is None or self.connection.closed:
            self.connection = Connection.connect(self.path, deadline)
        ledger.ask(count, time.monotonic_ns())
        method, params = ("join_group", [name, "member"]) if is_group(name) else ("assign_offset", [name, count])
        try:
            first = self.connection.request(method, params, deadline)
        except NOT_COUNTED:
            ledger.withdraw()
            raise
        ledger.answer(first, time.monotonic_ns())


class Exact:
    """The library's calls, with tokens."""

    def __init__(self, path: str, number: str) -> None:
        self.client_id = f"client {number}"
        self.client = libpharaoh.connect(path, timeout=PATIENCE_S, rings=False)
        self.session = self.client.create_session(self.client_id)
        self.sequence = 0

    def count(self, name: str, count: int, ledger: Ledger) -> None:
        self.sequence += 1
        ledger.ask(count, time.monotonic_ns())
        while True:
            with contextlib.suppress(*RETRYABLE):
                ledger.answer(self._once(name, count), time.monotonic_ns())
                return
            time.sleep(RETRY_S)

    def _once(self, name: str, count: int) -> int:
        if is_group(name):
            return self.client.join_group(name, self.client_id, token=(self.session, self.sequence))
        return self.client.assign_offset(name, count, token=(self.session, self.sequence, self.client_id))


RETRYABLE = tuple(error for error in libpharaoh.errors.by_code.values() if error.retryable)


def main(path: str, directory: str, kind: str, number: str, names: Sequence[str]) -> None:
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda signum, _frame: stopping.append(signum))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    rng = random.Random(number)
    ledgers = {name: Ledger(Path(directory, name)) for name in names}
    counter = Plain(path) if kind == "plain" else Exact(path, number)
    said = False
    while not stopping:
        name = rng.choice(names)
        count = 1 if is_group(name) else rng.choice((1, 1, 2, 10, rng.randrange(1, 1000)))
        try:
            counter.count(name, count, ledgers[name])
        except RETRYABLE:
            time.sleep(RETRY_S)
            continue
        if not said:
            said = True
            print("drawing", flush=True)


class Counter:
    """The handle of one such process."""

    def __init__(self, path: str, directory: Path, kind: str, names: Sequence[str], number: int) -> None:
        self.arguments = (path, directory, kind, names, number)
        self.directory = directory
        self.names = names
        directory.mkdir()
        command = [sys.executable, "-m", "tests.support.counter", path, str(directory), kind, str(number), *names]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_drawing(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"drawing\n", "the client ended"

    def ledgers(self) -> list[Path]:
        return [self.directory / name for name in self.names]

    def mark(self) -> object:
        """Another one later means that a call was answered meanwhile."""
        last = []
        for path in self.ledgers():
            tail = read(path, max(0, rows(path) - 100))
            last.append(next((run for run in reversed(tail) if run.first != UNKNOWN), None))
        return last

    def successor(self) -> Counter:
        """Kills this one by SIGKILL; another one, with a session and ledgers of its own."""
        self.kill()
        path, directory, kind, names, number = self.arguments
        return Counter(path, directory.with_name(f"{directory.name}+"), kind, names, number + 100)

    def finish(self) -> None:
        """Lets it end its last call."""
        self.process.terminate()
        assert self.process.wait(WATCHDOG_S) == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextlib.contextmanager
def counters(
    paths: Sequence[str], directory: Path, kinds: Sequence[str], names: Sequence[str]
) -> Iterator[list[Counter]]:
    """One process per kind, spread over the sockets at `paths`, with ledgers in `directory`; killed at the end."""
    started: list[Counter] = []
    try:
        for number, kind in enumerate(kinds):
            started.append(
                Counter(paths[number % len(paths)], directory / f"counts-{number}-{kind}", kind, names, number)
            )
        yield started
    finally:
        for counter in started:
            counter.kill()


@contextlib.contextmanager
def asking(path: str) -> Iterator[Callable[..., Any]]:
    """A function for one request over the wire, as it is: ask(method, *params)."""
    connection = Connection.connect(path, time.monotonic() + PATIENCE_S)
    try:
        yield lambda method, *params: connection.request(method, list(params), time.monotonic() + PATIENCE_S)
    finally:
        connection.close()


FLOOD = b"".join(encode_request(number, "assign_offset", [f"flood-{number}"]) for number in range(1000))


@contextlib.contextmanager
def flooded(path: str) -> Iterator[None]:
    """A thread that counts at full tilt, and with it makes a journal grow; through restarts."""
    over = threading.Event()

    def flood() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 1, 0))
                sock.connect(path)
                while not over.is_set():
                    sock.sendall(FLOOD)
                    with contextlib.suppress(BlockingIOError):  # never more unread than fits on the way
                        while sock.recv(1 << 20, socket.MSG_DONTWAIT):
                            pass
            over.wait(RETRY_S)

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def long_to_rewrite(ask: Callable[..., Any]) -> None:
    """Counters that do not fit one batch: writing all of them down anew takes some twenty."""
    for number in range(300):
        ask("assign_offset", f"long-{number}".ljust(4096, "."))


def check_counted(path: str, ledgers: Iterable[Path], at_least: int) -> int:
    """Each name is dense, and in real time order; and at least so many calls were answered. Returns the values missing.

    The ledgers lie under their names.
    """
    by_name: dict[str, list[list[Run]]] = {}
    for ledger in ledgers:
        by_name.setdefault(ledger.name, []).append(read(ledger))
    missing = answered = 0
    with asking(path) as ask:
        for name, runs in by_name.items():
            state = ask("counter_read", "group" if is_group(name) else "offset", name)
            missing += check_dense(runs, int(is_group(name)), state["next"])
            answered += check_real_time_order([[run for run in client if run.first != UNKNOWN] for client in runs])
    assert answered >= at_least, f"{answered} calls answered: too few to prove anything"
    return missing


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5:])
