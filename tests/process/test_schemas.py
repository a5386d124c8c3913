"""Schemas through a whole daemon: client, worker, router, files; while everything that can be killed is killed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import libpharaoh
from libpharaoh import coordinator_for
from libpharaoh._socket import Connection
from libpharaoh.errors import (
    BadRequestError,
    KeyTooLongError,
    OutOfRangeError,
    SchemaInvalidError,
    SchemasUnusableError,
    SchemaUnknownError,
    UnavailableError,
)
from tests.support.daemon import Daemon, children, wait_until
from tests.support.registrar import check, read, registrars

COORDINATORS = 3


@pytest.fixture
def daemon(directory: Path) -> Iterator[Daemon]:
    with Daemon(directory, coordinators=COORDINATORS) as one:
        yield one


def router_pid(daemon: Daemon) -> int | None:
    for pid in children(daemon.pid):
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"pharaohd: router\0"):
                return pid
        except (FileNotFoundError, ProcessLookupError):
            continue
    return None


def subject_of(coordinator: int) -> str:
    return next(f"s{n}" for n in range(1000) if coordinator_for(f"s{n}", COORDINATORS) == coordinator)


def test_every_worker_reaches_the_registry(daemon: Daemon) -> None:
    """A schema is the same whichever worker a client happens to be connected to."""
    ids = set()
    for number in range(COORDINATORS):
        path = str(daemon.runtime_dir / f"coordinators/{number:04d}.sock")
        connection = Connection.connect(path, time.monotonic() + 30)
        for subject, schema, type in (("s", '{"a": 1}', None), (b"s", b'{"a":1}', "json"), ("s", '{"a": 1}', b"json")):
            ids.add(connection.request("register_schema", [subject, schema, type], time.monotonic() + 30))
        [id] = ids
        found = connection.request("get_schema", [id], time.monotonic() + 30)
        assert found == {"id": id, "subject": "s", "version": 1, "schema": '{"a": 1}', "type": "json"}
        page = connection.request("list_schemas", [], time.monotonic() + 30)
        assert page == {"schemas": [["s", 1, id, "json"]], "next": None}
        connection.close()
    assert id % COORDINATORS == coordinator_for("s", COORDINATORS)


def test_the_largest_schema_and_the_longest_list(daemon: Daemon) -> None:
    with libpharaoh.connect(daemon.socket) as client:
        subject, schema = "ü" * 2048, "x" * 57_344
        id = client.register_schema(subject, schema, "bytes")
        assert client.get_schema(id)["schema"] == schema
        for number in range(300):
            client.register_schema(f"{number % 30:02d}" * 1000, f"schema {number}")
        rows = client.list_schemas()
        assert len(rows) == 301
        assert [row[:2] for row in rows] == sorted(row[:2] for row in rows)
        assert len(client.list_schemas("07" * 1000)) == 10


@pytest.mark.parametrize(
    ("method", "params", "error"),
    [
        ("register_schema", ["s", "{", "json"], SchemaInvalidError),
        ("register_schema", ["s", "x", "xml"], SchemaInvalidError),
        ("register_schema", ["s", "x" * 57_345], SchemaInvalidError),
        ("register_schema", ["x" * 4097, "x"], KeyTooLongError),
        ("register_schema", ["s"], BadRequestError),
        ("list_schemas", [None, {"a": [1]}], BadRequestError),
        ("list_schemas", ["s", ["s", -1]], BadRequestError),
        ("get_schema", [1], SchemaUnknownError),
        ("get_schema", [0], OutOfRangeError),
        ("get_schema", [2**31], OutOfRangeError),
        ("@register_schema", ["s", "x"], libpharaoh.errors.UnknownMethodError),
    ],
)
def test_bad_requests(daemon: Daemon, method: str, params: list[object], error: type[Exception]) -> None:
    connection = Connection.connect(daemon.socket, time.monotonic() + 30)
    with pytest.raises(error):
        connection.request(method, params, time.monotonic() + 30)
    assert connection.request("list_schemas", [], time.monotonic() + 30) == {"schemas": [], "next": None}
    connection.close()


@pytest.mark.timeout(300)
def test_one_id_per_schema_over_kills(directory: Path, rng: random.Random, effort: float) -> None:
    """F1, F25, F35: 8 processes register the same schemas while router, workers and the whole daemon are killed."""
    killed = {"router": 0, "worker": 0, "daemon": 0}
    with Daemon(directory, coordinators=COORDINATORS) as daemon:
        with registrars(daemon.socket, directory, "kills", 8) as ledgers:
            wait_until(lambda: all(ledger.exists() for ledger in ledgers), "every client at work")
            for turn in range(max(3, round(24 * effort))):
                time.sleep(rng.uniform(0.02, 0.3))
                what = rng.choice(["router", "router", "worker", "daemon"]) if turn > 2 else list(killed)[turn]
                if what == "daemon":
                    daemon.kill()
                    daemon.start()
                else:
                    daemon.wait_live()
                    wait_until(lambda: router_pid(daemon), "a router")
                    pid = router_pid(daemon) if what == "router" else rng.choice([*daemon.worker_pids().values()])
                    assert pid is not None
                    os.kill(pid, signal.SIGKILL)
                killed[what] += 1
            daemon.wait_live()
            before = len(read(ledgers))
            wait_until(lambda: len(read(ledgers)) > before + 50, "clients that go on")
        assert all(killed.values())
        with libpharaoh.connect(daemon.socket, timeout=30) as client:
            check(read(ledgers), client, COORDINATORS, at_least=50)


def test_a_router_is_replaced_within_a_client_s_call(daemon: Daemon) -> None:
    with libpharaoh.connect(daemon.socket, timeout=30) as client:
        id = client.register_schema("s", "x")
        for number in range(3):
            old = router_pid(daemon)
            assert old is not None
            os.kill(old, signal.SIGKILL)
            assert client.get_schema(id)["schema"] == "x"
            assert client.register_schema("s", f"y{number}") != id
            assert router_pid(daemon) != old


def test_a_router_that_is_stopped_costs_an_error_in_time(directory: Path) -> None:
    """F33, F42: ids go on; a request for schemas ends in a retryable error, and later in an answer."""
    with (
        Daemon(directory, coordinators=1, settings={"rpc": {"stall_ms_max": 100}}) as daemon,
        libpharaoh.connect(daemon.socket, timeout=60) as client,
    ):
        id = client.register_schema("s", "x")
        pid = router_pid(daemon)
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            connection = Connection.connect(daemon.socket, time.monotonic() + 30)
            with pytest.raises(UnavailableError):
                connection.request("get_schema", [id], time.monotonic() + 30)
            connection.close()
            assert client.get_timestamp() > 0
        finally:
            os.kill(pid, signal.SIGCONT)
        assert client.get_schema(id)["schema"] == "x"


def test_a_lost_file_is_not_begun_anew(daemon: Daemon) -> None:
    """F3: the registry that is lost says so; the others serve."""
    lost, whole = subject_of(0), subject_of(1)
    with libpharaoh.connect(daemon.socket) as client:
        ids = [client.register_schema(subject, "x") for subject in (lost, whole)]
    assert daemon.stop() == 0
    file = daemon.obelisk(0).with_suffix(".schemas")
    kept = file.rename(file.with_suffix(".kept"))
    daemon.start()
    with libpharaoh.connect(daemon.socket) as client:
        for work in (
            lambda: client.get_schema(ids[0]),
            lambda: client.register_schema(lost, "x"),
            lambda: client.register_schema(lost, "y"),
            client.list_schemas,
        ):
            with pytest.raises(SchemasUnusableError, match="is missing"):
                work()
        assert not file.exists()
        assert client.get_schema(ids[1])["subject"] == whole
        kept.rename(file)
        assert client.register_schema(lost, "x") == ids[0]


def test_a_clean_stop_leaves_one_file_per_registry(daemon: Daemon) -> None:
    """A copy of the directory of a stopped daemon is a backup: nothing is in a log beside the file."""
    with libpharaoh.connect(daemon.socket) as client:
        for coordinator in range(COORDINATORS):
            client.register_schema(subject_of(coordinator), "x")
    assert daemon.stop() == 0
    left = sorted(path.name for path in daemon.obelisk(0).parent.glob("*.schemas*"))
    assert left == [f"{coordinator:04d}.schemas" for coordinator in range(COORDINATORS)]
