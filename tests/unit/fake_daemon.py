"""A small threaded daemon that speaks the wire, and misbehaves on request: for tests of the clients alone.

It issues from its own counters, keeps no state over a restart (but goes on above what it issued, as a daemon would),
counts densely as the fake client does, and fills rings with plain stores, which is enough between two threads of one
process on x86 and ARM under the GIL.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import mmap
import os
import re
import socket
import struct
import threading
import time
import zlib
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import msgpack

from libpharaoh._memory import Memory
from libpharaoh._socket import parse_hello
from libpharaoh.errors import PharaohError
from libpharaoh.scarab import DEFAULT_LAYOUT, compose, parse

FUTEX_SYSCALL = {"x86_64": 202, "aarch64": 98}[os.uname().machine]
FUTEX_WAKE = 1
F_ADD_SEALS, F_SEAL_SHRINK = 1033, 2
GRANT_IDS = 100
LIBC = ctypes.CDLL(None)

_LAYOUT = (Path(__file__).parents[2] / "libpharaoh/csrc/ph_ring_layout.h").read_text()


def constant(name: str) -> int:
    """What the header says."""
    found = re.search(rf"\b{name}(?: = | UINT64_C\(| )(0x[0-9a-f]+|\d+)", _LAYOUT)
    assert found is not None, name
    return int(found[1], 0)


RING_MAGIC, RING_VERSION, RING_SLOTS = (
    constant("PH_RING_MAGIC"),
    constant("PH_RING_VERSION"),
    constant("PH_RING_SLOTS"),
)
RING_SEGMENT_BYTES, RING_CLOSED = constant("PH_RING_SEGMENT_BYTES"), constant("PH_RING_CLOSED")
STRICT_OK, STRICT_ELSEWHERE = constant("PH_STRICT_OK"), constant("PH_STRICT_ELSEWHERE")
STRICT_KEYLESS = constant("PH_STRICT_KEYLESS")

# Words of struct ph_grants_segment and struct ph_client_segment.
MAGIC, SLOT_COUNT, COORDINATOR, MS_BITS, COORDINATOR_BITS, SEQUENCE_BITS, EPOCH, STATE = range(8)
HEAD, ANSWER_NUMBER, ANSWER_STATUS, ANSWER_VALUE, SLOTS = 16, 32, 33, 34, 48
REQUEST_NUMBER, REQUEST_AFTER, REQUEST_FLAGS, REQUEST_COORDINATOR = 16, 17, 18, 20


class Close(Exception):
    """A behaviour: the connection is closed instead of an answer."""


class Silence(Exception):
    """A behaviour: there is no answer."""


class Garbage(Exception):
    """A behaviour: these bytes are sent instead of an answer."""


Behaviour = Exception | Callable[[list[Any]], Any]


class FakeRing:
    """The worker's side of one ring, filled by a thread whenever the doorbell rings."""

    def __init__(self, daemon: FakeDaemon, coordinator: int) -> None:
        self._daemon, self.coordinator = daemon, coordinator
        self._words, self._grants_fd = _segment("grants")
        self._client, self._client_fd = _segment("client")
        self._doorbell_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._head = self._answered = 0
        self.dead = self.revoked = False
        layout = DEFAULT_LAYOUT
        for word, value in (
            (SLOT_COUNT, RING_SLOTS),
            (COORDINATOR, coordinator),
            (MS_BITS, layout.ms_bits),
            (COORDINATOR_BITS, layout.coordinator_bits),
            (SEQUENCE_BITS, layout.sequence_bits),
            (EPOCH, layout.epoch_ms),
            (MAGIC, RING_MAGIC),
        ):
            self._words[word] = value
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def descriptors(self) -> list[int]:
        return [self._grants_fd, self._client_fd, self._doorbell_fd]

    def kill(self) -> None:
        """As kill -9 of the worker: nothing is written any more."""
        self.dead = True
        os.eventfd_write(self._doorbell_fd, 1)
        self._thread.join()
        for descriptor in self.descriptors:
            os.close(descriptor)

    def revoke(self) -> None:
        """As a worker that stops: it closes the ring and fills it no more."""
        self.revoked = True
        self._words[STATE] = RING_CLOSED
        self._wake(HEAD)
        self._wake(ANSWER_NUMBER)

    def _serve(self) -> None:
        while os.eventfd_read(self._doorbell_fd) and not self.dead:
            if self.revoked:
                continue
            number = self._client[REQUEST_NUMBER]
            if self.coordinator in self._daemon.standing_still:
                continue
            if number != self._answered and self._daemon.rings_answer:
                self._answer(number)
            if self._head - self._client[0] < 2 and self._daemon.rings_grant:
                self._grant()

    def _answer(self, number: int) -> None:
        self._answered = number
        keyless = bool(self._client[REQUEST_FLAGS] & STRICT_KEYLESS)
        owner = self._daemon.first if keyless else self._client[REQUEST_COORDINATOR]
        self._daemon.strict_requests.append((owner, self._client[REQUEST_AFTER], keyless))
        if owner in self._daemon.owned and owner not in self._daemon.not_by_ring:
            status, value = STRICT_OK, self._daemon.issue(owner, self._client[REQUEST_AFTER])
        else:
            status, value = STRICT_ELSEWHERE, 0
        self._words[ANSWER_STATUS], self._words[ANSWER_VALUE] = status, value
        self._words[ANSWER_NUMBER] = number
        self._wake(ANSWER_NUMBER)

    def _grant(self) -> None:
        first = self._daemon.issue(self.coordinator, 0, GRANT_IDS)
        scarab = parse(first)
        slot = SLOTS + self._head % RING_SLOTS * 4
        self._words[slot] = scarab.milliseconds << DEFAULT_LAYOUT.sequence_bits | scarab.sequence
        self._words[slot + 1] = GRANT_IDS
        self._words[slot + 2] = time.monotonic_ns() + self._daemon.clock_offset_ns + self._daemon.grant_ns
        self._head += 1
        self._words[HEAD] = self._head
        self._wake(HEAD)

    def _wake(self, word: int) -> None:
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._words)) + 8 * word
        LIBC.syscall(FUTEX_SYSCALL, ctypes.c_void_p(address), FUTEX_WAKE, 2**31 - 1, None, None, 0)


