"""A blocking connection to one socket of the daemon: one exchange at a time, every wait bounded by a deadline.

Invariants
- One thread uses a connection at a time: the client that owns it sees to that.
- A connection that timed out, broke or received nonsense is closed for good, so that no late reply is ever taken for
  another request's.
- Only the process for which a connection is made connects it, writes to it and reads from it. A child of a fork
  that no hook has seen, in the middle of any call, leaves its parent's exchange alone.
"""

from __future__ import annotations

import errno
import os
import random
import select
import socket
import time
from dataclasses import dataclass
from typing import Any

from libpharaoh import _native
from libpharaoh._framing import MSGID_END, Reply, ReplyDecoder, encode_request
from libpharaoh.errors import (
    ConnectFailedError,
    ConnectionLostError,
    InvalidArgumentError,
    PharaohError,
    ProtocolViolationError,
    TimedOutError,
)
from libpharaoh.scarab import Layout

PROTOCOL = 1
SOCKET_PATH_BYTES_MAX = 107
SILENT_SECONDS = 1.0
"""How long a socket on which nobody answered is asked last."""
_PASSING = {errno.ECONNREFUSED, errno.ENOENT, errno.EAGAIN, errno.ECONNRESET, errno.EINTR}


class Backoff:
    """Pauses that grow from 1 ms to 50 ms, jittered so that many clients do not come back at once."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self._pause = 0.001

    def next_pause(self) -> float | None:
        """The seconds to sleep now, or None when the deadline (time.monotonic) would pass."""
        pause = self._pause * random.uniform(0.5, 1.5)
        self._pause = min(self._pause * 2, 0.05)
        return pause if time.monotonic() + pause < self.deadline else None

    def sleep(self) -> bool:
        """Pauses; False, without a pause, when the deadline would pass."""
        pause = self.next_pause()
        if pause is not None:
            time.sleep(pause)
        return pause is not None


def checked_path(path: str | os.PathLike[str]) -> str:
    """The path as str. Raises InvalidArgumentError when no Unix socket can have it."""
    text = os.fspath(path)
    if not isinstance(text, str) or not 0 < len(os.fsencode(text)) <= SOCKET_PATH_BYTES_MAX or "\0" in text:
        raise InvalidArgumentError(f"a socket's path is 1 to {SOCKET_PATH_BYTES_MAX} bytes of text, not {text!r}")
    return text


def passing(error: OSError) -> bool:
    """Whether a failed connect may succeed in a moment: the daemon restarts, or its backlog is full (EAGAIN)."""
    return error.errno in _PASSING or isinstance(error, TimeoutError)


@dataclass(frozen=True, slots=True)
class Hello:
    """What the daemon says of itself when a client connects."""

    server: str
    """The daemon's version."""
    layout: Layout
    coordinator: int
    """The coordinator at the other end of this connection."""
    modulus: int
    """How many coordinators the cluster has: `crc32(key) % modulus` serves a key."""
    coordinators: tuple[int, ...]
    """Those that this host owns."""
    endpoints: str
    """The directory of the coordinators' own sockets."""
    limits: dict[str, int]
    """frame_bytes, in_flight, ids_per_request, key_bytes, count_max, schema_bytes."""

    def endpoint(self, coordinator: int) -> str:
        """The path of one coordinator's own socket."""
        return os.path.join(self.endpoints, f"{coordinator:04d}.sock")


def parse_hello(result: Any) -> Hello:
    """Checks the result of `hello`. Raises ProtocolViolationError when it is not what protocol 1 says."""
    try:
        if result["protocol"] != PROTOCOL:
            raise ValueError(f"protocol {result['protocol']}")
        hello = Hello(
            server=str(result["server"]),
            layout=Layout.from_text(result["layout"], result["epoch_ms"]),
            coordinator=int(result["coordinator"]),
            modulus=int(result["modulus"]),
            coordinators=tuple(int(number) for number in result["coordinators"]),
            endpoints=str(result["endpoints"]),
            limits={str(name): int(value) for name, value in result["limits"].items()},
        )
        if not 1 <= hello.modulus <= 1024 or hello.limits["ids_per_request"] < 1:
            raise ValueError("modulus or ids_per_request out of range")
        return hello
    except (KeyError, TypeError, ValueError, AttributeError, InvalidArgumentError) as error:
        raise ProtocolViolationError(f"hello: {type(error).__name__}: {error}") from None


