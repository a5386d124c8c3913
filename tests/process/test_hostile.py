"""Hostile peers: whatever they send, scribble or hold back costs themselves, and nobody else (F36, F37, F38).

Invariants: a victim client goes on receiving unique, rising ids (counted, not timed); no worker dies; what a worker
holds stays bounded.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import mmap
import os
import random
import socket
import threading
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from libpharaoh._framing import ReplyDecoder, encode_request
from libpharaoh._socket import Connection
from pharaohd.settings import COORDINATORS_MAX
from tests.support.daemon import Daemon, short_directory, wait_until
from tests.support.ledger import check_real_time_order, check_rising, check_unique, count_of
from tests.support.load_client import load_clients
from tests.support.rawring import ELSEWHERE, REFUSED, RawRing

BAD_FRAMES: list[dict[str, Any]] = tomllib.loads(Path(__file__).with_name("bad_frames.toml").read_text())["frame"]
SEGMENT_BYTES = 8192
PATIENCE_S = 20.0
LIBC = ctypes.CDLL(None, use_errno=True)
PING = encode_request(77, "ping", [])


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with short_directory() as directory:
        settings = {"rpc": {"frame_deadline_ms": 300, "output_bytes_max": 131_072}}
        with Daemon(directory, coordinators=1, settings=settings) as daemon:
            yield daemon
            assert daemon.worker(0).restart_count == 0, daemon.log()


@pytest.fixture(scope="module")
def patient() -> Iterator[Daemon]:
    """One that closes no connection for slowness."""
    with short_directory() as directory:
        settings = {"rpc": {"frame_deadline_ms": 600_000}}
        with Daemon(directory, coordinators=1, settings=settings) as daemon:
            yield daemon
            assert daemon.worker(0).restart_count == 0, daemon.log()


@contextmanager
def raw(daemon: Daemon) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(daemon.socket)
        yield sock


def closed_by_daemon(sock: socket.socket) -> bool:
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True  # otherwise: TimeoutError


def answer(sock: socket.socket) -> Any:
    decoder = ReplyDecoder()
    while True:
        data = sock.recv(65536)
        assert data, "closed"
        for reply in decoder.feed(data):
            return reply


@contextmanager
def victims(daemon: Daemon) -> Iterator[Callable[[], None]]:
    """Clients on every path. What is yielded returns once each of them was served again; it is to be called while
    the body does its worst.
    """
    with (
        short_directory() as directory,
        load_clients(daemon.socket, directory, ("single", "socket", "strict"), batch=8) as clients,
    ):
        for client in clients:
            client.wait_drawing()

        def served() -> None:
            before = [count_of([client.runs()]) for client in clients]
            for client, count in zip(clients, before, strict=True):
                wait_until(lambda c=client, n=count: count_of([c.runs()]) > n + 20, f"{client.kind} is served")  # type: ignore[misc]

        yield served
        served()
        for client in clients:
            client.kill()
        ledgers = [client.runs() for client in clients]
    check_unique(ledgers, at_least=100)
    for ledger in ledgers:
        check_rising(ledger)
    check_real_time_order(ledgers[1:])


@pytest.mark.parametrize("frame", BAD_FRAMES, ids=lambda frame: str(frame["name"]))
def test_bad_frames(patient: Daemon, frame: dict[str, Any]) -> None:
    """F36: closed, or answered by a typed error; the connection beside it does not notice."""
    with raw(patient) as sock, raw(patient) as neighbour:
        neighbour.sendall(PING)
        answer(neighbour)
        sock.sendall(bytes.fromhex(frame["bytes"]))
        if frame["then"] == "closed":
            assert closed_by_daemon(sock)
        else:
            if frame["then"] != "ignored":
                error = answer(sock).error
                assert (error.code if error else 0) == frame["then"]
            sock.sendall(PING)
            assert answer(sock).result == "pong"
        neighbour.sendall(PING)
        assert answer(neighbour).result == "pong"


def test_a_refused_frame_says_why() -> None:
    """F36: the log names the rule and who broke it. As many rules as lines a second are written."""
    with short_directory() as directory, Daemon(directory, coordinators=1) as daemon:
        for frame in BAD_FRAMES:
            if "rule" in frame:
                with raw(daemon) as sock:
                    sock.sendall(bytes.fromhex(frame["bytes"]))
                    assert closed_by_daemon(sock)
                line = f"connection of uid {os.getuid()}, pid {os.getpid()} closed: malformed frame: {frame['rule']}"
                wait_until(lambda line=line: f'"{line}"' in daemon.log(), line)  # type: ignore[misc]


def test_key_at_and_beyond_its_limit(daemon: Daemon) -> None:
    with raw(daemon) as sock:
        sock.sendall(encode_request(1, "get_timestamp", [b"k" * 4096]))
        assert answer(sock).error is None
        sock.sendall(encode_request(2, "get_timestamp", [b"k" * 4097]))
        assert answer(sock).error.code == 4009


def test_garbage(daemon: Daemon, rng: random.Random, effort: float) -> None:
    """F36: random bytes, and requests with random bytes changed."""
    good = [
        encode_request(1, "next_ids", [100]),
        encode_request(2, "get_timestamp", ["orders", None]),
        encode_request(3, "hello", ["x", 1]),
    ]
    with victims(daemon):
        for number in range(max(1, round(500 * effort))):
            data = bytearray(rng.randbytes(200) if number % 4 == 0 else b"".join(rng.choices(good, k=5)))
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            with raw(daemon) as sock:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                closed_by_daemon(sock)


def test_slow_frames(daemon: Daemon) -> None:
    """F37: half a frame, and one byte at a time: both beyond the frame's deadline."""
    frame = encode_request(1, "get_timestamp", ["k" * 4000])
    with victims(daemon) as served, raw(daemon) as half, raw(daemon) as drip:
        half.sendall(frame[:-1])
        served()
        sent = sent_until_closed(drip, [frame[at : at + 1] for at in range(len(frame) - 1)], pause_s=0.05)
        assert 0 < sent < len(frame) - 1
        assert closed_by_daemon(half)


