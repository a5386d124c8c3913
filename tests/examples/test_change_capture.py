"""Changes of a real PostgreSQL become events: each once, in commit order, with rising ids, whoever is killed."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import psycopg
import pytest

from examples.change_capture.capture import Event, LostError, Sink, Source, follow, join, replay
from libpharaoh.errors import UnavailableError
from libpharaoh.testing import FakeClient
from tests.support.daemon import ROOT, Daemon, short_directory, wait_until
from tools.debian import NotHere
from tools.postgres import Postgres

TABLES = ("public.account", "public.entry")
WRITERS = 3
SECONDS = 6.0
LARGE = 20_000
"""Characters: stored apart, and left out of an update that does not touch them."""


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    directory = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    postgres = Postgres(directory)
    try:
        try:
            postgres.start()
        except NotHere as why:
            pytest.skip(str(why))
        yield postgres
    finally:
        postgres.stop()
        shutil.rmtree(directory)


@pytest.fixture
def db(postgres: Postgres) -> Iterator[psycopg.Connection]:
    """The tables, empty; no slots from the test before."""
    with psycopg.connect(postgres.dsn, autocommit=True) as db:
        for table in TABLES:
            db.execute(f"DROP TABLE IF EXISTS {table}".encode())
        db.execute("CREATE TABLE account (id int PRIMARY KEY, owner text, note text)")
        db.execute("ALTER TABLE account ALTER note SET STORAGE EXTERNAL")
        db.execute('CREATE TABLE entry (account int, "no" int, amount numeric, PRIMARY KEY (account, "no"))')
        yield db
    with psycopg.connect(postgres.dsn, autocommit=True) as db:
        db.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
        db.execute("DROP PUBLICATION IF EXISTS pharaoh")


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[Sink]:
    sink = Sink(tmp_path / "events.sqlite")
    yield sink
    sink.close()


@contextlib.contextmanager
def joined(postgres: Postgres, sink: Sink) -> Iterator[Source]:
    source = Source(postgres.dsn, "pharaoh")
    try:
        join(source, sink, TABLES)
        yield source
    finally:
        source.close()


def capture(postgres: Postgres, sink: Sink, ids: FakeClient) -> list[Event]:
    """All events, once everything that is committed is in the sink."""
    with joined(postgres, sink) as source:
        follow(source, sink, ids, once=True)
    return list(sink.events())


def contents(db: psycopg.Connection) -> dict[str, list[dict[str, str | None]]]:
    """The tables as `replay` gives them: rows of text."""
    found = {}
    for table in TABLES:
        cursor = db.execute(f"SELECT * FROM {table}".encode())
        names = [column.name for column in cursor.description or ()]
        rows = [[None if value is None else str(value) for value in row] for row in cursor]
        found[table] = [dict(zip(names, row, strict=True)) for row in rows]
    return found


def check_replay(db: psycopg.Connection, events: list[Event]) -> None:
    replayed = replay(events)
    for table, rows in contents(db).items():
        assert sorted(map(str, replayed.get(table, []))) == sorted(map(str, rows))


def test_each_kind_of_change(postgres: Postgres, db: psycopg.Connection, sink: Sink) -> None:
    ids = FakeClient()
    assert capture(postgres, sink, ids) == []
    with db.transaction():
        db.execute("INSERT INTO account VALUES (1, 'Ada', NULL), (2, 'Bôb', %s)", ["x" * LARGE])
        db.execute("UPDATE account SET owner = NULL WHERE id = 2")
    db.execute("UPDATE account SET id = 3 WHERE id = 1")
    db.execute("DELETE FROM account WHERE id = 3")
    db.execute("INSERT INTO entry VALUES (1, 1, 2.50)")
    db.execute("TRUNCATE entry")
    events = capture(postgres, sink, ids)
    assert [(event.table, event.op, event.key) for event in events] == [
        ("public.account", "insert", {"id": "1"}),
        ("public.account", "insert", {"id": "2"}),
        ("public.account", "update", {"id": "2"}),
        ("public.account", "update", {"id": "1"}),
        ("public.account", "delete", {"id": "3"}),
        ("public.entry", "insert", {"account": "1", "no": "1"}),
        ("public.entry", "truncate", None),
    ]
    assert [event.row for event in events] == [
        {"id": "1", "owner": "Ada", "note": None},
        {"id": "2", "owner": "Bôb", "note": "x" * LARGE},
        {"id": "2", "owner": None},
        {"id": "3", "owner": "Ada", "note": None},
        None,
        {"account": "1", "no": "1", "amount": "2.50"},
        None,
    ]
    assert [event.place for event in events] == [0, 1, 2, 0, 0, 0, 0]
    assert [event.id for event in events] == sorted({event.id for event in events})
    check_replay(db, events)


def test_ids_rise_although_the_next_clock_is_behind(postgres: Postgres, db: psycopg.Connection, sink: Sink) -> None:
    capture(postgres, sink, FakeClient())
    db.execute("INSERT INTO account VALUES (1)")
    capture(postgres, sink, FakeClient(start=1_000_900))
    db.execute("INSERT INTO account VALUES (2)")
    events = capture(postgres, sink, FakeClient(start=1_000_000))
    assert [event.key for event in events] == [{"id": "1"}, {"id": "2"}], "in the order of their ids"


def test_a_reading_that_is_repeated_is_written_once(postgres: Postgres, db: psycopg.Connection, sink: Sink) -> None:
    """Killed after the sink was durable and before the slot was moved."""
    capture(postgres, sink, FakeClient())
    db.execute("INSERT INTO account VALUES (1), (2)")
    with joined(postgres, sink) as source:
        committed, _ = source.peek()
        sink.write(committed, 0, FakeClient())
    before = list(sink.events())
    db.execute("INSERT INTO account VALUES (3)")
    events = capture(postgres, sink, FakeClient())
    assert events[:2] == before
    assert [event.key for event in events] == [{"id": "1"}, {"id": "2"}, {"id": "3"}]


def test_a_transaction_is_written_whole(postgres: Postgres, db: psycopg.Connection, sink: Sink, tmp_path: Path) -> None:
    """Without an id for its last change it leaves nothing; the ids it had are not used again."""
    capture(postgres, sink, FakeClient())
    db.execute("INSERT INTO account VALUES (1), (2)")
    ids = FakeClient()

    class FailsOnce:
        """Gives one id, then an error, then goes on."""

        calls = 0

        def next_event_id(self, table: str, *, after: int | None = None) -> int:
            self.calls += 1
            if self.calls == 2:
                with contextlib.closing(sqlite3.connect(tmp_path / "events.sqlite")) as reader:
                    assert reader.execute("SELECT count(*) FROM events").fetchone() == (0,)
                raise UnavailableError
            return ids.next_event_id(table, after=after)

    with joined(postgres, sink) as source:
        follow(source, sink, FailsOnce(), once=True)
    assert [event.key for event in sink.events()] == [{"id": "1"}, {"id": "2"}]
    assert ids.calls == ["next_event_id"] * 3


def test_killed_at_every_statement_of_the_sink(postgres: Postgres, db: psycopg.Connection, tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"

    def captured() -> list[str | None]:
        with contextlib.closing(Sink(path)) as sink:  # none is taken through a fork
            return [(event.key or {}).get("id") for event in capture(postgres, sink, FakeClient())]

    assert captured() == []
    status = -signal.SIGKILL
    for rounds in itertools.count(1):
        db.execute("INSERT INTO account VALUES (%s, 'first'), (-%s, 'second')", [rounds, rounds])
        if (pid := os.fork()) == 0:
            capture_until_statement(postgres, path, rounds)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert captured() == [str(key) for number in range(1, rounds + 1) for key in (number, -number)]
        if status != -signal.SIGKILL:
            break
    assert status == 0
    assert rounds > 5, "it was hardly killed"


def capture_until_statement(postgres: Postgres, path: Path, last: int) -> NoReturn:
    """In a child: captures, and is killed before its sink's last-th statement, if it comes that far."""
    statements = itertools.count(1)

    def trace(_: str) -> None:
        if next(statements) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        sink = Sink(path)
        sink._db.set_trace_callback(trace)
        capture(postgres, sink, FakeClient())
        os._exit(0)
    finally:
        os._exit(1)


