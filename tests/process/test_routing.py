"""Requests find their coordinator on one host, by whichever worker they come in; who is asked stands in for the dead.

What is counted is who served and who forwarded, in the statistics page and in the coordinator's bits of each id.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import stat
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

import libpharaoh
from libpharaoh import parse
from libpharaoh._framing import Reply
from libpharaoh.errors import (
    BadRequestError,
    KeyTooLongError,
    UnavailableError,
    UnknownMethodError,
    WrongCoordinatorError,
)
from pharaohd.stats import WorkerState
from tests.support.daemon import Daemon, Settings, short_directory, wait_until
from tests.support.ledger import check_real_time_order, check_unique, tick_of
from tests.support.load_client import KEYED_METHODS, LoadClient, load_clients
from tests.support.wire import Request, Wire

COORDINATORS = 4
KEYS = [f"key {number}" for number in range(24)]
KEY_OF = {
    home: [key for key in KEYS if libpharaoh.coordinator_for(key, COORDINATORS) == home] for home in range(COORDINATORS)
}
IN_FLIGHT_MAX = 1024  # of one link
FORWARDED_MAX = 64  # of one connection


def home_of(key: str | bytes) -> int:
    return libpharaoh.coordinator_for(key, COORDINATORS)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with short_directory() as path, Daemon(path, coordinators=COORDINATORS) as daemon:
        yield daemon


@pytest.fixture(params=range(COORDINATORS), ids="entry {}".format)
def entry(request: pytest.FixtureRequest) -> int:
    """The coordinator to whose socket a test's requests go."""
    number: int = request.param
    return number


def requests_of(key: str) -> list[Request]:
    """One of each method that makes something of a key, but for those of schemas."""
    name = key.encode() if len(key) % 2 else key  # both forms of a name are one name
    return [
        *((method, [name]) for method in KEYED_METHODS),
        *((method, [name, 1]) for method in KEYED_METHODS),
        ("join_group", [name, "member"]),
        ("assign_offset", [name, 3]),
        ("assign_offset", [name]),
    ]


def looks_at(key: str) -> list[Request]:
    """What `requests_of` has left, COORDINATORS times over, and the same again."""
    end = 4 * COORDINATORS
    return [
        ("counter_read", ["offset", key]),
        ("counter_raise", ["offset", key, end]),
        ("counter_read", ["group", key]),
    ]


ANY_WORKER: list[Request] = [("ping", []), ("next_id", []), ("route", ["key"]), ("cluster", [])]


def exchange(daemon: Daemon, entry: int, keyed: list[tuple[str, Request]], rng: random.Random) -> list[Reply]:
    """All at once, mixed with what any worker serves; each foreign one is forwarded once, by the worker it came to."""
    mixed = [*keyed, *(("", request) for request in 10 * ANY_WORKER)]
    order = rng.sample(range(len(mixed)), len(mixed))
    before = [worker.requests_forwarded for worker in daemon.workers()]
    with Wire(daemon.own_socket(entry)) as wire:
        numbers = dict(zip(order, wire.post(*(mixed[at][1] for at in order)), strict=True))
        replies = wire.wait(numbers[at] for at in range(len(mixed)))
    for (_, request), reply in zip(mixed, replies, strict=True):
        assert reply.error is None, (request, reply)
    after = [worker.requests_forwarded for worker in daemon.workers()]
    foreign = sum(home_of(key) != entry for key, _ in keyed)
    assert foreign > 100 / COORDINATORS
    assert after == [before[number] + (foreign if number == entry else 0) for number in range(COORDINATORS)]
    return replies[: len(keyed)]