def sent_until_closed(sock: socket.socket, parts: Iterable[bytes], pause_s: float = 0.0) -> int:
    """How many parts could be sent before the daemon hung up."""
    sent = 0
    try:
        for part in parts:
            sock.sendall(part)
            sent += 1
            time.sleep(pause_s)
    except (BrokenPipeError, ConnectionResetError):
        pass
    return sent


def test_never_reader(daemon: Daemon) -> None:
    """F37: a client that sends and never reads is cut off; what is kept for it is bounded."""
    rss_before = resident_bytes(daemon)
    with victims(daemon) as served, raw(daemon) as sock:
        served()
        sent_until_closed(sock, itertools.repeat(encode_request(1, "stats", []) * 1000))
    assert resident_bytes(daemon) - rss_before < 8 << 20


def resident_bytes(daemon: Daemon) -> int:
    text = Path(f"/proc/{daemon.worker(0).pid}/status").read_text()
    return 1024 * int(next(line.split()[1] for line in text.splitlines() if line.startswith("VmRSS")))


def descriptors(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.worker(0).pid}/fd"))


def test_connects_without_end(daemon: Daemon, effort: float) -> None:
    """F37: thousands of connections, used and unused, attached and not: nothing of them stays."""
    fds, rss = descriptors(daemon), resident_bytes(daemon)
    with victims(daemon):
        for number in range(max(1, round(2000 * effort))):
            with raw(daemon) as sock:
                if number % 3 == 0:
                    sock.sendall(encode_request(1, "attach", ["x", None]))
                elif number % 3 == 1:
                    sock.sendall(PING[:-1])
    wait_until(lambda: daemon.worker(0).connections == 0, "all connections gone")
    wait_until(lambda: descriptors(daemon) == fds, "all descriptors gone")
    wait_until(lambda: daemon.worker(0).rings == 0, "all rings gone")  # the last one may only just be accepted
    assert resident_bytes(daemon) - rss < 8 << 20


def test_a_flood_of_violations_is_a_few_lines() -> None:
    """F37: whoever is cut off for nonsense comes back at once, and fills no disk with lines about it."""
    with short_directory() as directory, Daemon(directory, coordinators=1) as daemon:
        for _ in range(1000):
            with raw(daemon) as sock:
                sock.sendall(b"\xc1")
                assert closed_by_daemon(sock)
        wait_until(lambda: "more lines were left out" in daemon.log(), "the rest is counted")
        assert daemon.worker(0).violations == 1000
        assert daemon.log().count("malformed frame") < 500


class Attached:
    """A ring in the hands of somebody who does not follow its rules."""

    def __init__(self, daemon: Daemon) -> None:
        self.connection = Connection.connect(daemon.socket, time.monotonic() + PATIENCE_S)
        _, descriptors = self.connection.request_descriptors("attach", ["evil", None], 3, time.monotonic() + PATIENCE_S)
        self.grants_fd, self.client_fd, self.doorbell_fd = descriptors.detach()
        self.client = mmap.mmap(self.client_fd, SEGMENT_BYTES)

    def ring(self) -> None:
        os.write(self.doorbell_fd, (1).to_bytes(8, "little"))

    def close(self) -> None:
        self.client.close()
        for descriptor in (self.grants_fd, self.client_fd, self.doorbell_fd):
            os.close(descriptor)
        self.connection.close()


@contextmanager
def attached(daemon: Daemon) -> Iterator[Attached]:
    evil = Attached(daemon)
    try:
        yield evil
    finally:
        evil.close()


