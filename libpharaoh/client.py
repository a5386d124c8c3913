"""The blocking client: ring first, socket when a ring cannot be had."""

from __future__ import annotations

import array
import os
import threading
from types import TracebackType
from typing import Self, TypeVar

from libpharaoh import _calls, _native
from libpharaoh._calls import Call, SchemaVersion, checked_key
from libpharaoh._limits import MAX_AGE_MS
from libpharaoh._methods import Methods
from libpharaoh._native import guarded
from libpharaoh._ring import STRICT_SLICE_NS
from libpharaoh._session import Session
from libpharaoh._socket import Hello, checked_path
from libpharaoh.errors import InvalidArgumentError
from libpharaoh.scarab import Layout, whole_number

DEFAULT_SOCKET = "/run/pharaohd/rpc.sock"
IDS_PER_CALL_MAX = 2**24
_ONE = array.array("Q", (0,))
_T = TypeVar("_T")


@guarded
def connect(
    path: str | os.PathLike[str] | None = None,
    *,
    name: str = "",
    timeout: float = 5.0,
    max_age_ms: int | None = None,
    rings: bool = True,
    causal: bool = False,
) -> Client:
    """Connects to the host's daemon.

    path: the daemon's socket; default PHARAOH_SOCKET from the environment, else /run/pharaohd/rpc.sock.
    name: shown by the daemon's tools.
    timeout: seconds that a call may wait in all, reconnecting included.
    max_age_ms: how old (1 to 10000) an id of `next_id` may be when it is handed out; default: the daemon's setting.
    rings: False forgoes shared memory and asks for everything over the socket.
    causal: True makes one order of all ids of this client. Every id is then greater than every id that a call of any
        method and any key returned earlier on this client. Without it, ids of `next_id` and `next_ids` rise among
        themselves, and ids of strict calls (`get_timestamp` and its kin) rise per key, or without a key; between these
        nothing is promised unless the caller passes `after`. The order costs up to a millisecond for each step from a
        higher coordinator to a lower one, and what has been prefetched for each strict id.

    Raises ConnectFailedError when the daemon cannot be reached within the timeout, InvalidArgumentError.

    >>> import libpharaoh
    >>> with libpharaoh.connect() as client:        # doctest: +SKIP
    ...     print(libpharaoh.parse(client.next_id()))
    """
    session = new_session(path, name, timeout, max_age_ms, rings, causal)
    session.connect()
    return Client(session)