def test_requests_are_served_where_they_belong(directory: Path, rng: random.Random) -> None:
    """F34: of all methods with a key, pipelined on one connection per worker, whichever that is.

    Each id is its own coordinator's; dense values have no gap and no repetition, by whatever way they were asked for.
    """
    values: dict[tuple[str, str], list[int]] = defaultdict(list)
    with Daemon(directory, coordinators=COORDINATORS) as daemon:
        for entry in range(COORDINATORS):
            requests = [(key, request) for key in KEYS for request in requests_of(key)]
            for (key, (method, params)), reply in zip(requests, exchange(daemon, entry, requests, rng), strict=True):
                if method in KEYED_METHODS:
                    assert parse(reply.result).coordinator == home_of(key)
                else:
                    count = 3 if params[1:] == [3] else 1
                    values[method, key] += range(reply.result, reply.result + count)
        strict = [worker.ids_strict for worker in daemon.workers()]
        for entry in range(COORDINATORS):
            looks = [(key, request) for key in KEYS for request in looks_at(key)]
            results = [reply.result for reply in exchange(daemon, entry, looks, rng)]
            assert results[0::3] == [{"next": 4 * COORDINATORS, "sessions": 0}] * len(KEYS)
            assert results[1::3] == [4 * COORDINATORS] * len(KEYS)
            assert results[2::3] == [{"next": COORDINATORS + 1, "sessions": 0}] * len(KEYS)
    assert strict == [2 * len(KEYED_METHODS) * len(KEY_OF[home]) * COORDINATORS for home in range(COORDINATORS)]
    for key in KEYS:
        assert sorted(values["join_group", key]) == list(range(1, COORDINATORS + 1))
        assert sorted(values["assign_offset", key]) == list(range(4 * COORDINATORS))


def test_what_was_forwarded_goes_no_further(daemon: Daemon, entry: int) -> None:
    """F34: a request that a sibling sent here by mistake is stood in for, where any coordinator can, or refused."""
    key = KEY_OF[(entry + 1) % COORDINATORS][0]
    before = [worker.requests_forwarded for worker in daemon.workers()]
    with Wire(daemon.private_socket(entry)) as wire:
        assert parse(wire.ask("@get_timestamp", key)).coordinator == entry
        dense: list[Request] = [("join_group", [key, "m"]), ("assign_offset", [key]), ("counter_read", ["offset", key])]
        for method, params in [*dense, ("counter_raise", ["offset", key, 9])]:
            with pytest.raises(WrongCoordinatorError):
                wire.ask(f"@{method}", *params)
        assert parse(wire.ask("@get_timestamp")).coordinator == entry
        for method in ("begin_transaction", "create_session", "next_event_id", "route"):
            with pytest.raises(UnknownMethodError):
                wire.ask(f"@{method}", key)
    assert [worker.requests_forwarded for worker in daemon.workers()] == before


def test_what_the_daemon_s_processes_ask_each_other_is_not_for_clients(daemon: Daemon) -> None:
    """F47, F51: those methods exist on private sockets alone, and nothing else does there."""
    with Wire(daemon.own_socket(0)) as client, Wire(daemon.private_socket(0)) as private:
        for method in ("get_timestamp", "join_group", "assign_offset", "counter_read", "counter_raise", "next_schema"):
            with pytest.raises(UnknownMethodError):
                client.ask(f"@{method}", "key")
        for method in ("next_id", "get_timestamp", "hello", "attach", "clock_accept", "counter_raise", "stats"):
            with pytest.raises(UnknownMethodError):
                private.ask(method)
        assert parse(private.ask("@get_timestamp")).coordinator == 0
    for path in (Path(daemon.private_socket(0)), Path(daemon.private_socket(0)).with_name("router.sock")):
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_route_and_cluster(daemon: Daemon, entry: int) -> None:
    """What `route` says is where a key is served, and its endpoint leads there at once."""
    with Wire(daemon.own_socket(entry)) as wire:
        cluster = wire.ask("cluster")
        everyone = list(range(COORDINATORS))
        assert (cluster["modulus"], cluster["live"]) == (COORDINATORS, everyone)
        assert cluster["owners"] == {cluster["host"]: everyone}
        for key in KEYS:
            route = wire.ask("route", key)
            assert (route["host"], route["local"]) == (cluster["host"], True)
            assert parse(wire.ask("get_timestamp", key)).coordinator == route["coordinator"] == home_of(key)
            before = [worker.requests_forwarded for worker in daemon.workers()]
            with Wire(route["endpoint"]) as direct:
                assert parse(direct.ask("begin_transaction", key)).coordinator == route["coordinator"]
            assert [worker.requests_forwarded for worker in daemon.workers()] == before


def fail(daemon: Daemon, coordinator: int) -> None:
    """Its worker dies and cannot come back."""
    os.truncate(daemon.obelisk(coordinator), 512)
    os.kill(daemon.worker(coordinator).pid, signal.SIGKILL)
    wait_until(lambda: daemon.worker(coordinator).state == WorkerState.FAILED, "it has failed")


