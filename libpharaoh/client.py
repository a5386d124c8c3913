"""The blocking client: ring first, socket when a ring cannot be had."""

from __future__ import annotations

import array
import os
import threading
from types import TracebackType
from typing import Any, Self

from libpharaoh._ring import id_buffer
from libpharaoh._session import Session
from libpharaoh._socket import Hello, checked_path
from libpharaoh.errors import InvalidArgumentError, KeyTooLongError, ProtocolViolationError
from libpharaoh.scarab import ID_MAX, Layout, key_bytes, whole_number

DEFAULT_SOCKET = "/run/pharaohd/rpc.sock"
IDS_PER_CALL_MAX = 2**24
MAX_AGE_MS_MAX = 10_000


def connect(
    path: str | os.PathLike[str] | None = None,
    *,
    name: str = "",
    timeout: float = 5.0,
    max_age_ms: int | None = None,
    rings: bool = True,
) -> Client:
    """Connects to the host's daemon.

    path: the daemon's socket; default PHARAOH_SOCKET from the environment, else /run/pharaohd/rpc.sock.
    name: shown by the daemon's tools.
    timeout: seconds that a call may wait in all, reconnecting included.
    max_age_ms: how old (1 to 10000) an id of `next_id` may be when it is handed out; default: the daemon's setting.
    rings: False forgoes shared memory and asks for everything over the socket.

    Raises ConnectFailedError when the daemon cannot be reached within the timeout, InvalidArgumentError.

    >>> import libpharaoh
    >>> with libpharaoh.connect() as client:        # doctest: +SKIP
    ...     print(libpharaoh.parse(client.next_id()))
    """
    session = new_session(path, name, timeout, max_age_ms, rings)
    session.connect()
    return Client(session)


class Client:
    """A client of the host's daemon, made by `connect`. Threads may share it; a forked child may go on using it.

    >>> client = libpharaoh.connect()               # doctest: +SKIP
    >>> client.next_id() < client.next_id()         # doctest: +SKIP
    True
    >>> client.close()                              # doctest: +SKIP
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def next_id(self) -> int:
        """A unique id, greater than every earlier one of this client; from shared memory when there is a ring.

        Raises a retryable error when the daemon does not answer in time; ClientClosedError after close().

        >>> client.next_id()                        # doctest: +SKIP
        408559031853465647
        """
        session = self._session
        id = session.pop()
        if id:
            # No lock: the interpreter changes threads at calls and loops only, so not between these two.
            if id > session.last:
                session.last = id
            return id
        return session.more_runs(1)[0][0]

    def next_ids(self, n: int) -> array.array[int]:
        """`n` (1 to 2**24) unique, increasing ids: an array('Q'), which NumPy and others read as a buffer of uint64.

        The timeout holds for each wait, not for the whole batch. Raises InvalidArgumentError and what next_id raises.

        >>> ids = client.next_ids(10_000)           # doctest: +SKIP
        >>> len(ids), memoryview(ids).format        # doctest: +SKIP
        (10000, 'Q')
        """
        whole_number(n, "n", 1, IDS_PER_CALL_MAX)
        ids = array.array("Q", bytes(8 * n))
        filled = 0
        with id_buffer(ids) as buffer:
            while True:
                taken = self._session.take(buffer + filled, n - filled)
                if taken:
                    filled += taken
                    self._session.note(ids[filled - 1])
                if filled == n:
                    return ids
                for first, count in self._session.more_runs(n - filled):
                    ids[filled : filled + count] = array.array("Q", range(first, first + count))
                    filled += count

    def get_timestamp(self, key: str | bytes | None = None, *, after: int | None = None) -> int:
        """An id that is issued now: if this call began after another one returned, its id is the greater one.

        That holds between all clients of the host for calls without a key, and between all clients of the cluster for
        calls with the same key. `after` is an id that the answer must exceed, for causal order across keys.

        Raises InvalidArgumentError, KeyTooLongError, AfterTooFarError, WrongCoordinatorError when another host owns
        the key, and retryable errors when no coordinator answers in time.

        >>> client.get_timestamp("orders") < client.get_timestamp("orders")     # doctest: +SKIP
        True
        """
        session = self._session
        raw = None if key is None else checked_key(key, session.hello)
        low = lowest(after, session.last)
        ring = session.strict_ring_at_hand(raw)
        if ring is not None:
            id = ring.strict(low, keyless=raw is None)
            if id:
                return session.note_elsewhere(id, ring)
        return session.timestamp(raw, low)

    def ping(self) -> None:
        """Returns when the daemon has answered. Raises what next_id raises.

        >>> client.ping()                           # doctest: +SKIP
        """
        checked_pong(self._session.call("ping", []))

    def stats(self) -> dict[str, Any]:
        """The daemon's figures, as in docs/protocol.md.

        >>> client.stats()["ids_ring"]              # doctest: +SKIP
        8192
        """
        return checked_stats(self._session.call("stats", []))

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

    def close(self) -> None:
        """Gives everything back; later calls raise ClientClosedError. May be called again.

        >>> client.close()                          # doctest: +SKIP
        """
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<libpharaoh.Client {self._session.path}{' closed' if self._session.closed else ''}>"


# What both clients, this one and aio's, make of arguments and replies.


def new_session(
    path: str | os.PathLike[str] | None, name: str, timeout: float, max_age_ms: int | None, rings: bool
) -> Session:
    """A session, not yet connected. Raises InvalidArgumentError."""
    checked = checked_path(path if path is not None else os.environ.get("PHARAOH_SOCKET") or DEFAULT_SOCKET)
    if not isinstance(name, str):
        raise InvalidArgumentError(f"name must be str, not {type(name).__name__}")
    if type(timeout) not in (int, float) or not 0 < timeout <= threading.TIMEOUT_MAX:
        raise InvalidArgumentError(f"timeout must be a positive number of seconds, not {timeout!r}")
    if max_age_ms is not None:
        whole_number(max_age_ms, "max_age_ms", 1, MAX_AGE_MS_MAX)
    return Session(checked, name, timeout, max_age_ms, rings)


def checked_key(key: str | bytes, hello: Hello) -> bytes:
    """The key's bytes. Raises InvalidArgumentError and KeyTooLongError."""
    raw = key_bytes(key)
    limit = hello.limits.get("key_bytes", len(raw))
    if len(raw) > limit:
        raise KeyTooLongError(f"{len(raw)} bytes, at most {limit}")
    return raw


def lowest(after: int | None, last: int) -> int:
    """What the next strict id must exceed. Raises InvalidArgumentError when `after` is no id."""
    return last if after is None else max(whole_number(after, "after", 0, ID_MAX), last)


def checked_pong(result: object) -> None:
    """Raises ProtocolViolationError when a ping was answered with anything but "pong"."""
    if result != "pong":
        raise ProtocolViolationError(f"ping was answered with {str(result):.100}")


def checked_stats(result: object) -> dict[str, Any]:
    """Raises ProtocolViolationError when the result is no map."""
    if not isinstance(result, dict):
        raise ProtocolViolationError(f"stats is a {type(result).__name__}, not a map")
    return result
