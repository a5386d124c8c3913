"""The connections and rings of one client, and the order of its ids.

Invariants
- A call returns an id greater than every id that a call which ended earlier on the same client returned, whatever path
  served either: `last` is the greatest so far, sent as `after` on strict requests, checked on socket replies, and the
  floor of the prefetching ring.
- The lock is held for every use of a connection and every change of rings: all methods run under it, except those that
  say otherwise. The fast paths take no Python lock: they use a ring that was current when they began, which costs at
  worst a trip through the slow path.
- A forked child closes what it inherited and never writes to it: see `abandon`.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from libpharaoh._native import Source
from libpharaoh._ring import Ring, fork_mark
from libpharaoh._socket import Backoff, Connection, Hello
from libpharaoh.errors import (
    ClientClosedError,
    ConnectFailedError,
    ConnectionLostError,
    PharaohError,
    ProtocolViolationError,
    RegressionError,
    TimedOutError,
)
from libpharaoh.scarab import ID_MAX, parse

if TYPE_CHECKING:
    from libpharaoh._core import IdBuffer

RINGS_MAX = 16
RING_RETRY_SECONDS = 1.0
_WAIT_SLICES_NS = (20_000_000, 20_000_000, 10_000_000)
_ATTACH_SECONDS_MAX = 0.03
"""A worker that is up answers far sooner, and other threads wait meanwhile."""
_T = TypeVar("_T")


class Session(Source):
    """What one `Client` holds. `connect` comes first."""

    hello: Hello
    take: Callable[[IdBuffer, int], int]
    """Writes up to so many ids of it; returns how many. Needs no lock."""
    _lock: threading.Lock
    _connection: Connection | None
    _ring: Ring | None
    _first: int
    """The coordinator to ask without a key, as far as known; -1 when there is no ring to ask."""
    _behind: bool
    """Whether the last id came from elsewhere, so that the ring's worker may not have reached its time yet."""

    def __init__(self, path: str, name: str, timeout: float, max_age_ms: int | None, rings: bool) -> None:
        self.path = path
        self._name, self._timeout, self._max_age_ms, self._rings_wanted = name, timeout, max_age_ms, rings
        self.closed = False
        self._start_anew()
        _sessions.add(self)

    def connect(self) -> None:
        """Connects and attaches. Takes the lock itself; on an error nothing stays open."""
        try:
            with self.slow_path() as deadline:
                self.retry(deadline, lambda: self._attached(deadline))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Gives everything back. Takes the lock itself."""
        if not self._mark[0]:
            self.abandon()  # the lock is the parent's, and may be held by a thread that is not in this child
        with self._lock:
            self.closed = True
            self._drop_all()

    @contextmanager
    def slow_path(self) -> Iterator[float]:
        """Takes the lock and yields the call's deadline."""
        deadline = time.monotonic() + self._timeout
        if not self._mark[0]:
            self.abandon()
        if not self._lock.acquire(timeout=self._timeout):
            raise TimedOutError("another thread's request is still under way")
        try:
            if self.closed:
                raise ClientClosedError
            yield deadline
        finally:
            self._lock.release()

    def retry(self, deadline: float, attempt: Callable[[], _T]) -> _T:
        """Repeats a request for as long as its error may pass. Every repetition gets new ids; the lost ones burn."""
        backoff = Backoff(deadline)
        told: PharaohError | None = None
        while True:
            try:
                return attempt()
            except PharaohError as error:
                if not passes(error) or not backoff.sleep():
                    raise telling(error, told) from None
                told = telling(error, told)

    def call(self, method: str, params: list[Any]) -> Any:
        """One request by socket. Takes the lock itself."""
        with self.slow_path() as deadline:
            return self.retry(deadline, lambda: self.ask(method, params, deadline))

    def ask(self, method: str, params: list[Any], deadline: float) -> Any:
        """One exchange over the main connection."""
        return self._connected(deadline).request(method, params, self._patience(deadline))

    def _patience(self, deadline: float) -> float:
        """One exchange gets a third of the timeout: a worker that hangs leaves time to ask another one."""
        return min(deadline, time.monotonic() + self._timeout / 3)

    def _connected(self, deadline: float) -> Connection:
        if self._connection is not None and not self._connection.hung_up():
            return self._connection
        self._drop_main()
        connection = Connection.connect(self.path, deadline)
        self.hello = connection.hello(self._name, self._patience(deadline))
        self._connection = connection
        return connection

    def _attached(self, deadline: float) -> Ring | None:
        """The prefetching ring; None when it cannot be had at the moment."""
        connection = self._connected(deadline)
        if self._ring is not None or not self.ring_may_be_had():
            return self._ring
        try:
            ring = Ring.attach(connection, self._name, self._max_age_ms, self._patience(deadline))
        except (ConnectionLostError, TimedOutError):
            raise
        except PharaohError:
            self._ring_retry_at = time.monotonic() + RING_RETRY_SECONDS
            return None
        self._keep(ring)
        # In this order: an id noted meanwhile finds the ring and raises its floor, or is seen here in `last`.
        self._ring, self._first = ring, ring.coordinator
        self._behind = self.last > 0
        ring.raise_floor(self.last)
        self.draw_from(ring.address, ring)
        self.take = ring.take
        return ring

    def ring_may_be_had(self) -> bool:
        """Whether a ring is there or worth asking for. Needs no lock."""
        return self._ring is not None or (self._rings_wanted and time.monotonic() >= self._ring_retry_at)

    def _runs_once(self, count: int, deadline: float) -> list[tuple[int, int]]:
        """At least one id and at most `count`, as runs (first id, how many)."""
        ring = self._attached(deadline)
        if ring is not None:
            id = self._await_grant(ring)
            if id:
                self.note(id)
                return [(id, 1)]
            if ring.lost():
                self._drop_main()
                raise ConnectionLostError(f"the ring of coordinator {ring.coordinator}")
        before = self.last
        runs = self._runs_by_socket(count, deadline)
        if runs[0][0] <= before:  # this worker's clock is behind the one that issued `last`
            runs = [(checked_id(self.ask("get_timestamp", [None, before], deadline)), 1)]
        self.accept(runs, before)
        return runs

    def more_runs(self, count: int) -> list[tuple[int, int]]:
        """As `_runs_once`, with the lock and the retries."""
        with self.slow_path() as deadline:
            return self.retry(deadline, lambda: self._runs_once(count, deadline))

    def _await_grant(self, ring: Ring) -> int:
        """An id from an empty ring, or 0 when none came within about 50 ms."""
        if self._behind:
            # The last id came from elsewhere: tell this worker, or it may not reach that time for a while.
            self._behind = False
            id = ring.strict(self.last)
            if id:
                return id
        for slice_ns in _WAIT_SLICES_NS:
            ring.wait(slice_ns)
            id = self.pop()
            if id or ring.lost():
                return id
        return 0

    def _runs_by_socket(self, count: int, deadline: float) -> list[tuple[int, int]]:
        if count == 1:
            return [(checked_id(self.ask("next_id", [], deadline)), 1)]
        asked = min(count, self.hello.limits["ids_per_request"])
        return checked_runs(self.ask("next_ids", [asked], deadline), asked)

    def strict(self, method: str, key: bytes | None, after: int) -> int:
        """A strict id greater than `after`; `method` names the kind when the socket is asked. Takes the lock itself."""
        with self.slow_path() as deadline:
            return self.retry(deadline, lambda: self._strict_once(method, key, after, deadline))

    def _strict_once(self, method: str, key: bytes | None, after: int, deadline: float) -> int:
        """A strict id: by its coordinator's ring, else by the socket, whose worker knows where to forward it."""
        ring = self._strict_ring(key, deadline)
        if ring is not None:
            id = ring.strict(after, keyless=key is None)
            if id:
                return self.note_elsewhere(id, ring)
        id = checked_id(self.ask(method, [key, after or None], deadline))
        self.accept([(id, 1)], after)
        if key is not None:
            self._leave_silent_ring(self._number(key), parse(id, self.hello.layout).coordinator)
        return id

    def _leave_silent_ring(self, number: int, server: int) -> None:
        """Another coordinator serves: its own ring, if it has not hung up, would be waited for in each call."""
        ring = self._rings.get(number)
        if server != number and ring is not None and ring is not self._ring:
            self._forget(ring)
            self._strict_retry_at[number] = time.monotonic() + RING_RETRY_SECONDS

    def _strict_ring(self, key: bytes | None, deadline: float) -> Ring | None:
        """A ring for a strict request that has not just failed; None when the socket has to serve."""
        self._attached(deadline)
        ring = self._rings.get(self._number(key))
        moved_to = ring.moved_to() if ring is not None and key is None else None
        if ring is not None and ring.lost():
            self._forget(ring)
            self._attached(deadline)
        elif moved_to in self.hello.coordinators:
            self._first = moved_to
        elif ring is not None:
            return None
        number = self._number(key)
        return self._rings.get(number) or self._attach_strict(number, deadline)

    def _number(self, key: bytes | None) -> int:
        """The coordinator that serves `key`; for None the host's first one, as far as known."""
        return self._first if key is None else zlib.crc32(key) % self.hello.modulus

    def strict_ring_at_hand(self, key: bytes | None) -> Ring | None:
        """The ring for a strict request, if it is there already. Needs no lock."""
        return self._rings.get(self._number(key))

    def _attach_strict(self, number: int, deadline: float) -> Ring | None:
        """A ring over the coordinator's own socket; None when it cannot be had."""
        now = time.monotonic()
        if (
            not self._rings_wanted
            or number not in self.hello.coordinators
            or len(self._rings) >= RINGS_MAX
            or now < self._strict_retry_at.get(number, 0.0)
        ):
            return None
        soon = min(deadline, now + _ATTACH_SECONDS_MAX)
        try:
            connection = Connection.connect(self.hello.endpoint(number), soon)
            try:
                ring = Ring.attach(connection, self._name, self._max_age_ms, soon)
                if ring.coordinator != number:
                    raise ProtocolViolationError(f"coordinator {ring.coordinator} answered for {number}")
            except BaseException:
                connection.close()
                raise
        except PharaohError:
            self._strict_retry_at[number] = now + RING_RETRY_SECONDS
            return None
        self._keep(ring)
        return ring

    # --- the order of this client's ids

    def note(self, id: int) -> None:
        """Remembers the greatest id. Needs no lock: see next_id."""
        if id > self.last:
            self.last = id

    def note_elsewhere(self, id: int, ring: Ring | None) -> int:
        """Remembers an id that did not come out of the prefetching ring, whose older ids burn. Needs no lock."""
        self.note(id)
        main = self._ring
        if main is not None and main is not ring:
            main.raise_floor(id)
            self._behind = True
        return id

    def accept(self, runs: list[tuple[int, int]], before: int) -> None:
        """Takes ids that came by socket; `before` is the last id before they were asked for. Needs no lock."""
        if runs[0][0] <= before:
            raise RegressionError(f"{runs[0][0]} after {before}")
        self.note_elsewhere(runs[-1][0] + runs[-1][1] - 1, None)

    # --- letting go

    def _start_anew(self) -> None:
        """The state of a client that has no connection."""
        self._lock = threading.Lock()
        self._mark = fork_mark()
        self._connection = None
        self._rings: dict[int, Ring] = {}
        self._strict_retry_at: dict[int, float] = {}
        self._ring_retry_at = 0.0
        self._first = -1
        self._forget_main_ring()

    def _forget_main_ring(self) -> None:
        self._ring = None
        self.draw_from(0, None)
        self.take = _no_ids
        self._behind = False

    def _keep(self, ring: Ring) -> None:
        """Files a ring under its coordinator, in place of an older one."""
        older = self._rings.get(ring.coordinator)
        if older is not None:
            self._forget(older)
        self._rings[ring.coordinator] = ring

    def _forget(self, ring: Ring) -> None:
        if self._rings.get(ring.coordinator) is ring:
            del self._rings[ring.coordinator]
        if ring is self._ring:
            self._drop_main()
        else:
            ring.connection.close()
            self._first = self._ring.coordinator if self._ring is not None else -1

    def _drop_main(self) -> None:
        """Lets the main connection go, and the ring that hangs on it."""
        ring, connection = self._ring, self._connection
        self._forget_main_ring()
        self._connection = None
        if ring is not None and self._rings.get(ring.coordinator) is ring:
            del self._rings[ring.coordinator]
        if connection is not None:
            connection.close()

    def _drop_all(self) -> None:
        self._drop_main()
        for ring in list(self._rings.values()):
            self._forget(ring)

    def abandon(self) -> None:
        """In a forked child: closes what is the parent's, without a word to the daemon, and starts anew."""
        self._drop_all()
        self._start_anew()


