"""The router as workers see it: over its socket, with coordinators' sockets beside it that stand in for workers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from libpharaoh._framing import Reply, ReplyDecoder, RequestDecoder, encode_error, encode_request, encode_result
from libpharaoh.errors import (
    BadRequestError,
    CounterExhaustedError,
    CounterUnknownError,
    InternalError,
    PharaohError,
    SchemaInvalidError,
    SchemaUnknownError,
    UnavailableError,
    UnknownMethodError,
)
from pharaohd import router, settings
from pharaohd.contract import RouterSpec
from pharaohd.router import Router, exchange
from pharaohd.stats import new_slot
from tests.support.daemon import short_directory

MODULUS = 2
WATCHDOG_S = 30


class Bench:
    """A router in this process, and what is around it."""

    def __init__(self, directory: Path) -> None:
        config = directory / "pharaohd.toml"
        config.write_text(f"[cluster]\ncoordinators = {MODULUS}\n[rpc]\nstall_ms_max = 200\n")
        self.settings = settings.load(config, directory, {})
        (directory / "private").mkdir()
        (directory / "state/obelisks").mkdir(parents=True)
        self.path = self.settings.host.router_socket_path
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.listener.bind(self.path)
        self.listener.listen()
        self.supervisor, control = socket.socketpair()
        self.supervisor.setblocking(False)
        self.slot = new_slot()
        self.router = Router(RouterSpec(self.listener.detach(), control.detach(), self.slot, self.settings))
        self.counts: dict[int, int] = {}

    @contextlib.asynccontextmanager
    async def coordinator(self, number: int, hangs: bool = False) -> AsyncIterator[None]:
        """Answers as a worker does; or accepts, reads, and says nothing."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            decoder = RequestDecoder()
            while data := await reader.read(65_536):
                for request in decoder.feed(data):
                    if not hangs:
                        writer.write(self._answer(number, request.msgid, request.method))
            writer.close()

        path = self.settings.host.private_socket_path(number)
        server = await asyncio.start_unix_server(serve, path)
        try:
            yield
        finally:
            server.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def _answer(self, number: int, msgid: int, method: str) -> bytes:
        if method == "@next_schema":
            self.counts[number] = self.counts.get(number, 0) + 1
            return encode_result(msgid, self.counts[number])
        if number not in self.counts:
            return encode_error(msgid, CounterUnknownError())
        return encode_result(msgid, {"next": self.counts[number] + 1, "sessions": 0})

    def run(self, use: Callable[[], Awaitable[None]], *, hanging: tuple[int, ...] = ()) -> None:
        """Runs `use` beside the router and coordinators, then stops the router as a supervisor does."""

        async def main() -> None:
            async with contextlib.AsyncExitStack() as stack:
                for number in range(MODULUS):
                    await stack.enter_async_context(self.coordinator(number, number in hanging))
                serving = asyncio.create_task(self.router.serve())
                async with asyncio.timeout(WATCHDOG_S):
                    line = await asyncio.get_running_loop().sock_recv(self.supervisor, 4096)
                    assert json.loads(line) == {"event": "ready"}
                    await use()
                    self.supervisor.send(b'{"do": "stop"}\n')
                    await serving

        asyncio.run(main())

    async def ask(self, method: str, *params: Any) -> Any:
        return await exchange(self.path, method, [*params])


@pytest.fixture
def bench() -> Iterator[Bench]:
    with short_directory() as directory:
        one = Bench(directory)
        yield one
        one.supervisor.close()