class FakeDaemon:
    """Serves under `directory` until the end of its context.

    `behaviours[method]` is a queue: each request of that method uses up one, and is served properly when none is left.
    """

    def __init__(
        self, directory: Path, *, rings: bool = False, modulus: int = 4, owned: tuple[int, ...] = (0, 1)
    ) -> None:
        self.directory = directory
        self.path = str(directory / "rpc.sock")
        self.rings, self.modulus, self.owned = rings, modulus, owned
        self.ids_per_request = 8192
        self.main = self.first = owned[0]
        self.memory = Memory(parse_hello(self.hello(self.main)))
        self.rings_answer = self.rings_grant = True
        self.standing_still: set[int] = set()
        """Coordinators that take everything and answer nothing, as a worker after SIGSTOP."""
        self.not_by_ring: set[int] = set()
        """Coordinators whose strict ids only the socket gives."""
        self.grant_ns = 10_000_000_000
        self.attach_change: dict[str, Any] = {}
        """What an attach reply says otherwise."""
        self.clock_offset_ns = 0
        """What the workers' monotonic clock reads more than this process's."""
        self.lag_ms: dict[int, int] = defaultdict(int)
        """How far a coordinator's clock is behind."""
        self.behaviours: dict[str, deque[Behaviour]] = defaultdict(deque)
        self.requests: list[tuple[int, str, list[Any]]] = []
        """Coordinator, method, params of everything that was asked."""
        self.by_connection: Counter[tuple[int, str]] = Counter()
        """How often what was asked over connections that a process had made: by process id and method."""
        self.strict_requests: list[tuple[int, int, bool]] = []
        """Whose id, after, and whether without a key, of all that came by rings."""
        self.made: list[FakeRing] = []
        self._last_tick: dict[int, int] = defaultdict(int)
        self._lock = threading.Lock()
        self._listeners: list[socket.socket] = []
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        (self.directory / "coordinators").mkdir(exist_ok=True)
        self._listen(self.path, None)
        for number in self.owned:
            self._listen(str(self.directory / "coordinators" / f"{number:04d}.sock"), number)

    def stop(self) -> None:
        """As kill -9 of everything; `start` may follow."""
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self._listeners.clear()
        self.hang_up()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        for path in (self.path, *map(str, (self.directory / "coordinators").iterdir())):
            Path(path).unlink(missing_ok=True)

    def hang_up(self) -> None:
        """As kill -9 of the workers: every connection ends and every ring falls silent."""
        for ring in self.made:
            ring.kill()
        self.made.clear()
        for connection in list(self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def issue(self, coordinator: int, after: int = 0, count: int = 1) -> int:
        """The first of `count` new ids of one millisecond."""
        bits = DEFAULT_LAYOUT.sequence_bits
        with self._lock:
            now = int(time.time() * 1000) - DEFAULT_LAYOUT.epoch_ms - self.lag_ms[coordinator]
            tick = max(now << bits, self._last_tick[coordinator] + 1)
            if after:
                least = parse(after)
                if compose(tick >> bits, coordinator, tick & (2**bits - 1)) <= after:
                    tick = (least.milliseconds + 1) << bits
            if (tick & (2**bits - 1)) + count > 2**bits:
                tick = ((tick >> bits) + 1) << bits
            self._last_tick[coordinator] = tick + count - 1
            return compose(tick >> bits, coordinator, tick & (2**bits - 1))

    def _listen(self, path: str, coordinator: int | None) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        listener.listen()
        self._listeners.append(listener)
        self._spawn(self._accept, listener, coordinator)

    def _spawn(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket, coordinator: int | None) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            self._spawn(self._converse, connection, self.main if coordinator is None else coordinator)

    def _converse(self, connection: socket.socket, coordinator: int) -> None:
        unpacker = msgpack.Unpacker()
        peer = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        try:
            while data := connection.recv(65536):
                unpacker.feed(data)
                for _, msgid, method, params in unpacker:
                    self.requests.append((coordinator, method, params))
                    self.by_connection[peer, method] += 1
                    if coordinator in self.standing_still:
                        continue
                    self._reply(connection, coordinator, msgid, method, params)
        except (OSError, Close):
            pass
        finally:
            self._connections.remove(connection)
            connection.close()

    def _reply(self, connection: socket.socket, coordinator: int, msgid: int, method: str, params: list[Any]) -> None:
        descriptors: list[int] = []
        try:
            if self.behaviours[method]:
                behaviour = self.behaviours[method].popleft()
                if isinstance(behaviour, Exception):
                    raise behaviour
                result = behaviour(params)
            else:
                result = self._serve(coordinator, method, params, descriptors)
            frame = [1, msgid, None, result]
        except Silence:
            return
        except Garbage as garbage:
            connection.sendall(garbage.args[0])
            return
        except PharaohError as error:
            frame = [1, msgid, [error.code, error.name, error.message, error.retryable, error.hint], None]
        data = msgpack.packb(frame)
        if descriptors:
            rights = array.array("i", descriptors)
            connection.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        else:
            connection.sendall(data)

    def _serve(self, coordinator: int, method: str, params: list[Any], descriptors: list[int]) -> Any:
        match method, params:
            case "hello", [str(), 1]:
                return self.hello(coordinator)
            case "ping", []:
                return "pong"
            case "stats", []:
                return {"coordinator": coordinator}
            case "next_id", []:
                return self.issue(coordinator)
            case "next_ids", [int(count)]:
                half = (count + 1) // 2
                runs = [
                    [self.issue(coordinator, 0, half), half],
                    [self.issue(coordinator, 0, count - half), count - half],
                ]
                return runs if count > 1 else runs[:1]
            case "get_timestamp" | "begin_transaction" | "create_session" | "next_event_id", [key, after]:
                number = self.first if key is None else zlib.crc32(key) % self.modulus
                return self.issue(number, after or 0)
            case "attach", [str(), age] if self.rings:
                ring = FakeRing(self, coordinator)
                self.made.append(ring)
                descriptors += ring.descriptors
                now_ns = time.monotonic_ns() + self.clock_offset_ns
                plain = {"version": RING_VERSION, "coordinator": coordinator, "max_age_ms": age or 10, "now_ns": now_ns}
                return plain | self.attach_change
        with self._lock:
            return self.memory.serve(method, params)

    def hello(self, coordinator: int) -> dict[str, Any]:
        return {
            "protocol": 1,
            "server": "0.1.0",
            "layout": "41-10-13",
            "epoch_ms": DEFAULT_LAYOUT.epoch_ms,
            "coordinator": coordinator,
            "modulus": self.modulus,
            "coordinators": list(self.owned),
            "endpoints": str(self.directory / "coordinators"),
            "limits": {
                "frame_bytes": 65536,
                "in_flight": 1024,
                "ids_per_request": self.ids_per_request,
                "key_bytes": 4096,
                "count_max": 2**31 - 1,
                "schema_bytes": 57344,
            },
        }


def _segment(name: str) -> tuple[memoryview[int], int]:
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, RING_SEGMENT_BYTES)
    fcntl.fcntl(descriptor, F_ADD_SEALS, F_SEAL_SHRINK)
    return memoryview(mmap.mmap(descriptor, RING_SEGMENT_BYTES)).cast("Q"), descriptor


def open_descriptors() -> set[int]:
    """The numbers of this process's descriptors, to show that none leaks."""
    # The second look leaves out the descriptor of the listing itself.
    return {int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")}
