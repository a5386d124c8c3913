"""Starts tests/counted/lone_worker.py, by itself or under a tool, and sends it what is to be counted."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.daemon import ROOT, WATCHDOG_S, wait_until
from tests.support.wire import Request, Wire

BATCH = 16


class Lone:
    """A running worker: its process and its socket."""

    def __init__(self, process: subprocess.Popen[bytes], socket: Path) -> None:
        self.process = process
        self.socket = str(socket)

    @property
    def pid(self) -> int:
        return self.process.pid


@contextmanager
def lone_worker(directory: Path, *tool: str) -> Iterator[Lone]:
    """tool: a command that executes the worker."""
    command = [*tool, sys.executable, "-m", "tests.counted.lone_worker", str(directory)]
    log = directory.with_suffix(".log")
    with open(log, "wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    lone = Lone(process, directory / "rpc.sock")
    try:
        wait_until(lambda: answers(lone, log), "the worker serves")
        yield lone
    finally:
        process.terminate()
        process.wait(WATCHDOG_S)


def answers(lone: Lone, log: Path) -> bool:
    assert lone.process.poll() is None, log.read_text()
    if not Path(lone.socket).exists():
        return False
    with contextlib.suppress(ConnectionRefusedError), Wire(lone.socket) as wire:  # refused: it does not listen yet
        return bool(wire.ask("ping"))
    return False


def exchange(wire: Wire, request: Request, batches: int, in_flight: int = BATCH) -> int:
    """Sends `in_flight` requests in one piece and waits for all their replies, again and again; returns how many."""
    for _ in range(batches):
        for reply in wire.wait(wire.post(*[request] * in_flight)):
            assert reply.error is None
    return batches * in_flight
