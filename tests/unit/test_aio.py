"""The asyncio client against a fake daemon."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from libpharaoh import aio
from libpharaoh._session import ATTEMPT_SECONDS
from libpharaoh.errors import (
    ClientClosedError,
    ConnectFailedError,
    ConnectionLostError,
    InvalidArgumentError,
    PharaohError,
    ProtocolViolationError,
    TimedOutError,
    UnavailableError,
)
from tests.unit.fake_daemon import Close, FakeDaemon, Garbage, Silence, open_descriptors

Scenario = Callable[[aio.AsyncClient], Coroutine[Any, Any, None]]


@pytest.fixture
def hurried() -> None:
    """For tests of how long a client waits for a silent worker."""


@pytest.fixture(autouse=True)
def _unhurried(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others ask for things in a certain order, which a busy machine is not to change."""
    if "hurried" not in request.fixturenames:
        monkeypatch.setattr("libpharaoh._session.ATTEMPT_SECONDS", 0.5)
        monkeypatch.setattr("libpharaoh.aio.ATTEMPT_SECONDS", 0.5)


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path) as daemon:
        yield daemon


@pytest.fixture
def ringed(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path, rings=True) as daemon:
        yield daemon


def play(daemon: FakeDaemon, scenario: Scenario, **arguments: Any) -> None:
    async def main() -> None:
        async with await aio.connect(daemon.path, **arguments) as client:
            await scenario(client)

    asyncio.run(main())


def increasing(ids: list[int]) -> bool:
    return all(one < next_one for one, next_one in pairwise(ids))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rings", [False, True])
def test_every_method(ringed: FakeDaemon, rings: bool, causal: bool) -> None:
    async def scenario(client: aio.AsyncClient) -> None:
        ids = [await client.next_id() for _ in range(300)]
        batch = await client.next_ids(10_000)
        assert (batch.typecode, len(batch)) == ("Q", 10_000)
        strict = [await client.get_timestamp(), await client.get_timestamp("b")]
        later = [await client.next_id()]
        strict += [await client.get_timestamp(after=later[0])]
        assert strict[2] > later[0]
        assert increasing([*ids, *batch, *later])
        assert increasing([*ids, *batch, *strict[:2], *later, strict[2]]) or not causal
        await client.ping()
        assert await client.stats() == {"coordinator": 0}
        assert client.hello.modulus == 4
        assert str(client.layout) == "41-10-13"

    play(ringed, scenario, rings=rings, causal=causal)


def test_ids_at_hand_do_not_leave_the_loop(ringed: FakeDaemon) -> None:
    async def scenario(client: aio.AsyncClient) -> None:
        await client.next_id()
        call = client.next_id()
        with pytest.raises(StopIteration):  # it ends without having waited once
            call.send(None)

    play(ringed, scenario)


def test_arguments_are_checked(plain: FakeDaemon) -> None:
    async def scenario(client: aio.AsyncClient) -> None:
        for n in (0, True, 2**24 + 1):
            with pytest.raises(InvalidArgumentError):
                await client.next_ids(n)
        with pytest.raises(InvalidArgumentError):
            await client.get_timestamp(5)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError):
            await client.get_timestamp(after=-1)

    play(plain, scenario)


def test_many_tasks(ringed: FakeDaemon) -> None:
    """Nothing twice, however the tasks interleave."""

    async def scenario(client: aio.AsyncClient) -> None:
        async def work() -> list[int]:
            ids = []
            for _ in range(20):
                ids += [await client.next_id(), await client.get_timestamp(), *await client.next_ids(5)]
            assert increasing(ids)
            return ids

        everything = [id for ids in await asyncio.gather(*(work() for _ in range(30))) for id in ids]
        assert len(set(everything)) == len(everything) == 30 * 20 * 7

    play(ringed, scenario, causal=True)


def test_requests_are_pipelined(plain: FakeDaemon) -> None:
    """A hundred requests are under way at once over one connection, and each gets its own answer."""

    async def scenario(client: aio.AsyncClient) -> None:
        await client.ping()
        before = len(plain.requests)
        calls = [asyncio.create_task(client.get_timestamp()) for _ in range(100)]
        assert len(set(await asyncio.gather(*calls))) == 100
        assert {method for _, method, _ in plain.requests[before:]} == {"get_timestamp"}

    play(plain, scenario, rings=False)


def test_a_cancelled_request_s_late_reply_is_dropped(plain: FakeDaemon) -> None:
    late: list[int] = []
    answer = threading.Event()

    def answer_late(_: list[Any]) -> int:
        answer.wait()
        late.append(plain.issue(0))
        return late[0]

    async def scenario(client: aio.AsyncClient) -> None:
        await client.ping()
        hellos = sum(1 for _, method, _ in plain.requests if method == "hello")
        plain.behaviours["next_id"].append(answer_late)
        call = asyncio.create_task(client.next_id())
        while not any(method == "next_id" for _, method, _ in plain.requests):
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        answer.set()
        ids = [await client.next_id() for _ in range(50)]
        assert increasing(ids)
        assert late[0] not in ids
        assert sum(1 for _, method, _ in plain.requests if method == "hello") == hellos

    play(plain, scenario, rings=False)