def test_the_log_is_let_go_of_when_nothing_is_captured(postgres: Postgres, db: psycopg.Connection, sink: Sink) -> None:
    capture(postgres, sink, FakeClient())
    db.execute("CREATE TABLE other AS SELECT generate_series(1, 1000)")
    db.execute("DROP TABLE other")
    row = db.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
    capture(postgres, sink, FakeClient())
    query = "SELECT confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots"
    assert db.execute(query, row).fetchone() == (True,)


def test_lost_changes_are_refused(postgres: Postgres, db: psycopg.Connection, sink: Sink, tmp_path: Path) -> None:
    capture(postgres, sink, FakeClient())
    with contextlib.closing(Sink(tmp_path / "other.sqlite")) as other:
        other.begin("1/pharaoh", 0)
        with pytest.raises(LostError, match="not of"):
            capture(postgres, other, FakeClient())
    db.execute("INSERT INTO account VALUES (1)")
    db.execute("SELECT pg_replication_slot_advance('pharaoh', pg_current_wal_flush_lsn())")
    with pytest.raises(LostError, match="only at"):
        capture(postgres, sink, FakeClient())
    db.execute("SELECT pg_drop_replication_slot('pharaoh')")
    with pytest.raises(LostError, match="gone"):
        capture(postgres, sink, FakeClient())


# --- real processes


