"""The client for asyncio: the methods of `libpharaoh.Client`, awaited.

>>> from libpharaoh import aio
>>> async def main() -> None:
...     async with await aio.connect() as client:
...         print(await client.next_id())
>>> asyncio.run(main())                             # doctest: +SKIP

An id that is at hand in shared memory is taken without leaving the event loop. An empty ring is waited for in a thread
of the loop's executor; requests by socket share one connection of this client, any number at a time.

A child of `os.fork` may go on using a client in an event loop of its own; its ids are never its parent's. A call that
is under way when a process forks belongs to the parent, also when the fork is in a signal's handler in the middle of
it. The child must leave the running loop alone, and make new calls in a new one.
"""

from __future__ import annotations

import array
import asyncio
import os
import time
import weakref
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from libpharaoh import _calls
from libpharaoh._calls import Call, SchemaVersion, checked_key
from libpharaoh._framing import MSGID_END, ReplyDecoder, encode_request
from libpharaoh._methods import AsyncMethods
from libpharaoh._session import ATTEMPT_SECONDS, Session, TimeBudget, checked_id, checked_runs, is_retriable, pick_error
from libpharaoh._socket import PROTOCOL, Backoff, Hello, parse_hello, passing
from libpharaoh.client import IDS_PER_CALL_MAX, Client, new_session
from libpharaoh.errors import (
    ClientClosedError,
    ConnectFailedError,
    ConnectionLostError,
    InvalidArgumentError,
    PharaohError,
    ProtocolViolationError,
    TimedOutError,
)
from libpharaoh.scarab import Layout, whole_number

_READ_BYTES = 65536
_T = TypeVar("_T")


async def connect(
    path: str | os.PathLike[str] | None = None,
    *,
    name: str = "",
    timeout: float = 5.0,
    max_age_ms: int | None = None,
    rings: bool = True,
    causal: bool = False,
) -> AsyncClient:
    """Connects to the host's daemon; arguments and errors are those of `libpharaoh.connect`.

    >>> client = await aio.connect()                # doctest: +SKIP
    """
    session = new_session(path, name, timeout, max_age_ms, rings, causal)
    await _in_thread(session.connect)
    return AsyncClient(session, name, timeout)


