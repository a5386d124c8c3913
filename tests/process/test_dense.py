"""Dense values on real daemons: each handed out once, none left out, in real time order, over kills of everybody.

The oracle is `check_dense` of tests/support/ledger.py: without tokens a value may be missing only where a call got no
answer; with tokens none is.
"""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from libpharaoh._framing import encode_request
from libpharaoh.errors import CounterUnknownError, FencedError, SessionForgottenError
from libpharaoh.scarab import coordinator_for
from tests.support.arena import BLOWS, Arena, kill_client
from tests.support.counter import asking, check_counted, counters, flooded, long_to_rewrite
from tests.support.daemon import Daemon, wait_until

NAMES = ("group-0", "group-1", "group-2", "group-6", "part-0", "part-2", "part-3", "part-4")
SESSIONS_MAX = 64
AHEAD = 100
RESERVING = {"counters": {"reserve": "offset:fast-*", "reserve_ahead": AHEAD}}

Ask = Callable[..., Any]


@pytest.mark.parametrize("kind", ["plain", "token"])
def test_dense_over_kills(directory: Path, rng: random.Random, effort: float, kind: str) -> None:
    """F1, F12, F22, F25, F26, F35: eight processes count; workers, supervisors and clients are killed and paused."""
    blows = max(1, round(effort)) * BLOWS
    if kind == "token":  # a killed client's last request has nobody to repeat it
        blows = [blow for blow in blows if blow is not kill_client]
    rng.shuffle(blows)
    with (
        Daemon(directory, coordinators=3) as daemon,
        counters([daemon.socket], directory, [kind] * 8, NAMES) as clients,
    ):
        arena = Arena(daemon, clients)
        for blow in blows:
            time.sleep(rng.uniform(0.0, 0.1))
            blow(arena, rng)
            arena.progress()
        for client in clients:
            client.finish()
        missing = check_counted(daemon.socket, arena.ledgers(), at_least=1000)
    assert len({coordinator_for(name, 3) for name in NAMES}) == 3
    assert kind == "plain" or missing == 0


def test_kills_in_the_middle_of_a_rewrite(directory: Path, rng: random.Random, effort: float) -> None:
    """F3, F35: the journal is written anew while serving; killed at any moment of that, nothing is lost or repeated."""
    met = 0
    with Daemon(directory, coordinators=1) as daemon:
        following = daemon.journal(0).with_suffix(".counters.next")
        with asking(daemon.socket) as ask:
            long_to_rewrite(ask)
        with flooded(daemon.socket), counters([daemon.socket], directory, ["token"] * 3, NAMES) as clients:
            arena = Arena(daemon, clients)
            for _ in range(max(1, round(5 * effort))):
                wait_until(following.exists, "a rewrite")
                time.sleep(rng.choice((0, rng.uniform(0, 0.01))))
                daemon.kill()
                met += following.exists()
                daemon.start()
                arena.progress()
            wait_until(lambda: not following.exists(), "the end of a rewrite")
            for client in clients:
                client.finish()
        assert check_counted(daemon.socket, arena.ledgers(), at_least=100) == 0
        with asking(daemon.socket) as ask:
            assert ask("counter_read", "offset", "long-7".ljust(4096, "."))["next"] == 1
    assert met, "no kill came in the middle"


def test_a_lost_reply_is_given_again(directory: Path, rng: random.Random, effort: float) -> None:
    """F35: all is killed before a reply is read, after the commit for certain or at any moment: a retry counts once."""
    rounds = max(4, round(8 * effort))
    with Daemon(directory, coordinators=1) as daemon:
        for number in range(rounds):
            params = ["p", 3, [77, number, "client"]]
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(daemon.socket)
                sock.sendall(encode_request(1, "assign_offset", params))
                if number % 2:
                    wait_until(lambda n=number: position(daemon, "p") == 3 * n + 3, "the commit")  # type: ignore[misc]
                else:
                    time.sleep(rng.uniform(0, 0.002))
                daemon.kill()
            daemon.start()
            if number % 2:
                assert position(daemon, "p") == 3 * number + 3, "what was committed is lost"
            with asking(daemon.socket) as ask:
                assert ask("assign_offset", *params) == 3 * number
        assert position(daemon, "p") == 3 * rounds


def position(daemon: Daemon, partition: str) -> int:
    """Where a partition stands."""
    with asking(daemon.socket) as ask, contextlib.suppress(CounterUnknownError):
        return int(ask("counter_read", "offset", partition)["next"])
    return 0