class Client(_native.Client, Methods):
    """A client of the host's daemon, made by `connect`. Threads may share it; a forked child may go on using it.

    A signal's handler may raise, or fork, in the middle of any call. Parent and child never return the same value: in
    the child the call begins again, so that a dense one without a token may leave a gap. A handler that itself uses the
    client in the middle of a call of its thread may get ClientBusyError; `close` takes effect when that call ends.

    >>> client = libpharaoh.connect()               # doctest: +SKIP
    >>> client.next_id() < client.next_id()         # doctest: +SKIP
    True
    >>> client.close()                              # doctest: +SKIP
    """

    _session: Session
    """Set by the base, as `next_id` is its method."""

    @guarded
    def next_ids(self, n: int) -> array.array[int]:
        """`n` (1 to 2**24) unique, increasing ids: an array('Q'), which NumPy and others read as a buffer of uint64.

        They are greater than all that `next_id` and `next_ids` returned before.

        The timeout holds for each wait, not for the whole batch. Raises InvalidArgumentError and what next_id raises.

        >>> ids = client.next_ids(10_000)           # doctest: +SKIP
        >>> len(ids), memoryview(ids).format        # doctest: +SKIP
        (10000, 'Q')
        """
        whole_number(n, "n", 1, IDS_PER_CALL_MAX)
        ids = _ONE * n  # array("Q", bytes(8 * n)) writes all of it twice
        filled = self._session.take(ids, 0)
        while filled < n:
            for first, count in self._session.more_runs(n - filled):
                ids[filled : filled + count] = array.array("Q", range(first, first + count))
                filled += count
            filled += self._session.take(ids, filled)
        return ids

    @guarded
    def get_timestamp(self, key: str | bytes | None = None, *, after: int | None = None) -> int:
        """An id that is issued now: if this call began after another one returned, its id is the greater one.

        That holds between all clients of the host for calls without a key, and between all clients of the cluster for
        calls with the same key, also when another coordinator stands in for the key's own. It does not hold between
        different keys, nor between these ids and those of `next_id`. For that there is `after`, an id that the answer
        must exceed; `connect(causal=True)` passes the client's last one with every call. An `after` in the future is
        waited for; one beyond the daemon's `clock.after_ms_max` is refused.

        Raises InvalidArgumentError, KeyTooLongError, AfterTooFarError, WrongCoordinatorError when another host owns
        the key, and retryable errors when no coordinator answers in time.

        >>> client.get_timestamp("orders") < client.get_timestamp("orders")     # doctest: +SKIP
        True
        """
        return self._strict("get_timestamp", None if key is None else checked_key(key, self._session.hello), after)

    @guarded
    def begin_transaction(self, key: str | bytes, *, after: int | None = None) -> int:
        """A transaction's id, issued now by the key's coordinator: `get_timestamp` with a key, and its promises.

        >>> start = client.begin_transaction("accounts")            # doctest: +SKIP
        >>> client.get_timestamp("accounts", after=start) > start   # doctest: +SKIP
        True
        """
        return self._strict("begin_transaction", checked_key(key, self._session.hello), after)

    @guarded
    def create_session(self, client_id: str | bytes, *, after: int | None = None) -> int:
        """The id of a new session of `client_id`, greater than those of its earlier ones; as `begin_transaction`.

        With it requests for dense values are told from their retries: see `assign_offset`.

        >>> session = client.create_session("billing-1")            # doctest: +SKIP
        >>> client.assign_offset("orders-7", token=(session, 0, "billing-1"))   # doctest: +SKIP
        1041
        """
        return self._strict("create_session", checked_key(client_id, self._session.hello), after)

    @guarded
    def next_event_id(self, table: str | bytes, *, after: int | None = None) -> int:
        """An id for a change to `table`, greater than those of its earlier changes; as `begin_transaction`.

        >>> event = client.next_event_id("orders")                  # doctest: +SKIP
        >>> client.next_event_id("orders", after=event) > event     # doctest: +SKIP
        True
        """
        return self._strict("next_event_id", checked_key(table, self._session.hello), after)

    @guarded
    def list_schemas(self, subject: str | bytes | None = None) -> list[SchemaVersion]:
        """The versions of a subject's schemas, or those of all subjects of this host, by subject and version.

        The timeout holds for each page of the list. Raises what register_schema raises.

        >>> client.list_schemas("orders-value")                     # doctest: +SKIP
        [SchemaVersion(subject='orders-value', version=1, id=9, type='json')]
        """
        rows: list[SchemaVersion] = []
        more = True
        while more:
            page, more = self._call(_calls.schemas_page(subject, rows, self._session.hello))
            rows += page
        return rows

    @property
    def hello(self) -> Hello:
        """What the daemon said of itself: server, layout, modulus, coordinators, limits.

        >>> client.hello.coordinators               # doctest: +SKIP
        (0, 1, 2, 3)
        """
        return self._session.hello

    @property
    def layout(self) -> Layout:
        """How this daemon's ids are split, for `parse` and `compose`.

        >>> libpharaoh.parse(client.next_id(), client.layout).datetime          # doctest: +SKIP
        """
        return self._session.hello.layout

    @guarded
    def close(self) -> None:
        """Gives everything back; later calls raise ClientClosedError. May be called again.

        >>> client.close()                          # doctest: +SKIP
        """
        self._session.close()

    def _next_id_slowly(self) -> int:
        """For the base: the next id when the ring at hand has none."""
        return self._session.more_runs(1)[0][0]

    def _strict(self, method: str, key: bytes | None, after: int | None) -> int:
        """An id issued now, by the ring if that is at hand."""
        session = self._session
        low = session.after(after)
        ring = session.ring_at_hand
        if ring is not None:
            id = ring.strict(session.owner(key), low, STRICT_SLICE_NS)
            if id:
                return session.note_strict(id)
        return session.strict(method, key, low)

    def _call(self, call: Call[_T]) -> _T:
        return call.checked(self._session.call(call.method, call.params))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<libpharaoh.Client {self._session.path}{' closed' if self._session.closed else ''}>"


def new_session(
    path: str | os.PathLike[str] | None, name: str, timeout: float, max_age_ms: int | None, rings: bool, causal: bool
) -> Session:
    """A session, not yet connected. Raises InvalidArgumentError."""
    checked = checked_path(path if path is not None else os.environ.get("PHARAOH_SOCKET") or DEFAULT_SOCKET)
    if not isinstance(name, str):
        raise InvalidArgumentError(f"name must be str, not {type(name).__name__}")
    if type(timeout) not in (int, float) or not 0 < timeout <= threading.TIMEOUT_MAX:
        raise InvalidArgumentError(f"timeout must be a positive number of seconds, not {timeout!r}")
    if max_age_ms is not None:
        whole_number(max_age_ms, "max_age_ms", 1, MAX_AGE_MS)
    return Session(checked, name, timeout, max_age_ms, bool(rings), bool(causal))