def test_who_is_asked_stands_in_for_the_lost(directory: Path) -> None:
    """F31, F34: one after the other is lost for good. What any coordinator can serve the one that was asked serves;
    dense values wait for their own; the ids of a key rise all the while, whoever is asked (M).
    """
    with (
        Daemon(directory, coordinators=COORDINATORS) as daemon,
        libpharaoh.connect(daemon.socket, causal=True) as client,
    ):
        ids = [client.create_session(KEY_OF[1][0])]
        live = list(range(COORDINATORS))
        for lost in (1, 2, 3):
            fail(daemon, lost)
            live.remove(lost)
            for entry in live:
                with Wire(daemon.own_socket(entry)) as wire:
                    assert wire.ask("cluster")["live"] == live
                    assert wire.ask("route", KEY_OF[1][0])["coordinator"] == 1
                    for method in KEYED_METHODS:
                        ids.append(wire.ask(method, KEY_OF[1][0]))
                        assert parse(ids[-1]).coordinator == entry
                        assert parse(wire.ask(method, KEY_OF[0][0])).coordinator == 0
                    for request in (("assign_offset", KEY_OF[1][0]), ("join_group", KEY_OF[1][0], "member")):
                        with pytest.raises(UnavailableError):
                            wire.ask(*request)
            ids.append(client.create_session(KEY_OF[1][0]))
            while parse(ids[-1]).coordinator == 1:  # by ring, while the last ceiling of the lost one reaches
                ids.append(client.create_session(KEY_OF[1][0]))
            ids += [client.create_session(KEY_OF[1][0]), client.next_event_id(KEY_OF[1][1])]
            assert {parse(id).coordinator for id in ids[-2:]} <= set(live)
    assert ids == sorted(set(ids))


def test_without_a_key_one_coordinator_serves_for_good(directory: Path) -> None:
    """M for the host: its lowest coordinator, dead or alive; who is asked instead stands in, and nobody takes over."""
    with Daemon(directory, coordinators=COORDINATORS) as daemon:
        ids = []
        for entry in range(COORDINATORS):
            with Wire(daemon.own_socket(entry)) as wire:
                ids += [wire.ask("get_timestamp") for _ in range(100)]
        assert {parse(id).coordinator for id in ids} == {0}
        fail(daemon, 0)
        for entry in (3, 1, 2, 3):
            with Wire(daemon.own_socket(entry)) as wire:
                stood_in = [wire.ask("get_timestamp") for _ in range(20)]
            assert {parse(id).coordinator for id in stood_in} == {entry}
            ids += stood_in
    assert ids == sorted(set(ids))


# --- workers that stand still


@contextlib.contextmanager
def standing_still(daemon: Daemon, coordinator: int) -> Iterator[None]:
    pid = daemon.worker(coordinator).pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture
def patient(directory: Path) -> Iterator[Daemon]:
    """One that takes no stopped worker for dead."""
    settings = {"worker": {"hang_ms_max": 600_000}, "rpc": {"stall_ms_max": 100}}
    with Daemon(directory, coordinators=COORDINATORS, settings=settings) as daemon:
        yield daemon


def test_a_stopped_worker_is_stood_in_for(patient: Daemon) -> None:
    """F12, F31, F32, F33: no request fails: who was asked stands in after one short wait, and other keys do not wait.

    When it goes on it serves again, nothing repeats, and what it answers late goes nowhere (F35). The ids of the key
    are in the order of its calls, whoever issued them: it was stopped, and it may have been right before (M).
    """
    key = KEY_OF[1][0]
    with Wire(patient.own_socket(0)) as wire, libpharaoh.connect(patient.own_socket(3), rings=False) as client:
        ids = [wire.ask("get_timestamp", key), client.get_timestamp(key)]
        with standing_still(patient, 1):
            late = wire.post(*([("get_timestamp", [key])] * 20))
            others = wire.post(
                ("next_id", []), ("get_timestamp", [KEY_OF[0][0]]), ("begin_transaction", [KEY_OF[0][1]])
            )
            served = [reply.result for reply in wire.wait(others)]
            assert wire.arrived[1:] == others
            stood_in = sorted(reply.result for reply in wire.wait(late))  # all were under way at once
            assert {parse(id).coordinator for id in stood_in} == {0}
            ids += [*stood_in, *stood_in_by(wire, key, 0)]
            ids.append(client.get_timestamp(key))
            assert parse(ids[-1]).coordinator == 3
            ids += stood_in_by(wire, key, 0)
        wait_until(lambda: serves_again(wire, key, 1, ids), "it serves again")
        ids += [client.get_timestamp(key), wire.ask("create_session", key, ids[-1])]
        assert wire.ask("ping") == "pong"
    assert ids == sorted(set(ids))
    assert not set(ids) & set(served)


