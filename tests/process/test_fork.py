"""F23: forked clients, however they were made, share no id with their parents, and both go on."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import platform
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

import pytest

import libpharaoh
from libpharaoh import Client
from tests.support.daemon import Daemon, short_directory, wait_until
from tests.support.ledger import Ledger, Run, check_rising, check_unique, read

SYS_FORK = {"x86_64": 57}
SYS_CLONE = {"x86_64": 56, "aarch64": 220}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with short_directory() as directory, Daemon(directory, coordinators=2) as daemon:
        yield daemon


@pytest.fixture(params=["rings", "socket"])
def client(daemon: Daemon, request: pytest.FixtureRequest) -> Iterator[Client]:
    with libpharaoh.connect(daemon.socket, rings=request.param == "rings", causal=True) as client:
        yield client


def draw(client: Client, ledger: Ledger, rounds: int = 20) -> None:
    """Ids by every path that a client has."""
    for _ in range(rounds):
        ledger.add([client.next_id() for _ in range(10)])
        ledger.add([client.get_timestamp()])
        ledger.add(client.next_ids(100))
        ledger.add([client.get_timestamp("orders")])


IDS_PER_DRAW = 20 * 112


def raw_fork() -> int:
    """A fork past every hook of libc's and Python's."""
    number = SYS_FORK.get(platform.machine())
    syscall = ctypes.PyDLL(None, use_errno=True).syscall  # keeps the GIL: a child's other threads are gone
    if number is not None:
        return int(syscall(number))
    return int(syscall(SYS_CLONE[platform.machine()], int(signal.SIGCHLD), 0, 0, 0, 0))


def raw_clone() -> int:
    syscall = ctypes.PyDLL(None, use_errno=True).syscall  # keeps the GIL: a child's other threads are gone
    return int(syscall(SYS_CLONE[platform.machine()], int(signal.SIGCHLD), 0, 0, 0, 0))


def in_child(work: Callable[[], None], fork: Callable[[], int] = os.fork) -> int:
    """Runs `work` in a forked child that then ends with status 0; returns its process id."""
    pid = fork()
    if pid == 0:
        status = 1
        signal.alarm(60)  # against hanging
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


def ended_well(pid: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def check(ledgers: list[list[Run]], draws: int) -> None:
    check_unique(ledgers, at_least=draws * IDS_PER_DRAW)
    for ledger in ledgers:
        check_rising(ledger)


@pytest.mark.parametrize("fork", [os.fork, raw_fork, raw_clone], ids=["os.fork", "raw fork", "raw clone"])
def test_parent_child_and_grandchild_draw_at_once(
    client: Client, tmp_path: Path, fork: Callable[[], int], effort: float
) -> None:
    """F23: three generations use the same client object at the same time."""
    paths: list[Path] = []
    for number in range(max(1, round(3 * effort))):
        parent, child, grandchild = paths_of_round = [tmp_path / f"{number}-{name}" for name in ("p", "c", "g")]
        paths += paths_of_round
        client.next_ids(300)  # so that there are grants to inherit
        before = client.next_id()

        def generations(child: Path = child, grandchild: Path = grandchild) -> None:
            pid = in_child(lambda: draw(client, Ledger(grandchild)), fork)
            draw(client, Ledger(child))
            assert ended_well(pid)

        pid = in_child(generations, fork)
        draw(client, Ledger(parent))
        assert ended_well(pid)
        assert all(read(path)[0].first > before for path in paths_of_round)  # a child's ids rise above its parent's
    check([read(path) for path in paths], draws=len(paths))


def pool_worker(client: Client, path: str, pipe: Pipe) -> None:
    draw(client, Ledger(path))
    pipe.send("done")


def test_multiprocessing(client: Client, tmp_path: Path) -> None:
    """F23: multiprocessing's fork start method; all children use what they inherited."""
    context = multiprocessing.get_context("fork")
    paths = [tmp_path / str(number) for number in range(4)]
    client.next_ids(300)
    children = []
    for path in paths:
        ours, theirs = context.Pipe()
        child = context.Process(target=pool_worker, args=(client, str(path), theirs))
        child.start()
        children.append((child, ours))
    draw(client, Ledger(tmp_path / "parent"))
    for child, pipe in children:
        assert pipe.recv() == "done"
        child.join()
        assert child.exitcode == 0
    check([read(path) for path in [*paths, tmp_path / "parent"]], draws=5)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_threads_and_forks_at_once(client: Client, tmp_path: Path, effort: float) -> None:
    """F23, F24: threads hold the client's locks at any moment; children forked meanwhile neither hang nor repeat."""
    stop = threading.Event()
    thread_paths = [tmp_path / f"thread-{number}" for number in range(3)]

    def work(path: Path) -> None:
        ledger = Ledger(path)
        while not stop.is_set():
            draw(client, ledger, rounds=1)

    threads = [threading.Thread(target=work, args=(path,)) for path in thread_paths]
    child_paths = [tmp_path / f"child-{number}" for number in range(max(1, round(8 * effort)))]
    try:
        for thread in threads:
            thread.start()
        wait_until(lambda: all(read(path) for path in thread_paths), "all threads draw")
        for path in child_paths:
            assert ended_well(in_child(lambda path=path: draw(client, Ledger(path), rounds=5)))  # type: ignore[misc]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    check([read(path) for path in [*thread_paths, *child_paths]], draws=1)


def test_child_leaves_the_parents_ring_alone(daemon: Daemon) -> None:
    """F23: children that use, close or simply drop an inherited client cost the parent neither connection nor ring."""

    def attached() -> tuple[int, int, int]:
        rows = daemon.workers()
        return sum(row.rings for row in rows), sum(row.connections for row in rows), sum(row.accepts for row in rows)

    with libpharaoh.connect(daemon.socket) as client:
        client.get_timestamp()
        before = attached()
        for work in (client.close, client.next_id, lambda: None):
            assert ended_well(in_child(work))  # type: ignore[arg-type]
        wait_until(lambda: attached()[:2] == before[:2], "the children's rings are freed")
        last = client.get_timestamp()
        assert client.get_timestamp() > last
        assert attached() == (before[0], before[1], before[2] + 1), "only next_id connected anew, and only the child"
