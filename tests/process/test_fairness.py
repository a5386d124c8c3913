"""A greedy client costs the others their share of a millisecond, not their service (F37).

Progress is counted in ids, not in time: how many the coordinator issued to the greedy one while a victim got one.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import select
import socket
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from typing import Any

import msgpack
import pytest

import libpharaoh
from tests.support.daemon import Daemon, short_directory

IDS_PER_MS = 8192
VICTIM_IDS = 400


def greed(path: str, connections: int, method: str, params: list[Any], depth: int, begun: Event, end: Event) -> None:
    """Keeps `depth` requests under way on each connection until told to end."""
    request = msgpack.packb([0, 1, method, params])
    poll = select.epoll()
    sockets = {}
    for _ in range(connections):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        sock.sendall(request * depth)
        sock.setblocking(False)
        sockets[sock.fileno()] = sock
        poll.register(sock, select.EPOLLIN)
    while not end.is_set():
        for descriptor, _ in poll.poll(0.1):
            replies = sockets[descriptor].recv(65536).count(request[:1] + b"\x01")  # heads of replies, about
            with contextlib.suppress(BlockingIOError):
                sockets[descriptor].send(request * replies)
            begun.set()


@contextlib.contextmanager
def greedy(path: str, connections: int, method: str, params: list[Any], depth: int) -> Iterator[None]:
    context = multiprocessing.get_context("fork")
    begun, end = context.Event(), context.Event()
    process = context.Process(target=greed, args=(path, connections, method, params, depth, begun, end))
    process.start()
    try:
        assert begun.wait(30), "the greedy client was never answered"
        yield
        assert process.is_alive(), "the greedy client gave up"
    finally:
        end.set()
        process.join(10)
        if process.is_alive():
            process.kill()


@pytest.mark.parametrize(
    ("rings", "count", "ids_of_others_max"), [(True, 50_000, 200), (False, VICTIM_IDS, IDS_PER_MS // 2)]
)
@pytest.mark.parametrize("connections", [1, 200])
def test_bulk_requests_leave_others_their_share(
    rings: bool, count: int, ids_of_others_max: int, connections: int
) -> None:
    """ids_of_others_max: how many ids may go to the greedy one for each that the victim gets, on average."""
    with (
        short_directory() as directory,
        Daemon(directory, coordinators=1) as daemon,
        libpharaoh.connect(daemon.socket, rings=rings) as victim,
        greedy(daemon.socket, connections, "next_ids", [IDS_PER_MS], 4),
    ):
        before = victim.stats()["ids_socket"]
        ids = [victim.next_id() for _ in range(count)]
        to_others = victim.stats()["ids_socket"] - before
    assert len(set(ids)) == count
    assert to_others > 0, "nobody was greedy"
    assert to_others < count * ids_of_others_max, f"{to_others / count:.0f} ids went to others for each of ours"


def test_a_flooded_link_serves_everybody() -> None:
    """Keyless requests on a worker that is not the first go over one link to the first."""
    with short_directory() as directory, Daemon(directory, coordinators=2) as daemon:
        second = str(daemon.runtime_dir / "coordinators" / "0001.sock")
        with greedy(second, 24, "get_timestamp", [], 512), socket.socket(socket.AF_UNIX) as victim:
            victim.connect(second)
            unpacker = msgpack.Unpacker()
            errors, last = [], 0
            for number in range(VICTIM_IDS):
                victim.sendall(msgpack.packb([0, number, "get_timestamp", []]))
                while (reply := next(unpacker, None)) is None:
                    unpacker.feed(victim.recv(4096))
                errors.append(reply[2])
                assert reply[3] is None or reply[3] > last
                last = reply[3] or last
        assert not any(errors), errors
