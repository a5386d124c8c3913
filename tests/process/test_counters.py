"""Dense methods and counter_*: bad input, ends of counters, limits, rude clients (F22, F36, F37, F41).

Errors are typed, and nothing is lost.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from libpharaoh._framing import Reply, ReplyDecoder, encode_request
from libpharaoh.errors import (
    BadRequestError,
    ConnectionLostError,
    CounterExhaustedError,
    CounterLimitError,
    CounterLowerError,
    CounterUnknownError,
    KeyTooLongError,
    OutOfRangeError,
    PermissionDeniedError,
    PharaohError,
    UnknownMethodError,
)
from tests.support.counter import asking
from tests.support.daemon import Daemon, short_directory

COORDINATORS = 2
NOBODY = 65534
KEY_MAX = 4096
OFFSET_END = 2**63
GROUP_END = 2**31
WATCHDOG_S = 60.0

Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with short_directory() as directory, Daemon(directory, coordinators=COORDINATORS) as daemon:
        yield daemon
        assert [worker.restart_count for worker in daemon.workers()] == [0] * COORDINATORS, daemon.log()


@pytest.fixture
def ask(daemon: Daemon) -> Iterator[Ask]:
    with asking(daemon.socket) as ask:
        yield ask


def listed(daemon: Daemon) -> dict[tuple[str, bytes], tuple[int, int]]:
    """Every counter there is: (kind, name) → (next, sessions)."""
    found: dict[tuple[str, bytes], tuple[int, int]] = {}
    for coordinator in range(daemon.coordinators):
        with asking(daemon.own_socket(coordinator)) as ask:
            cursor = None
            while True:
                page = ask("counter_list", cursor)
                for kind, name, value, sessions in page["counters"]:
                    assert (kind, name) not in found, "listed twice"
                    found[kind, name] = (value, sessions)
                cursor = page["next"]
                if cursor is None:
                    break
    return found


BAD_TOKENS: list[Any] = [
    [], [1], [1, 0, "c", 1], [0, 1], [-1, 1], [1, -1], [1, 2**63], [1, 1.0], ["1", 1], [1, "1"], [1, 0, None],
    [1, 0, 5], [1, 0, "c" * (KEY_MAX + 1)], "token", 7, {"session": 1},
]  # fmt: skip
BAD_KEYS: list[Any] = [None, 1, 1.5, True, ["p"], {"p": 1}]
BAD: list[tuple[type[PharaohError], str, list[Any]]] = [
    *((OutOfRangeError, "assign_offset", ["p", count]) for count in (0, 2**31, 2**32, 2**63, 2**64 - 1)),
    *((BadRequestError, "assign_offset", ["p", count]) for count in (-1, -(2**63), 1.0, "1", True, [1])),
    *((BadRequestError, "assign_offset", [key]) for key in BAD_KEYS),
    *((BadRequestError, "assign_offset", ["p", 1, token]) for token in BAD_TOKENS),
    *((BadRequestError, "join_group", [key, "member"]) for key in BAD_KEYS),
    *((BadRequestError, "join_group", ["g", key]) for key in BAD_KEYS),
    *((BadRequestError, "join_group", ["g", "member", token]) for token in BAD_TOKENS),
    *((KeyTooLongError, "assign_offset", [key]) for key in ("p" * (KEY_MAX + 1), b"p" * 60_000)),
    *((KeyTooLongError, "join_group", params) for params in (["g" * (KEY_MAX + 1), "m"], ["g", "m" * (KEY_MAX + 1)])),
    (BadRequestError, "assign_offset", []),
    (BadRequestError, "assign_offset", ["p", 1, None, None]),
    (BadRequestError, "join_group", ["g"]),
    (BadRequestError, "join_group", ["g", "m", None, None]),
    *((BadRequestError, "counter_read", params) for params in ([], ["offset"], ["thing", "p"], [1, "p"])),
    (BadRequestError, "counter_read", ["schema", "its counter has no name"]),
    (KeyTooLongError, "counter_read", ["offset", "p" * (KEY_MAX + 1)]),
    (CounterUnknownError, "counter_read", ["offset", "never used"]),
    (CounterUnknownError, "counter_read", ["group", "never used"]),
    *((BadRequestError, "counter_list", params) for params in ([-1], ["0"], [2**32], [None, 1])),
    (BadRequestError, "counter_raise", ["offset", "p"]),
    (BadRequestError, "counter_raise", ["thing", "p", 1]),
    (BadRequestError, "counter_raise", ["offset", "p", -1]),
    (KeyTooLongError, "counter_raise", ["offset", "p" * (KEY_MAX + 1), 1]),
    (CounterLowerError, "counter_raise", ["group", "g", 0]),
    (CounterLowerError, "counter_raise", ["schema", "", 0]),
    *((OutOfRangeError, "counter_raise", params) for params in (
        ["offset", "p", OFFSET_END + 1], ["group", "g", GROUP_END + 1], ["schema", "", GROUP_END])),
]  # fmt: skip


def test_bad_input_is_refused_by_type(daemon: Daemon, ask: Ask) -> None:
    """The connection goes on, and no counter has been made or moved."""
    assert ask("assign_offset", "probe") >= 0
    before = listed(daemon)
    for error, method, params in BAD:
        with pytest.raises(error):
            ask(method, *params)
    assert listed(daemon) == before
    assert ask("ping") == "pong"


def test_a_key_of_64_kib_closes_its_connection(daemon: Daemon) -> None:
    """F36: the frame is too long, whatever is in it."""
    with asking(daemon.socket) as ask, pytest.raises(ConnectionLostError):
        ask("assign_offset", "p" * 65536)


def test_names(ask: Ask) -> None:
    """Str and bin of the same bytes are the same name, the empty one is a name, and kinds do not share theirs."""
    for name in ("", "n", "é", "n\0n", "x" * KEY_MAX):
        assert ask("assign_offset", name, 2) == 0
        assert ask("assign_offset", name.encode()) == 2
        assert ask("join_group", name, "m") == 1
        assert ask("join_group", name.encode(), b"") == 2
        assert ask("counter_read", "offset", name) == {"next": 3, "sessions": 0}
    assert ask("assign_offset", b"\xff\xfe", None, None) == 0


def kill_and_start(daemon: Daemon) -> None:
    daemon.kill()
    daemon.start()


def next_schema(daemon: Daemon) -> object:
    """As the router draws it."""
    with asking(daemon.private_socket(0)) as ask:
        return ask("@next_schema")


def test_the_ends_of_counters(directory: Path) -> None:
    """F22: offsets end at 2^63, generations at 2^31, schema ids at 2^31 in all; and stay there over a crash."""
    requests_at_the_end = ("assign_offset p", "assign_offset fast-p", "join_group g m")
    with Daemon(directory, coordinators=1, settings={"counters": {"reserve": "offset:fast-*"}}) as daemon:
        with asking(daemon.socket) as ask:
            for name in ("p", "fast-p"):
                assert ask("assign_offset", name, 2**31 - 1) == 0
                assert ask("counter_raise", "offset", name, OFFSET_END - 10) == OFFSET_END - 10
                with pytest.raises(CounterExhaustedError):
                    ask("assign_offset", name, 11)
                assert ask("assign_offset", name, 9) == OFFSET_END - 10
                assert ask("assign_offset", name, 1, [7, 1]) == OFFSET_END - 1
            assert ask("counter_raise", "group", "g", GROUP_END - 1) == GROUP_END - 1
            assert ask("join_group", "g", "m") == GROUP_END - 1
            assert ask("counter_raise", "schema", "", GROUP_END - 1) == GROUP_END - 1
            assert next_schema(daemon) == GROUP_END - 1
        for _ in range(2):
            with asking(daemon.socket) as ask:
                for name in ("p", "fast-p"):
                    assert ask("assign_offset", name, 1, [7, 1]) == OFFSET_END - 1
                    assert ask("counter_read", "offset", name)["next"] == OFFSET_END
                for request in requests_at_the_end:
                    with pytest.raises(CounterExhaustedError):
                        ask(*request.split())
            with pytest.raises(CounterExhaustedError):
                next_schema(daemon)
            kill_and_start(daemon)


def test_a_counter_is_raised_and_never_lowered(daemon: Daemon, ask: Ask) -> None:
    assert ask("counter_raise", "offset", "raised", 100) == 100
    assert ask("assign_offset", "raised", 5) == 100
    assert ask("counter_raise", "offset", "raised", 105) == 105
    for lower in (0, 100, 104):
        with pytest.raises(CounterLowerError):
            ask("counter_raise", "offset", "raised", lower)
    assert ask("assign_offset", "raised", 1, [1, 1]) == 105
    assert ask("counter_raise", "offset", "raised", 200) == 200
    assert ask("assign_offset", "raised", 1, [1, 1]) == 105, "a recorded result is not raised"
    assert ask("assign_offset", "raised") == 200


def as_nobody(path: str, results: Any) -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    names = []
    with asking(path) as ask:
        for method, *params in (
            ("counter_raise", "offset", "open", 100), ("counter_raise", "group", "open", 100), ("@next_schema",),
            ("@counter_raise", "offset", "open", 100), ("assign_offset", "open"), ("counter_read", "offset", "open"),
        ):  # fmt: skip
            try:
                names.append(ask(method, *params))
            except PharaohError as error:
                names.append(type(error).__name__)
    results.send(names)


@pytest.mark.root
def test_only_the_daemon_s_user_raises(directory: Path) -> None:
    """Others may count and read, on either worker's socket."""
    directory.chmod(0o755)
    with Daemon(directory, coordinators=COORDINATORS, settings={"rpc": {"mode": "0666"}}) as daemon:
        context = multiprocessing.get_context("fork")
        for number, path in enumerate((daemon.socket, daemon.own_socket(0), daemon.own_socket(1))):
            ours, theirs = context.Pipe()
            process = context.Process(target=as_nobody, args=(path, theirs))
            process.start()
            assert ours.poll(WATCHDOG_S)
            results = ours.recv()
            process.join(WATCHDOG_S)
            refused = [PermissionDeniedError.__name__] * 2 + [UnknownMethodError.__name__] * 2
            assert results == [*refused, number, {"next": number + 1, "sessions": 0}]


