"""Transactions over the whole store. The package's page says why each step comes where it does."""

from __future__ import annotations

import time
from typing import Protocol

from examples.snapshot_isolation.store import ConflictError, Lock, Store
from libpharaoh import Layout, parse

ORACLE_KEY = "examples/snapshot_isolation"
ABANDONED_MS = 500
"""A lock of this age belongs to a dead process, or to one that will find itself rolled back."""
POLL_S = 0.005


class Oracle(Protocol):
    """What is used of a `libpharaoh.Client`."""

    @property
    def layout(self) -> Layout: ...
    def begin_transaction(self, key: str, *, after: int | None = None) -> int: ...
    def get_timestamp(self, key: str, *, after: int | None = None) -> int: ...


class Transaction:
    """Reads one snapshot; writes all or nothing."""

    def __init__(self, store: Store, oracle: Oracle) -> None:
        self._store = store
        self._oracle = oracle
        self._writes: dict[str, int] = {}
        self.start = oracle.begin_transaction(ORACLE_KEY, after=store.mark())
        store.raise_mark(self.start)

    def get(self, key: str) -> int | None:
        """The value of `key`, None when there is none. Waits for those who may have committed before the start."""
        if key in self._writes:
            return self._writes[key]
        while True:
            found = self._store.shard(key).read(key, self.start)
            if not isinstance(found, Lock):
                return found
            if not self._settle(key, found):
                time.sleep(POLL_S)

    def put(self, key: str, value: int) -> None:
        """Is kept here until `commit`."""
        self._writes[key] = value

    def commit(self) -> int:
        """The timestamp at which all that was put shows. Raises ConflictError; whatever is raised, nothing was written.

        An error of the store itself while it commits leaves that open, as everywhere: whoever comes next finds out.
        """
        if not self._writes:
            return self.start
        try:
            self.prewrite()
            timestamp = self.commit_timestamp()
        except Exception:
            self.roll_back()
            raise
        if not self.commit_primary(timestamp):
            self.roll_back()
            raise ConflictError("it took so long that another one rolled it back")
        self.commit_others(timestamp)
        return timestamp

    # --- the steps of `commit`: a process may die between any two

    @property
    def _keys(self) -> list[str]:
        """The primary, then the others."""
        return sorted(self._writes)

    def prewrite(self) -> None:
        """Locks every key, the primary first: another lock always means that there is, or was, a primary's."""
        lock = Lock(self.start, self._keys[0], since=self._oracle.get_timestamp(ORACLE_KEY))
        for key in self._keys:
            while other := self._store.shard(key).lock(key, self._writes[key], lock):
                if not self._settle(key, other):
                    raise ConflictError(f"{key} is being written by the transaction of {other.start}")

    def commit_timestamp(self) -> int:
        timestamp = self._oracle.get_timestamp(ORACLE_KEY, after=max(self.start, self._store.mark()))
        self._store.raise_mark(timestamp)
        return timestamp

    def commit_primary(self, timestamp: int) -> bool:
        """The instant of the commit. False when somebody rolled this transaction back."""
        primary = self._keys[0]
        return self._store.shard(primary).commit(primary, self.start, timestamp)

    def commit_others(self, timestamp: int) -> None:
        for key in self._keys[1:]:
            self._store.shard(key).commit(key, self.start, timestamp)

    def roll_back(self) -> None:
        """The primary first: from then on the others' locks mean nothing."""
        for key in self._keys:
            self._store.shard(key).roll_back(key, self.start)

    def _settle(self, key: str, lock: Lock) -> bool:
        """Clears away a lock whose transaction has ended, or has been silent for too long. False: still at work."""
        primary = self._store.shard(lock.primary)
        now = parse(self._oracle.get_timestamp(ORACLE_KEY), self._oracle.layout).milliseconds
        if now - parse(lock.since, self._oracle.layout).milliseconds > ABANDONED_MS:
            primary.roll_back(lock.primary, lock.start)  # does nothing when it has committed
        elif primary.locked(lock.primary, lock.start):
            return False
        # Only now, when the primary's lock is gone for good, is its outcome certain.
        timestamp = primary.committed(lock.primary, lock.start)
        if timestamp is None:
            self._store.shard(key).roll_back(key, lock.start)
        else:
            self._store.shard(key).commit(key, lock.start, timestamp)
        return True
