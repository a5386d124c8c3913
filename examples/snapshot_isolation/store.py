"""The store: rows with versions, in several SQLite files. Every method is atomic in one file; nothing spans two."""

from __future__ import annotations

import contextlib
import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

BUSY_S = 30.0
SCHEMA = """
PRAGMA journal_mode = WAL;
BEGIN IMMEDIATE;
-- A value, by the transaction that wrote it; it counts once `writes` names that transaction.
CREATE TABLE versions (key TEXT, start INTEGER, value INTEGER, PRIMARY KEY (key, start)) WITHOUT ROWID;
CREATE TABLE writes (key TEXT, committed INTEGER, start INTEGER, PRIMARY KEY (key, committed)) WITHOUT ROWID;
CREATE UNIQUE INDEX writes_start ON writes (key, start);
-- since: an id of the moment at which the lock was set, which tells its age.
CREATE TABLE locks (key TEXT PRIMARY KEY, start INTEGER, "primary" TEXT, since INTEGER) WITHOUT ROWID;
CREATE TABLE mark (high INTEGER);
INSERT INTO mark VALUES (0);
COMMIT;
"""
VERSION = """
SELECT value FROM versions WHERE key = :key AND start =
    (SELECT start FROM writes WHERE key = :key AND committed <= :at ORDER BY committed DESC LIMIT 1)
"""


class ConflictError(Exception):
    """Another transaction wrote the same key, or gave this one up for dead. Nothing was changed; try it anew."""


class Lock(NamedTuple):
    """The mark of a transaction that has not finished with a key."""

    start: int
    primary: str
    since: int


class Shard:
    """One file."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
        self._db.execute("PRAGMA synchronous = FULL")

    @contextlib.contextmanager
    def _atomic(self, kind: str = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
        self._db.execute(f"BEGIN {kind}")
        try:
            yield self._db
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def create(self) -> None:
        self._db.executescript(SCHEMA)

    def names(self) -> list[str]:
        """The keys written here, and those about to be."""
        return [key for (key,) in self._db.execute("SELECT key FROM writes UNION SELECT key FROM locks")]

    def read(self, key: str, at: int) -> int | Lock | None:
        """The value at a timestamp; or the lock of a transaction that may yet commit before that."""
        with self._atomic("DEFERRED") as db:
            lock = self._lock_of(db, key)
            if lock is not None and lock.start <= at:
                return lock
            row = db.execute(VERSION, {"key": key, "at": at}).fetchone()
            return None if row is None else int(row[0])

    def lock(self, key: str, value: int, lock: Lock) -> Lock | None:
        """Locks the key and puts the value beside it; or returns the lock in the way. Raises ConflictError."""
        with self._atomic() as db:
            newest = db.execute("SELECT max(committed) FROM writes WHERE key = ?", (key,)).fetchone()[0]
            if newest is not None and newest > lock.start:
                raise ConflictError(f"{key} was written at {newest}, after this transaction's start {lock.start}")
            other = self._lock_of(db, key)
            if other is None:
                db.execute("INSERT INTO locks VALUES (?, ?, ?, ?)", (key, *lock))
                db.execute("INSERT INTO versions VALUES (?, ?, ?)", (key, lock.start, value))
            return other

    def commit(self, key: str, start: int, committed: int) -> bool:
        """Turns the transaction's lock into a write; False when the lock is gone."""
        with self._atomic() as db:
            held = db.execute("DELETE FROM locks WHERE key = ? AND start = ?", (key, start)).rowcount == 1
            if held:
                db.execute("INSERT INTO writes VALUES (?, ?, ?)", (key, committed, start))
            return held

    def roll_back(self, key: str, start: int) -> None:
        """Takes the transaction's lock away, and its value with it."""
        with self._atomic() as db:
            if db.execute("DELETE FROM locks WHERE key = ? AND start = ?", (key, start)).rowcount == 1:
                db.execute("DELETE FROM versions WHERE key = ? AND start = ?", (key, start))

    def committed(self, key: str, start: int) -> int | None:
        """When the transaction that began at `start` committed this key, if it did."""
        row = self._db.execute("SELECT committed FROM writes WHERE key = ? AND start = ?", (key, start)).fetchone()
        return None if row is None else int(row[0])

    def locked(self, key: str, start: int) -> bool:
        lock = self._lock_of(self._db, key)
        return lock is not None and lock.start == start

    @staticmethod
    def _lock_of(db: sqlite3.Connection, key: str) -> Lock | None:
        row = db.execute('SELECT start, "primary", since FROM locks WHERE key = ?', (key,)).fetchone()
        return None if row is None else Lock(*row)

    def mark(self) -> int:
        return int(self._db.execute("SELECT high FROM mark").fetchone()[0])

    def raise_mark(self, timestamp: int) -> None:
        self._db.execute("UPDATE mark SET high = :new WHERE high < :new", {"new": timestamp})

    def close(self) -> None:
        self._db.close()


class Store:
    """The files of a directory, each for the keys whose checksum falls on it. The mark is kept in the first."""

    def __init__(self, directory: Path) -> None:
        self.shards = [Shard(path) for path in sorted(directory.glob("shard-*.sqlite"))]
        if not self.shards:
            raise FileNotFoundError(f"{directory} holds no store; make one by `init`")

    @classmethod
    def create(cls, directory: Path, shards: int) -> Store:
        directory.mkdir(parents=True)
        for number in range(shards):
            (directory / f"shard-{number:02}.sqlite").touch()
        store = cls(directory)
        for shard in store.shards:
            shard.create()
        return store

    def shard(self, key: str) -> Shard:
        return self.shards[zlib.crc32(key.encode()) % len(self.shards)]

    def names(self) -> list[str]:
        return sorted(key for shard in self.shards for key in shard.names())

    def mark(self) -> int:
        """The highest timestamp in use."""
        return self.shards[0].mark()

    def raise_mark(self, timestamp: int) -> None:
        self.shards[0].raise_mark(timestamp)

    def close(self) -> None:
        for shard in self.shards:
            shard.close()
