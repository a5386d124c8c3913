"""The blocking client against a fake daemon: every path, every way a path can fail, and the order across them."""

from __future__ import annotations

import array
import contextlib
import ctypes
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import libpharaoh
from libpharaoh import Client, parse
from libpharaoh._ring import Ring
from libpharaoh._session import ATTEMPT_SECONDS, TimeBudget
from libpharaoh.errors import (
    AfterTooFarError,
    CeilingStalledError,
    ClientBusyError,
    ClientClosedError,
    ConnectFailedError,
    CounterExhaustedError,
    FencedError,
    InvalidArgumentError,
    KeyTooLongError,
    PharaohError,
    ProtocolViolationError,
    RegressionError,
    SchemaInvalidError,
    SessionForgottenError,
    TimedOutError,
    UnavailableError,
    UnsupportedProtocolError,
    WrongCoordinatorError,
)
from tests.unit.fake_daemon import GRANT_IDS, Close, FakeDaemon, Garbage, Silence, open_descriptors

OTHER_KEY = "a"  # crc32 % 4 == 3, which the fake's host does not own
KEY_OF_0 = "d"
KEY_OF_1 = "b"


@pytest.fixture
def hurried() -> None:
    """For tests of how long a client waits for a silent worker."""


@pytest.fixture(autouse=True)
def _unhurried(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others ask for things in a certain order, which a busy machine is not to change."""
    if "hurried" not in request.fixturenames:
        monkeypatch.setattr("libpharaoh._session.ATTEMPT_SECONDS", 0.5)


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[FakeDaemon]:
    """A daemon that refuses rings."""
    with FakeDaemon(tmp_path) as daemon:
        yield daemon


@pytest.fixture
def ringed(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path, rings=True) as daemon:
        yield daemon


def increasing(ids: list[int] | array.array[int]) -> bool:
    return all(one < next_one for one, next_one in pairwise(ids))


def asked(daemon: FakeDaemon, method: str) -> int:
    return sum(1 for _, name, _ in daemon.requests if name == method)


def answering(result: object) -> Callable[[list[Any]], object]:
    return lambda _: result


def in_child(work: Callable[[], bool], fork: Callable[[], int] = os.fork) -> None:
    """Runs `work` in a forked child, which must find it true."""
    child = fork()
    if child == 0:
        signal.alarm(30)
        try:
            os._exit(0 if work() else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def raw_clone() -> int:
    """A fork past the C library's and the interpreter's hooks."""
    number = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
    # PyDLL keeps the GIL: the child has no other thread that could give it back.
    return int(ctypes.PyDLL(None).syscall(number, int(signal.SIGCHLD), None, None, None, None))


# --- arguments


@pytest.mark.parametrize(
    "arguments",
    [
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": True},
        {"timeout": float("nan")},
        {"timeout": "5"},
        {"max_age_ms": 0},
        {"max_age_ms": 10_001},
        {"max_age_ms": 1.5},
        {"name": b"bytes"},
        {"path": ""},
        {"path": "/" + "x" * 107},
        {"path": "/tmp/a\0b"},
    ],
    ids=str,
)
def test_connect_refuses(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        libpharaoh.connect(**arguments)


def test_methods_refuse(plain: FakeDaemon) -> None:
    with libpharaoh.connect(plain.path) as client:
        for n in (0, -1, 2**24 + 1, True, 1.0, "1", None):
            with pytest.raises(InvalidArgumentError):
                client.next_ids(n)  # type: ignore[arg-type]
        for key in (1, ["a"], "\ud800"):
            with pytest.raises(InvalidArgumentError):
                client.get_timestamp(key)  # type: ignore[arg-type]
        for after in (-1, 2**64, 1.5, "1", True):
            with pytest.raises(InvalidArgumentError):
                client.get_timestamp(after=after)  # type: ignore[arg-type]
        with pytest.raises(KeyTooLongError):
            client.get_timestamp("k" * 4097)


def test_the_environment_names_the_socket(plain: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHARAOH_SOCKET", plain.path)
    with libpharaoh.connect() as client:
        client.ping()


# --- what is served


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rings", [False, True])
def test_every_method(tmp_path: Path, rings: bool, causal: bool) -> None:
    with FakeDaemon(tmp_path, rings=rings) as daemon, libpharaoh.connect(daemon.path, causal=causal) as client:
        ids = [client.next_id() for _ in range(300)]
        batch = client.next_ids(20_000)
        assert (batch.typecode, memoryview(batch).format, len(batch)) == ("Q", "Q", 20_000)
        ids += batch
        strict = [client.get_timestamp(), client.get_timestamp(KEY_OF_1), client.get_timestamp(b"b", after=ids[-1])]
        assert strict[2] > max(strict[1], ids[-1])
        later = [client.next_id(), *client.next_ids(1)]
        assert increasing(ids + later)
        assert increasing(ids + strict + later) or not causal
        client.ping()
        assert client.stats() == {"coordinator": 0}
        assert (client.hello.modulus, client.hello.coordinators, client.layout) == (4, (0, 1), libpharaoh.Layout())
        assert parse(client.get_timestamp(KEY_OF_1)).coordinator == libpharaoh.coordinator_for(KEY_OF_1, 4) == 1


def test_rings_serve_without_a_request(ringed: FakeDaemon) -> None:
    with libpharaoh.connect(ringed.path) as client:
        first = client.next_id()
        client.get_timestamp()
        before = len(ringed.requests)
        assert increasing([first, *(client.next_id() for _ in range(1000)), client.get_timestamp()])
        assert ringed.requests[before:] == []


def test_rings_false_never_attaches(ringed: FakeDaemon) -> None:
    with libpharaoh.connect(ringed.path, rings=False, causal=True) as client:
        assert increasing([client.next_id(), client.get_timestamp(), client.get_timestamp(KEY_OF_1), client.next_id()])
    assert asked(ringed, "attach") == 0


def test_an_id_of_zero_is_not_an_id(plain: FakeDaemon) -> None:
    with libpharaoh.connect(plain.path) as client:
        for nonsense in (0, -1, 2.0, None, "1", True):
            plain.behaviours["next_id"].append(answering(nonsense))
            with pytest.raises(ProtocolViolationError):
                client.next_id()


@pytest.mark.parametrize(
    "runs", [None, [], [[1, 0]], [[5, 2], [6, 2]], [[5]], [[5, 9]], [[2**64 - 1, 2]], [["5", 1]], 7]
)
def test_runs_that_break_the_protocol(plain: FakeDaemon, runs: Any) -> None:
    plain.behaviours["next_ids"].append(lambda _: runs)
    with libpharaoh.connect(plain.path) as client, pytest.raises(ProtocolViolationError):
        client.next_ids(3)


def test_next_ids_keeps_to_the_daemon_s_limit(plain: FakeDaemon) -> None:
    plain.ids_per_request = 10
    with libpharaoh.connect(plain.path) as client:
        assert increasing(client.next_ids(25))
    assert [params for _, method, params in plain.requests if method == "next_ids"] == [[10], [10], [5]]


# --- order across paths


def test_a_lower_id_is_asked_for_again_above_the_last(plain: FakeDaemon) -> None:
    """A worker whose ids are behind is told the last one instead of being believed."""
    with libpharaoh.connect(plain.path) as client:
        last = client.next_id()
        plain.behaviours["next_id"].append(answering(last - 5))
        second = client.next_id()
        plain.behaviours["next_ids"].append(answering([[last - 5, 2]]))
        assert increasing([last, second, *client.next_ids(2)])
    assert [params for _, method, params in plain.requests if method == "get_timestamp"] == [
        [None, last],
        [None, second],
    ]


@pytest.mark.parametrize("causal", [False, True])
def test_regression_is_raised_not_returned(plain: FakeDaemon, causal: bool) -> None:
    with libpharaoh.connect(plain.path, causal=causal) as client:
        last = client.next_id()
        plain.behaviours["next_id"].append(lambda _: last)
        plain.behaviours["get_timestamp"].extend([lambda _: last, lambda _: last - 1, lambda _: last - 1])
        with pytest.raises(RegressionError):
            client.next_id()
        with pytest.raises(RegressionError):
            client.get_timestamp(after=last)
        if causal:
            with pytest.raises(RegressionError):
                client.get_timestamp()
        else:
            assert client.get_timestamp() == last - 1
        assert client.next_id() > last


@pytest.mark.parametrize("rings", [False, True])
def test_a_strict_id_leaves_the_others_alone(tmp_path: Path, rings: bool) -> None:
    """Neither is `last` sent with it, nor does it count as the last, nor does what was prefetched burn."""
    with FakeDaemon(tmp_path, rings=rings) as daemon, libpharaoh.connect(daemon.path) as client:
        daemon.lag_ms[0] = 500  # the keys' coordinator is ahead of the others' all the time
        ids = [client.next_id()]
        for _ in range(GRANT_IDS // 4):
            after = client.get_timestamp(KEY_OF_1)
            assert after > ids[-1] + (400 << 23)
            ids.append(client.next_id())
            assert client._session.last == ids[-1] < after
        if rings:
            assert ids == list(range(ids[0], ids[0] + len(ids)))
            assert [number for number, *_ in daemon.strict_requests if number == 1] == [1] * (GRANT_IDS // 4)
        sent = [after for _, after, _ in daemon.strict_requests]
        sent += [params[1] for _, method, params in daemon.requests if method == "get_timestamp"]
        assert set(sent) <= {0, None}
        assert increasing(ids)


def test_a_causal_client_passes_its_last_id_on(ringed: FakeDaemon) -> None:
    """On every path: with strict requests by ring and by socket, and to the ring that prefetches."""
    with libpharaoh.connect(ringed.path, causal=True) as client:
        ids = [client.next_id(), client.get_timestamp(KEY_OF_1), client.next_id(), client.get_timestamp()]
        ids.append(client.get_timestamp(KEY_OF_1, after=5))
        sent = [after for _, after, _ in ringed.strict_requests]
        asked_for = [params[1] for _, method, params in ringed.requests if method == "get_timestamp"]
        assert increasing(ids)
        assert set(sent + asked_for) >= set(ids[:4])
        ringed.rings_answer = ringed.rings_grant = False
        ids.append(client.get_timestamp(KEY_OF_1))
        assert ringed.requests[-1] == (0, "get_timestamp", [KEY_OF_1.encode(), ids[-2]])
        ids.append(client.next_id())
        assert increasing(ids)


def test_a_ring_that_is_behind_goes_on_above_its_strict_id(ringed: FakeDaemon) -> None:
    """Grants that came between the last id and the strict one that takes its place burn."""
    with libpharaoh.connect(ringed.path, causal=True) as client:
        client.get_timestamp(KEY_OF_1)
        session = client._session
        assert session.ring_at_hand is not None
        time.sleep(0.005)
        ringed.made[0]._grant()
        id = session.locked(session._await_grant, session.ring_at_hand)
        assert client.next_id() > id
        assert ringed.strict_requests[-1][0] == 0


def test_order_holds_between_coordinators_whose_clocks_differ(ringed: FakeDaemon) -> None:
    """M: coordinator 0's clock is 500 ms behind that of 1."""
    ringed.lag_ms[0] = 500
    with libpharaoh.connect(ringed.path, causal=True) as client:
        ids = []
        for _ in range(50):
            ids += [client.next_id(), client.get_timestamp(KEY_OF_1), client.next_id(), client.get_timestamp()]
            ids += client.next_ids(3)
        assert increasing(ids)


def test_order_survives_a_daemon_whose_clock_is_behind(ringed: FakeDaemon) -> None:
    """F18, F25: the last id is carried over the reconnection."""
    with libpharaoh.connect(ringed.path) as client:
        last = client.next_id()
        ringed.lag_ms[0] = ringed.lag_ms[1] = 2000
        ringed._last_tick.clear()
        ringed.hang_up()
        client._session._drop_main()  # with what it still holds
        ids = [client.next_id() for _ in range(500)]
        assert increasing([last, *ids])


def test_an_id_out_of_the_ring_is_remembered(ringed: FakeDaemon) -> None:
    """F18: whatever serves next is asked for a greater one."""
    with libpharaoh.connect(ringed.path) as client:
        for _ in range(100):
            id = client.next_id()
            assert client._session.last == id


def test_a_call_without_a_key_follows_the_first_coordinator(ringed: FakeDaemon) -> None:
    with libpharaoh.connect(ringed.path, causal=True) as client:
        ids, served = [], []
        for first in (0, 1, 0):
            ringed.first = first
            ids += [client.get_timestamp() for _ in range(5)]
            served.append({parse(id).coordinator for id in ids[-5:]})
        assert served == [{0}, {1}, {0}]
        assert increasing(ids)


@pytest.mark.parametrize("causal", [False, True])
def test_what_a_ring_does_not_give_comes_by_socket(ringed: FakeDaemon, causal: bool) -> None:
    """The ring is tried again in the next call: whose id it is not to be had by ring may be so for a moment only."""
    with libpharaoh.connect(ringed.path, causal=causal) as client:
        ringed.not_by_ring.add(1)
        ids = [client.get_timestamp(KEY_OF_1), client.get_timestamp(KEY_OF_1)]
        assert asked(ringed, "get_timestamp") == 2
        assert len(ringed.strict_requests) == 2
        ids.append(client.get_timestamp())
        ringed.not_by_ring.clear()
        ids.append(client.get_timestamp(KEY_OF_1))
        assert asked(ringed, "get_timestamp") == 2
        assert [parse(id).coordinator for id in ids] == [1, 1, 0, 1]
        assert increasing([ids[0], ids[1], ids[3]])
        assert increasing(ids) or not causal
        assert asked(ringed, "attach") == 1


def test_key_of_another_host(plain: FakeDaemon) -> None:
    """Not retried: no other worker of this host can help."""
    with libpharaoh.connect(plain.path) as client:
        plain.behaviours["get_timestamp"].append(WrongCoordinatorError())
        with pytest.raises(WrongCoordinatorError):
            client.get_timestamp(OTHER_KEY)
    assert asked(plain, "get_timestamp") == 1


def test_after_is_passed_on_and_refused_by_the_daemon(plain: FakeDaemon) -> None:
    with libpharaoh.connect(plain.path) as client:
        far = libpharaoh.compose(2**40)
        plain.behaviours["get_timestamp"].append(AfterTooFarError())
        with pytest.raises(AfterTooFarError):
            client.get_timestamp(b"k", after=far)
        assert plain.requests[-1][2] == [b"k", far]
        assert client.get_timestamp(after=far) > far


# --- requests that go by socket: their form, their replies


def test_each_kind_of_id_goes_by_its_own_name(plain: FakeDaemon) -> None:
    with libpharaoh.connect(plain.path) as client:
        first = client.begin_transaction("t")
        second = client.create_session(b"c", after=first - 1)
        client.next_event_id("e", after=second + 1)
    assert plain.requests[-3:] == [
        (0, "begin_transaction", [b"t", None]),
        (0, "create_session", [b"c", first - 1]),
        (0, "next_event_id", [b"e", second + 1]),
    ]


def test_each_kind_of_id_comes_by_ring(ringed: FakeDaemon) -> None:
    with libpharaoh.connect(ringed.path) as client:
        ids = [client.next_id(), client.get_timestamp(KEY_OF_1)]
        before = len(ringed.requests)
        for call in (client.begin_transaction, client.create_session, client.next_event_id) * 3:
            ids.append(call(KEY_OF_1))
            ids.append(client.next_id())
        assert {parse(id).coordinator for id in ids[2::2]} == {1}
        assert increasing(ids[1:2] + ids[2::2])
        assert increasing(ids[:1] + ids[3::2])
        assert ringed.requests[before:] == []


def test_what_dense_requests_look_like(plain: FakeDaemon) -> None:
    with libpharaoh.connect(plain.path) as client:
        client.join_group("g", "m")
        client.join_group("g", b"m", token=(7, 0))
        client.assign_offset("p")
        client.assign_offset(b"p", 5, token=(7, 1, "c"))
        client.register_schema("s", "{}")
        id = client.register_schema(b"t", b"x", "bytes")
        client.get_schema(id)
        client.list_schemas()
        client.list_schemas("s")
        client.route("k")
        client.cluster()
    assert [(method, params) for _, method, params in plain.requests if method not in ("hello", "attach", "ping")] == [
        ("join_group", [b"g", b"m", None]),
        ("join_group", [b"g", b"m", [7, 0]]),
        ("assign_offset", [b"p", 1, None]),
        ("assign_offset", [b"p", 5, [7, 1, b"c"]]),
        ("register_schema", ["s", "{}", None]),
        ("register_schema", [b"t", b"x", "bytes"]),
        ("get_schema", [id]),
        ("list_schemas", [None, None]),
        ("list_schemas", ["s", None]),
        ("route", [b"k"]),
        ("cluster", []),
    ]


SCHEMA = {"id": 9, "subject": "s", "version": 1, "schema": "{}", "type": "json"}
ROUTE = {"coordinator": 1, "host": "a", "endpoint": "", "local": False}
ROWS = [["s", 1, 9, "json"], ["s", 2, 13, "json"]]


@pytest.mark.parametrize(
    ("name", "arguments", "replies"),
    [
        ("begin_transaction", ("k",), [0, None, "1", -1, True]),
        ("join_group", ("g", "m"), [0, -1, 2**31, None, "1", 1.0, True]),
        ("assign_offset", ("p",), [-1, 2**63, None, "0", 0.0, False]),
        ("register_schema", ("s", "{}"), [0, 2**31, None, "9"]),
        (
            "get_schema",
            (9,),
            [
                None,
                [],
                {},
                SCHEMA | {"id": 8},
                SCHEMA | {"version": 0},
                SCHEMA | {"schema": None},
                SCHEMA | {"type": 1},
            ],
        ),
        (
            "list_schemas",
            (),
            [None, [], {}, {"schemas": ROWS}, {"schemas": 1, "next": None}, {"schemas": [], "next": ["s", 1]}]
            + [
                {"schemas": [row], "next": None}
                for row in (1, [], ["s", 1, 9], ["s", 0, 9, "json"], ["s", 1, 0, "json"])
            ]
            + [{"schemas": ROWS[::-1], "next": None}, {"schemas": [ROWS[0]] * 2, "next": None}],
        ),
        ("route", ("k",), [None, {}, *({**ROUTE, name: None} for name in ROUTE)]),
        ("cluster", (), [None, [], "pong"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_replies_that_break_the_protocol(
    plain: FakeDaemon, name: str, arguments: tuple[Any, ...], replies: list[Any]
) -> None:
    with libpharaoh.connect(plain.path) as client:
        for reply in replies:
            plain.behaviours[name].append(answering(reply))
            with pytest.raises(ProtocolViolationError):
                getattr(client, name)(*arguments)
        client.ping()
    assert asked(plain, "hello") == 1


def test_a_list_that_never_ends(plain: FakeDaemon) -> None:
    """The same page again is an error, not another page."""
    with libpharaoh.connect(plain.path) as client:
        plain.behaviours["list_schemas"].extend([answering({"schemas": ROWS, "next": ["s", 2]})] * 2)
        with pytest.raises(ProtocolViolationError):
            client.list_schemas()
    assert [params for _, method, params in plain.requests if method == "list_schemas"] == [
        [None, None],
        [None, ["s", 2]],
    ]


def test_what_a_later_version_adds_is_left_out(plain: FakeDaemon) -> None:
    with libpharaoh.connect(plain.path) as client:
        plain.behaviours["get_schema"].append(answering(SCHEMA | {"tags": []}))
        assert client.get_schema(9) == SCHEMA
        plain.behaviours["route"].append(answering(ROUTE | {"zone": "x"}))
        assert client.route("k") == ROUTE


def test_the_daemon_s_limits_are_kept_to(plain: FakeDaemon) -> None:
    limits = plain.hello(0)["limits"] | {"key_bytes": 3, "count_max": 5, "schema_bytes": 4}
    plain.behaviours["hello"].append(answering(plain.hello(0) | {"limits": limits}))
    with libpharaoh.connect(plain.path) as client:
        with pytest.raises(KeyTooLongError):
            client.begin_transaction("ΩΩ")
        with pytest.raises(InvalidArgumentError):
            client.assign_offset("p", 6)
        with pytest.raises(SchemaInvalidError):
            client.register_schema("s", '"ab "')


def then_lost(daemon: FakeDaemon, method: str) -> Callable[[list[Any]], object]:
    """A behaviour: the request is carried out, and its reply is lost."""

    def behave(params: list[Any]) -> object:
        daemon.memory.serve(method, params)
        raise Close

    return behave


def test_a_lost_reply(plain: FakeDaemon) -> None:
    """F35: without a token a gap, with one the value that was given."""
    with libpharaoh.connect(plain.path) as client:
        plain.behaviours["assign_offset"].extend([then_lost(plain, "assign_offset")] * 2)
        assert client.assign_offset("p", 10) == 20
        plain.behaviours["assign_offset"].extend([then_lost(plain, "assign_offset")] * 2)
        assert client.assign_offset("p", 10, token=(1, 0)) == 30
        plain.behaviours["join_group"].append(then_lost(plain, "join_group"))
        assert client.join_group("g", "m", token=(1, 0)) == 1
        plain.behaviours["register_schema"].append(then_lost(plain, "register_schema"))
        assert client.register_schema("s", "{}") == 4 + libpharaoh.coordinator_for("s", 4)
        assert (client.assign_offset("p"), client.join_group("g", "m")) == (40, 2)


def test_a_refusal_is_not_asked_again(plain: FakeDaemon) -> None:
    with libpharaoh.connect(plain.path) as client:
        for error in (FencedError(), SessionForgottenError(), CounterExhaustedError(), WrongCoordinatorError()):
            plain.behaviours["assign_offset"].append(error)
            with pytest.raises(type(error)):
                client.assign_offset("p", token=(1, 0))
    assert asked(plain, "assign_offset") == 4


# --- failures


def test_no_daemon(tmp_path: Path) -> None:
    with pytest.raises(ConnectFailedError, match="No such file"):
        libpharaoh.connect(tmp_path / "none.sock", timeout=0.05)


def test_a_daemon_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    daemon = FakeDaemon(tmp_path)
    starter = threading.Timer(0.2, daemon.start)
    starter.start()
    try:
        with libpharaoh.connect(daemon.path, timeout=30) as client:
            client.ping()
    finally:
        starter.join()
        daemon.stop()


def test_a_full_backlog_is_waited_for(tmp_path: Path) -> None:
    """F40: EAGAIN from connect is retried within the deadline, then is an error."""
    path = str(tmp_path / "full.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        filler = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for sock in filler:
            sock.setblocking(False)
            sock.connect_ex(path)
        with pytest.raises(ConnectFailedError, match="temporarily unavailable"):
            libpharaoh.connect(path, timeout=0.1)
        for sock in filler:
            sock.close()


@pytest.mark.parametrize("behaviour", [Close(), UnavailableError(), Silence()], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "call",
    [("next_id",), ("get_timestamp",), ("ping",), ("begin_transaction", "k"), ("assign_offset", "p"), ("route", "k")],
    ids=lambda call: call[0],
)
def test_one_failure_is_hidden(plain: FakeDaemon, behaviour: Exception, call: tuple[str, ...]) -> None:
    method, *arguments = call
    with libpharaoh.connect(plain.path, timeout=1.5) as client:
        plain.behaviours[method].append(behaviour)
        getattr(client, method)(*arguments)
    assert asked(plain, method) == 2


def test_lasting_failures_are_raised_at_the_deadline(plain: FakeDaemon) -> None:
    with libpharaoh.connect(plain.path, timeout=0.2) as client:
        plain.behaviours["ping"].extend([UnavailableError()] * 10_000)
        with pytest.raises(UnavailableError):
            client.ping()
        plain.behaviours["stats"].extend([Silence()] * 100)
        with pytest.raises(TimedOutError):
            client.stats()


def test_what_the_daemon_said_is_raised_rather_than_a_last_attempt_s_time_out(plain: FakeDaemon) -> None:
    with libpharaoh.connect(plain.path, timeout=0.3) as client:
        plain.behaviours["ping"].extend([CeilingStalledError(), *[Silence()] * 100])
        with pytest.raises(CeilingStalledError):
            client.ping()


def test_a_late_reply_is_never_taken_for_another_s(plain: FakeDaemon) -> None:
    """F35: the timed-out connection is dropped; the lost id burns."""
    late: list[int] = []

    def answer_late(_: list[Any]) -> int:
        time.sleep(0.4)
        late.append(plain.issue(0))
        return late[0]

    with libpharaoh.connect(plain.path, timeout=0.2) as client:
        plain.behaviours["next_id"].extend([answer_late, Silence(), Silence(), Silence()])
        with pytest.raises(TimedOutError):
            client.next_id()
        plain.behaviours["next_id"].clear()
        ids = [client.next_id() for _ in range(100)]
        while not late:
            time.sleep(0.01)
        ids += [client.next_id() for _ in range(100)]
    assert late[0] not in ids
    assert increasing(ids)


@pytest.mark.parametrize(
    "garbage",
    [b"\xc1", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x94\x01\xcd\xff\xff\xc0\x01", b"\x94\x01\x02\xc0\x01" * 2],
)
def test_garbage_closes_the_connection(plain: FakeDaemon, garbage: bytes) -> None:
    with libpharaoh.connect(plain.path) as client:
        plain.behaviours["ping"].append(Garbage(garbage))
        with pytest.raises(ProtocolViolationError):
            client.ping()
        client.ping()
    assert asked(plain, "hello") == 2


@pytest.mark.parametrize(
    "change", [{"protocol": 2}, {"layout": "41"}, {"modulus": 0}, {"coordinators": 5}, {"limits": {}}]
)
def test_a_hello_that_breaks_the_protocol(plain: FakeDaemon, change: dict[str, Any]) -> None:
    before = open_descriptors()
    plain.behaviours["hello"].append(lambda _: plain.hello(0) | change)
    with pytest.raises(ProtocolViolationError):
        libpharaoh.connect(plain.path)
    plain.behaviours["hello"].append(UnsupportedProtocolError())
    with pytest.raises(UnsupportedProtocolError):
        libpharaoh.connect(plain.path)
    wait_until(lambda: open_descriptors() <= before)


@pytest.mark.parametrize("change", [{"version": 1}, {"now_ns": None}, {"max_age_ms": "x"}])
def test_an_attach_that_breaks_the_protocol_leaves_the_socket(ringed: FakeDaemon, change: dict[str, Any]) -> None:
    ringed.attach_change = change
    with libpharaoh.connect(ringed.path) as client:
        assert increasing([client.next_id() for _ in range(10)])
        assert asked(ringed, "next_id") == 10


def test_attach_without_descriptors(plain: FakeDaemon) -> None:
    before = open_descriptors()
    plain.behaviours["attach"].append(lambda _: {"version": 1, "coordinator": 0, "max_age_ms": 10, "now_ns": 0})
    with libpharaoh.connect(plain.path) as client:
        assert increasing([client.next_id() for _ in range(10)])
    wait_until(lambda: open_descriptors() <= before)


def test_a_ring_that_could_not_be_had_is_asked_for_again(ringed: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("libpharaoh._session.RING_RETRY_SECONDS", 0.05)
    ringed.behaviours["attach"].append(libpharaoh.errors.RingLimitError())
    with libpharaoh.connect(ringed.path) as client:
        assert client.next_id()
        assert asked(ringed, "attach") == 1
        wait_until(lambda: bool(client.next_id()) and asked(ringed, "attach") == 2)
        before = asked(ringed, "next_id")
        assert increasing([client.next_id() for _ in range(100)])
        assert asked(ringed, "next_id") == before


def test_a_worker_that_grants_nothing_leaves_the_socket(ringed: FakeDaemon) -> None:
    ringed.rings_grant = ringed.rings_answer = False
    with libpharaoh.connect(ringed.path) as client:
        assert increasing([client.next_id(), client.get_timestamp(), client.get_timestamp(KEY_OF_1), client.next_id()])
        assert increasing(client.next_ids(1000))


def test_killed_workers_are_hidden(ringed: FakeDaemon) -> None:
    """F11, F12: kill -9 between any two calls."""
    with libpharaoh.connect(ringed.path, causal=True) as client:
        ids: list[int] = []
        for _ in range(10):
            ids += [client.next_id() for _ in range(20)]
            ids += [client.get_timestamp(), client.get_timestamp(KEY_OF_1)]
            ringed.hang_up()
            ids += [client.get_timestamp(KEY_OF_1), client.get_timestamp()]
            ringed.hang_up()
            ids += client.next_ids(500)
        assert increasing(ids)


def test_a_revoked_ring_is_replaced(ringed: FakeDaemon) -> None:
    with libpharaoh.connect(ringed.path) as client:
        first = client.next_id()
        ringed.made[0].revoke()
        assert increasing([first, *(client.next_id() for _ in range(1000)), client.get_timestamp()])
        assert asked(ringed, "attach") == 2


# --- a worker that stands still


@pytest.mark.parametrize(
    "call",
    [
        ("next_id",),
        ("next_ids", 300),
        ("get_timestamp",),
        ("get_timestamp", KEY_OF_0),
        ("ping",),
        ("assign_offset", "p"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("rings", [False, True])
def test_a_worker_that_stands_still_is_left_for_another(tmp_path: Path, rings: bool, call: tuple[Any, ...]) -> None:
    """F12: the one that the client is connected to. Another one's own socket is asked, long before the time is over."""
    method, *arguments = call
    with FakeDaemon(tmp_path, rings=rings) as daemon, libpharaoh.connect(daemon.path, timeout=3) as client:
        last = client.next_id()
        client.get_timestamp(KEY_OF_0)
        time.sleep(2 * ATTEMPT_SECONDS)  # so that it is not known any more who lives
        daemon.standing_still.add(0)
        for _ in range(3 * GRANT_IDS if method == "next_id" else 3):
            getattr(client, method)(*arguments)
        assert daemon.requests[-1][0] == 1
        assert asked(daemon, "assign_offset") == (3 if method == "assign_offset" else 0)
        assert client.next_id() > last
        daemon.standing_still.clear()
        assert client.next_id() > last


@pytest.mark.usefixtures("hurried")
def test_a_silent_worker_is_not_asked_again_at_once(plain: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """F12: for a second others are asked first, however often the client has to connect."""
    monkeypatch.setattr("libpharaoh._socket.SILENT_SECONDS", 60)
    with libpharaoh.connect(plain.path, timeout=30) as client:
        plain.standing_still.add(0)
        client.next_id()
        before = len(plain.requests)
        for _ in range(5):
            plain.hang_up()
            client.next_id()
        assert {coordinator for coordinator, *_ in plain.requests[before:]} == {1}


@pytest.mark.usefixtures("hurried")
def test_a_dense_request_has_patience(plain: FakeDaemon) -> None:
    """F35: a slow disk is no reason to ask again. But it goes to a worker that has just answered something else."""

    def answer_late(params: list[Any]) -> object:
        time.sleep(4 * ATTEMPT_SECONDS)
        return plain.memory.serve("assign_offset", params)

    with libpharaoh.connect(plain.path, timeout=30) as client:
        plain.behaviours["assign_offset"].append(answer_late)
        assert client.assign_offset("p") == 0
        time.sleep(2 * ATTEMPT_SECONDS)
        plain.standing_still.add(0)
        assert client.assign_offset("p") == 1
        assert [number for number, method, _ in plain.requests if method == "assign_offset"] == [0, 1]


def test_a_restarted_daemon_is_hidden(ringed: FakeDaemon) -> None:
    with libpharaoh.connect(ringed.path, timeout=30) as client:
        ids = [client.next_id() for _ in range(10)]
        ringed.stop()
        starter = threading.Timer(0.2, ringed.start)
        starter.start()
        ids += [client.next_id() for _ in range(1000)]
        starter.join()
        assert increasing(ids)
        assert client.get_timestamp(KEY_OF_1) < client.get_timestamp(KEY_OF_1)


def test_threads_share_a_client(ringed: FakeDaemon) -> None:
    """F10: nothing twice, and each thread's ids increase, while workers die."""
    with libpharaoh.connect(ringed.path, timeout=30, causal=True) as client:
        results: list[list[int]] = [[] for _ in range(6)]
        failures: list[BaseException] = []

        def work(ids: list[int], number: int) -> None:
            try:
                for turn in range(300):
                    ids.append(client.next_id())
                    if turn % 30 == number:
                        ids += client.next_ids(50)
                        ids += [client.get_timestamp(), client.get_timestamp(KEY_OF_1)]
            except BaseException as error:  # noqa: BLE001
                failures.append(error)

        threads = [threading.Thread(target=work, args=(ids, number)) for number, ids in enumerate(results)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            time.sleep(0.02)
            ringed.hang_up()
        for thread in threads:
            thread.join()
        assert failures == []
        assert all(increasing(ids) for ids in results)
        everything = [id for ids in results for id in ids]
        assert len(everything) == len(set(everything)) > 6 * 300


@pytest.mark.parametrize("fork", [os.fork, raw_clone], ids=["fork", "clone"])
@pytest.mark.parametrize("rings", [True, False])
def test_a_child_gets_its_own(tmp_path: Path, fork: Callable[[], int], rings: bool) -> None:
    """F23: a forked child closes what it inherited, attaches anew and repeats nothing."""
    with (
        FakeDaemon(tmp_path, rings=True) as daemon,
        libpharaoh.connect(daemon.path, rings=rings, causal=True) as client,
    ):
        before = [client.next_id() for _ in range(10)] + [client.get_timestamp(KEY_OF_1)]
        reading, writing = os.pipe()

        def work() -> bool:
            ids = [client.next_id() for _ in range(100)] + [client.get_timestamp(), client.get_timestamp(KEY_OF_1)]
            os.write(writing, array.array("Q", ids).tobytes())
            return increasing(before + ids)

        requests = len(daemon.requests)
        in_child(work, fork)
        assert [method for _, method, _ in daemon.requests[requests:]].count("hello") == 1
        childs = array.array("Q", os.read(reading, 65536))
        os.close(reading)
        os.close(writing)
        after = [client.next_id() for _ in range(200)] + [client.get_timestamp(KEY_OF_1)]
        assert increasing(before + after)
        assert len(childs) == 102
        assert not set(childs) & set(before + after)


def test_a_child_lets_go_of_its_parent_s_descriptors(ringed: FakeDaemon) -> None:
    """F13, F41: or the parent's death would not hang up."""
    with libpharaoh.connect(ringed.path) as client:
        before = open_descriptors()
        client.next_id()
        client.get_timestamp(KEY_OF_1)
        connection = client._session._connection
        assert connection is not None
        in_child(lambda: connection.closed and client._session.ring_at_hand is None)
        assert not connection.closed
        assert before <= open_descriptors()


@pytest.mark.parametrize("fork", [os.fork, raw_clone], ids=["fork", "clone"])
def test_fork_while_another_thread_holds_the_lock(plain: FakeDaemon, fork: Callable[[], int]) -> None:
    """F23, F24: the child's lock is new, also for a close before anything else."""
    with libpharaoh.connect(plain.path, timeout=30) as client:
        entered, leave = threading.Event(), threading.Event()

        def answer(_: list[Any]) -> str:
            entered.set()
            leave.wait()
            return "pong"

        plain.behaviours["ping"].append(answer)
        holder = threading.Thread(target=client.ping)
        holder.start()
        entered.wait()

        def closes() -> bool:
            client.close()
            return True

        try:
            in_child(lambda: client.next_id() > 0, fork)
            in_child(closes, fork)
        finally:
            leave.set()
            holder.join()


# --- a signal's handler in the middle of a call


@contextlib.contextmanager
def handler_in_a_call(daemon: FakeDaemon, handle: Callable[[], object]) -> Iterator[None]:
    """`handle` runs as a signal's handler while the daemon has the next `stats` request before it."""

    def answer(_: list[Any]) -> dict[str, Any]:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        time.sleep(0.02)
        return {"coordinator": 0}

    before = signal.signal(signal.SIGUSR1, lambda *_: handle())
    daemon.behaviours["stats"].append(answer)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_handler_in_the_middle_of_a_call(plain: FakeDaemon) -> None:
    """F45: what needs the connection of the call under way is refused at once, and nothing of the call is lost."""
    with libpharaoh.connect(plain.path, timeout=600) as client:

        def handle() -> None:
            for call in (client.ping, client.next_id, client.get_timestamp):
                with pytest.raises(ClientBusyError):
                    call()
            refused.append(True)

        refused: list[bool] = []
        with handler_in_a_call(plain, handle):
            assert client.stats() == {"coordinator": 0}
        assert refused == [True]
        client.ping()
        assert asked(plain, "hello") == 1


def test_a_handler_closes_the_client(plain: FakeDaemon) -> None:
    """F45: close() returns, and takes effect when the call under way ends."""
    before = open_descriptors()
    client = libpharaoh.connect(plain.path, timeout=600)
    with handler_in_a_call(plain, client.close):
        assert client.stats() == {"coordinator": 0}
    assert client._session._connection is None
    with pytest.raises(ClientClosedError):
        client.ping()
    wait_until(lambda: open_descriptors() <= before)


def test_a_handler_raises(plain: FakeDaemon) -> None:
    """F45: the reply that is still to come is nobody's; the next call begins anew."""
    with libpharaoh.connect(plain.path, timeout=600) as client:

        def handle() -> None:
            raise KeyError("as told")

        with handler_in_a_call(plain, handle), pytest.raises(KeyError):
            client.stats()
        client.ping()
        assert asked(plain, "hello") == 2
    with libpharaoh.connect(plain.path, timeout=600) as client:
        with pytest.raises(TypeError):
            client.ping(1)  # type: ignore[call-arg]
        client.ping()
        assert asked(plain, "hello") == 3  # a wrong call is no reason to begin anew


@pytest.mark.parametrize("fork", [os.fork, raw_clone], ids=["fork", "clone"])
def test_a_handler_forks(plain: FakeDaemon, fork: Callable[[], int]) -> None:
    """F45: the call begins again in the child, unless its handler wants to leave the program there."""
    children: list[int] = []
    with libpharaoh.connect(plain.path, timeout=600) as client:
        for leave in (False, True):

            def handle(leave: bool = leave) -> None:
                children.append(fork())
                if children[-1] == 0:
                    signal.alarm(30)
                    if leave:
                        raise SystemExit

            status = 1
            try:
                with handler_in_a_call(plain, handle):
                    assert client.stats() == {"coordinator": 0}
                status = 3 if leave else 0
            except SystemExit:
                status = 0
            finally:
                if children[-1] == 0:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(children[-1], 0)[1]) == 0
        assert asked(plain, "stats") == 3


@pytest.mark.parametrize("fork", [os.fork, raw_clone], ids=["fork", "clone"])
def test_a_child_does_not_map_its_parent_s_ring(
    ringed: FakeDaemon, monkeypatch: pytest.MonkeyPatch, fork: Callable[[], int]
) -> None:
    """F23, F45: forked when the descriptors were there and the ring was not."""
    terms = libpharaoh._ring._terms
    children: list[int] = []

    def forking(*arguments: Any) -> tuple[int, int]:
        if not children:
            children.append(fork())
        return terms(*arguments)

    reading, writing = os.pipe()
    with libpharaoh.connect(ringed.path) as client:
        ringed.hang_up()
        monkeypatch.setattr("libpharaoh._ring._terms", forking)
        ids = [client.get_timestamp(KEY_OF_1), client.get_timestamp(KEY_OF_1)]
        if children == [0]:
            os.write(writing, array.array("Q", ids).tobytes())
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
        childs = array.array("Q", os.read(reading, 65536))
        os.close(reading)
        os.close(writing)
        assert len({*ids, *childs}) == 4
        assert asked(ringed, "attach") == 3  # one before, one of each


@pytest.mark.parametrize("fork", [os.fork, raw_clone], ids=["fork", "clone"])
def test_a_child_does_not_use_its_parent_s_connection(
    plain: FakeDaemon, monkeypatch: pytest.MonkeyPatch, fork: Callable[[], int]
) -> None:
    """F45: forked when the connection was made and not yet kept. The rest of the call keeps it in the child too."""
    children: list[int] = []

    def forking(*_: Any) -> None:
        children.append(fork())

    with libpharaoh.connect(plain.path) as client:
        plain.hang_up()
        wait_until(lambda: bool(client._session._connection and client._session._connection.hung_up()))
        with monkeypatch.context() as patch:
            patch.setattr("libpharaoh._socket.Endpoints.learn", lambda *_: None if children else forking())
            status = 1
            try:
                client.stats()
                client.stats()
                status = 0
            finally:
                if children == [0]:
                    os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
        # The child's first call begins again in its own name, even after an answer: once more, if it saw the parent's
        # reply come in on the inherited connection and had made one of its own before it asked.
        assert plain.by_connection[os.getpid(), "stats"] == 2
        assert plain.by_connection[children[0], "stats"] in (2, 3)


def test_an_id_from_elsewhere_while_a_ring_is_attached(ringed: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread's strict id, in the middle of the slow path, counts for the ring that is about to be used."""
    with libpharaoh.connect(ringed.path, causal=True) as client:
        session = client._session
        attach = Ring.attach
        elsewhere = client.next_id() + (60_000 << 23)  # a minute ahead, so above all that the new ring holds

        def attach_and_note(*arguments: Any) -> Ring:
            ring = attach(*arguments)
            session.note_strict(elsewhere)
            return ring

        ringed.hang_up()
        session._drop_main()
        monkeypatch.setattr(Ring, "attach", attach_and_note)
        ring = session._attached(TimeBudget(time.monotonic() + 30, 30.0))
        assert ring is not None
        ring.wait(50_000_000)
        assert session.pop() == 0


def test_close(ringed: FakeDaemon) -> None:
    before = open_descriptors()
    client: Client = libpharaoh.connect(ringed.path)
    client.next_id()
    client.get_timestamp(KEY_OF_1)
    client.close()
    client.close()
    assert "closed" in repr(client)
    calls: list[Callable[[], object]] = [
        client.next_id,
        lambda: client.next_ids(1),
        client.get_timestamp,
        lambda: client.get_timestamp(KEY_OF_1),
        client.ping,
        client.stats,
    ]
    for call in calls:
        with pytest.raises(ClientClosedError):
            call()
    ringed.hang_up()
    wait_until(lambda: open_descriptors() <= before)


def test_another_time_namespace(ringed: FakeDaemon) -> None:
    """F20: the worker's monotonic clock reads otherwise; grants are neither stale at once nor fresh for ever."""
    ringed.clock_offset_ns = 3600 * 10**9
    with libpharaoh.connect(ringed.path) as client:
        client.next_id()
        before = asked(ringed, "next_id")
        assert increasing([client.next_id() for _ in range(300)])
        assert asked(ringed, "next_id") == before


def test_stale_grants_are_not_handed_out(ringed: FakeDaemon) -> None:
    ringed.grant_ns = 50_000_000
    with libpharaoh.connect(ringed.path) as client:
        client.next_id()
        time.sleep(0.3)
        now_ms = int(time.time() * 1000)
        assert parse(client.next_id()).unix_ms >= now_ms - 100


def test_every_error_is_a_pharaoh_error() -> None:
    assert issubclass(InvalidArgumentError, PharaohError)
    assert libpharaoh.PharaohError is PharaohError


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits for what another thread brings about; the watchdog ends a wait in vain."""
    while not condition():
        time.sleep(0.005)