def check_sessions(ask: Ask) -> None:
    """Holds again and again once `test_sessions_are_remembered` has counted: asking so changes nothing."""
    for session, sequence in [(1000, 5), (1000, 6), (999, 0)]:
        with pytest.raises(SessionForgottenError):
            ask("assign_offset", "wide", 2, [session, sequence])
    for number in range(1, SESSIONS_MAX + 1):
        assert ask("assign_offset", "wide", 2, [1000 + number, 5]) == 2 * number
    with pytest.raises(FencedError):
        ask("assign_offset", "wide", 2, [1030, 4])
    assert ask("counter_read", "offset", "wide") == {"next": 2 * SESSIONS_MAX + 2, "sessions": SESSIONS_MAX}
    for token in ([10, 7, "c"], [10, 8], [10, 8, "c"], [9, 9, "c"], [11, 2, "c"]):
        with pytest.raises(FencedError):
            ask("assign_offset", "duo", 1, token)
    assert ask("assign_offset", "duo", 1, [11, 3, "c"]) == 1
    for token in ([20, 1], [20, 1, "someone"]):  # it is the member's
        with pytest.raises(FencedError):
            ask("join_group", "duo", "someone", token)
    assert ask("join_group", "duo", "someone", [21, 1]) == 2
    assert ask("join_group", "duo", "another", [19, 1]) == 3


def rewrite(daemon: Daemon) -> None:
    """Makes the journal of the one coordinator long, until it has been written anew."""
    before = daemon.journal(0).stat().st_ino
    with flooded(daemon.socket):
        wait_until(lambda: daemon.journal(0).stat().st_ino != before, "a rewrite")


def test_sessions_are_remembered(directory: Path) -> None:
    """F35, F26: 64 of them, in the order of their last use, and who is fenced; over crashes and rewrites."""
    with Daemon(directory, coordinators=1) as daemon:
        with asking(daemon.socket) as ask:
            for number in range(SESSIONS_MAX + 1):
                assert ask("assign_offset", "wide", 2, [1000 + number, 5]) == 2 * number
            assert ask("assign_offset", "duo", 1, [10, 7, "c"]) == 0
            assert ask("assign_offset", "duo", 1, [11, 3, "c"]) == 1
            for generation, (member, session) in enumerate([("someone", 20), ("someone", 21), ("another", 19)], 1):
                assert ask("join_group", "duo", member, [session, 1]) == generation
            check_sessions(ask)
        for harm in (daemon.kill, partial(rewrite, daemon), daemon.kill, daemon.stop):
            harm()
            if not daemon.alive():
                daemon.start()
            with asking(daemon.socket) as ask:
                check_sessions(ask)
        with asking(daemon.socket) as ask:
            last = 2 * SESSIONS_MAX + 2
            assert ask("assign_offset", "wide", 2, [1001, 6]) == last  # now 1002 is the one used longest ago
            assert ask("assign_offset", "wide", 2, [5000, 0]) == last + 2
            assert ask("assign_offset", "wide", 2, [1001, 6]) == last
            with pytest.raises(SessionForgottenError):
                ask("assign_offset", "wide", 2, [1002, 5])


def test_clean_restarts_leave_no_gap(directory: Path, rng: random.Random) -> None:
    """F1: neither where each value is durable before its reply, nor in counters that reserve ahead."""
    nexts = {"fast-1": 0, "fast-2": 0, "slow": 0}
    with Daemon(directory, coordinators=2, settings=RESERVING) as daemon:
        for _ in range(3):
            with asking(daemon.socket) as ask:
                for _ in range(rng.randrange(1, 80)):
                    name, count = rng.choice(list(nexts)), rng.choice((1, 7, AHEAD, 3 * AHEAD))
                    assert ask("assign_offset", name, count) == nexts[name]
                    nexts[name] += count
            assert daemon.stop() == 0
            daemon.start()


def test_a_reserving_counter_skips_but_never_repeats(directory: Path, rng: random.Random, effort: float) -> None:
    """F1, F35: after a crash it goes on at its durable bound. With a token its requests stay exact."""
    skipped = end = 0
    with Daemon(directory, coordinators=1, settings=RESERVING) as daemon:
        for life in range(max(3, round(6 * effort))):
            with asking(daemon.socket) as ask:
                token = [3, life]
                first = ask("assign_offset", "fast-1", 1, token)
                assert end <= first <= end + AHEAD
                skipped += first - end
                end = first + 1
                for _ in range(rng.randrange(60)):
                    count = rng.choice((1, 1, 5, AHEAD, 250))
                    assert ask("assign_offset", "fast-1", count) == end
                    end += count
            daemon.kill()
            daemon.start()
            with asking(daemon.socket) as ask:
                assert ask("assign_offset", "fast-1", 1, token) == first
    assert skipped
