"""Where changes come from, where events go, and the way between. The package's page has the rules."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import psycopg
from psycopg.sql import SQL, Identifier

from examples.change_capture.pgoutput import Committed, Row, transactions
from libpharaoh.errors import PharaohError

CHANGES_PER_READING = 1000
"""About: a transaction is always read whole."""
POLL_S = 0.05
SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY, "table" TEXT NOT NULL, op TEXT NOT NULL, key TEXT NOT NULL, row TEXT NOT NULL,
    lsn INTEGER NOT NULL, place INTEGER NOT NULL, UNIQUE (lsn, place)
);
-- One row at most: of which cluster's slot these are the changes, and up to where.
CREATE TABLE IF NOT EXISTS position (slot TEXT NOT NULL, lsn INTEGER NOT NULL);
"""


class LostError(Exception):
    """Changes are missing between the sink and the slot, or they are not of the same database."""


class EventIds(Protocol):
    """What is used of a `libpharaoh.Client`."""

    def next_event_id(self, table: str, *, after: int | None = None) -> int: ...


class Event(NamedTuple):
    """A change in the sink. lsn, place: of its transaction's end, and its place in it."""

    id: int
    table: str
    op: str
    key: Row | None
    row: Row | None
    lsn: int
    place: int


class Source:
    """A connection to the database, and a slot in it. slot: also the publication's name."""

    def __init__(self, dsn: str, slot: str) -> None:
        self._slot = slot
        self._db = psycopg.connect(dsn, autocommit=True)

    def take_turn(self) -> None:
        """While another process has this slot, it waits, and takes over when that one's connection ends."""
        self._db.execute("SELECT pg_advisory_lock(hashtext(%s))", (self._slot,))

    def _value(self, query: str, *params: object) -> str | None:
        """The first of the first row, if there is one."""
        row = self._db.execute(query.encode(), params).fetchone()
        return None if row is None else str(row[0])

    def _lsn(self, query: str, *params: object) -> int:
        value = self._value(query, *params)
        assert value is not None
        return parse_lsn(value)

    def identity(self) -> str:
        """Places in the log can be compared within one of these."""
        return f"{self._value('SELECT system_identifier FROM pg_control_system()')}/{self._slot}"

    def slot_lsn(self) -> int | None:
        """Up to where the slot has been moved; None when there is no slot."""
        value = self._value("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = %s", self._slot)
        return None if value is None else parse_lsn(value)

    def create_slot(self, tables: Iterable[str]) -> int:
        """The publication first: changes are read with the one that there was at their time."""
        if self._value("SELECT pubname FROM pg_publication WHERE pubname = %s", self._slot) is None:
            names = SQL(", ").join(Identifier(*table.split(".")) for table in tables)
            self._db.execute(SQL("CREATE PUBLICATION {} FOR TABLE {}").format(Identifier(self._slot), names))
        return self._lsn("SELECT lsn FROM pg_create_logical_replication_slot(%s, 'pgoutput')", self._slot)

    def peek(self) -> tuple[list[Committed], int]:
        """The transactions next in the slot, and the place up to which there are no others if there are none."""
        end = self._lsn("SELECT pg_current_wal_flush_lsn()")
        rows = self._db.execute(
            "SELECT data FROM pg_logical_slot_peek_binary_changes(%s, NULL, %s, 'proto_version', '1',"
            " 'publication_names', quote_ident(%s))",
            (self._slot, CHANGES_PER_READING, self._slot),
        )
        return list(transactions(data for (data,) in rows)), end

    def advance(self, lsn: int) -> None:
        """The database may drop its log up to here."""
        self._db.execute("SELECT pg_replication_slot_advance(%s, %s::pg_lsn)", (self._slot, format_lsn(lsn)))

    def close(self) -> None:
        self._db.close()


def parse_lsn(text: str) -> int:
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


def format_lsn(lsn: int) -> str:
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


class Sink:
    """An SQLite file of events."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, timeout=30.0, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(SCHEMA)

    def slot(self) -> str | None:
        """Whose changes these are; None before `begin`."""
        row = self._db.execute("SELECT slot FROM position").fetchone()
        return None if row is None else str(row[0])

    def lsn(self) -> int:
        """Up to where in the log it has everything."""
        return int(self._db.execute("SELECT lsn FROM position").fetchone()[0])

    def begin(self, slot: str, lsn: int) -> None:
        """Its changes from here on are to be kept."""
        self._db.execute("INSERT INTO position SELECT ?, ? WHERE NOT EXISTS (SELECT * FROM position)", (slot, lsn))

    def write(self, committed: Iterable[Committed], end: int, ids: EventIds) -> int:
        """Writes what it does not have yet, all or nothing, and returns its position, which is `end` at least."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            lsn = self.lsn()
            (last,) = self._db.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()
            for transaction in committed:
                if transaction.end > lsn:
                    last = self._add(transaction, last, ids)
                    lsn = transaction.end
            lsn = max(lsn, end)
            self._db.execute("UPDATE position SET lsn = ?", (lsn,))
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")
        return lsn

    def _add(self, transaction: Committed, last: int, ids: EventIds) -> int:
        for place, change in enumerate(transaction.changes):
            last = ids.next_event_id(change.table, after=last)
            row = (last, change.table, change.op, json.dumps(change.key), json.dumps(change.row))
            self._db.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, transaction.end, place))
        return last

    def events(self, after: int = 0) -> Iterator[Event]:
        """Those with a greater id, in order."""
        rows = self._db.execute("SELECT * FROM events WHERE id > ? ORDER BY id", (after,))
        for id, table, op, key, row, lsn, place in rows:
            yield Event(id, table, op, json.loads(key), json.loads(row), lsn, place)

    def close(self) -> None:
        self._db.close()


def join(source: Source, sink: Sink, tables: Iterable[str]) -> None:
    """Makes the slot for a new sink; for one in use checks that nothing lies between. Raises LostError."""
    source.take_turn()
    lsn = source.slot_lsn()
    slot = sink.slot()
    if slot is None:
        if lsn is None:
            lsn = source.create_slot(tables)
        sink.begin(source.identity(), lsn)
    elif slot != source.identity():
        raise LostError(f"the sink holds the changes of {slot}, not of {source.identity()}")
    elif lsn is None:
        raise LostError("the slot is gone: begin a new sink")
    elif lsn > sink.lsn():
        raise LostError(f"the slot is at {format_lsn(lsn)}, but the sink only at {format_lsn(sink.lsn())}")


def follow(source: Source, sink: Sink, ids: EventIds, *, once: bool) -> None:
    """Writes changes as they come. once: returns when there are no more."""
    while True:
        committed, end = source.peek()
        if committed or end > sink.lsn():
            try:
                source.advance(sink.write(committed, 0 if committed else end, ids))
            except PharaohError as error:
                if not error.retryable:
                    raise
        elif once:
            return
        else:
            time.sleep(POLL_S)


def replay(events: Iterable[Event]) -> dict[str, list[Row]]:
    """What the events make of empty tables: table → its rows."""
    tables: dict[str, dict[str, Row]] = {}
    for event in events:
        rows = tables.setdefault(event.table, {})
        if event.op == "truncate":
            rows.clear()
            continue
        assert event.key is not None
        former = {} if event.op == "insert" else rows.pop(json.dumps(event.key))
        if event.row is not None:
            row = former | event.row
            rows[json.dumps({column: row[column] for column in event.key})] = row
    return {table: list(rows.values()) for table, rows in tables.items()}
