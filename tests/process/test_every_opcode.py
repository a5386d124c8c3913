"""A fork, or an exception, at any bytecode of any call of the client (F23, F45).

A signal's handler is Python code that runs between two bytecodes. A trace function is called before each of them, and
plays the handler here: it forks, past the hooks too, or raises.

Invariants
- A fork: both go on with the call, and with more calls, and no value is received twice, whether an id or a dense one.
- An exception: it comes out of the call, the client serves on, and once that is closed nothing is open or mapped.

By default some of the bytecodes are tried, from a random one on; with `--effort 100` all of them.
"""

from __future__ import annotations

import array
import itertools
import json
import os
import random
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import libpharaoh
from libpharaoh import Client
from tests.process.test_fork import raw_fork
from tests.support.daemon import Daemon, short_directory

LIBRARY = str(Path(libpharaoh.__file__).parent)
KEY_OF = {libpharaoh.coordinator_for(key, 2): key for key in "abcdefgh"}
POINTS = 40
"""Bytecodes of a call that are tried with an effort of 1."""
Values = list[tuple[str, int]]
"""Where a value comes from, and the value: ids are one space, and each dense counter is one."""


class Stopped(Exception):
    """What the handler raises."""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with short_directory() as directory, Daemon(directory, coordinators=2) as daemon:
        yield daemon


def ids(*values: int) -> Values:
    return [("id", value) for value in values]


def many(values: array.array[int]) -> Values:
    return ids(*values)


def drained(client: Client) -> Client:
    """With an empty ring, so that the next call has to wait."""
    while client._session.pop():
        pass
    return client


def hung_up(client: Client) -> None:
    """Without a connection, and with no ring, as when its worker has just died."""
    session = client._session
    session.locked(session._drop_main)


@dataclass(frozen=True)
class Case:
    """A call that is interrupted. `prepare` comes before it and is not."""

    call: Callable[[Client], Values]
    prepare: Callable[[Client], object] = Client.next_id


CASES: dict[str, Case] = {
    "next_id": Case(lambda client: ids(client.next_id()), drained),
    "next_ids": Case(lambda client: many(client.next_ids(400)), drained),
    "connecting": Case(lambda client: ids(client.next_id()), lambda client: hung_up(drained(client))),
    "first_strict": Case(lambda client: ids(client.get_timestamp(KEY_OF[1]))),
    "strict": Case(lambda client: ids(client.get_timestamp(KEY_OF[1])), lambda client: client.get_timestamp(KEY_OF[1])),
    "keyless": Case(lambda client: ids(client.get_timestamp()), Client.get_timestamp),
    "create_session": Case(lambda client: ids(client.create_session(KEY_OF[0], after=1))),
    "assign_offset": Case(lambda client: [("offset", client.assign_offset("p"))]),
    "join_group": Case(lambda client: [("group", client.join_group("g", "m"))]),
    "ping": Case(lambda client: client.ping() or []),
    "close": Case(lambda client: client.close() or []),
}


def more(client: Client) -> Values:
    """What every client must be able to do afterwards."""
    return [
        *many(client.next_ids(20)),
        *ids(client.next_id(), client.get_timestamp(), client.get_timestamp(KEY_OF[1])),
        ("offset", client.assign_offset("p")),
    ]


