"""The connection and the ring of one client, and the order of its ids.

Invariants
- `next_id` and `next_ids` return ids greater than every id that such a call which ended earlier on the same client
  returned, whatever path served either: `last` is the greatest so far, checked on socket replies, and the floor of each
  new prefetching ring.
- A strict id exceeds the `after` of its call, and nothing else that this client has got. It leaves `last` and the ring
  alone. In a causal client it counts as `next_id`'s do, and `last` is part of each `after`: one order of everything.
- A request whose repetition does no harm never waits long for one worker while another one may answer: see `retry`.
- The lock is held for every use of the connection and every change of the ring: all methods run under it, except those
  that say otherwise. The fast paths take no lock: they use a ring that was current when they began, which costs a trip
  through the slow path at worst.
- Between any two bytecodes a signal's handler may raise an exception, or fork. So the lock is taken and given back in C
  (csrc/native_source.c), and every socket, descriptor and mapping belongs to an object that gives it back. After such
  an exception, as in a child, the next call begins with `_tidy`, which can itself be interrupted and repeated.
- A forked child closes what it inherited and never writes to it.
"""

from __future__ import annotations

import math
import os
import time
import weakref
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from libpharaoh._calls import lowest
from libpharaoh._native import Source
from libpharaoh._ring import STRICT_SLICE_NS, Ring
from libpharaoh._socket import Backoff, Connection, Endpoints, Hello, passing
from libpharaoh.errors import (
    ClientBusyError,
    ClientClosedError,
    ConnectFailedError,
    ConnectionLostError,
    PharaohError,
    ProtocolViolationError,
    RegressionError,
    TimedOutError,
)
from libpharaoh.scarab import ID_MAX, parse