class Endpoints:
    """The sockets of one host's workers: the client's path, and once hello was answered the coordinators' own.

    Threads may share it without a lock.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._own: list[str] = []
        self._silent_until: dict[str, float] = {}

    def learn(self, hello: Hello) -> None:
        """Takes in which sockets there are. Each client has an order of its own: one dead worker's are to spread."""
        paths = [hello.endpoint(number) for number in hello.coordinators]
        if set(paths) != set(self._own):
            random.shuffle(paths)
            self._own = paths

    def to_ask(self) -> list[str]:
        """Where to connect, in budget: the path first, and whoever was silent within the last second at the end."""
        return sorted([self.path, *self._own], key=self.silent)

    def silent(self, path: str) -> bool:
        """Whether nobody answered there within the last second."""
        return self._silent_until.get(path, 0.0) > time.monotonic()

    def avoid(self, *paths: str) -> None:
        """Nobody answered there."""
        until = time.monotonic() + SILENT_SECONDS
        for path in paths:
            self._silent_until[path] = until


class Connection:
    """One connected socket. Made by `connect` or `attempt`."""

    def __init__(self, sock: socket.socket, path: str, process: int) -> None:
        self.path = path
        self._process = process
        self.answered_at = time.monotonic()
        """When the other end was last known to live."""
        self._socket = sock
        self._decoder = ReplyDecoder()
        self._msgid = 0
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN | select.POLLRDHUP)

    @classmethod
    def connect(cls, path: str, deadline: float) -> Connection:
        """Connects, with back-off while the daemon is absent or busy. Raises ConnectFailedError."""
        backoff = Backoff(deadline)
        while True:
            try:
                return cls.attempt(path)
            except OSError as error:
                if not passing(error) or not backoff.sleep():
                    raise ConnectFailedError(f"{path}: {error.strerror or error}") from None

    @classmethod
    def attempt(cls, path: str, process: int | None = None) -> Connection:
        """Connects at once, in the name of a process, or else this one. Raises OSError."""
        process = _native.process() if process is None else process
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            _native.connect(sock, os.fsencode(path), process)
            return cls(sock, path, process)
        except BaseException:
            sock.close()
            raise

    def hello(self, name: str, deadline: float) -> Hello:
        """Introduces this client. Raises ProtocolViolationError and what `request` raises; then it is closed."""
        try:
            return parse_hello(self.request("hello", [name, PROTOCOL], deadline))
        except PharaohError:
            self.close()
            raise

    def request(self, method: str, params: list[Any], deadline: float) -> Any:
        """One exchange. Raises the reply's error, TimedOutError, ConnectionLostError or ProtocolViolationError."""
        result, descriptors = self._exchange(method, params, deadline)
        if descriptors is not None:
            self.close()
            raise ProtocolViolationError(f"{method} came with {len(descriptors)} descriptors")
        return result

    def request_descriptors(
        self, method: str, params: list[Any], count: int, deadline: float
    ) -> tuple[Any, _native.Descriptors]:
        """One exchange whose reply carries `count` descriptors."""
        result, descriptors = self._exchange(method, params, deadline)
        if descriptors is None or len(descriptors) != count:
            self.close()
            raise ProtocolViolationError(f"{method} came with {len(descriptors or ())} descriptors, not {count}")
        return result, descriptors

    def hung_up(self) -> bool:
        """Whether the other end is gone: the sign of a worker's death. Between exchanges nothing may arrive."""
        return self.closed or bool(self._poll.poll(0))

    @property
    def closed(self) -> bool:
        return self._socket.fileno() < 0

    def close(self) -> None:
        """Closes this process's descriptor only: a forked child that closes leaves its parent's connection alone."""
        self._socket.close()

    def _exchange(self, method: str, params: list[Any], deadline: float) -> tuple[Any, _native.Descriptors | None]:
        if self.closed:
            raise ConnectionLostError(self.path)
        self._msgid = (self._msgid + 1) % MSGID_END
        try:
            _native.send(self._socket, encode_request(self._msgid, method, params), deadline, self._process)
            reply, descriptors = self._await_reply(method, deadline)
        except OSError as error:
            self.close()
            if isinstance(error, TimeoutError):
                raise TimedOutError(f"{method} on {self.path}") from None
            raise ConnectionLostError(f"{method} on {self.path}: {error.strerror or error}") from None
        except BaseException:  # a KeyboardInterrupt leaves a reply under way
            self.close()
            raise
        self.answered_at = time.monotonic()
        if reply.error is not None:
            raise reply.error
        return reply.result, descriptors

    def _await_reply(self, method: str, deadline: float) -> tuple[Reply, _native.Descriptors | None]:
        descriptors = None
        while True:
            data, came = _native.receive(self._socket, deadline, self._process)
            if not data:
                raise ConnectionLostError(f"{method} on {self.path}: closed by the daemon")
            descriptors = came if len(came) else descriptors
            replies = self._decoder.feed(data)
            if not replies:
                continue
            if len(replies) > 1 or replies[0].msgid != self._msgid:
                raise ProtocolViolationError(f"{method} was answered with replies to other requests")
            return replies[0], descriptors
