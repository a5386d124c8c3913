"""A real daemon answers what the reference says, each request once and nothing else, however a stream arrives (F46).

The reference (tests/support/reference.py) decodes a stream with the msgpack library and applies the documented rules.
Each stream has a connection of its own, ends with a ping, and is read until the daemon hangs up: what is not answered
by then never is, and what is answered too often is seen.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import socket
import struct
import termios
from collections import Counter
from collections.abc import Iterator, Sequence

import msgpack
import pytest

from libpharaoh.errors import CounterUnknownError
from tests.support.daemon import Daemon, short_directory, wait_until
from tests.support.frames import CANARY, Frames, every_width
from tests.support.reference import DENSE, OK, Message, Outcome, has_token, outcome, read
from tests.support.wire import PATIENCE_S, Wire

PING = msgpack.packb([0, 99, "ping", []])
SHORT_BYTES = 120
Answers = Counter[tuple[int, Outcome]]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """Nothing that is data was carried out: at the end nobody has counted under the name that the data speaks of."""
    with short_directory() as directory:
        settings = {"rpc": {"frame_deadline_ms": 600_000}}
        with Daemon(directory, coordinators=1, settings=settings) as daemon:
            yield daemon
            assert daemon.worker(0).restart_count == 0, daemon.log()
            with Wire(daemon.socket) as wire, pytest.raises(CounterUnknownError):
                wire.ask("counter_read", "offset", CANARY)


def taken(sock: socket.socket) -> bool:
    """Whether the daemon has read all that was sent."""
    unread = fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4))
    return not struct.unpack("i", unread)[0]


def exchange(path: str, pieces: Sequence[bytes]) -> Answers:
    """Sends the pieces one by one, each when those before it have been read; what comes until the daemon hangs up."""
    replies = msgpack.Unpacker()
    answers: Answers = Counter()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(path)
        try:
            for piece in pieces:
                sock.sendall(piece)
                while piece is not pieces[-1] and not taken(sock):
                    os.sched_yield()
            sock.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has hung up, as it may have to
        try:
            while data := sock.recv(65536):
                replies.feed(data)
        except ConnectionResetError:
            pass
    for kind, msgid, error, result in replies:
        assert kind == 1
        assert (error is None) != (result is None)
        answers[msgid, OK if error is None else error[0]] += 1
    return answers


def answered(messages: Sequence[Message]) -> Answers:
    replies = [(message.msgid, outcome(message)) for message in messages]
    return Counter((msgid, what) for msgid, what in replies if what is not None)


def check(daemon: Daemon, stream: bytes, cuts: Sequence[int]) -> None:
    """Refused, it may hang up before a dense value is durable: that alone may then stay unanswered."""
    messages, end = read(stream + PING)
    if any(map(has_token, messages)):
        return
    served = list(itertools.takewhile(lambda message: message.kind != "response", messages))
    refused = end == "refused" or len(served) < len(messages)
    late = answered([message for message in served if message.method in DENSE]) if refused else Counter()
    places = [0, *sorted(cuts), len(stream)]
    pieces = [stream[start:stop] for start, stop in itertools.pairwise(places)]
    violations = daemon.worker(0).violations
    answers = exchange(daemon.socket, [*pieces[:-1], pieces[-1] + PING])
    expected = answered(served)
    unasked, missing = answers - expected, expected - late - answers
    assert (unasked, missing) == (Counter(), Counter()), (stream.hex(" "), cuts)
    wait_until(lambda: daemon.worker(0).violations == violations + refused, f"{refused} violations more")


def test_every_width(daemon: Daemon) -> None:
    """One request in all widths of all its parts."""
    for value in (7, 2**32 - 1):
        frames = every_width(value)
        for at in range(0, len(frames), 500):
            some = frames[at : at + 500]
            assert exchange(daemon.socket, [b"".join(some)]) == {(value, OK): len(some)}


@pytest.mark.parametrize("plain", [0.0, 0.5, 0.95])
def test_cut_everywhere(daemon: Daemon, rng: random.Random, effort: float, plain: float) -> None:
    """Short streams in two pieces, at every place."""
    source = Frames(rng, plain)
    for _ in range(max(1, round(40 * effort))):
        stream = b""
        while not 0 < len(stream) <= SHORT_BYTES:
            stream = source.stream(rng.randint(1, 4))
        for cut in range(1, len(stream)):
            check(daemon, stream, [cut])


@pytest.mark.parametrize("plain", [0.0, 0.5, 0.95])
def test_cut_anywhere(daemon: Daemon, rng: random.Random, effort: float, plain: float) -> None:
    """Long streams, in one piece or in a few."""
    source = Frames(rng, plain)
    for _ in range(max(1, round(500 * effort))):
        stream = source.stream(rng.choice([1, 3, 10, 40]))
        cuts = [rng.randrange(len(stream)) for _ in range(rng.choice([0, 0, 1, 2, 5]))]
        check(daemon, stream, cuts)