@pytest.mark.parametrize("behaviour", [Close(), UnavailableError(), Silence()], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "call",
    [("next_id",), ("get_timestamp",), ("ping",), ("begin_transaction", "k"), ("assign_offset", "p"), ("route", "k")],
    ids=lambda call: call[0],
)
def test_one_failure_is_hidden(plain: FakeDaemon, behaviour: Exception, call: tuple[str, ...]) -> None:
    method, *arguments = call

    async def scenario(client: aio.AsyncClient) -> None:
        await client.ping()
        plain.requests.clear()
        plain.behaviours[method].append(behaviour)
        await getattr(client, method)(*arguments)
        assert [name for _, name, _ in plain.requests if name == method] == [method] * 2

    play(plain, scenario, rings=False, timeout=1.5)


def test_a_lost_reply(plain: FakeDaemon) -> None:
    """F35: without a token a gap, with one the value that was given."""

    def then_lost(params: list[Any]) -> object:
        plain.memory.serve("assign_offset", params)
        raise Close

    async def scenario(client: aio.AsyncClient) -> None:
        plain.behaviours["assign_offset"].append(then_lost)
        assert await client.assign_offset("p", 10) == 10
        plain.behaviours["assign_offset"].append(then_lost)
        assert await client.assign_offset("p", 10, token=(1, 0)) == 20
        assert await client.assign_offset("p") == 30

    play(plain, scenario, rings=False)


def test_tasks_share_a_counter(plain: FakeDaemon) -> None:
    """Dense, whatever the order in which the replies come."""

    async def scenario(client: aio.AsyncClient) -> None:
        offsets = await asyncio.gather(*(client.assign_offset("p", 2) for _ in range(100)))
        assert sorted(offsets) == list(range(0, 200, 2))

    play(plain, scenario, rings=False)


@pytest.mark.parametrize("causal", [False, True])
def test_order_holds_over_each_kind_of_id(plain: FakeDaemon, causal: bool) -> None:
    """Each goes by its own name; a causal client tells each the last id."""

    async def scenario(client: aio.AsyncClient) -> None:
        first = await client.begin_transaction("t")
        second = await client.create_session(b"c", after=first - 1)
        third = await client.next_event_id("e", after=second + 1)
        assert increasing([first, second, third, await client.next_id()]) or not causal
        assert [(method, params) for _, method, params in plain.requests if method != "hello"][:3] == [
            ("begin_transaction", [b"t", None]),
            ("create_session", [b"c", first if causal else first - 1]),
            ("next_event_id", [b"e", second + 1]),
        ]

    play(plain, scenario, rings=False, causal=causal)


