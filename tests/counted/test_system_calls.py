"""System calls per thousand requests and ids, by strace: a batch of requests is read once and answered once."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import libpharaoh
from tests.counted.conftest import Check
from tests.counted.lone import Lone, exchange, lone_worker
from tests.support.daemon import WATCHDOG_S, Daemon, wait_until
from tests.support.wire import Request, Wire

SYNCS = ("pwrite64", "pwritev2", "fdatasync", "fsync")
WATCHED = "read,write,sendto,recvfrom,epoll_wait,epoll_pwait2,epoll_ctl,futex,clock_gettime,sched_yield"


@contextmanager
def counted(pid: int, directory: Path, which: str) -> Iterator[Counter[str]]:
    """The system calls of all the worker's threads meanwhile; filled in at the end."""
    found: Counter[str] = Counter()
    trace = directory.with_suffix(".trace")
    command = ["strace", "-f", "-qq", "-e", f"trace={which}", "-o", str(trace), "-p", str(pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: tracer_of(pid) == tracer.pid, "strace has attached")
        wait_until(trace.exists, "strace's file")
        yield found
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait(WATCHDOG_S)
    found.update(re.findall(r"^\d+ +(\w+)\(", trace.read_text(), re.MULTILINE))


def tracer_of(pid: int) -> int:
    return min(
        int(re.findall(r"TracerPid:\s(\d+)", (thread / "status").read_text())[0])
        for thread in Path(f"/proc/{pid}/task").iterdir()
    )


@pytest.fixture
def lone(directory: Path, needs: Callable[[str], None]) -> Iterator[Lone]:
    needs("strace")
    with lone_worker(directory / "w") as worker:
        yield worker


NEXT_ID: Request = ("next_id", [])


@pytest.mark.parametrize(
    ("name", "request_", "in_flight"),
    [("next_id_in_16", NEXT_ID, 16), ("next_id_alone", NEXT_ID, 1), ("timestamp_in_16", ("get_timestamp", ["k"]), 16)],
)
def test_by_socket(lone: Lone, directory: Path, check: Check, name: str, request_: Request, in_flight: int) -> None:
    """One epoll_wait, one recv, one send for what came together; nothing else is done per request."""
    with Wire(lone.socket) as wire:
        exchange(wire, request_, 4, in_flight)
        with counted(lone.pid, directory, WATCHED) as found:
            count = exchange(wire, request_, 200, in_flight)
    check(f"calls_per_1000.{name}", 1000 * found.total() / count)


def test_commits(lone: Lone, directory: Path, check: Check) -> None:
    """What came together is durable together: one write and one sync for 16."""
    with Wire(lone.socket) as wire:
        exchange(wire, ("assign_offset", ["p"]), 4)
        with counted(lone.pid, directory, ",".join(SYNCS)) as found:
            count = exchange(wire, ("assign_offset", ["p"]), 100)
    check("calls_per_1000.commit_in_16", 1000 * found.total() / count)


def test_rings(lone: Lone, directory: Path, check: Check) -> None:
    """A millisecond's ids a time out of a full ring: the worker is rung once, perhaps twice, and reads no bell."""
    with libpharaoh.connect(lone.socket) as client:
        client.next_ids(10_000)
        calls = min(calls_per_refill(lone, directory, client) for _ in range(3))  # timing can only add to them
    check("calls_per_8192.ring_ids", max(calls, 2))


def calls_per_refill(lone: Lone, directory: Path, client: libpharaoh.Client) -> float:
    with counted(lone.pid, directory, WATCHED) as found:
        for _ in range(40):
            time.sleep(0.005)  # so that each time finds the ring full
            client.next_ids(8192)
    return found.total() / 40


def test_idle(lone: Lone, directory: Path, check: Check) -> None:
    with Wire(lone.socket) as wire:
        exchange(wire, NEXT_ID, 10)
    time.sleep(1.5)
    with counted(lone.pid, directory, "all") as found:
        time.sleep(6)
    check("calls_in_6s.idle", max(found.total(), 10))  # a heartbeat more or less is a matter of when it began


def test_an_idle_worker_does_not_watch(directory: Path, needs: Callable[[str], None]) -> None:
    """However fast the last requests came: after them it sleeps from heartbeat to heartbeat."""
    needs("strace")
    with Daemon(directory, coordinators=1) as daemon:
        with Wire(daemon.socket) as wire:
            exchange(wire, NEXT_ID, 200, 1)
        time.sleep(1.5)
        with counted(daemon.worker_pids()[0], directory, "sched_yield,epoll_pwait2") as found:
            time.sleep(3)
    assert found["sched_yield"] == 0
    assert found["epoll_pwait2"] >= 2