class AsyncClient(AsyncMethods):
    """Made by `connect`. The tasks of one event loop may share it. A cancelled call's ids are lost, never given twice.

    It may be used in one event loop after the other, as with several calls of `asyncio.run`, but not in two at once.

    >>> async with await aio.connect() as client:   # doctest: +SKIP
    ...     ids = await client.next_ids(100)
    """

    _loop: asyncio.AbstractEventLoop | None
    """The one that it is used in."""
    _pipelines: list[_Pipeline]
    """New requests go over the last one. Those before it are broken; some of their requests may still be answered."""

    def __init__(self, session: Session, name: str, timeout: float) -> None:
        self._session, self._name, self._timeout = session, name, timeout
        self._blocking = Client(session)
        self._start_anew()
        _clients.add(self)

    async def next_id(self) -> int:
        """As `Client.next_id`.

        >>> await client.next_id()                  # doctest: +SKIP
        408559031853465647
        """
        self._enter_loop()
        id = self._session.pop()
        if id:
            return id
        if not self._session.ring_may_be_had():
            return (await self._retry(partial(self._runs_once, 1)))[0][0]
        deadline = time.monotonic() + self._timeout
        try:
            async with asyncio.timeout(self._timeout):
                await self._turn.acquire()  # one waits for the ring, the others then find it filled
        except TimeoutError:
            raise TimedOutError("next_id: others wait for the ring") from None
        try:
            return self._session.pop() or await _in_thread(partial(self._session.one_more, deadline))
        finally:
            self._turn.release()

    async def next_ids(self, n: int) -> array.array[int]:
        """As `Client.next_ids`.

        >>> len(await client.next_ids(10_000))      # doctest: +SKIP
        10000
        """
        whole_number(n, "n", 1, IDS_PER_CALL_MAX)
        self._enter_loop()
        if self._session.ring_may_be_had():
            return await _in_thread(partial(self._blocking.next_ids, n))
        ids = array.array("Q")
        while len(ids) < n:
            for first, count in await self._retry(partial(self._runs_once, n - len(ids))):
                ids.extend(range(first, first + count))
        return ids

    async def get_timestamp(self, key: str | bytes | None = None, *, after: int | None = None) -> int:
        """As `Client.get_timestamp`, always by socket: some 50 µs, and the loop goes on meanwhile.

        >>> await client.get_timestamp("orders")    # doctest: +SKIP
        408559031853465647
        """
        raw = None if key is None else checked_key(key, self._session.hello)
        return await self._strict("get_timestamp", raw, after)

    async def begin_transaction(self, key: str | bytes, *, after: int | None = None) -> int:
        """As `Client.begin_transaction`, always by socket.

        >>> await client.begin_transaction("accounts")          # doctest: +SKIP
        408559031853465647
        """
        return await self._strict("begin_transaction", checked_key(key, self._session.hello), after)

    async def create_session(self, client_id: str | bytes, *, after: int | None = None) -> int:
        """As `Client.create_session`, always by socket.

        >>> await client.create_session("billing-1")            # doctest: +SKIP
        408559031853465647
        """
        return await self._strict("create_session", checked_key(client_id, self._session.hello), after)

    async def next_event_id(self, table: str | bytes, *, after: int | None = None) -> int:
        """As `Client.next_event_id`, always by socket.

        >>> await client.next_event_id("orders")                # doctest: +SKIP
        408559031853465647
        """
        return await self._strict("next_event_id", checked_key(table, self._session.hello), after)

    async def list_schemas(self, subject: str | bytes | None = None) -> list[SchemaVersion]:
        """As `Client.list_schemas`.

        >>> [row.id for row in await client.list_schemas("orders-value")]           # doctest: +SKIP
        [9]
        """
        rows: list[SchemaVersion] = []
        more = True
        while more:
            page, more = await self._call(_calls.schemas_page(subject, rows, self._session.hello))
            rows += page
        return rows

    @property
    def hello(self) -> Hello:
        """As `Client.hello`.

        >>> client.hello.coordinators               # doctest: +SKIP
        (0, 1, 2, 3)
        """
        return self._session.hello

    @property
    def layout(self) -> Layout:
        """As `Client.layout`.

        >>> str(client.layout)                      # doctest: +SKIP
        '41-10-13'
        """
        return self._session.hello.layout

    async def close(self) -> None:
        """As `Client.close`; requests under way raise ClientClosedError.

        >>> await client.close()                    # doctest: +SKIP
        """
        self._enter_loop()
        self._session.closed = True  # no new pipeline from here on
        for pipeline in self._pipelines:
            await pipeline.close(ClientClosedError())
        self._pipelines = []
        await _in_thread(self._session.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<libpharaoh.aio.AsyncClient {self._session.path}{' closed' if self._session.closed else ''}>"

    def abandon(self) -> None:
        """In a forked child: lets go of the parent's connection; the session does the same for its own."""
        for pipeline in self._pipelines:
            pipeline.abandon()
        self._start_anew()

    def _enter_loop(self) -> None:
        """Begins each call. One event loop may come after the other: what belonged to the last one is let go."""
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            return
        if self._loop is not None and self._loop.is_running():
            raise InvalidArgumentError("this client is in use in another event loop, which is running")
        self._start_anew()
        self._loop = loop

    def _start_anew(self) -> None:
        self._loop = None
        self._pipelines = []
        self._connecting = asyncio.Lock()
        self._turn = asyncio.Lock()

    async def _retry(self, attempt: Callable[[TimeBudget], Awaitable[_T]]) -> _T:
        """As `Session.retry`."""
        self._enter_loop()
        backoff = Backoff(time.monotonic() + self._timeout)
        told: PharaohError | None = None
        attempt_s = ATTEMPT_SECONDS
        while True:
            try:
                return await attempt(TimeBudget(backoff.deadline, attempt_s))
            except PharaohError as error:
                pause = backoff.next_pause() if is_retriable(error) else None
                if pause is None:
                    raise pick_error(error, told) from None
                told = pick_error(error, told)
                await asyncio.sleep(pause)
                attempt_s *= 2

    async def _runs_once(self, count: int, budget: TimeBudget) -> list[tuple[int, int]]:
        before = self._session.last
        if count == 1:
            runs = [(checked_id(await self._ask("next_id", [], budget)), 1)]
        else:
            asked = min(count, self._session.hello.limits["ids_per_request"])
            runs = checked_runs(await self._ask("next_ids", [asked], budget), asked)
        if runs[0][0] <= before:  # it comes from a lower coordinator than the last one, within the same millisecond
            runs = [(checked_id(await self._ask("get_timestamp", [None, before], budget)), 1)]
        self._session.accept(runs, before)
        return runs

    async def _strict(self, method: str, key: bytes | None, after: int | None) -> int:
        return await self._retry(partial(self._strict_once, method, key, self._session.after(after)))

    async def _strict_once(self, method: str, key: bytes | None, after: int, budget: TimeBudget) -> int:
        patient = self._session.turn_for(after, budget)
        return self._session.accept_strict(await self._ask(method, [key, after or None], patient), after)

    async def _call(self, call: Call[_T]) -> _T:
        """As `Session.call`."""

        async def attempt(budget: TimeBudget) -> Any:
            if time.monotonic() - (await self._connected(budget)).answered_at > ATTEMPT_SECONDS:
                await self._ask("ping", [], budget)
            return await self._ask(call.method, call.params, TimeBudget(budget.deadline, self._timeout / 3))

        return call.checked(await self._retry(attempt))

    async def _ask(self, method: str, params: list[Any], budget: TimeBudget) -> Any:
        pipeline = await self._connected(budget)
        try:
            return await pipeline.request(method, params, budget)
        except TimedOutError:
            self._session.endpoints.avoid(pipeline.path, pipeline.own_path)
            raise

    async def _connected(self, budget: TimeBudget) -> _Pipeline:
        """As `Session._connected`."""
        async with self._connecting:
            if self._session.closed:
                raise ClientClosedError
            if not self._pipelines or self._pipelines[-1].broken is not None:
                anew = await self._pipeline_to_somebody(budget.deadline)
                self._pipelines = [*(one for one in self._pipelines if one.is_open), anew]
            return self._pipelines[-1]

    async def _pipeline_to_somebody(self, deadline: float) -> _Pipeline:
        endpoints = self._session.endpoints
        backoff, attempt_s = Backoff(deadline), ATTEMPT_SECONDS
        while True:
            failures: list[PharaohError] = []
            for path in endpoints.to_ask():
                try:
                    return await _Pipeline.connect(path, self._name, TimeBudget(deadline, attempt_s))
                except (ConnectionLostError, TimedOutError) as error:
                    failures.append(error)
                    endpoints.avoid(path)
                except OSError as error:
                    failures.append(ConnectFailedError(f"{path}: {error.strerror or 'timed out'}"))
                    if path == endpoints.path and not passing(error):
                        raise failures[-1] from None
            attempt_s *= 2
            pause = backoff.next_pause()
            if pause is None:
                raise failures[0]
            await asyncio.sleep(pause)


async def _in_thread(function: Callable[[], _T]) -> _T:
    return await asyncio.get_running_loop().run_in_executor(None, function)


class _Pipeline:
    """One connection with many requests under way, told apart by msgid."""

    own_path: str
    """That of the coordinator at the other end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> None:
        self.broken: PharaohError | None = None
        """Why no more requests can be made."""
        self.path = path
        self.answered_at = time.monotonic()
        self._reader, self._writer = reader, writer
        self._msgid = 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._slots = asyncio.Semaphore(1)
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def connect(cls, path: str, name: str, budget: TimeBudget) -> _Pipeline:
        """Connects and says hello. Raises OSError and what `request` raises."""
        async with asyncio.timeout(budget.until() - time.monotonic()):
            pipeline = cls(*await asyncio.open_unix_connection(path), path)
        try:
            hello = parse_hello(await pipeline.request("hello", [name, PROTOCOL], budget))
        except BaseException as error:
            await pipeline.close(error if isinstance(error, PharaohError) else ConnectionLostError(path))
            raise
        pipeline.own_path = hello.endpoint(hello.coordinator)
        pipeline.allow(hello.limits.get("in_flight", 1))
        return pipeline

    def allow(self, in_flight: int) -> None:
        """How many requests may be under way at once, from now on; hello alone before."""
        self._slots = asyncio.Semaphore(in_flight)

    @property
    def is_open(self) -> bool:
        """Whether it holds its connection still."""
        return not self._writer.is_closing()

    async def request(self, method: str, params: list[Any], budget: TimeBudget) -> Any:
        """One exchange. Its late reply is dropped when it was cancelled or its time was over."""
        try:
            async with asyncio.timeout(budget.deadline - time.monotonic()), self._slots:
                async with asyncio.timeout(budget.until() - time.monotonic()):
                    return await self._exchange(method, params)
        except TimeoutError:
            # The next request goes elsewhere. Those under way keep their own time: a dense one has more of it.
            self.broken = self.broken or TimedOutError(f"{method} on {self.path}")
            self._close_if_idle()
            raise TimedOutError(f"{method} on {self.path}") from None

    async def _exchange(self, method: str, params: list[Any]) -> Any:
        if self.broken is not None:
            raise self.broken
        self._msgid = (self._msgid + 1) % MSGID_END
        msgid, reply = self._msgid, asyncio.get_running_loop().create_future()
        self._waiting[msgid] = reply
        try:
            self._writer.write(encode_request(msgid, method, params))
            await self._writer.drain()
            return await reply
        except OSError as error:
            raise ConnectionLostError(f"{method} on {self.path}: {error.strerror or error}") from None
        finally:
            # A cancelled request stays known: its reply is still to come, and to be dropped.
            if reply.done() and not reply.cancelled():
                self._waiting.pop(msgid, None)
            else:
                reply.cancel()
            self._close_if_idle()

    async def _read(self) -> None:
        decoder = ReplyDecoder()
        error: PharaohError = ConnectionLostError(f"{self.path}: closed by the daemon")
        try:
            while data := await self._reader.read(_READ_BYTES):
                self.answered_at = time.monotonic()
                for reply in decoder.feed(data):
                    waiting = self._waiting.pop(reply.msgid, None)
                    if waiting is None:
                        raise ProtocolViolationError(f"a reply to request {reply.msgid}, which was never made")
                    if waiting.cancelled():
                        continue
                    if reply.error is not None:
                        waiting.set_exception(reply.error)
                    else:
                        waiting.set_result(reply.result)
        except OSError as cause:
            error = ConnectionLostError(f"{self.path}: {cause.strerror or cause}")
        except ProtocolViolationError as violation:
            error = violation
        except asyncio.CancelledError:  # the event loop ends
            self._fail(error)
            raise
        self._fail(error)

    def _close_if_idle(self) -> None:
        """Closes what is of no more use, once nobody waits for a reply of it."""
        if self.broken is not None and all(reply.done() for reply in self._waiting.values()):
            self._fail(self.broken)

    def _fail(self, error: PharaohError) -> None:
        if self.broken is None:
            self.broken = error
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(error)
        self._waiting.clear()
        self._writer.close()

    async def close(self, error: PharaohError) -> None:
        """Closes; requests under way raise `error`."""
        self._fail(error)
        if self._reading is not asyncio.current_task():
            self._reading.cancel()
            await asyncio.wait([self._reading])

    def abandon(self) -> None:
        """In a forked child, whose event loop is not this one: puts /dev/null in the socket's place.

        Closing it through the transport would take it out of the epoll set that the parent shares.
        """
        sock = self._writer.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            os.dup2(null, sock.fileno(), inheritable=False)
            os.close(null)
        self.broken = ConnectionLostError("inherited by a forked child")


_clients: weakref.WeakSet[AsyncClient] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for client in list(_clients):
        client.abandon()


os.register_at_fork(after_in_child=_after_fork_in_child)