def test_grants_cannot_be_written_or_resized(daemon: Daemon) -> None:
    """F38: the seals hold on every way to write, and neither segment can be shrunk under the worker."""
    with attached(daemon) as evil:
        with pytest.raises(PermissionError):
            mmap.mmap(evil.grants_fd, SEGMENT_BYTES)
        with pytest.raises(PermissionError):
            os.pwrite(evil.grants_fd, b"x", 0)
        again = os.open(f"/proc/self/fd/{evil.grants_fd}", os.O_RDWR)
        try:
            with pytest.raises(PermissionError):
                mmap.mmap(again, SEGMENT_BYTES)
        finally:
            os.close(again)
        assert errno_of_making_writable(evil.grants_fd) == errno.EACCES
        assert errno_of_punching_a_hole(evil.grants_fd) == errno.EPERM
        for descriptor in (evil.grants_fd, evil.client_fd):
            for size in (0, SEGMENT_BYTES // 2, 2 * SEGMENT_BYTES):
                with pytest.raises(PermissionError):
                    os.ftruncate(descriptor, size)
            with pytest.raises(PermissionError):
                fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def errno_of_making_writable(descriptor: int) -> int:
    """What mprotect() says to making a read-only mapping writable; 0: it did so."""
    LIBC.mmap.restype = ctypes.c_void_p
    size = ctypes.c_size_t(SEGMENT_BYTES)
    view = ctypes.c_void_p(LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, ctypes.c_long(0)))
    assert view.value != ctypes.c_void_p(-1).value
    result = LIBC.mprotect(view, size, mmap.PROT_READ | mmap.PROT_WRITE)
    error = ctypes.get_errno() if result else 0
    LIBC.munmap(view, size)
    return error


def errno_of_punching_a_hole(descriptor: int) -> int:
    keep_size, punch_hole = 1, 2
    result = LIBC.fallocate(descriptor, punch_hole | keep_size, ctypes.c_long(0), ctypes.c_long(4096))
    return ctypes.get_errno() if result else 0


def test_scribbler(daemon: Daemon, rng: random.Random, effort: float) -> None:
    """F38: random words all over the client's segment, with the doorbell ringing, ring after ring."""
    violations = daemon.worker(0).violations
    with victims(daemon) as served:
        for number in range(max(1, round(60 * effort))):
            with attached(daemon) as evil:
                if number == 0:
                    evil.client[:] = rng.randbytes(SEGMENT_BYTES)
                    served()
                    evil.ring()
                    wait_until(lambda: daemon.worker(0).violations > violations, "a violation is noticed")
                for _ in range(30):
                    if rng.random() < 0.5:
                        evil.client[:] = rng.randbytes(SEGMENT_BYTES)
                    else:
                        at = 8 * rng.choice([0, 1, 16, 17, 18, 19])
                        evil.client[at : at + 8] = rng.choice([0, 1, 63, 64, 65, 1 << 63, (1 << 64) - 1]).to_bytes(
                            8, "little"
                        )
                    evil.ring()


def test_cursor_out_of_range_is_noticed(daemon: Daemon) -> None:
    """F38: a cursor beyond what was granted costs the ring, at once."""
    with attached(daemon) as evil:
        evil.ring()
        violations = daemon.worker(0).violations
        evil.client[0:8] = (1 << 40).to_bytes(8, "little")
        evil.ring()
        wait_until(evil.connection.hung_up, "the ring is revoked")
        assert daemon.worker(0).violations == violations + 1


@pytest.mark.parametrize("coordinator", [COORDINATORS_MAX, 5000, 2**40, 2**64 - 1])
def test_a_strict_request_for_a_coordinator_out_of_range(daemon: Daemon, coordinator: int) -> None:
    """F38: it is refused, since nothing lies there in the page; another host's is to be asked for elsewhere."""
    pid = daemon.worker(0).pid
    with RawRing(daemon.own_socket(0)) as ring:
        ring.post(coordinator)
        wait_until(lambda: ring.status() == REFUSED, "a refusal")
        ring.post(COORDINATORS_MAX - 1)
        wait_until(lambda: ring.status() == ELSEWHERE, "another answer")
        ring.post()
        wait_until(lambda: ring.answer() is not None, "an id")
    assert daemon.worker(0).pid == pid


def test_doorbell_flood(daemon: Daemon) -> None:
    """F38: a doorbell that never rests takes the worker's time, and no ids from the others."""
    stop = threading.Event()
    with attached(daemon) as evil:

        def flood() -> None:
            while not stop.is_set():
                for _ in range(1000):
                    evil.ring()

        thread = threading.Thread(target=flood)
        thread.start()
        try:
            with victims(daemon) as served:
                served()
        finally:
            stop.set()
            thread.join()


def test_doorbell_of_a_ring_that_is_gone(daemon: Daemon) -> None:
    """F38: who keeps the doorbell after hanging up rings for nobody: the worker does not even wake."""
    with attached(daemon) as evil:
        evil.ring()
        evil.connection.close()
        wait_until(lambda: daemon.worker(0).rings == 0, "the ring is freed")
        wakeups = daemon.worker(0).wakeups
        for _ in range(200):
            evil.ring()
            time.sleep(0.001)
        assert daemon.worker(0).wakeups - wakeups < 50  # heartbeats, and no more
