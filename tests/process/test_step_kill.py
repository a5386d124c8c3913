"""A real worker that is killed at each instruction between taking a request and answering it (F11, F26).

U over what its client received and all that was received later; the successor goes on above everything received; and
no more is missing than what was in flight.
"""

from __future__ import annotations

import itertools
import random
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from libpharaoh._framing import ReplyDecoder, encode_request
from tests.support.daemon import WATCHDOG_S, Daemon, wait_until
from tests.support.host import LAYOUT, impatient, keys_of, positions, wall_tick
from tests.support.ledger import tick_of
from tests.support.rawring import RawRing

SOURCE = Path(__file__).parents[1] / "support" / "step_kill.c"
CANNOT_TRACE = 77
STRIDE = 400
SHORT_STRIDE = 25
"""Instructions between two deaths at effort 1: all along, and where it matters."""
STEPS_MAX = 100_000
NEXT_IDS = 5000
ANSWERED_IN_A_ROW = 3
KEY = keys_of(2)[0]
GRANTED_AT_FIRST = 16
GRANTED_MAX = 8192 * 4
"""A ring is given at most four full milliseconds at a time (producer.c)."""


@pytest.fixture(scope="module")
def step_kill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("step_kill") / "step_kill"
    subprocess.run(["cc", "-O1", "-Wall", "-Werror", "-o", str(program), str(SOURCE)], check=True)
    return program


class SocketClient:
    """One request, and what came of it."""

    after_the_answer = 0
    position_of = 0

    def __init__(self, daemon: Daemon, method: str, params: list[object], in_flight: int, of: int = 0) -> None:
        self.in_flight = in_flight
        self._request = encode_request(1, method, params)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(WATCHDOG_S)
        self._socket.connect(daemon.own_socket(of))
        self._socket.sendall(encode_request(0, "ping", []))
        assert self._socket.recv(4096)

    def send(self) -> None:
        self._socket.sendall(self._request)

    def received(self) -> list[range]:
        """After the worker's end."""
        decoder = ReplyDecoder()
        runs = []
        try:
            while data := self._socket.recv(65536):
                for reply in decoder.feed(data):
                    assert reply.error is None, reply.error
                    result = reply.result if isinstance(reply.result, list) else [[reply.result, 1]]
                    runs += [range(first, first + count) for first, count in result]
        except ConnectionResetError:
            pass
        return runs

    def shut(self) -> None:
        """Nothing more will be asked: the worker hangs up when it has answered."""
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._socket.close()


class StrictRingClient:
    """Its bell brings a few grants besides the answer."""

    in_flight = 1 + GRANTED_AT_FIRST
    after_the_answer = GRANTED_AT_FIRST  # taken, and not yet in the ring
    position_of = 0

    def __init__(self, daemon: Daemon) -> None:
        self._ring = RawRing(daemon.own_socket(0))
        self._head = 0

    def send(self) -> None:
        self._head = self._ring.head()
        self._ring.post()

    def received(self) -> list[range]:
        id = self._ring.answer()
        return [*([] if id is None else [range(id, id + 1)]), *self._ring.take(self._head)]

    def close(self) -> None:
        self._ring.close()


class SiblingRingClient:
    """Its worker dies while it issues for coordinator 1, which lives on."""

    in_flight = 1
    after_the_answer = 0
    position_of = 1

    def __init__(self, daemon: Daemon) -> None:
        self._ring = RawRing(daemon.own_socket(0))

    def send(self) -> None:
        self._ring.post(self.position_of)

    def received(self) -> list[range]:
        id = self._ring.answer()
        return [] if id is None else [range(id, id + 1)]

    def close(self) -> None:
        self._ring.close()


class GrantsRingClient:
    in_flight = GRANTED_MAX
    after_the_answer = 0
    position_of = 0

    def __init__(self, daemon: Daemon) -> None:
        self._ring = RawRing(daemon.own_socket(0))
        for _ in range(3):
            head = self._ring.head()
            self._ring.want()
            wait_until(lambda head=head: self._ring.head() > head, "a first grant")  # type: ignore[misc]

    def send(self) -> None:
        self._ring.want()

    def received(self) -> list[range]:
        return self._ring.take()

    def close(self) -> None:
        self._ring.close()


Client = SocketClient | StrictRingClient | SiblingRingClient | GrantsRingClient
CLIENTS: dict[str, Callable[[Daemon], Client]] = {
    "strict by ring": StrictRingClient,
    "a sibling's by ring": SiblingRingClient,
    "strict by socket": lambda daemon: SocketClient(daemon, "get_timestamp", [KEY], 1),
    "grants": GrantsRingClient,
    "next_ids": lambda daemon: SocketClient(daemon, "next_ids", [NEXT_IDS], NEXT_IDS),
}