async def send(path: str, data: bytes, replies: int) -> list[Reply]:
    """What comes back until so many replies are there, or the router hangs up."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(data)
        decoder, found = ReplyDecoder(), list[Reply]()
        while len(found) < replies and (data := await reader.read(65_536)):
            found += decoder.feed(data)
        return found
    finally:
        writer.close()


def subject_of(coordinator: int) -> str:
    return next(f"s{n}" for n in range(100) if zlib.crc32(f"s{n}".encode()) % MODULUS == coordinator)


def test_the_methods_of_schemas(bench: Bench) -> None:
    async def use() -> None:
        id = await bench.ask("@register_schema", "s", '{"a": 1}', None)
        assert await bench.ask("@register_schema", b"s", b'{"a":1}', "json") == id
        assert await bench.ask("@register_schema", "s", '{"a":1}') == id
        row = {"id": id, "subject": "s", "version": 1, "schema": '{"a": 1}', "type": "json"}
        assert await bench.ask("@get_schema", id) == row
        for params in ([], [None], ["s"], [b"s", None], [None, ["r", 9]]):
            page = await bench.ask("@list_schemas", *params)
            assert page == {"schemas": [["s", 1, id, "json"]], "next": None}

    bench.run(use)


@pytest.mark.parametrize(
    ("method", "params", "error"),
    [
        ("@next_schema", [], UnknownMethodError),
        ("register_schema", ["s", "x"], UnknownMethodError),  # without the @ it would be a client's
        ("@register_schema", [], BadRequestError),
        ("@register_schema", ["s", "x", None, None], BadRequestError),
        ("@register_schema", ["s", "{", "json"], SchemaInvalidError),
        ("@get_schema", ["1"], BadRequestError),
        ("@get_schema", [77], SchemaUnknownError),
        ("@list_schemas", [None, None, None], BadRequestError),
        ("@list_schemas", [None, {"a": 1}], BadRequestError),
    ],
)
def test_errors_come_back_as_such(bench: Bench, method: str, params: list[Any], error: type[PharaohError]) -> None:
    async def use() -> None:
        with pytest.raises(error):
            await bench.ask(method, *params)

    bench.run(use)


ODD = {
    "text that is not UTF-8": b"\x92\xa2\xc3\x28\xa1x",
    "an extension": b"\x92\xa1s\xd4\x05\x00",
    "a timestamp of a wrong length": b"\x91\xc7\x03\xff\x00\x00\x00",
    "a map with an array for a key": b"\x92\xc0\x81\x91\x01\x02",
    "no array": b"\x81\xa1s\xa1x",
    "nil": b"\xc0",
    "nested": b"\x91" * 7 + b"\xc0",
}


@pytest.mark.parametrize("params", ODD.values(), ids=ODD)
def test_what_one_client_sends_breaks_no_other_s_request(bench: Bench, params: bytes) -> None:
    """F36: a worker passes params on unread, and many clients' requests share its connection."""

    async def use() -> None:
        good = encode_request(1, "@register_schema", ["s", "x"])
        for method in ("@register_schema", "@get_schema", "@list_schemas"):
            odd = b"\x94\x00\x02" + msgpack.packb(method) + params
            replies = {reply.msgid: reply for reply in await send(bench.path, good + odd + good[:-1] + b"y", 3)}
            assert replies.keys() == {1, 2}
            assert replies[1].error is None
            assert isinstance(replies[2].error, BadRequestError), replies[2]

    bench.run(use)


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x93\x00\x01\xa1x",
        b"\x94\x01\x01\xa1x\x90",
        b"\x94\x00\xa1x\xa1x\x90",
        b"\x94\x00\x01\x01\x90",
        b"\x94\x00\x01\xa1x\xc6\x00\x02\x00\x00" + bytes(140_000),
        b"\x94\x00\x01\xa1x\xdd\x7f\xff\xff\xff" + bytes(140_000),
    ],
    ids=["never used", "http", "short", "reply", "msgid", "method", "long", "bomb"],
)
def test_nonsense_closes_that_connection_alone(bench: Bench, data: bytes) -> None:
    async def use() -> None:
        reader, writer = await asyncio.open_unix_connection(bench.path)
        good = encode_request(1, "@list_schemas", [])
        writer.write(good)
        assert await reader.read(65_536)
        assert await send(bench.path, data, 1) == []
        writer.write(good)
        assert await reader.read(65_536)
        writer.close()

    bench.run(use)


def test_requests_are_pipelined_and_bounded(bench: Bench) -> None:
    """More than may be under way at once: the rest waits in the socket, and all are answered."""

    async def use() -> None:
        count = 10 * router.IN_FLIGHT_MAX
        frames = [encode_request(n, "@register_schema", [f"s{n % 7}", f"{n % 11}" * 4000]) for n in range(count)]
        replies = await send(bench.path, b"".join(frames), count)
        assert sorted(reply.msgid for reply in replies) == [*range(count)]
        ids = {reply.msgid: reply.result for reply in replies}
        assert all(ids[n] == ids[n % 77] for n in range(count))
        assert len(set(ids.values())) == 77

    bench.run(use)