def test_as_many_counters_as_permitted(directory: Path) -> None:
    """COUNTER_LIMIT for one more; those that there are go on; over a restart too."""
    with Daemon(directory, coordinators=1, settings={"counters": {"counters_max": 3}}) as daemon:
        for life in range(2):
            with asking(daemon.socket) as ask:
                assert ask("assign_offset", "a") == life
                assert ask("join_group", "a", "m") == life + 1
                assert ask("assign_offset", "b") == life
                for request in (["assign_offset", "c"], ["join_group", "b", "m"], ["counter_raise", "offset", "c", 5]):
                    with pytest.raises(CounterLimitError):
                        ask(*request)
            kill_and_start(daemon)
        assert len(listed(daemon)) == 3


# ---- many requests under way ----


@contextmanager
def connected(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(WATCHDOG_S)
        sock.connect(path)
        yield sock


def replies(sock: socket.socket, count: int) -> Iterator[Reply]:
    decoder = ReplyDecoder()
    while count > 0:
        data = sock.recv(65536)
        assert data, "closed by the daemon"
        for reply in decoder.feed(data):
            assert reply.error is None, reply.error
            count -= 1
            yield reply


def results(sock: socket.socket, count: int) -> list[int]:
    """By the number of the request."""
    return [reply.result for reply in sorted(replies(sock, count), key=lambda reply: reply.msgid)]


def requests(method: str, params: Iterable[Sequence[Any]]) -> bytes:
    return b"".join(encode_request(number, method, list(one)) for number, one in enumerate(params))


def test_thousands_of_names_are_listed(directory: Path) -> None:
    """Page by page, each once, long ones and binary ones too, before and after a crash."""
    names = [b"%d" % number for number in range(3000)] + [b"%d\0\xff" % number * 500 for number in range(100, 200)]
    names += [bytes([number]) * KEY_MAX for number in range(40)]
    expected = {("offset", name): (number + 1, 0) for number, name in enumerate(names)}
    with Daemon(directory, coordinators=COORDINATORS) as daemon:
        with connected(daemon.socket) as sock:
            frames = requests("assign_offset", [(name, number + 1) for number, name in enumerate(names)])
            sender = threading.Thread(target=sock.sendall, args=(frames,))
            sender.start()
            assert results(sock, len(names)) == [0] * len(names)
            sender.join()
        assert listed(daemon) == expected
        kill_and_start(daemon)
        assert listed(daemon) == expected


def test_clients_that_hang_up_in_the_middle_of_a_commit(daemon: Daemon, ask: Ask, effort: float) -> None:
    """F41: their values are lost to them, and to nobody else."""
    rounds, each = max(20, round(100 * effort)), 20
    mine = []
    for number in range(rounds):
        with connected(daemon.own_socket(number % COORDINATORS)) as sock:
            sock.sendall(requests("assign_offset", [["hung-up", 10]] * each))
        mine.append(ask("assign_offset", "hung-up"))
    position = ask("counter_read", "offset", "hung-up")["next"]
    assert mine == sorted(set(mine))
    assert (position - len(mine)) % 10 == 0
    assert 0 < (position - len(mine)) // 10 <= rounds * each


def test_a_client_that_never_reads(directory: Path) -> None:
    """F37: it stops being read from itself, and everybody else is served; once it reads, nothing is missing."""
    count = 60_000
    settings = {"rpc": {"output_bytes_max": 131_072, "frame_deadline_ms": 600_000}}
    with Daemon(directory, coordinators=1, settings=settings) as daemon, connected(daemon.socket) as sock:
        sender = threading.Thread(target=sock.sendall, args=(requests("assign_offset", [["p"]] * count),))
        sender.start()
        others = []
        with asking(daemon.socket) as ask:
            for _ in range(100):
                others.append(ask("assign_offset", "q"))
            assert ask("counter_read", "offset", "p")["next"] < count
        assert others == list(range(100))
        assert results(sock, count) == list(range(count))
        sender.join()


def test_many_requests_under_way_on_many_connections(daemon: Daemon, effort: float) -> None:
    """50 connections, 64 under way on each, half of them at the wrong worker: exactly 0 to n between them all."""
    rounds, depth = max(3, round(10 * effort)), 64
    values: list[int] = []
    poll = select.epoll()
    sockets = {}
    for number in range(50):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(WATCHDOG_S)
        sock.connect(daemon.own_socket(number % COORDINATORS))
        sock.sendall(requests("assign_offset", [["busy"]] * depth))
        sockets[sock.fileno()] = (sock, ReplyDecoder())
        poll.register(sock, select.EPOLLIN)
    left = 50 * rounds * depth
    to_send = left - 50 * depth
    while left:
        for descriptor, _ in poll.poll(WATCHDOG_S):
            sock, decoder = sockets[descriptor]
            got = decoder.feed(sock.recv(65536))
            values += [reply.result for reply in got]
            left -= len(got)
            again = min(len(got), to_send)
            to_send -= again
            sock.sendall(requests("assign_offset", [["busy"]] * again))
    for sock, _ in sockets.values():
        sock.close()
    poll.close()
    assert sorted(values) == list(range(50 * rounds * depth))
