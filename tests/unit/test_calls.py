"""The kinds of coordinator, as a client sees them: one suite for every client of Python, and for the fake.

The fake daemon counts as the fake client does: there the suite shows what the clients make of requests and replies.
That both do as a real daemon does is shown here too, and by random requests in tests/process/test_fake_agrees.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest

import libpharaoh
from libpharaoh import Client, SchemaVersion, aio, coordinator_for, parse
from libpharaoh.errors import (
    BadRequestError,
    ClientClosedError,
    FencedError,
    InvalidArgumentError,
    KeyTooLongError,
    SchemaInvalidError,
    SchemaUnknownError,
    SessionForgottenError,
)
from libpharaoh.testing import AsyncFakeClient, FakeClient
from tests.support.daemon import Daemon, short_directory
from tests.unit.fake_daemon import FakeDaemon

IDS = ("get_timestamp", "begin_transaction", "create_session", "next_event_id")


class Blocking:
    """An asyncio client with the methods of the blocking one."""

    def __init__(self, client: aio.AsyncClient | AsyncFakeClient, loop: asyncio.AbstractEventLoop) -> None:
        self._client, self._loop = client, loop

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._client, name)
        if not callable(member):
            return member
        return lambda *args, **kwargs: self._loop.run_until_complete(member(*args, **kwargs))


FAKES = ["fake", "asyncio fake", "wire", "rings", "asyncio"]
with_daemon = pytest.mark.parametrize("client", [*FAKES, "daemon"], indirect=True)


@pytest.fixture(params=FAKES)
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    """Each implementation in turn. The host owns all coordinators of the cluster."""
    made: Any
    with contextlib.ExitStack() as stack:
        if request.param == "daemon":
            path = stack.enter_context(Daemon(stack.enter_context(short_directory()), coordinators=4)).socket
        else:
            path = stack.enter_context(FakeDaemon(tmp_path, rings=True, owned=(0, 1, 2, 3))).path
        match request.param:
            case "fake":
                made = FakeClient()
            case "asyncio fake" | "asyncio":
                runner = stack.enter_context(asyncio.Runner())
                real = request.param == "asyncio"
                made = runner.run(aio.connect(path, rings=False)) if real else AsyncFakeClient()
                made = Blocking(made, runner.get_loop())
            case kind:
                made = libpharaoh.connect(path, rings=kind != "wire")
        yield cast("Client", made)
        made.close()


# --- Scarab ids by key


@with_daemon
def test_ids_rise_over_all_kinds(client: Client) -> None:
    for key in ("a", "b", b"c", "", "Ω"):
        ids = [getattr(client, name)(key) for _ in range(20) for name in IDS]
        assert all(low < high for low, high in pairwise(ids))
    for name in IDS:
        for key in ("a", b"\xff\x00", ""):
            assert parse(getattr(client, name)(key)).coordinator == coordinator_for(key, 4)


@with_daemon
@pytest.mark.parametrize("name", IDS)
def test_after_is_exceeded(client: Client, name: str) -> None:
    call = getattr(client, name)
    causes = call("a") + (100 << 23)
    assert call("b", after=causes) > causes


@pytest.mark.parametrize("name", IDS[1:])
def test_ids_refuse_bad_arguments(client: Client, name: str) -> None:
    call = getattr(client, name)
    for key in (None, 1, ["a"], "\ud800"):
        with pytest.raises(InvalidArgumentError):
            call(key)
    for after in (-1, 2**64, 1.5, True):
        with pytest.raises(InvalidArgumentError):
            call("a", after=after)
    with pytest.raises(KeyTooLongError):
        call("k" * 4097)


# --- dense values


@with_daemon
def test_dense_values_have_no_gap(client: Client) -> None:
    assert [client.join_group("g", member) for member in ("a", "b", "a")] == [1, 2, 3]
    assert [client.assign_offset("p", count) for count in (1, 10, 2**31 - 1, 1)] == [0, 1, 11, 2**31 + 10]
    assert client.assign_offset("p") == 2**31 + 11
    assert client.assign_offset("g") == 0, "a partition is no group"
    assert client.join_group("p", "a") == 1


@with_daemon
def test_names_are_bytes(client: Client) -> None:
    assert [client.assign_offset(name) for name in ("Ω", b"\xce\xa9", "", b"", b"\x00", "\0")] == [0, 1, 0, 1, 0, 1]


@with_daemon
def test_a_token_gets_its_result_again(client: Client) -> None:
    """F35: another request in between, and other sessions, change nothing."""
    session = client.create_session("c")
    for token in ((session, 5), (session + 1, 0, "x")):
        first = client.assign_offset("p", 7, token=token)
        client.assign_offset("p")
        assert client.assign_offset("p", 7, token=token) == first
    with pytest.raises(BadRequestError):
        client.assign_offset("p", 8, token=(session, 5))
    assert client.assign_offset("p") == 16
    generation = client.join_group("g", "a", token=(session, 1))
    assert client.join_group("g", "a", token=(session, 1)) == generation
    assert client.join_group("g", "a") == generation + 1


@with_daemon
def test_an_older_sequence_is_fenced(client: Client) -> None:
    """Sequences rise, not necessarily by one; each counter has its own."""
    assert [client.assign_offset("p", token=(9, sequence)) for sequence in (0, 1, 17, 2**63 - 1)] == [0, 1, 2, 3]
    for sequence in (0, 17, 2**63 - 2):
        with pytest.raises(FencedError):
            client.assign_offset("p", token=(9, sequence))
    assert client.assign_offset("other", token=(9, 0)) == 0
    assert client.assign_offset("p") == 4


@with_daemon
def test_a_newer_session_fences_its_client_s_older_ones(client: Client) -> None:
    old, new = client.create_session("c"), client.create_session("c")
    assert client.assign_offset("p", token=(old, 0, "c")) == 0
    assert client.assign_offset("q", token=(old, 0, "c")) == 0
    assert client.assign_offset("p", token=(new, 0, "c")) == 1
    for token in ((old, 0, "c"), (old, 1, "c"), (old - 1, 0, b"c")):
        with pytest.raises(FencedError):
            client.assign_offset("p", token=token)
    assert client.assign_offset("p", token=(old - 1, 0, "another client")) == 2
    assert client.assign_offset("p", token=(old - 2, 0)) == 3
    assert client.assign_offset("q", token=(old, 1, "c")) == 1, "the newer one was not seen there yet"
    assert client.assign_offset("p", token=(new, 1, "c")) == 4


@with_daemon
def test_a_session_s_client_id_may_be_left_out(client: Client) -> None:
    """It is remembered, and it counts from when it is given."""
    assert client.assign_offset("p", token=(5, 0, "c")) == 0
    assert client.assign_offset("p", token=(5, 1)) == 1
    assert client.assign_offset("p", token=(6, 0)) == 2
    assert client.assign_offset("p", token=(9, 0, "c")) == 3
    for token in ((5, 2), (5, 2, "d"), (6, 1, "c")):
        with pytest.raises(FencedError):
            client.assign_offset("p", token=token)
    assert client.assign_offset("p", token=(6, 1, "d")) == 4


@with_daemon
def test_a_member_is_a_client(client: Client) -> None:
    assert client.join_group("g", "a", token=(2, 0)) == 1
    assert client.join_group("g", "b", token=(1, 0)) == 2
    with pytest.raises(FencedError):
        client.join_group("g", "a", token=(1, 1))
    assert client.join_group("g", "a", token=(1, 1, "b")) == 3


@with_daemon
def test_sixty_four_sessions_are_remembered(client: Client) -> None:
    """The one whose last value is the oldest goes first."""
    assert [client.assign_offset("p", token=(session, 0)) for session in range(101, 165)] == list(range(64))
    assert client.assign_offset("p", token=(101, 1)) == 64
    assert [client.assign_offset("p", token=(session, 0)) for session in range(102, 165)] == list(range(1, 64))
    assert client.assign_offset("p", token=(200, 0)) == 65
    for session in (102, 50):
        with pytest.raises(SessionForgottenError):
            client.assign_offset("p", token=(session, 0))
    assert client.assign_offset("p", token=(101, 1)) == 64
    assert client.assign_offset("p", token=(103, 1)) == 66
    assert client.assign_offset("p", token=(201, 0)) == 67


@pytest.mark.parametrize(
    "token",
    [
        *(1, (), (1,), (1, 2, "c", 4), [1, 2], "12"),
        *((0, 0), (-1, 0), (2**64, 0), (True, 0), (1.0, 0)),
        *((1, -1), (1, 2**63), (1, "0")),
        *((1, 0, 5), (1, 0, None), (1, 0, "\ud800")),
    ],
    ids=repr,
)
def test_tokens_that_are_refused(client: Client, token: Any) -> None:
    calls: list[Callable[[], int]] = [
        lambda: client.assign_offset("p", token=token),
        lambda: client.join_group("g", "a", token=token),
    ]
    for call in calls:
        with pytest.raises(InvalidArgumentError):
            call()
    assert client.assign_offset("p") == 0


def test_dense_calls_refuse_bad_arguments(client: Client) -> None:
    bad: Any
    for bad in (0, -1, 2**31, True, 1.0, "1", None):
        with pytest.raises(InvalidArgumentError):
            client.assign_offset("p", bad)
    for bad in (None, 5, "\ud800"):
        with pytest.raises(InvalidArgumentError):
            client.assign_offset(bad)
        for names in ((bad, "a"), ("g", bad)):
            with pytest.raises(InvalidArgumentError):
                client.join_group(*names)
    too_long: list[Callable[[], int]] = [
        lambda: client.assign_offset("k" * 4097),
        lambda: client.join_group("k" * 4097, "a"),
        lambda: client.join_group("g", "k" * 4097),
        lambda: client.join_group("g", "a", token=(1, 0, b"k" * 4097)),
    ]
    for call in too_long:
        with pytest.raises(KeyTooLongError):
            call()
    assert client.assign_offset("p" * 4096) == 0
    assert client.join_group("g", "a") == 1


# --- schemas


def test_the_same_schema_has_one_id(client: Client) -> None:
    first = client.register_schema("s", '{"type": "record", "fields": []}')
    assert client.register_schema("s", '{"fields":[],"type":"record"}') == first
    assert client.register_schema(b"s", b'{"fields":[],"type":"record"}', "json") == first
    second = client.register_schema("s", '{"type": "record"}')
    assert second != first
    other = client.register_schema("t", '{"type": "record", "fields": []}')
    assert other not in (first, second)
    for subject, id in (("s", first), ("s", second), ("t", other)):
        assert id % 4 == coordinator_for(subject, 4)
    assert client.get_schema(first) == {
        "id": first,
        "subject": "s",
        "version": 1,
        "schema": '{"type": "record", "fields": []}',
        "type": "json",
    }
    assert client.get_schema(second)["version"] == 2
    assert client.get_schema(other)["version"] == 1


def test_schemas_of_bytes(client: Client) -> None:
    text = client.register_schema("s", '{"a": 1}', "bytes")
    assert client.register_schema("s", '{"a":1}', "bytes") != text
    assert client.register_schema("s", b'{"a": 1}', "bytes") == text
    raw = client.register_schema(b"\xff", b"\x00\xff")
    assert client.get_schema(raw) == {
        "id": raw,
        "subject": b"\xff",
        "version": 1,
        "schema": b"\x00\xff",
        "type": "bytes",
    }
    proto = client.register_schema("s", 'syntax = "proto3";')
    assert client.get_schema(proto)["type"] == "bytes"
    assert client.get_schema(proto)["schema"] == 'syntax = "proto3";'


def test_avro(client: Client) -> None:
    first = client.register_schema("s", '{"type": "fixed", "name": "F", "size": 4}', "avro")
    assert client.register_schema("s", '{"name": "F", "size": 4, "type": "fixed"}', "avro") == first
    assert client.get_schema(first)["type"] == "avro"


@pytest.mark.parametrize("schema", ["{", "", '{"a": 1, "a": 2}', '{"a": NaN}', b"\xff"])
def test_what_is_not_json(client: Client, schema: str | bytes) -> None:
    for type in ("json", "avro"):
        with pytest.raises(SchemaInvalidError):
            client.register_schema("s", schema, type)
    assert client.list_schemas("s") == []


def test_schema_calls_refuse_bad_arguments(client: Client) -> None:
    bad: Any
    for bad in (None, 5, "\ud800"):
        with pytest.raises(InvalidArgumentError):
            client.register_schema(bad, "{}")
        with pytest.raises(InvalidArgumentError):
            client.register_schema("s", bad)
    for bad in ("JSON", "", 1, b"json"):
        with pytest.raises(InvalidArgumentError):
            client.register_schema("s", "{}", bad)
    for bad in (5, "\ud800"):
        with pytest.raises(InvalidArgumentError):
            client.list_schemas(bad)
    for bad in (0, -1, 2**31, "1", None, True):
        with pytest.raises(InvalidArgumentError):
            client.get_schema(bad)
    with pytest.raises(KeyTooLongError):
        client.register_schema("k" * 4097, "{}")
    with pytest.raises(SchemaInvalidError):
        client.register_schema("s", "x" * 57345)
    assert client.register_schema("s" * 4096, "x" * 57344) > 0
    with pytest.raises(SchemaUnknownError):
        client.get_schema(2**31 - 1)


def test_schemas_are_listed_in_order(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over many pages too."""
    monkeypatch.setattr("libpharaoh._memory.PAGE_ROWS", 2)
    assert client.list_schemas() == []
    expected = []
    for subject in ("b", "", "Ω", "a", b"\xff"):
        for version in (1, 2, 3):
            id = client.register_schema(subject, f'"{version}"')
            expected.append(SchemaVersion(subject, version, id, "json"))
    assert client.list_schemas("a") == expected[9:12]
    assert client.list_schemas(b"a") == expected[9:12]
    assert client.list_schemas("none") == []
    order = [3, 9, 0, 6, 12]
    assert client.list_schemas() == [expected[at + version] for at in order for version in range(3)]


