"""A client without a daemon, for the tests of applications: the same ids on every run, time under the test's control.

>>> from libpharaoh.testing import FakeClient
>>> client = FakeClient()
>>> client.next_id() < client.next_id()
True
>>> client.advance(1500)
>>> libpharaoh.parse(client.next_id()).datetime.isoformat()
'2026-01-01T00:00:01.500000+00:00'
"""

from __future__ import annotations

import array
import threading
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, TypeVar

from libpharaoh import _calls, _limits
from libpharaoh._calls import Call, SchemaVersion, checked_key, lowest
from libpharaoh._memory import Memory
from libpharaoh._methods import AsyncMethods, Methods
from libpharaoh._socket import Hello
from libpharaoh.client import IDS_PER_CALL_MAX
from libpharaoh.errors import AfterTooFarError, ClientClosedError, InvalidArgumentError, PharaohError
from libpharaoh.scarab import DEFAULT_LAYOUT, Layout, Scarab, compose, coordinator_for, parse, whole_number

START = datetime(2026, 1, 1, tzinfo=UTC)
AFTER_MS_MAX = 1000
_T = TypeVar("_T")


class FakeClient(Methods):
    """Has the methods of `libpharaoh.Client`, and the order of its ids.

    Those of `next_id` and `next_ids` rise, those of strict calls rise per coordinator. With causal=True all of them
    rise, as with `connect(causal=True)`.

    Dense values, tokens and schemas are those of a daemon that begins with nothing, but Avro is only checked as JSON.

    start: the time of the first ids, an aware datetime or milliseconds since the layout's epoch. Time stands still
    but for `advance`, for ids that no longer fit the millisecond, and for an `after` that has to be waited for.
    coordinator: the one that serves calls without a key. modulus: how many coordinators the fake cluster has.

    >>> client = FakeClient()
    >>> client.join_group("readers", "a"), client.join_group("readers", "b")
    (1, 2)
    >>> session = client.create_session("billing")
    >>> [client.assign_offset("orders", 10, token=(session, sequence)) for sequence in (0, 1, 1, 2)]
    [0, 10, 10, 20]
    >>> client.register_schema("orders", '{"a": 1, "b": 2}') == client.register_schema("orders", '{"b":2, "a":1}')
    True
    >>> client.route("orders")["coordinator"]
    2
    >>> def reserve(client):
    ...     return client.get_timestamp("orders")
    >>> client = FakeClient()
    >>> client.fail_with(libpharaoh.errors.UnavailableError())
    >>> reserve(client)
    Traceback (most recent call last):
        ...
    libpharaoh.errors.UnavailableError: UNAVAILABLE: no live coordinator can serve this request at the moment \
(retry; `pharaohctl workers` shows which coordinators are down)
    """

    def __init__(
        self,
        *,
        start: datetime | int = START,
        coordinator: int = 0,
        modulus: int = 4,
        layout: Layout = DEFAULT_LAYOUT,
        causal: bool = False,
    ) -> None:
        whole_number(modulus, "modulus", 1, layout.coordinator_count)
        whole_number(coordinator, "coordinator", 0, modulus - 1)
        first = parse(compose(start, layout=layout), layout)
        self._ms = first.milliseconds
        self._sequences: dict[int, int] = {}
        """The last one of each coordinator in this millisecond."""
        self._causal = causal
        self._hello = _hello(layout, coordinator, modulus)
        self._memory = Memory(self._hello)
        self._lock = threading.Lock()
        self._last = 0
        self._closed = False
        self._failures: list[PharaohError] = []
        self.calls: list[str] = []
        """The names of the methods called so far."""

    def advance(self, milliseconds: int) -> None:
        """Moves the fake's time forward.

        >>> client.advance(10)
        """
        with self._lock:
            self._move_to(self._ms + whole_number(milliseconds, "milliseconds", 0, 2**44))

    def fail_with(self, error: PharaohError, times: int = 1) -> None:
        """The next `times` calls raise `error`.

        >>> client.fail_with(libpharaoh.errors.TimedOutError(), times=2)
        """
        if not isinstance(error, PharaohError):
            raise InvalidArgumentError(f"an instance of a PharaohError was expected, not {error!r}")
        with self._lock:
            self._failures += [error] * whole_number(times, "times", 1, 2**20)

    def next_id(self) -> int:
        """As `Client.next_id`."""
        with self._lock:
            self._enter("next_id")
            return self._next()

    def next_ids(self, n: int) -> array.array[int]:
        """As `Client.next_ids`."""
        whole_number(n, "n", 1, IDS_PER_CALL_MAX)
        with self._lock:
            self._enter("next_ids")
            return array.array("Q", (self._next() for _ in range(n)))

    def get_timestamp(self, key: str | bytes | None = None, *, after: int | None = None) -> int:
        """As `Client.get_timestamp`; an `after` of more than a second ahead raises AfterTooFarError."""
        return self._strict("get_timestamp", None if key is None else checked_key(key, self._hello), after)

    def begin_transaction(self, key: str | bytes, *, after: int | None = None) -> int:
        """As `Client.begin_transaction`."""
        return self._strict("begin_transaction", checked_key(key, self._hello), after)

    def create_session(self, client_id: str | bytes, *, after: int | None = None) -> int:
        """As `Client.create_session`."""
        return self._strict("create_session", checked_key(client_id, self._hello), after)

    def next_event_id(self, table: str | bytes, *, after: int | None = None) -> int:
        """As `Client.next_event_id`."""
        return self._strict("next_event_id", checked_key(table, self._hello), after)

    def list_schemas(self, subject: str | bytes | None = None) -> list[SchemaVersion]:
        """As `Client.list_schemas`."""
        rows: list[SchemaVersion] = []
        more = True
        while more:
            page, more = self._call(_calls.schemas_page(subject, rows, self._hello))
            rows += page
        return rows

    def ping(self) -> None:
        """As `Client.ping`."""
        with self._lock:
            self._enter("ping")

    def stats(self) -> dict[str, Any]:
        """How many calls there were; a daemon's figures are others."""
        with self._lock:
            self._enter("stats")
            return {"calls": len(self.calls)}

    @property
    def hello(self) -> Hello:
        """As `Client.hello`."""
        return self._hello

    @property
    def layout(self) -> Layout:
        """As `Client.layout`."""
        return self._hello.layout

    def close(self) -> None:
        """As `Client.close`."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _strict(self, method: str, key: bytes | None, after: int | None) -> int:
        with self._lock:
            self._enter(method)
            low = lowest(after, self._last if self._causal else 0)
            if parse(low, self.layout).milliseconds > self._ms + AFTER_MS_MAX:
                raise AfterTooFarError
            number = self._hello.coordinator if key is None else coordinator_for(key, self._hello.modulus)
            id = self._issue(number, low)
            if self._causal:
                self._last = id
            return id

    def _call(self, call: Call[_T]) -> _T:
        with self._lock:
            self._enter(call.method)
            return call.checked(self._memory.serve(call.method, call.params))

    def _enter(self, method: str) -> None:
        if self._closed:
            raise ClientClosedError
        self.calls.append(method)
        if self._failures:
            raise self._failures.pop(0)

    def _move_to(self, ms: int) -> None:
        whole_number(ms, "the fake's time", 0, 2**self.layout.ms_bits - 1)
        if ms > self._ms:
            self._ms = ms
            self._sequences.clear()

    def _next(self) -> int:
        self._last = self._issue(self._hello.coordinator, self._last)
        return self._last

    def _issue(self, coordinator: int, low: int) -> int:
        """The next id of `coordinator` that exceeds `low`, in a later millisecond if need be."""
        least = parse(low, self.layout)
        self._move_to(least.milliseconds)
        sequence = self._sequences.get(coordinator, -1) + 1
        if least.milliseconds == self._ms and least.coordinator == coordinator:
            sequence = max(sequence, least.sequence + 1)
        passed = least.milliseconds == self._ms and least.coordinator > coordinator
        if passed or sequence == self.layout.sequence_count:
            self._move_to(self._ms + 1)
            sequence = 0
        self._sequences[coordinator] = sequence
        return Scarab(self._ms, coordinator, sequence, self.layout).to_int()


class AsyncFakeClient(AsyncMethods):
    """A FakeClient with the methods of `libpharaoh.aio.AsyncClient`; `fake` is the FakeClient, for its controls.

    >>> async def main() -> int:
    ...     async with AsyncFakeClient(FakeClient(start=0)) as client:
    ...         return await client.next_id()
    >>> asyncio.run(main())
    1
    """

    def __init__(self, fake: FakeClient | None = None) -> None:
        self.fake = FakeClient() if fake is None else fake

    async def next_id(self) -> int:
        """As `FakeClient.next_id`."""
        return self.fake.next_id()

    async def next_ids(self, n: int) -> array.array[int]:
        """As `FakeClient.next_ids`."""
        return self.fake.next_ids(n)

    async def get_timestamp(self, key: str | bytes | None = None, *, after: int | None = None) -> int:
        """As `FakeClient.get_timestamp`."""
        return self.fake.get_timestamp(key, after=after)

    async def begin_transaction(self, key: str | bytes, *, after: int | None = None) -> int:
        """As `FakeClient.begin_transaction`."""
        return self.fake.begin_transaction(key, after=after)

    async def create_session(self, client_id: str | bytes, *, after: int | None = None) -> int:
        """As `FakeClient.create_session`."""
        return self.fake.create_session(client_id, after=after)

    async def next_event_id(self, table: str | bytes, *, after: int | None = None) -> int:
        """As `FakeClient.next_event_id`."""
        return self.fake.next_event_id(table, after=after)

    async def list_schemas(self, subject: str | bytes | None = None) -> list[SchemaVersion]:
        """As `FakeClient.list_schemas`."""
        return self.fake.list_schemas(subject)

    @property
    def hello(self) -> Hello:
        """As `FakeClient.hello`."""
        return self.fake.hello

    @property
    def layout(self) -> Layout:
        """As `FakeClient.layout`."""
        return self.fake.layout

    async def ping(self) -> None:
        """As `FakeClient.ping`."""
        self.fake.ping()

    async def stats(self) -> dict[str, Any]:
        """As `FakeClient.stats`."""
        return self.fake.stats()

    async def close(self) -> None:
        """As `FakeClient.close`."""
        self.fake.close()

    async def _call(self, call: Call[_T]) -> _T:
        return self.fake._call(call)  # noqa: SLF001 - two halves of one thing

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()


def _hello(layout: Layout, coordinator: int, modulus: int) -> Hello:
    return Hello("fake", layout, coordinator, modulus, tuple(range(modulus)), "/nonexistent", dict(_limits.HELLO))