class Handler:
    """Acts once, before the `at`-th bytecode of the library's that this thread comes to."""

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self._at, self._act = at, act
        self.count = 0

    def __enter__(self) -> Handler:
        sys.settrace(self._on_call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _on_call(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(LIBRARY):
            return None
        frame.f_trace_opcodes = True
        return self._on_opcode

    def _on_opcode(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "opcode":
            self.count += 1
            if self.count == self._at:
                sys.settrace(None)
                self._act()
        return self._on_opcode


def bytecodes(run: Callable[[Handler], object], rng: random.Random, effort: float) -> Iterator[int]:
    """The numbers of those to try. `run` makes the call once, uninterrupted."""
    handler = Handler(-1, lambda: None)
    run(handler)
    stride = max(1, round(handler.count / (POINTS * effort)))
    start = rng.randrange(stride) + 1
    for number in itertools.count(start, stride):
        yield number
        if number > handler.count + 50:  # the count is not the same each time
            return


def fork_at(
    number: int, fork: Callable[[], int], client: Client, call: Callable[[Client], Values], again: Callable[[], Client]
) -> tuple[Values, Values]:
    """What parent and child got of a call in which the fork was, and afterwards."""
    said = os.memfd_create("said")
    stdin = os.fstat(0)
    child = -1

    def act() -> None:
        nonlocal child
        child = fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(60)  # against hanging

    mine: Values = []
    try:
        with Handler(number, act):
            mine += call(client)
        mine += more(again() if client._session.closed else client)
        if child == 0:
            assert os.path.samestat(os.fstat(0), stdin), "closed a descriptor that is not its own"
            os.pwrite(said, json.dumps(mine).encode(), 0)
    except BaseException:
        if child == 0:
            os.pwrite(said, traceback.format_exc().encode(), 0)
            os._exit(1)
        raise
    finally:
        if child == 0:
            os._exit(0)
    status = os.waitpid(child, 0)[1] if child > 0 else 0
    text = os.pread(said, 1 << 20, 0).decode() if child > 0 else "[]"
    os.close(said)
    assert os.waitstatus_to_exitcode(status) == 0, (number, status, text)
    return mine, [(kind, value) for kind, value in json.loads(text)]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("rings", [True, False], ids=["rings", "socket"])
@pytest.mark.parametrize("fork", [os.fork, raw_fork], ids=["fork", "raw_fork"])
@pytest.mark.parametrize("name", [*CASES, "connect"])
def test_fork(
    daemon: Daemon, name: str, fork: Callable[[], int], rings: bool, rng: random.Random, effort: float
) -> None:
    case = CASES.get(name, Case(lambda _: []))
    seen: set[tuple[str, int]] = set()
    made: list[Client] = []

    def connected() -> Client:
        made.append(libpharaoh.connect(daemon.socket, rings=rings, timeout=20))
        return made[-1]

    def run(handler: Handler) -> None:
        client = connected()
        case.prepare(client)
        with handler:
            connected() if name == "connect" else case.call(client)

    for number in bytecodes(run, rng, effort):
        client = connected()
        case.prepare(client)
        if name == "connect":
            mine, theirs = fork_at(number, fork, client, lambda _: more(connected()), connected)
        else:
            mine, theirs = fork_at(number, fork, client, case.call, connected)
        values = mine + theirs
        assert len(set(values)) == len(values), number
        assert not seen & set(values), number
        seen |= set(values)
        while made:
            made.pop().close()
    assert len(seen) > 100


def held() -> tuple[int, int]:
    """Descriptors of this process, and segments of rings that it has mapped."""
    with open("/proc/self/maps") as maps:
        return len(os.listdir("/proc/self/fd")), sum("pharaoh-" in line for line in maps)


def stop() -> None:
    raise Stopped


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("rings", [True, False], ids=["rings", "socket"])
@pytest.mark.parametrize("name", [*CASES, "connect"])
def test_exception(daemon: Daemon, name: str, rings: bool, rng: random.Random, effort: float) -> None:
    case = CASES.get(name, Case(lambda _: []))
    seen: set[tuple[str, int]] = set()

    def connected() -> Client:
        return libpharaoh.connect(daemon.socket, rings=rings, timeout=20)

    def attempt(handler: Handler) -> bool:
        """Whether the exception came out."""
        client = None if name == "connect" else connected()
        try:
            if client is not None:
                case.prepare(client)
            with handler:
                client = client or connected()
                seen.update(case.call(client))
        except Stopped:
            pass
        else:
            return False
        finally:
            client = connected() if client is None or client._session.closed else client
            values = more(client)
            # A busy machine may cost it its connection; a session in disorder has no ring for a second.
            assert not rings or any(client.next_id() and client._session.ring_at_hand for _ in range(5)), (
                "it cannot attach"
            )
            assert len(set(values)) == len(values)
            assert not seen & set(values)
            seen.update(values)
            client.close()
        return True

    before = held()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # a socket whose frame is gone closes itself
        came = 0
        for number in bytecodes(attempt, rng, 2 * effort):
            came += attempt(Handler(number, stop))
            assert held() == before, number
    assert came > 10