def test_a_stopped_worker_s_ids_come_by_a_sibling_s_ring(patient: Daemon) -> None:
    """F12, F31, F33: while its ceiling reaches, nobody notices; then there is a stand-in; then its own ids again."""
    key = KEY_OF[1][0]
    with libpharaoh.connect(patient.own_socket(0)) as client:
        ids = [client.begin_transaction(key) for _ in range(100)]
        assert client.hello.coordinator == 0
        with standing_still(patient, 1):
            ceiling = patient.worker(1).ceiling
            while parse(ids[-1]).coordinator == 1:
                ids.append(client.begin_transaction(key))
            lent = [id for id in ids if parse(id).coordinator == 1]
            assert len(lent) > 1000
            assert tick_of(lent[-1], libpharaoh.Layout()) < ceiling
            ids += [client.begin_transaction(key) for _ in range(20)]
            assert {parse(id).coordinator for id in ids[len(lent) :]} == {0}
        wait_until(lambda: owned_again(client, key, ids), "its own ids again")
    assert ids == sorted(set(ids))


def test_a_worker_that_ends_while_its_siblings_issue_for_it(directory: Path, effort: float) -> None:
    """F26: it writes down exactly where it stands, and no sibling goes on from there until it is back."""
    with Daemon(directory, coordinators=2) as daemon, contextlib.ExitStack() as held:
        drawn: list[LoadClient] = []
        for number in (0, 0, 1):
            (place := directory / f"drawer {len(drawn)}").mkdir()
            drawn += held.enter_context(load_clients(daemon.own_socket(number), place, ["one-key"]))
        for load_client in drawn:
            load_client.wait_drawing()
        owner = libpharaoh.coordinator_for("orders", 2)
        for _ in range(max(3, round(20 * effort))):
            worker = daemon.worker(owner)
            os.kill(worker.pid, signal.SIGTERM)
            wait_until(lambda before=worker: daemon.worker(owner).restart_count > before.restart_count, "a successor")  # type: ignore[misc]
            daemon.wait_live()
            time.sleep(0.05)
        for load_client in drawn:
            load_client.kill()
        runs = [load_client.runs() for load_client in drawn]
    assert check_unique(runs, at_least=1000) > 0
    assert check_real_time_order(runs) > 0


def owned_again(client: libpharaoh.Client, key: str, ids: list[int]) -> bool:
    ids.append(client.begin_transaction(key))
    return parse(ids[-1]).coordinator == 1


def serves_again(wire: Wire, key: str, coordinator: int, ids: list[int]) -> bool:
    ids.append(wire.ask("next_event_id", key))
    return parse(ids[-1]).coordinator == coordinator


def stood_in_by(wire: Wire, key: str, coordinator: int) -> list[int]:
    """Ids of a key whose coordinator stands still."""
    ids = [wire.ask(KEYED_METHODS[number % len(KEYED_METHODS)], key) for number in range(100)]
    assert {parse(id).coordinator for id in ids} == {coordinator}
    return ids


def test_a_client_that_hangs_up_does_not_hide_that_a_worker_stands_still(patient: Daemon) -> None:
    """F32: whoever asks next does not wait for it, although nobody was left to be told."""
    key = KEY_OF[1][0]

    def forwarded() -> int:
        return patient.worker(0).requests_forwarded

    with standing_still(patient, 1), Wire(patient.own_socket(0)) as wire:
        for _ in range(5):  # the suspicion lasts for a second: a test that is held up for so long tries again
            with Wire(patient.own_socket(0)) as leaving:
                leaving.post(("get_timestamp", [key]))
                leaving.ask("ping")
            time.sleep(0.4)
            before = forwarded()
            assert parse(wire.ask("get_timestamp", key)).coordinator == 0
            if forwarded() == before:
                return
            time.sleep(1.1)
    pytest.fail("each time it waited")