class Writer(threading.Thread):
    """Transactions of random changes, over crashes of the database, until it is told to stop."""

    def __init__(self, dsn: str, seed: int) -> None:
        super().__init__()
        self.dsn = dsn
        self.rng = random.Random(seed)
        self.done = threading.Event()
        self.committed = 0

    def run(self) -> None:
        while not self.done.is_set():
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.dsn, autocommit=True) as db:
                while not self.done.wait(0.01):
                    self.transact(db)

    def transact(self, db: psycopg.Connection) -> None:
        # Two of them may wait for each other, or take the same key: then all of this one's is taken back.
        with contextlib.suppress(psycopg.errors.DeadlockDetected, psycopg.errors.UniqueViolation), db.transaction():
            for _ in range(self.rng.randint(1, 5)):
                self.change(db)
            if self.rng.random() < 0.1:
                raise psycopg.Rollback
            self.committed += 1

    def change(self, db: psycopg.Connection) -> None:
        one, other = self.rng.randint(1, 30), self.rng.randint(1, 30)
        changes: list[tuple[str, list[int | str]]] = [
            ("INSERT INTO account VALUES (%s, 'new', %s) ON CONFLICT DO NOTHING", [one, "x" * LARGE]),
            ("UPDATE account SET owner = %s WHERE id = %s", [str(self.rng.random()), one]),
            ("UPDATE account SET id = %s WHERE id = %s", [one + 100, one]),
            ("DELETE FROM account WHERE id IN (%s, %s)", [one, one + 100]),
            ("INSERT INTO entry VALUES (%s, %s, 1) ON CONFLICT DO NOTHING", [one, other]),
            ("UPDATE entry SET amount = amount + 1 WHERE account = %s", [one]),
            ("DELETE FROM entry WHERE account = %s", [one]),
            ("TRUNCATE entry" if self.rng.random() < 0.05 else "SELECT 1", []),
        ]
        statement, params = self.rng.choice(changes)
        db.execute(statement.encode(), params)


class Capturer:
    """The program itself, killed and started again."""

    def __init__(self, postgres: Postgres, daemon: Daemon, sink: Path) -> None:
        self.sink = sink
        self.log = sink.with_suffix(".log")
        self.options = ["--dsn", postgres.dsn, "--socket", daemon.socket, *TABLES]
        self.process = self.spawn()

    def spawn(self, *options: str) -> subprocess.Popen[bytes]:
        words = ["-m", "examples.change_capture", "--sink", str(self.sink), "capture", *options, *self.options]
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                [sys.executable, *words], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def kill(self) -> None:
        assert self.process.poll() is None, self.log.read_text()
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        self.kill()
        self.process = self.spawn()

    def finish(self) -> None:
        """Lets it write what there still is."""
        self.kill()
        assert self.spawn("--once").wait() == 0, self.log.read_text()


def strike(capturer: Capturer, daemon: Daemon, rng: random.Random) -> None:
    """Kills somebody."""
    victim = rng.choice(["capture"] * 4 + ["worker"] * 2 + ["daemon"])
    if victim == "capture":
        capturer.restart()
    elif victim == "worker":
        os.kill(rng.choice(list(daemon.worker_pids().values())), signal.SIGKILL)
        wait_until(daemon.live, "every worker live again")
    else:
        daemon.kill()
        daemon.start()


def changes_by_postgres(db: psycopg.Connection) -> list[tuple[str, str]]:
    """What happened, as PostgreSQL's own plugin for tests tells it by a slot that nobody else has touched."""
    rows = db.execute("SELECT data FROM pg_logical_slot_peek_changes('reference', NULL, NULL)")
    found = (re.match(r"table ((?:public\.\w+(?:, )?)+): (\w+):", data) for (data,) in rows)
    return [(table, match[2].lower()) for match in found if match for table in match[1].split(", ")]


def check_events(events: list[Event], db: psycopg.Connection) -> None:
    """Nothing lost, nothing twice, in commit order, ids rising."""
    assert [(event.table, event.op) for event in events] == changes_by_postgres(db)
    places = [(event.lsn, event.place) for event in events]
    assert places == sorted(set(places))
    for table in TABLES:
        ids = [event.id for event in events if event.table == table]
        assert ids == sorted(set(ids))
    check_replay(db, events)


def test_exactly_once_over_kills_of_everybody(
    postgres: Postgres, db: psycopg.Connection, rng: random.Random, effort: float
) -> None:
    db.execute("SELECT pg_create_logical_replication_slot('reference', 'test_decoding')")
    with short_directory() as directory, Daemon(directory) as daemon:
        path = directory / "events.sqlite"
        capturer = Capturer(postgres, daemon, path)
        writers = [Writer(postgres.dsn, rng.getrandbits(32)) for _ in range(WRITERS)]
        try:
            query = "SELECT FROM pg_replication_slots WHERE slot_name = 'pharaoh'"
            wait_until(lambda: db.execute(query).fetchone() is not None, "the slot is made")
            for writer in writers:
                writer.start()
            for _ in range(2):
                deadline_s = time.monotonic() + SECONDS / 2 * effort
                while time.monotonic() < deadline_s:
                    time.sleep(rng.uniform(0.05, 0.8))
                    strike(capturer, daemon, rng)
                postgres.stop(crash=True)
                postgres.start()
        finally:
            for writer in writers:
                writer.done.set()
                writer.join()
            capturer.kill()
        capturer.process = capturer.spawn()
        capturer.finish()
        assert sum(writer.committed for writer in writers) > 100, "too few to show anything"
        with contextlib.closing(Sink(path)) as sink, psycopg.connect(postgres.dsn, autocommit=True) as again:
            check_events(list(sink.events()), again)