RING_RETRY_SECONDS = 1.0
_WAIT_SLICES_NS = (20_000_000, 20_000_000, 10_000_000)
ATTEMPT_SECONDS = 0.1
"""How long somebody may be silent before another worker is asked; doubled with each attempt."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class TimeBudget:
    """One attempt at a request: when the call ends, and how many seconds one exchange may take."""

    deadline: float
    attempt_s: float

    def until(self) -> float:
        """When an exchange that begins now is given up."""
        return min(self.deadline, time.monotonic() + self.attempt_s)


class Session(Source):
    """What one `Client` holds. `connect` comes first."""

    hello: Hello

    def __init__(self, path: str, name: str, timeout: float, max_age_ms: int | None, rings: bool, causal: bool) -> None:
        self.path, self.causal, self.timeout = path, causal, timeout
        self._name, self._max_age_ms, self._rings_wanted = name, max_age_ms, rings
        self.endpoints = Endpoints(path)
        self._connection: Connection | None = None
        self.ring_at_hand: Ring | None = None
        """Whoever reads it needs no lock: one that is let go meanwhile gives nothing any more."""
        self._ring_retry_at = 0.0
        self._first = -1
        """The coordinator that owns requests without a key, for whoever looks on; -1 when there is none."""
        self._behind = False
        """Whether the last id did not come out of the ring, which may not have reached that time yet."""
        _sessions.add(self)

    def connect(self) -> None:
        """Connects and attaches. Takes the lock itself; on an error nothing stays open."""
        try:
            self.slowly(self._attached)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Gives everything back. Takes the lock itself: a call that has it gives everything back when it ends."""
        self.closed = True
        try:
            self.locked(_do_nothing)
        except (ClientBusyError, TimedOutError):
            pass

    def slowly(self, attempt: Callable[[TimeBudget], _T]) -> _T:
        """Takes the lock and tries until the call's time is over."""
        return self.locked(self._try, attempt)

    def _try(self, attempt: Callable[[TimeBudget], _T], deadline: float = math.inf) -> _T:
        if self.closed:
            raise ClientClosedError
        return self.retry(min(deadline, self.deadline), attempt)

    def retry(self, deadline: float, attempt: Callable[[TimeBudget], _T]) -> _T:
        """Repeats a request for as long as its error may pass. Every repetition gets new ids; the lost ones burn.

        Each attempt has twice the time of the one before: little while another worker may answer at once, and in
        the end enough for one that has reason to be slow.
        """
        backoff = Backoff(deadline)
        told: PharaohError | None = None
        attempt_s = ATTEMPT_SECONDS
        while True:
            try:
                return attempt(TimeBudget(deadline, attempt_s))
            except PharaohError as error:
                if not is_retriable(error) or not backoff.sleep():
                    raise pick_error(error, told) from None
                told = pick_error(error, told)
                attempt_s *= 2

    def call(self, method: str, params: list[Any]) -> Any:
        """One request by socket that a slow disk may hold up. Takes the lock itself.

        It is sent to a worker that answered a moment ago, and then gets a third of the timeout, for without a token its
        repetition would leave a gap.
        """

        def attempt(budget: TimeBudget) -> Any:
            if time.monotonic() - self._connected(budget).answered_at > ATTEMPT_SECONDS:
                self.ask("ping", [], budget)
            return self.ask(method, params, TimeBudget(budget.deadline, self.timeout / 3))

        return self.slowly(attempt)

    def ask(self, method: str, params: list[Any], budget: TimeBudget) -> Any:
        """One exchange over the main connection. Who is silent is not asked again soon."""
        connection = self._connected(budget)
        try:
            return connection.request(method, params, budget.until())
        except TimedOutError:
            self.endpoints.avoid(connection.path, self.hello.endpoint(self.hello.coordinator))
            raise

    def _connected(self, budget: TimeBudget) -> Connection:
        """The main connection, made anew if need be: to whoever answers first."""
        if self._connection is not None and not self._connection.hung_up():
            return self._connection
        self._drop_main()
        backoff, attempt_s = Backoff(budget.deadline), ATTEMPT_SECONDS
        while True:
            failures: list[PharaohError] = []
            for path in self.endpoints.to_ask():
                try:
                    return self._greeted(path, TimeBudget(budget.deadline, attempt_s).until())
                except (ConnectionLostError, TimedOutError) as error:
                    failures.append(error)
                except OSError as error:
                    failures.append(ConnectFailedError(f"{path}: {error.strerror or error}"))
                    if path == self.path and not passing(error):
                        raise failures[-1] from None
            attempt_s *= 2
            if not backoff.sleep():
                raise failures[0]

    def _greeted(self, path: str, deadline: float) -> Connection:
        """The main connection over this path. Raises OSError when it cannot be had, and what `hello` raises."""
        connection = Connection.attempt(path, self.caller)
        try:
            self.hello = connection.hello(self._name, deadline)
        except TimedOutError:
            self.endpoints.avoid(path)
            raise
        self.endpoints.learn(self.hello)
        self._first = min(self.hello.coordinators, default=-1)
        self._connection = connection
        return connection

    def _attached(self, budget: TimeBudget) -> Ring | None:
        """The prefetching ring; None when it cannot be had at the moment."""
        connection = self._connected(budget)
        if self.ring_at_hand is not None or not self.ring_may_be_had():
            return self.ring_at_hand
        try:
            ring = Ring.attach(connection, self._name, self._max_age_ms, budget.until())
        except TimedOutError:
            self.endpoints.avoid(connection.path)
            raise
        except ConnectionLostError:
            raise
        except PharaohError:
            self._ring_retry_at = time.monotonic() + RING_RETRY_SECONDS
            return None
        # In this order: an id noted meanwhile finds the ring and raises its floor, or is seen here in `last`.
        self.ring_at_hand = ring
        self._behind = self.last > 0
        ring.raise_floor(self.last)
        self.draw_from(ring)
        return ring

    def ring_may_be_had(self) -> bool:
        """Whether a ring is there or worth asking for. Needs no lock."""
        return self.ring_at_hand is not None or (self._rings_wanted and time.monotonic() >= self._ring_retry_at)

    def _runs_once(self, count: int, budget: TimeBudget) -> list[tuple[int, int]]:
        """At least one id and at most `count`, as runs (first id, how many)."""
        ring = self._attached(budget)
        if ring is not None:
            id = self._await_grant(ring)
            if id:
                self.note(id)
                return [(id, 1)]
            if ring.lost():
                self._drop_main()
                raise ConnectionLostError(f"the ring of coordinator {ring.coordinator}")
        before = self.last
        runs = self._runs_by_socket(count, budget)
        if runs[0][0] <= before:  # it comes from a lower coordinator than `last` did, within the same millisecond
            runs = [(checked_id(self.ask("get_timestamp", [None, before], budget)), 1)]
        self.accept(runs, before)
        return runs

    def more_runs(self, count: int) -> list[tuple[int, int]]:
        """As `_runs_once`, with the lock and the retries."""
        return self.slowly(lambda budget: self._runs_once(count, budget))

    def one_more(self, deadline: float) -> int:
        """One id, by `deadline` at the latest: for a call that has waited elsewhere before."""
        return self.locked(self._try, lambda budget: self._runs_once(1, budget), deadline)[0][0]

    def _await_grant(self, ring: Ring) -> int:
        """An id from an empty ring, or 0 when none came within about 50 ms."""
        if self._behind:
            # Grants may still be below the last id for a while: this one is issued above it.
            self._behind = False
            id = ring.strict(ring.coordinator, self.last, STRICT_SLICE_NS)
            if id:
                ring.raise_floor(id)
                return id
        for slice_ns in _WAIT_SLICES_NS:
            ring.wait(slice_ns)
            id = self.pop()
            if id or ring.lost():
                return id
        return 0

    def _runs_by_socket(self, count: int, budget: TimeBudget) -> list[tuple[int, int]]:
        if count == 1:
            return [(checked_id(self.ask("next_id", [], budget)), 1)]
        asked = min(count, self.hello.limits["ids_per_request"])
        return checked_runs(self.ask("next_ids", [asked], budget), asked)

    def strict(self, method: str, key: bytes | None, after: int) -> int:
        """A strict id greater than `after`; `method` names the kind when the socket is asked. Takes the lock itself."""
        return self.slowly(lambda budget: self._strict_once(method, key, after, budget))

    def _strict_once(self, method: str, key: bytes | None, after: int, budget: TimeBudget) -> int:
        """A strict id: by the ring if it is a new one, else by the socket, whose worker knows where to forward it."""
        tried = self.ring_at_hand
        if tried is not None and tried.lost():
            self._drop_main()
        ring = self._attached(budget)
        if ring is not None and ring is not tried:
            id = ring.strict(self.owner(key), after, STRICT_SLICE_NS)
            if id:
                return self.note_strict(id)
        return self.accept_strict(self.ask(method, [key, after or None], self.turn_for(after, budget)), after)

    def owner(self, key: bytes | None) -> int | None:
        """The coordinator that owns `key`; None without a key: the worker knows. Needs no lock."""
        return None if key is None else zlib.crc32(key) % self.hello.modulus

    # --- the order of this client's ids

    def note_elsewhere(self, id: int) -> None:
        """Remembers an id that did not come out of the prefetching ring, whose older ids burn. Needs no lock."""
        self.note(id)
        ring = self.ring_at_hand
        if ring is not None:
            ring.raise_floor(id)
            self._behind = True

    def accept(self, runs: list[tuple[int, int]], before: int) -> None:
        """Takes ids of next_id by socket; `before` is the last id before they were asked for. Needs no lock."""
        if runs[0][0] <= before:
            raise RegressionError(f"{runs[0][0]} after {before}")
        self.note_elsewhere(runs[-1][0] + runs[-1][1] - 1)

    def after(self, after: int | None) -> int:
        """What the next strict id must exceed when its caller said this. Raises InvalidArgumentError. Needs no lock."""
        return lowest(after, self.last if self.causal else 0)

    def turn_for(self, after: int, budget: TimeBudget) -> TimeBudget:
        """With the time that the daemon's clock needs to pass `after`: who waits is not silent. Needs no lock."""
        ahead = parse(after, self.hello.layout).unix_ms / 1000 - time.time()
        return TimeBudget(budget.deadline, budget.attempt_s + min(max(ahead, 0.0), self.timeout))

    def note_strict(self, id: int) -> int:
        """Takes a strict id, which only in a causal client is part of the order of the others. Needs no lock."""
        if self.causal:
            self.note_elsewhere(id)
        return id

    def accept_strict(self, result: object, after: int) -> int:
        """The strict id of a reply. Raises ProtocolViolationError and RegressionError. Needs no lock."""
        id = checked_id(result)
        if id <= after:
            raise RegressionError(f"{id} after {after}")
        return self.note_strict(id)

    # --- letting go

    def _tidy(self) -> None:
        """Lets everything go, whatever state it is in. Called in C; whatever interrupts it, it is called again."""
        self.draw_from(None)
        if self._connection is not None:
            self._connection.close()
        if self.ring_at_hand is not None:
            _close(self.ring_at_hand)
        self._connection = self.ring_at_hand = None
        self._ring_retry_at = 0.0
        self._behind = False

    def _drop_main(self) -> None:
        """Lets the main connection go, and the ring that hangs on it."""
        ring, connection = self.ring_at_hand, self._connection
        self.draw_from(None)
        self._connection = self.ring_at_hand = None
        self._behind = False
        if ring is not None:
            _close(ring)
        if connection is not None:
            connection.close()


def is_retriable(error: PharaohError) -> bool:
    """Whether asking this host again may help. A connect has used up its time by itself."""
    return error.retryable and not isinstance(error, ConnectFailedError)


def pick_error(error: PharaohError, before: PharaohError | None) -> PharaohError:
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


def _do_nothing() -> None:
    pass


def _close(ring: Ring) -> None:
    ring.connection.close()
    ring.close()


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for session in list(_sessions):
        session.locked(_do_nothing)  # which begins by letting go of what is the parent's


os.register_at_fork(after_in_child=_after_fork_in_child)