def test_late_replies_go_nowhere(patient: Daemon) -> None:
    """F12, F35: all numbers of a link are taken by requests that a stopped worker answers late.

    Meanwhile further ones for it are refused at once, so that nothing waits behind them. When it goes on, each reply is
    the request's own, and every offset that was given, heard of or not, was given once.
    """
    key = KEY_OF[1][0]
    look: Request = ("counter_read", ["offset", key])
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(patient.own_socket(0))) for _ in range(IN_FLIGHT_MAX // FORWARDED_MAX)]
        with standing_still(patient, 1):
            posted = [wire.post(*([("assign_offset", [key])] * FORWARDED_MAX)) for wire in wires]
            for wire, numbers in zip(wires, posted, strict=True):
                assert {type(reply.error) for reply in wire.wait(numbers)} == {UnavailableError}
            # Waiting for a number, each would take its 100 ms: longer in all than a `Wire` has patience.
            refusals = wires[0].wait(wires[0].post(*([look] * 400)))
            assert {type(reply.error) for reply in refusals} == {UnavailableError}
            looks = [wire.post(*([look] * FORWARDED_MAX)) for wire in wires]
        for wire, numbers in zip(wires, looks, strict=True):
            for reply in wire.wait(numbers):
                assert isinstance(reply.error, UnavailableError) or "next" in reply.result
        wait_until(lambda: next_offset(wires[0], key) == IN_FLIGHT_MAX, "all has been answered, if late")
        assert wires[0].ask("assign_offset", key) == IN_FLIGHT_MAX
        assert all(wire.ask("ping") == "pong" for wire in wires)


def test_a_strict_request_waits_for_a_full_link_as_long_as_for_an_answer(directory: Path) -> None:
    """F12, F33: dense requests that may wait long have all numbers of a link: who was asked stands in all the same."""
    key = KEY_OF[1][0]
    settings: Settings = {"worker": {"hang_ms_max": 600_000}, "rpc": {"stall_ms_max": 60_000}}
    with Daemon(directory, coordinators=COORDINATORS, settings=settings) as daemon, contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(daemon.own_socket(0))) for _ in range(IN_FLIGHT_MAX // FORWARDED_MAX)]
        with standing_still(daemon, 1), Wire(daemon.own_socket(0)) as late:
            posted = [wire.post(*([("assign_offset", [key])] * FORWARDED_MAX)) for wire in wires]
            wait_until(lambda: daemon.worker(0).requests_forwarded == IN_FLIGHT_MAX, "every number is taken")
            assert parse(late.ask("get_timestamp", key)).coordinator == 0
            assert daemon.worker(0).requests_forwarded == IN_FLIGHT_MAX
        offsets = [reply.result for wire, numbers in zip(wires, posted, strict=True) for reply in wire.wait(numbers)]
    assert sorted(offsets) == list(range(IN_FLIGHT_MAX))


def test_a_worker_that_stops_tells_those_who_wait_for_its_sibling(directory: Path) -> None:
    """F12, F33: what it has passed on is answered before it hangs up, as what waits for itself is."""
    key = KEY_OF[1][0]
    settings: Settings = {"worker": {"hang_ms_max": 600_000}, "rpc": {"stall_ms_max": 60_000}}
    with Daemon(directory, coordinators=COORDINATORS, settings=settings) as daemon:
        with Wire(daemon.own_socket(0)) as before:  # connections are closed last come first: the link is an older one
            assert before.ask("assign_offset", key) == 0
        with standing_still(daemon, 1), Wire(daemon.own_socket(0)) as wire:
            posted = wire.post(("assign_offset", [key]), ("counter_read", ["offset", key]))
            wait_until(lambda: daemon.worker(0).requests_forwarded == 1 + len(posted), "they are with its sibling")
            os.kill(daemon.worker(0).pid, signal.SIGTERM)
            assert [type(reply.error) for reply in wire.wait(posted)] == [UnavailableError] * len(posted)
            assert wire.hung_up()


def next_offset(wire: Wire, key: str) -> object:
    """None while it cannot be read."""
    [reply] = wire.wait(wire.post(("counter_read", ["offset", key])))
    assert reply.error is None or isinstance(reply.error, UnavailableError)
    return reply.result and reply.result["next"]


def test_a_link_is_read_while_it_cannot_be_written(directory: Path) -> None:
    """F37: a router that reads no more requests before its replies are read gets rid of them."""
    schema = "x" * 57_000
    with (
        Daemon(directory, coordinators=1, settings={"rpc": {"stall_ms_max": 20_000}}) as daemon,
        socket.socket(socket.AF_UNIX) as listener,
        Wire(daemon.socket) as readers,
        Wire(daemon.socket) as writers,
    ):
        path = Path(daemon.private_socket(0)).with_name("router.sock")
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen()
        numbers = readers.post(*([("get_schema", [7])] * FORWARDED_MAX))
        router, _ = listener.accept()
        with router:
            asked: list[int] = []
            unpacker = msgpack.Unpacker()
            while len(asked) < len(numbers):
                unpacker.feed(router.recv(4096))
                asked += [request[1] for request in unpacker]
            writers.post(*([("register_schema", ["s", schema])] * FORWARDED_MAX))
            router.settimeout(10.0)  # below the patience of those who wait
            router.sendall(b"".join(msgpack.packb([1, number, None, schema]) for number in asked))
            assert [reply.result for reply in readers.wait(numbers)] == [schema] * len(numbers)


# --- keys that are none, and keys of others


BAD_KEYS = [5, -1, 2**64 - 1, 1.5, True, [], ["a"], {"a": 1}]
WITH_KEY: dict[str, list[Any]] = {
    **{method: [] for method in KEYED_METHODS},
    "join_group": ["member"],
    "assign_offset": [1],
    "route": [],
}
"""What follows the key, for each method whose first parameter it is."""


@pytest.mark.parametrize("method", WITH_KEY)
def test_bad_keys(daemon: Daemon, method: str) -> None:
    """F36: a typed error, and the connection goes on; a key of 4096 bytes is served, whoever's it is."""
    with Wire(daemon.own_socket(0)) as wire:
        bad = [*BAD_KEYS, *([] if method == "get_timestamp" else [None])]
        for none in bad:
            with pytest.raises(BadRequestError):
                wire.ask(method, none, *WITH_KEY[method])
        for params in ([], ["a", None, None, None]):
            if params or method != "get_timestamp":
                with pytest.raises(BadRequestError):
                    wire.ask(method, *params)
        for long in ("x" * 4097, b"x" * 60_000, "Ω" * 2049):
            with pytest.raises(KeyTooLongError):
                wire.ask(method, long, *WITH_KEY[method])
        homes = set()
        good: list[str | bytes] = ["", b"\xff\x00", "\0", *(f"{number:04096d}" for number in range(8))]
        for key in good:
            assert wire.ask(method, key, *WITH_KEY[method]) is not None
            homes.add(home_of(key))
        assert homes == set(range(COORDINATORS))


def test_a_key_beyond_the_frame(daemon: Daemon) -> None:
    """F36: 64 KiB are no request any more; that connection ends, and no other."""
    with Wire(daemon.own_socket(0)) as wire, Wire(daemon.own_socket(0)) as neighbour:
        wire.post(("get_timestamp", ["x" * 65_536]))
        assert wire.hung_up()
        assert neighbour.ask("ping") == "pong"


def test_keys_of_another_host(directory: Path) -> None:
    """F30, F34: what this host does not own it does not serve, by no method and by no worker."""
    with Daemon(directory, coordinators=COORDINATORS, settings={"host": {"owns": "1-2"}}) as daemon:
        assert [worker.coordinator for worker in daemon.workers()] == [1, 2]
        for entry in (1, 2):
            with Wire(daemon.own_socket(entry)) as wire:
                for foreign in (KEY_OF[0][0], KEY_OF[3][0].encode()):
                    refused(wire, foreign)
                    route = wire.ask("route", foreign)
                    assert (route["coordinator"], route["local"], route["endpoint"]) == (home_of(foreign), False, "")
                for own in (KEY_OF[1][0], KEY_OF[2][0]):
                    assert parse(wire.ask("create_session", own)).coordinator == home_of(own)
                    assert wire.ask("route", own)["local"]
                cluster = wire.ask("cluster")
                assert cluster["owners"] == {cluster["host"]: [1, 2]}
                assert cluster["live"] == [1, 2]
        assert sum(worker.ids_dense for worker in daemon.workers()) == 0


def refused(wire: Wire, key: str | bytes) -> None:
    requests: list[Request] = [(method, [key, *rest]) for method, rest in WITH_KEY.items() if method != "route"]
    requests += [("register_schema", [key, "{}"]), ("list_schemas", [key])]
    requests += [("get_schema", [COORDINATORS + home_of(key)])]
    requests += [("counter_read", ["offset", key]), ("counter_raise", ["group", key, 7])]
    for method, params in requests:
        with pytest.raises(WrongCoordinatorError):
            wire.ask(method, *params)