def test_no_more_than_so_many_requests_are_under_way(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    under_way, most, go_on = 0, 0, asyncio.Event()

    async def slow(request: Any) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await go_on.wait()
        under_way -= 1

    async def use() -> None:
        monkeypatch.setattr(bench.router, "_call", slow)
        count = 3 * router.IN_FLIGHT_MAX
        answered = asyncio.create_task(send(bench.path, encode_request(1, "@get_schema", [1]) * count, count))
        while under_way < router.IN_FLIGHT_MAX:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        go_on.set()
        assert len(await answered) == count
        assert most == router.IN_FLIGHT_MAX

    bench.run(use)


@pytest.mark.parametrize("hangs", [False, True])
def test_a_coordinator_that_is_down_costs_a_retryable_error(bench: Bench, hangs: bool) -> None:
    async def use() -> None:
        if not hangs:
            os.unlink(bench.settings.host.private_socket_path(1))
        with pytest.raises(UnavailableError) as caught:
            await bench.ask("@register_schema", subject_of(1), "x")
        assert caught.value.retryable
        assert await bench.ask("@register_schema", subject_of(0), "x")

    bench.run(use, hanging=(1,) if hangs else ())


def test_a_hanging_coordinator_delays_no_known_schema(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use() -> None:
        id = await bench.ask("@register_schema", subject_of(1), "known")
        monkeypatch.setattr(bench.router._schemas._registries[1], "_ask", lambda *_: asyncio.Event().wait())
        stuck = asyncio.create_task(bench.ask("@register_schema", subject_of(1), "new"))
        await asyncio.sleep(0.05)
        assert await bench.ask("@register_schema", subject_of(1), "known") == id
        assert (await bench.ask("@get_schema", id))["schema"] == "known"
        assert await bench.ask("@register_schema", subject_of(0), "elsewhere")
        assert not stuck.done()
        stuck.cancel()

    bench.run(use)


def test_what_a_coordinator_refuses_is_passed_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use() -> None:
        await bench.ask("@register_schema", "s", "one")
        monkeypatch.setattr(bench, "_answer", lambda _, msgid, __: encode_error(msgid, CounterExhaustedError()))
        with pytest.raises(CounterExhaustedError):
            await bench.ask("@register_schema", "s", "two")

    bench.run(use)


def test_a_bug_is_an_answer_and_no_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use() -> None:
        async def broken(id: int) -> None:
            raise ZeroDivisionError

        monkeypatch.setitem(bench.router._methods, "@get_schema", broken)
        with pytest.raises(InternalError):
            await bench.ask("@get_schema", 1)
        assert await bench.ask("@list_schemas") == {"schemas": [], "next": None}

    bench.run(use)


def test_a_client_that_is_gone_harms_nobody(bench: Bench) -> None:
    async def use() -> None:
        for _ in range(20):
            _, writer = await asyncio.open_unix_connection(bench.path)
            writer.write(encode_request(1, "@register_schema", ["s", "x" * 50_000]) * 3)
            await asyncio.sleep(0)
            writer.transport.abort()
        assert await bench.ask("@register_schema", "s", "x")

    bench.run(use)


def test_its_heart_beats(bench: Bench) -> None:
    async def use() -> None:
        assert 0 <= time.monotonic_ns() - bench.slot.heartbeat_ns < WATCHDOG_S * 1_000_000_000

    bench.run(use)


@pytest.mark.parametrize("how", ["stop", "supervisor gone", "supervisor killed", "SIGTERM"])
def test_it_ends_and_leaves_tidy_files(bench: Bench, how: str) -> None:
    async def use() -> None:
        await bench.ask("@register_schema", "s", "x")
        if how == "supervisor gone":
            bench.supervisor.shutdown(socket.SHUT_WR)
        elif how == "supervisor killed":
            bench.supervisor.close()  # what the router said is unread: its end of the stream is reset
        elif how == "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)

    bench.run(use) if how == "stop" else asyncio.run(until_end(bench, use))
    left = sorted(path.name for path in (Path(bench.settings.host.state_dir) / "obelisks").iterdir())
    assert len(left) == 1
    assert left[0].endswith(".schemas")
    assert Path(bench.path).exists()  # its successor serves there


async def until_end(bench: Bench, use: Callable[[], Awaitable[None]]) -> None:
    async with bench.coordinator(0), bench.coordinator(1), asyncio.timeout(WATCHDOG_S):
        serving = asyncio.create_task(bench.router.serve())
        await use()
        await serving