def test_lasting_failures_are_raised_at_the_deadline(plain: FakeDaemon) -> None:
    async def scenario(client: aio.AsyncClient) -> None:
        plain.behaviours["ping"].extend([Silence()] * 100)
        with pytest.raises(TimedOutError):
            await client.ping()
        plain.behaviours["stats"].append(Garbage(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
        with pytest.raises(ProtocolViolationError):
            await client.stats()
        await client.stats()

    play(plain, scenario, rings=False, timeout=0.3)


@pytest.mark.usefixtures("hurried")
def test_a_worker_that_stands_still_is_left_for_another(plain: FakeDaemon) -> None:
    """F12, as for the blocking client."""

    async def scenario(client: aio.AsyncClient) -> None:
        last = await client.next_id()
        await asyncio.sleep(2 * ATTEMPT_SECONDS)
        plain.standing_still.add(0)
        assert await client.assign_offset("p") == 0
        assert await client.next_id() > last
        assert await client.get_timestamp() > last
        assert [number for number, method, _ in plain.requests if method == "assign_offset"] == [1]

    play(plain, scenario, rings=False, timeout=3)


@pytest.mark.usefixtures("hurried")
def test_a_silent_request_leaves_those_beside_it_their_time(plain: FakeDaemon) -> None:
    """F35: a dense one goes on waiting on the connection that the others have left."""
    answer = threading.Event()

    def answer_late(params: list[Any]) -> object:
        answer.wait()
        return plain.memory.serve("assign_offset", params)

    async def scenario(client: aio.AsyncClient) -> None:
        plain.behaviours["assign_offset"].append(answer_late)
        dense = asyncio.create_task(client.assign_offset("p"))
        while not any(method == "assign_offset" for _, method, _ in plain.requests):
            await asyncio.sleep(0.01)
        assert await client.next_id() < await client.next_id()
        answer.set()
        assert await dense == 0
        assert sum(1 for _, method, _ in plain.requests if method == "assign_offset") == 1

    play(plain, scenario, rings=False, timeout=30)


def test_killed_workers_are_hidden(ringed: FakeDaemon) -> None:
    """F11, F12."""

    async def scenario(client: aio.AsyncClient) -> None:
        ids: list[int] = []
        for _ in range(5):
            ids += [await client.next_id(), await client.get_timestamp()]
            ringed.hang_up()
            ids += [await client.get_timestamp(), *await client.next_ids(300)]
        assert increasing(ids)

    play(ringed, scenario, causal=True)


def test_no_daemon(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(ConnectFailedError):
            await aio.connect(tmp_path / "none.sock", timeout=0.05)

    asyncio.run(main())


def test_a_daemon_that_went_away(plain: FakeDaemon) -> None:
    async def scenario(client: aio.AsyncClient) -> None:
        await client.ping()
        plain.stop()
        with pytest.raises((ConnectFailedError, ConnectionLostError)):
            await client.ping()
        plain.start()
        await client.ping()

    play(plain, scenario, rings=False, timeout=0.2)


def test_tasks_that_wait_for_a_ring_have_one_timeout_each(ringed: FakeDaemon) -> None:
    """F12: not one after the other: the last of many is told as soon as the first."""

    async def failing(client: aio.AsyncClient) -> float:
        began = time.monotonic()
        with pytest.raises(PharaohError):
            await client.next_id()
        return time.monotonic() - began

    async def main() -> None:
        client = await aio.connect(ringed.path, timeout=0.5)
        ringed.stop()
        while client._session.pop():
            pass
        alone_s = await failing(client)
        together_s = await asyncio.gather(*(failing(client) for _ in range(6)))
        assert max(together_s) < 3 * alone_s
        await client.close()

    asyncio.run(main())


def test_requests_on_a_connection_that_was_given_up_end_with_the_client(plain: FakeDaemon) -> None:
    """A dense request has more patience than the one that made its connection be given up: close ends it too."""
    go_on = threading.Event()

    def never(_: list[Any]) -> int:
        go_on.wait(30)
        return 0

    async def main() -> None:
        client = await aio.connect(plain.path, rings=False, timeout=20)
        await client.ping()
        plain.behaviours["assign_offset"].append(never)
        dense = asyncio.create_task(client.assign_offset("p"))
        while not any(method == "assign_offset" for _, method, _ in plain.requests):
            await asyncio.sleep(0.01)
        client._pipelines[-1].broken = TimedOutError()
        await client.ping()
        assert len(client._pipelines) == 2
        await client.close()
        with pytest.raises(ClientClosedError):
            await dense

    try:
        asyncio.run(main())
    finally:
        go_on.set()


@pytest.mark.parametrize("rings", [True, False])
def test_one_event_loop_after_the_other(tmp_path: Path, rings: bool) -> None:
    """As several calls of asyncio.run have it. What was at hand stays, ids rise on, nothing is left open."""
    with FakeDaemon(tmp_path, rings=rings) as daemon:
        client = asyncio.run(aio.connect(daemon.path, rings=rings))
        ids = []

        async def use() -> None:
            ids.append(await client.next_id())
            await asyncio.gather(*(client.get_timestamp("a") for _ in range(20)))
            ids.extend(await client.next_ids(50))

        for _ in range(3):
            asyncio.run(use())
        asyncio.run(client.close())
        assert increasing(ids)


def test_two_event_loops_at_once_are_refused(plain: FakeDaemon) -> None:
    async def main() -> None:
        client = await aio.connect(plain.path, rings=False)
        await client.next_id()
        with pytest.raises(InvalidArgumentError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, client.next_id())
        assert await client.next_id()
        await client.close()

    asyncio.run(main())


def test_close(ringed: FakeDaemon) -> None:
    before = open_descriptors()

    async def main() -> None:
        client = await aio.connect(ringed.path)
        await client.ping()
        ringed.behaviours["ping"].append(Silence())
        waiting = asyncio.create_task(client.ping())
        await asyncio.sleep(0.05)
        await client.close()
        await client.close()
        with pytest.raises(ClientClosedError):
            await waiting
        for call in (client.next_id, client.get_timestamp, client.ping, client.stats):
            with pytest.raises(ClientClosedError):
                await call()
        with pytest.raises(ClientClosedError):
            await client.next_ids(1)
        assert "closed" in repr(client)

    asyncio.run(main())
    ringed.hang_up()
    while not open_descriptors() <= before:
        time.sleep(0.005)


def test_a_child_gets_its_own(ringed: FakeDaemon) -> None:
    """F23: the child of a program that used asyncio may go on with the client in a loop of its own."""

    async def use(client: aio.AsyncClient) -> list[int]:
        return [await client.next_id(), await client.get_timestamp(), await client.next_id()]

    async def main() -> None:
        client = await aio.connect(ringed.path, causal=True)
        before = await use(client)
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            asyncio.events._set_running_loop(None)
            try:
                os._exit(0 if increasing(before + asyncio.run(use(client))) else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert increasing(before + await use(client))
        await client.close()

    asyncio.run(main())