@contextmanager
def stepper(program: Path, pid: int) -> Iterator[subprocess.Popen[str]]:
    """The worker stands still."""
    process = subprocess.Popen([program, str(pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        if not said and process.wait(WATCHDOG_S) == CANNOT_TRACE:
            pytest.skip("this process may not trace the daemon")
        assert said == "stopped\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def die_after(program: Path, daemon: Daemon, client: Client, steps: int) -> tuple[list[range], int, int]:
    """What the client received of the worker that died; the position before its request and after its death."""
    restarts = daemon.worker(0).restart_count
    with stepper(program, daemon.worker_pids()[0]) as process:
        before = positions(daemon)[client.position_of]
        client.send()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{steps}\n")
        process.stdin.flush()
        assert process.stdout.readline() == "killed\n"
    wait_until(lambda: daemon.worker(0).restart_count > restarts, "a successor")
    daemon.wait_live()
    return client.received(), before, positions(daemon)[client.position_of]


def check_missing(runs: list[range], before: int, after: int, in_flight: int, after_the_answer: int) -> None:
    """What of the positions between is in nobody's hand was in flight; time that went by is no loss."""
    for run in runs:
        assert before <= tick_of(run[0], LAYOUT)
        assert tick_of(run[-1], LAYOUT) < after, "the successor begins below what was received"
    assert after <= wall_tick() + LAYOUT.sequence_count
    if after == before:
        assert not runs
        return
    start = max(before, (after - 1) // LAYOUT.sequence_count * LAYOUT.sequence_count)
    received = sum(len(run) for run in runs)
    assert after - start - received <= in_flight, "more is missing than was asked for"
    skipped = after - tick_of(runs[-1][-1], LAYOUT) - 1 if runs else 0
    assert skipped in (0, after_the_answer), "something was skipped"


@dataclass
class Deaths:
    """What came of all deaths so far, by the number of instructions before each."""

    daemon: Daemon
    program: Path
    kind: str
    received: list[range] = field(default_factory=list)
    unissued: list[int] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)

    def die(self, steps: int) -> bool:
        """Returns whether the request had been answered."""
        client = CLIENTS[self.kind](self.daemon)
        self.received += draw(self.daemon, client.position_of)  # so that its ceiling reaches
        try:
            runs, before, after = die_after(self.program, self.daemon, client, steps)
        finally:
            client.close()
        check_missing(runs, before, after, client.in_flight, client.after_the_answer)
        self.received += runs
        self.received += draw(self.daemon, client.position_of)
        (self.answered if runs else self.unissued if after == before else self.lost).append(steps)
        return bool(runs)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", CLIENTS)
def test_killed_between_issuing_and_replying(
    directory: Path, step_kill: Path, kind: str, rng: random.Random, effort: float
) -> None:
    """F11, F26: wherever the worker dies, nothing comes twice and nothing is lost but what was in flight.

    All along in long strides first, then in short ones from the last death before the id was issued to the first one
    after its reply.
    """
    stride, short = max(1, round(STRIDE / effort)), max(1, round(SHORT_STRIDE / effort))
    with Daemon(directory, coordinators=2, prefix=impatient(directory)) as daemon:
        deaths = Deaths(daemon, step_kill, kind)
        in_a_row = 0
        for steps in itertools.count(rng.randrange(stride), stride):
            assert steps < STEPS_MAX, "no reply in all these steps"
            in_a_row = in_a_row + 1 if deaths.die(steps) else 0
            if in_a_row == ANSWERED_IN_A_ROW:
                break
        for steps in range(max(deaths.unissued, default=0) + rng.randrange(short), min(deaths.answered), short):
            deaths.die(steps)
    check_unique(deaths.received)
    count = len(deaths.unissued) + len(deaths.lost) + len(deaths.answered)
    print(f"{kind}: {count} deaths, {len(deaths.lost)} of them between issuing and replying: {sorted(deaths.lost)}")


def draw(daemon: Daemon, coordinator: int) -> list[range]:
    """From its worker of now."""
    client = SocketClient(daemon, "next_ids", [10], 10, coordinator)
    with_one = SocketClient(daemon, "get_timestamp", [keys_of(2)[coordinator]], 1, coordinator)
    try:
        return [*answers(client), *answers(with_one)]
    finally:
        client.close()
        with_one.close()


def answers(client: SocketClient) -> list[range]:
    client.send()
    client.shut()
    return client.received()


def check_unique(runs: list[range]) -> None:
    ordered = sorted(runs, key=lambda run: run[0])
    assert all(a[-1] < b[0] for a, b in itertools.pairwise(ordered)), "an id was received twice"
    assert len(ordered) > 5