def passes(error: PharaohError) -> bool:
    """Whether asking this host again may help. A connect has used up its time by itself."""
    return error.retryable and not isinstance(error, ConnectFailedError)


def telling(error: PharaohError, before: PharaohError | None) -> PharaohError:
    """Of two failed attempts, what the caller should hear: a last one cut short must not hide what the daemon said."""
    return before if before is not None and isinstance(error, TimedOutError) else error


def checked_id(result: object) -> int:
    """The id of a reply. Raises ProtocolViolationError when it is none."""
    if type(result) is not int or not 0 < result <= ID_MAX:
        raise ProtocolViolationError(f"an id was expected, not {str(result):.100}")
    return result


def checked_runs(result: object, asked: int) -> list[tuple[int, int]]:
    """The runs of a next_ids reply: increasing, not empty, not more than asked for. Raises ProtocolViolationError."""
    try:
        runs: list[tuple[int, int]] = [(first, count) for first, count in result]  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        runs = []
    end = total = 0
    for first, count in runs:
        if type(first) is not int or type(count) is not int or count < 1 or first < max(end, 1):
            raise ProtocolViolationError("next_ids was not answered with increasing runs")
        end, total = first + count, total + count
    if not 0 < total <= asked or end > ID_MAX + 1:
        raise ProtocolViolationError(f"next_ids was answered with {total} ids instead of {asked}")
    return runs


def _no_ids(_buffer: IdBuffer, _count: int) -> int:
    return 0


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for session in list(_sessions):
        session.abandon()


os.register_at_fork(after_in_child=_after_fork_in_child)
