"""Processes that draw strict ids in turn: each call begins after the one before it has returned, whoever made it.

    python -m tests.support.turns SOCKET LEDGER PATH COORDINATORS

A byte on stdin is the turn: one call, a row in the ledger of its stream (LEDGER-STREAM), then the byte goes on to
stdout. Streams: 0 … n-1, a key of each coordinator, and `none`, without a key. PATH: `ring` (libpharaoh), `socket`
(raw requests, to one socket after the other when that one hangs up) or `direct` (to the owner's socket, otherwise so).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import libpharaoh
from libpharaoh._framing import Reply, ReplyDecoder, encode_request
from libpharaoh.errors import PharaohError
from tests.support.daemon import ROOT
from tests.support.host import keys_of
from tests.support.ledger import Ledger, Run, read

WATCHDOG_S = 60.0
KEYLESS = "none"
SAME_NS = 400_000_000
SOON_S = 0.005


class RawSocket:
    """One connection to one socket of the daemon, made when it is needed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._numbers = itertools.count(1)
        self._socket: socket.socket | None = None

    def ask(self, key: str | None, patience_s: float) -> Reply | None:
        """None: there is no answer, and none will come any more."""
        number = next(self._numbers)
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX)
                self._socket.connect(self._path)
            self._socket.settimeout(patience_s)
            self._socket.sendall(encode_request(number, "get_timestamp", [key]))
            decoder = ReplyDecoder()
            while data := self._socket.recv(4096):
                for reply in decoder.feed(data):
                    assert reply.msgid == number
                    return reply
        except OSError:
            pass
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        return None


class RawCaller:
    """get_timestamp over whichever socket answers; a call whose connection breaks is made again elsewhere.

    direct: it knows the way to a key's coordinator, and asks another one when that does not answer soon.
    """

    def __init__(self, path: str, owns: Sequence[str], *, direct: bool) -> None:
        self._owns = [RawSocket(own) for own in owns]
        self._all = [RawSocket(path), *self._owns]
        self._direct = direct

    def get_timestamp(self, owner: int, key: str | None) -> int:
        deadline = time.monotonic() + WATCHDOG_S
        asked = itertools.cycle(self._all)
        reply = self._owns[owner].ask(key, SOON_S) if self._direct else None
        while reply is None or reply.error is not None:
            if reply is not None and reply.error is not None and not reply.error.retryable:
                raise reply.error
            assert time.monotonic() < deadline, "no answer in all that time"
            reply = next(asked).ask(key, WATCHDOG_S)
        return int(reply.result)


def ring_caller(path: str) -> Callable[[int, str | None], int]:
    client = libpharaoh.connect(path, timeout=WATCHDOG_S)

    def call(_: int, key: str | None) -> int:
        while True:
            try:
                return client.get_timestamp(key)
            except PharaohError as error:
                if not error.retryable:
                    raise

    return call


def main(path: str, ledger_path: str, how: str, coordinators: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run = Path(path).parent if path.endswith("rpc.sock") else Path(path).parent.parent
    owns = [str(run / "coordinators" / f"{one:04d}.sock") for one in range(coordinators)]
    call = ring_caller(path) if how == "ring" else RawCaller(path, owns, direct=how == "direct").get_timestamp
    streams: list[tuple[str, int, str | None]] = [(str(one), one, key) for one, key in keys_of(coordinators).items()]
    streams.append((KEYLESS, 0, None))
    ledgers = {name: Ledger(f"{ledger_path}-{name}") for name, _, _ in streams}
    with contextlib.suppress(BrokenPipeError):
        while os.read(0, 1):
            name, owner, key = streams[stream_now(coordinators)]
            called_ns = time.monotonic_ns()
            id = call(owner, key)
            ledgers[name].add([id], called_ns, time.monotonic_ns())
            os.write(1, b"t")


def stream_now(coordinators: int) -> int:
    """For a while all call for the same stream: two calls of one within a millisecond tell the most."""
    return time.monotonic_ns() // SAME_NS % (coordinators + 1)


class Turns:
    """The handle of such processes, in a ring of pipes."""

    def __init__(self, directory: Path, callers: Sequence[tuple[str, str]], coordinators: int) -> None:
        """callers: (socket, path) of each process."""
        self.ledgers = [directory / f"turn-{number}-{how}" for number, (_, how) in enumerate(callers)]
        self.coordinators = coordinators
        self.processes: list[subprocess.Popen[bytes]] = []
        pipes = [os.pipe() for _ in callers]
        self._first_turn = os.dup(pipes[0][1])
        try:
            for number, (path, how) in enumerate(callers):
                command = [sys.executable, "-m", "tests.support.turns", path, str(self.ledgers[number]), how]
                self.processes.append(
                    subprocess.Popen(
                        [*command, str(coordinators)], cwd=ROOT, stdin=pipes[number][0],
                        stdout=pipes[(number + 1) % len(pipes)][1],
                    )
                )  # fmt: skip
        finally:
            for pair in pipes:
                os.close(pair[0])
                os.close(pair[1])

    def begin(self) -> None:
        """Gives the first one its turn."""
        os.write(self._first_turn, b"t")

    def stream(self, name: str) -> list[list[Run]]:
        """What each process got of one stream."""
        return [read(f"{path}-{name}") for path in self.ledgers]

    def streams(self) -> dict[str, list[list[Run]]]:
        return {name: self.stream(name) for name in [*map(str, range(self.coordinators)), KEYLESS]}

    def check_alive(self) -> None:
        assert all(process.poll() is None for process in self.processes), "a caller ended"

    def close(self) -> None:
        os.close(self._first_turn)
        for process in self.processes:
            process.kill()
            process.wait()


@contextlib.contextmanager
def turns(directory: Path, callers: Sequence[tuple[str, str]], coordinators: int) -> Iterator[Turns]:
    running = Turns(directory, callers, coordinators)
    try:
        yield running
    finally:
        running.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
