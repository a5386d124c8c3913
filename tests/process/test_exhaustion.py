"""What runs out costs an explicit error and comes back: descriptors, backlog, slots (F39, F40, F41)."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
import socket
import time
from pathlib import Path

import pytest

import libpharaoh
from libpharaoh._framing import encode_request
from libpharaoh._socket import Connection
from libpharaoh.errors import ConnectFailedError, PharaohError, StorageFullError, TimedOutError
from tests.support.daemon import Daemon, wait_until

PATIENCE_S = 30.0


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def connected(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(PATIENCE_S)
    sock.connect(path)
    return sock


def hung_up(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True
    except BlockingIOError:
        return False


def times_refused(path: str, seconds: float) -> int:
    """How often one who comes back at once is turned away meanwhile."""
    deadline = time.monotonic() + seconds
    refused = 0
    while (left := deadline - time.monotonic()) > 0:
        with connected(path) as sock, contextlib.suppress(TimeoutError):
            sock.settimeout(left)
            refused += sock.recv(1) == b""
    return refused


def test_out_of_descriptors(directory: Path) -> None:
    """F39: no spin on accept while there are no descriptors; callers are told by a hang-up; then it goes on."""
    with Daemon(directory, coordinators=1) as daemon, libpharaoh.connect(daemon.socket) as client:
        pid = daemon.worker(0).pid
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (descriptors(pid) + 10, limits[1]))
        crowd = [connected(daemon.socket) for _ in range(60)]
        try:
            wait_until(lambda: any(hung_up(sock) for sock in crowd), "one of the crowd is refused")
            before = daemon.worker(0)
            assert times_refused(daemon.socket, seconds=3.2) < 60
            assert daemon.worker(0).wakeups - before.wakeups < 60, "it spins"
            client.get_timestamp()  # those that are in are served
            assert len(client.next_ids(1000)) == 1000
        finally:
            for sock in crowd:
                sock.close()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        with libpharaoh.connect(daemon.socket, timeout=PATIENCE_S) as newcomer:
            assert newcomer.next_id() > 0
        assert daemon.worker(0).pid == pid


def leave_descriptors(pid: int, count: int) -> None:
    """From now on the process can have so many more."""
    taken = {int(number) for number in os.listdir(f"/proc/{pid}/fd")}
    free = (number for number in itertools.count() if number not in taken)
    limit = next(itertools.islice(free, count, None))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]))


def test_counting_begins_when_there_are_descriptors(directory: Path) -> None:
    """F7, F39, case core-emfile: none for the directory, or one for that and none for the file. That is 'later'."""
    with (
        Daemon(directory, coordinators=1) as daemon,
        libpharaoh.connect(daemon.socket, rings=False, timeout=2.0) as client,
    ):
        client.next_id()
        pid = daemon.worker(0).pid
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        for left in (0, 1):
            leave_descriptors(pid, left)
            with pytest.raises(StorageFullError):
                client.assign_offset("p")
        assert client.next_id() > 0
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        assert [client.assign_offset("p") for _ in range(3)] == [0, 1, 2]
        assert daemon.worker(0).pid == pid


def test_backlog_full(directory: Path) -> None:
    """F40: nobody accepts, the backlog is full: a client tries again within its deadline, then says so by type."""
    with Daemon(directory, coordinators=1) as daemon:
        pid = daemon.worker(0).pid
        os.kill(pid, signal.SIGSTOP)
        waiting: list[socket.socket] = []
        try:
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
            with pytest.raises(BlockingIOError):
                fill_backlog(daemon.socket, waiting)
            with pytest.raises(ConnectFailedError) as caught:
                libpharaoh.connect(daemon.socket, timeout=0.3)
            assert caught.value.retryable
        finally:
            os.kill(pid, signal.SIGCONT)
            for sock in waiting:
                sock.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert len(waiting) > 100
        with libpharaoh.connect(daemon.socket, timeout=PATIENCE_S) as client:
            assert client.next_id() > 0


def fill_backlog(path: str, waiting: list[socket.socket]) -> None:
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        waiting.append(sock)
        sock.connect(path)


def test_stopped_worker_costs_a_typed_error(directory: Path) -> None:
    """F40, F33: connected to a worker that stands still, a call ends within its deadline with a retryable error."""
    with Daemon(directory, coordinators=1) as daemon, libpharaoh.connect(daemon.socket, timeout=0.5) as client:
        client.next_id()
        pid = daemon.worker(0).pid
        os.kill(pid, signal.SIGSTOP)
        try:
            for call in (client.get_timestamp, client.ping):
                with pytest.raises((TimedOutError, ConnectFailedError)) as caught:
                    call()
                assert caught.value.retryable
        finally:
            os.kill(pid, signal.SIGCONT)
        assert client.get_timestamp() > 0


def test_killed_clients_leave_nothing(directory: Path, effort: float) -> None:
    """F41: clients die by the thousand, attached and in the middle of requests; slots and descriptors return."""
    total = max(1, round(1000 * effort))
    with Daemon(directory, coordinators=1, settings={"ring": {"rings_max": 64}}) as daemon:
        with libpharaoh.connect(daemon.socket) as client:
            client.get_timestamp()
        wait_until(lambda: daemon.worker(0).connections == 0, "nobody there")
        pid = daemon.worker(0).pid
        before = descriptors(pid)
        killed = 0
        while killed < total:
            children = [client_to_be_killed(daemon.socket, number) for number in range(min(40, total - killed))]
            for child, ready in children:
                assert os.read(ready, 1) == b"."
                os.close(ready)
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            killed += len(children)
            # 64 rings are all there are: those of the dead must have come back for the next forty.
            wait_until(lambda: daemon.worker(0).rings == 0, "the rings come back")
        wait_until(lambda: daemon.worker(0).connections == 0, "the connections come back")
        assert descriptors(pid) == before
        with libpharaoh.connect(daemon.socket) as client:
            client.get_timestamp()
            assert daemon.worker(0).rings == 1


def client_to_be_killed(path: str, number: int) -> tuple[int, int]:
    """A forked client that has a ring and says so by a byte; every other one is in the middle of a request besides."""
    ready, said = os.pipe()
    pid = os.fork()
    if pid:
        os.close(said)
        return pid, ready
    signal.alarm(60)  # nobody stays behind when the test fails
    with contextlib.suppress(PharaohError):
        connection = Connection.connect(path, time.monotonic() + PATIENCE_S)
        connection.request_descriptors("attach", ["to be killed", None], 3, time.monotonic() + PATIENCE_S)
        if number % 2:
            connection._socket.sendall(encode_request(9, "next_ids", [8192])[:-1])
        os.write(said, b".")
        signal.pause()
    os._exit(1)


def test_rings_run_out(directory: Path) -> None:
    """F41: beyond ring.rings_max a client works by socket, and gets a ring once one is free."""
    with (
        Daemon(directory, coordinators=1, settings={"ring": {"rings_max": 1}}) as daemon,
        libpharaoh.connect(daemon.socket) as first,
    ):
        first.next_id()
        with libpharaoh.connect(daemon.socket) as second:
            issued = daemon.worker(0).ids_socket
            assert second.next_id() > 0
            assert daemon.worker(0).ids_socket == issued + 1
            first.close()

            def has_ring() -> bool:
                second.next_id()
                return daemon.worker(0).rings == 1

            wait_until(has_ring, "the second client attaches")