# --- the way to a coordinator


@with_daemon
def test_route_and_cluster(client: Client) -> None:
    cluster = client.cluster()
    host = cluster["host"]
    for key in ("orders", b"\xff", ""):
        number = coordinator_for(key, 4)
        endpoint = client.hello.endpoint(number)
        assert client.route(key) == {"coordinator": number, "host": host, "endpoint": endpoint, "local": True}
    assert (cluster["modulus"], cluster["owners"], cluster["live"]) == (4, {host: [0, 1, 2, 3]}, [0, 1, 2, 3])
    assert (cluster["peers"], cluster["clock_offsets"]) == ([], {})
    assert set(cluster) == {"name", "modulus", "host", "owners", "live", "peers", "clock_offsets"}


def test_a_closed_client(client: Client) -> None:
    client.close()
    calls: list[Callable[[], object]] = [
        lambda: client.begin_transaction("a"),
        lambda: client.create_session("a"),
        lambda: client.next_event_id("a"),
        lambda: client.join_group("g", "a"),
        lambda: client.assign_offset("p"),
        lambda: client.register_schema("s", "{}"),
        lambda: client.get_schema(1),
        client.list_schemas,
        lambda: client.route("a"),
        client.cluster,
    ]
    for call in calls:
        with pytest.raises(ClientClosedError):
            call()
