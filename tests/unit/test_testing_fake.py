"""The fake for applications' tests has the client's methods, order and errors."""

from __future__ import annotations

import asyncio
import doctest
import inspect
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

import libpharaoh
from libpharaoh import aio, testing
from libpharaoh.errors import AfterTooFarError, ClientClosedError, InvalidArgumentError, KeyTooLongError, TimedOutError
from libpharaoh.testing import AsyncFakeClient, FakeClient


def public(kind: type) -> dict[str, Any]:
    return {name: value for name, value in vars(kind).items() if not name.startswith("_")}


@pytest.mark.parametrize(
    ("fake", "real"), [(FakeClient, libpharaoh.Client), (AsyncFakeClient, aio.AsyncClient)], ids=["blocking", "asyncio"]
)
def test_the_fake_has_every_method_of_the_client(fake: type, real: type) -> None:
    for name, member in public(real).items():
        if name == "abandon":  # for the hook of os.fork
            continue
        assert name in public(fake), name
        if callable(member):
            assert inspect.signature(member) == inspect.signature(public(fake)[name]), name
            assert inspect.iscoroutinefunction(member) == inspect.iscoroutinefunction(public(fake)[name]), name


def test_ids_are_the_same_on_every_run() -> None:
    one, other = FakeClient(), FakeClient()
    for client in (one, other):
        client.advance(7)
    assert [one.next_id(), *one.next_ids(9000), one.get_timestamp("k")] == [
        other.next_id(),
        *other.next_ids(9000),
        other.get_timestamp("k"),
    ]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("coordinator", range(4))
def test_ids_increase_as_the_client_s_do(coordinator: int, causal: bool) -> None:
    client = FakeClient(coordinator=coordinator, causal=causal)
    ids: list[int] = []
    fast: list[int] = []
    strict: dict[object, list[int]] = defaultdict(list)
    for key in ("a", "b", b"c", "d", None) * 20:
        fast += [client.next_id()]
        strict[key] += [client.get_timestamp(key)]
        ids += [fast[-1], strict[key][-1]]
        fast += [*client.next_ids(3), client.next_id()]
        strict[key] += [client.get_timestamp(key, after=fast[-1])]
        assert strict[key][-1] > fast[-1]
        ids += [*fast[-4:], strict[key][-1]]
        if key is not None:
            assert libpharaoh.parse(client.get_timestamp(key)).coordinator == libpharaoh.coordinator_for(key, 4)
    assert len(set(ids)) == len(ids)
    for one_order in (fast, *strict.values()):
        assert all(low < high for low, high in pairwise(one_order))
    assert all(low < high for low, high in pairwise(ids)) == causal


def test_without_causal_no_order_holds_between_keys() -> None:
    """An application that rests on one is to fail here rather than in production."""
    client = FakeClient(start=5, coordinator=3)
    key = {libpharaoh.coordinator_for(key, 4): key for key in "abcdefgh"}
    assert client.get_timestamp(key[2]) > client.get_timestamp(key[1])
    assert client.next_id() > client.get_timestamp(key[1])


def test_time_is_the_test_s() -> None:
    start = datetime(2030, 5, 6, tzinfo=UTC)
    client = FakeClient(start=start)
    assert {libpharaoh.parse(id).datetime for id in client.next_ids(8000)} == {start}
    client.advance(250)
    assert libpharaoh.parse(client.next_id()).datetime == start + timedelta(milliseconds=250)
    with pytest.raises(InvalidArgumentError):
        client.advance(-1)


def test_a_full_millisecond_is_followed_by_the_next() -> None:
    ids = FakeClient(start=5).next_ids(8193)
    assert {libpharaoh.parse(id).milliseconds for id in ids} == {5, 6}


def test_after_is_exceeded_or_too_far() -> None:
    client = FakeClient(start=1000)
    near = libpharaoh.compose(1000 + testing.AFTER_MS_MAX, 1023, 8191)
    with pytest.raises(AfterTooFarError):
        client.get_timestamp(after=near + 1)
    assert client.get_timestamp(after=near) > near


def test_failures_come_as_told() -> None:
    client = FakeClient()
    client.fail_with(TimedOutError("as told"), times=2)
    for call in (client.next_id, client.ping):
        with pytest.raises(TimedOutError, match="as told"):
            call()
    assert client.next_id() < client.next_id()
    assert client.calls == ["next_id", "ping", "next_id", "next_id"]
    assert client.stats() == {"calls": 5}
    for nonsense in (ValueError("x"), TimedOutError):
        with pytest.raises(InvalidArgumentError):
            client.fail_with(nonsense)  # type: ignore[arg-type]


def test_arguments_are_checked_as_the_client_does() -> None:
    with FakeClient() as client:
        for n in (0, True, 2**24 + 1):
            with pytest.raises(InvalidArgumentError):
                client.next_ids(n)
        with pytest.raises(InvalidArgumentError):
            client.get_timestamp(5)  # type: ignore[arg-type]
        with pytest.raises(KeyTooLongError):
            client.get_timestamp("k" * 5000)
    for call in (client.next_id, client.ping, client.stats, client.get_timestamp):
        with pytest.raises(ClientClosedError):
            call()


def test_the_asyncio_fake() -> None:
    async def main() -> None:
        fake = FakeClient()
        async with AsyncFakeClient(fake) as client:
            ids = [await client.next_id(), *await client.next_ids(3), await client.get_timestamp("a")]
            assert all(low < high for low, high in pairwise(ids))
            await client.ping()
            assert await client.stats() == {"calls": 5}
            assert (client.hello, client.layout) == (fake.hello, fake.layout)
        with pytest.raises(ClientClosedError):
            await client.next_id()

    asyncio.run(main())


def test_examples_of_the_docstrings() -> None:
    names = {"libpharaoh": libpharaoh, "asyncio": asyncio, "client": FakeClient()}
    assert doctest.testmod(testing, extraglobs=names).failed == 0
