"""The registry: one SQLite file per coordinator, `STATE_DIR/obelisks/0042.schemas` (docs/internals/schemas.md).

Invariants
- An id is `n * modulus + coordinator`, n drawn from the coordinator's own counter, which is durable before it says n
  and never says it again. So ids are unique however often this process dies; a crash between n and the content is a
  gap.
- A file is durable under its name before the first n of its coordinator is drawn. So a missing file of a coordinator
  that has counted is a loss, and refused; nothing ever begins anew by itself.
- Content, version and digest stand in one transaction, synced before anybody is told. A row is never changed.
- The first failed write or sync ends the process, without closing the file (BrokenError). Its successor writes the log
  again before it reads it: what the page cache shows may not be on the disk.
- One registration of a coordinator at a time: of two for the same schema the second finds the first.
- Only the thread of files touches them: a hanging disk hangs that thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import heapq
import os
import sqlite3
import urllib.parse
import zlib
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from libpharaoh._limits import KEY_BYTES
from libpharaoh.errors import (
    BadRequestError,
    CounterExhaustedError,
    CounterUnknownError,
    KeyTooLongError,
    OutOfRangeError,
    SchemasUnusableError,
    SchemaUnknownError,
    StorageFullError,
    UnavailableError,
    WrongCoordinatorError,
)
from pharaohd import canonical, manifest
from pharaohd.settings import Settings

APPLICATION_ID = 0x50485343
"""Tells SQLite files of schemas from all others: "PHSC"."""
FORMAT = 1
ID_MAX = 2**31 - 1
PAGE_ROWS = 256
PAGE_BYTES = 40_000
"""After so much a list goes on in another reply, which has to fit a frame of 64 KiB."""
COPY_BYTES = 1 << 20
LOCK_PATIENCE_S = 1.0
"""How long a backup that an operator makes may hold a file."""

TABLES = """
CREATE TABLE identity (coordinator INTEGER NOT NULL, modulus INTEGER NOT NULL, cluster TEXT NOT NULL);
CREATE TABLE schemas (
    id INTEGER PRIMARY KEY,
    subject BLOB NOT NULL,
    subject_is_text INTEGER NOT NULL,
    version INTEGER NOT NULL,
    type TEXT NOT NULL,
    digest BLOB NOT NULL,
    content NOT NULL,
    checksum INTEGER NOT NULL,
    UNIQUE (subject, version),
    UNIQUE (subject, digest)
);
"""

T = TypeVar("T")
Ask = Callable[[int, str, list[Any]], Awaitable[Any]]
"""Asks a coordinator's worker: its number, method, params. Raises PharaohError; UnavailableError for no answer."""


class BrokenError(SchemasUnusableError):
    """A write or sync of an open file failed. What it left behind is not known: this process must end at once."""


class Identity(NamedTuple):
    """Whose schemas a file holds."""

    coordinator: int
    modulus: int
    cluster: str


@dataclass(frozen=True, slots=True)
class Name:
    """A subject, or the text of a schema: its bytes, and whether they came as str."""

    raw: bytes
    is_text: bool

    @classmethod
    def of(cls, value: object, what: str) -> Name:
        """Raises BadRequestError."""
        if isinstance(value, bytes):
            return cls(value, False)
        if not isinstance(value, str):
            raise BadRequestError(f"{what} is str or bin")
        try:
            return cls(value.encode(), True)
        except UnicodeEncodeError:
            raise BadRequestError(f"{what} is a str that is not UTF-8") from None

    @property
    def value(self) -> str | bytes:
        return self.raw.decode() if self.is_text else self.raw


Row = tuple[bytes, int, bool, int, str]
"""subject, version, whether the subject is text, id, type: in the order of a list."""


class Store:
    """One open file, used by the thread that opened it.

    Every method raises SchemasUnusableError, StorageFullError or UnavailableError (locked by another program).
    """

    def __init__(self, path: str, identity: Identity) -> None:
        self._path = path
        self._coordinator = identity.coordinator
        with converted(path):
            settle(path)
            uri = f"file:{urllib.parse.quote(path)}?mode=rw"
            self._db = sqlite3.connect(uri, uri=True, timeout=LOCK_PATIENCE_S, isolation_level=None)
            try:
                self._check(identity)
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
                self._inode = os.stat(path).st_ino
            except BaseException:
                self._db.close()
                raise

    def _check(self, identity: Identity) -> None:
        [application], [version] = (
            self._db.execute(f"PRAGMA {pragma}").fetchone() for pragma in ("application_id", "user_version")
        )
        if application != APPLICATION_ID:
            raise SchemasUnusableError(f"{self._path} is no file of schemas")
        if version != FORMAT:
            raise SchemasUnusableError(f"{self._path} has format {version}; this version reads {FORMAT}")
        problems = [text for [text] in self._db.execute("PRAGMA quick_check(1)") if text != "ok"]
        if problems:
            raise SchemasUnusableError(f"{self._path} is damaged: {problems[0]:.200}")
        found = [Identity(*row) for row in self._db.execute("SELECT coordinator, modulus, cluster FROM identity")]
        if found != [identity]:
            raise SchemasUnusableError(f"{self._path} belongs to {found}, not to {identity}")

    def find(self, subject: Name, digest: bytes) -> int | None:
        """The id of a schema of this subject."""
        with converted(self._path):
            row = self._db.execute(
                "SELECT id FROM schemas WHERE subject = ? AND digest = ?", (subject.raw, digest)
            ).fetchone()
        return None if row is None else row[0]

    def insert(self, id: int, subject: Name, type: str, digest: bytes, content: Name) -> None:
        """Durable when it returns."""
        if not self._is_in_place():
            raise SchemasUnusableError(f"{self._path} was taken away")
        with converted(self._path, BrokenError), self._transaction():
            if self._db.execute("SELECT 1 FROM schemas WHERE id = ?", (id,)).fetchone():
                raise SchemasUnusableError(
                    f"{self._path} has id {id} already: the counter of coordinator {self._coordinator} was set back",
                    hint="raise the coordinator's counter of schemas above the highest number in use",
                )
            [version] = self._db.execute(
                "SELECT coalesce(max(version), 0) + 1 FROM schemas WHERE subject = ?", (subject.raw,)
            ).fetchone()
            checksum = checksum_of(id, subject.raw, version, type, content)
            row = (id, subject.raw, subject.is_text, version, type, digest, content.value, checksum)
            self._db.execute("INSERT INTO schemas VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def _is_in_place(self) -> bool:
        try:
            return os.stat(self._path).st_ino == self._inode
        except FileNotFoundError:
            return False

    def get(self, id: int) -> dict[str, Any] | None:
        """What get_schema returns."""
        with converted(self._path):
            row = self._db.execute(
                "SELECT subject, subject_is_text, version, type, content, checksum FROM schemas WHERE id = ?", (id,)
            ).fetchone()
        if row is None:
            return None
        subject, is_text, version, type, content, checksum = row
        if checksum != checksum_of(id, subject, version, type, Name.of(content, "schema")):
            raise SchemasUnusableError(f"{self._path}: schema {id} is damaged")
        shown = Name(subject, bool(is_text)).value
        return {"id": id, "subject": shown, "version": version, "schema": content, "type": type}

    def rows(self, subject: bytes | None, after: tuple[bytes, int]) -> list[Row]:
        """Those behind `after`, in order; one more than a page has."""
        wanted = "" if subject is None else "AND subject = ?"
        with converted(self._path):
            rows = self._db.execute(
                "SELECT subject, version, subject_is_text, id, type FROM schemas "
                f"WHERE (subject, version) > (?, ?) {wanted} ORDER BY subject, version LIMIT {PAGE_ROWS + 1}",
                after if subject is None else (*after, subject),
            ).fetchall()
        return [(name, version, bool(is_text), id, type) for name, version, is_text, id, type in rows]

    def close(self) -> None:
        """Tidies up; a file that is not closed is as good."""
        with contextlib.suppress(sqlite3.Error):
            self._db.close()


def checksum_of(id: int, subject: bytes, version: int, type: str, content: Name) -> int:
    """Tells a damaged row: SQLite looks after its pages' structure, not after what stands in them."""
    head = f"{id} {version} {type} {content.is_text} {len(subject)} ".encode()
    return zlib.crc32(content.raw, zlib.crc32(subject, zlib.crc32(head)))


def create(path: str, identity: Identity) -> None:
    """Makes an empty file, durable under its name when it returns. Raises SchemasUnusableError, StorageFullError."""
    temporary = f"{path}.tmp"
    with converted(path):
        if os.path.lexists(f"{path}-wal"):
            raise SchemasUnusableError(f"{path} is missing, but {path}-wal is there")
        for leftover in (temporary, f"{temporary}-journal"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(leftover)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
        with contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as db:
            db.executescript(
                f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT};\nBEGIN;{TABLES}"
            )
            db.execute("INSERT INTO identity VALUES (?, ?, ?)", identity)
            db.execute("COMMIT")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
        manifest.sync_directory(os.path.dirname(path))


def settle(path: str) -> None:
    """Writes the log of a dead process again, in place, and syncs it: nothing else makes up for a failed sync."""
    manifest.sync_directory(os.path.dirname(path))
    with contextlib.suppress(FileNotFoundError), open(f"{path}-wal", "r+b", buffering=0) as log:
        at = 0
        while chunk := os.pread(log.fileno(), COPY_BYTES, at):
            at += os.pwrite(log.fileno(), chunk, at)
        os.fsync(log.fileno())


@contextlib.contextmanager
def converted(path: str, otherwise: type[SchemasUnusableError] = SchemasUnusableError) -> Iterator[None]:
    """What SQLite and the kernel refuse becomes an error of ours: a full disk, a locked file, or `otherwise`."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            raise StorageFullError(path) from error
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise UnavailableError(f"{path} is locked by another program") from error
        raise otherwise(f"{path}: {error}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(path) from error
        raise otherwise(f"{path}: {error.strerror}") from error


class Registry:
    """The schemas of one coordinator, for the event loop."""

    def __init__(self, path: str, identity: Identity, ask: Ask, files: ThreadPoolExecutor) -> None:
        self._path = path
        self._identity = identity
        self._ask = ask
        self._files = files
        self._store: Store | None = None
        self._opening = asyncio.Lock()
        self._registering = asyncio.Lock()
        self._never_counted = False
        self._unused: int | None = None
        """An id that was drawn and could not be used: a full disk does not eat the ids up."""
        self._broken: BrokenError | None = None

    async def register(self, subject: Name, content: Name, type: str, digest: bytes) -> int:
        store = await self._opened()
        known = await self._run(store.find, subject, digest) if store else None
        if known is not None:
            return known
        async with self._registering:
            store = await self._opened() or await self._made()
            known = await self._run(store.find, subject, digest)
            if known is not None:
                return known
            id, self._unused = self._unused or await self._draw(), None
            try:
                await self._run(store.insert, id, subject, type, digest, content)
            except (StorageFullError, UnavailableError):
                self._unused = id
                raise
            return id

    async def get(self, id: int) -> dict[str, Any] | None:
        store = await self._opened()
        return await self._run(store.get, id) if store else None

    async def rows(self, subject: bytes | None, after: tuple[bytes, int]) -> list[Row]:
        store = await self._opened()
        return await self._run(store.rows, subject, after) if store else []

    async def _draw(self) -> int:
        """A new id."""
        number = await self._ask(self._identity.coordinator, "@next_schema", [])
        if type(number) is not int or number < 1:
            raise UnavailableError(f"coordinator {self._identity.coordinator} counts schemas as {number!r:.40}")
        id = number * self._identity.modulus + self._identity.coordinator
        if id > ID_MAX:
            raise CounterExhaustedError(f"the schema ids of coordinator {self._identity.coordinator}")
        return id

    async def _opened(self) -> Store | None:
        """None: nothing was ever registered here."""
        async with self._opening:
            if self._store is None:
                if await self._run(os.path.lexists, self._path):
                    self._store = await self._run(Store, self._path, self._identity)
                elif not self._never_counted and await self._has_counted():
                    raise SchemasUnusableError(f"{self._path} is missing, and schemas were registered")
            return self._store

    async def _has_counted(self) -> bool:
        try:
            await self._ask(self._identity.coordinator, "@counter_read", ["schema", ""])
        except CounterUnknownError:
            self._never_counted = True  # and will not have until this process draws a number
            return False
        return True

    async def close(self) -> None:
        if self._store is not None:
            await self._run(self._store.close)

    async def _made(self) -> Store:
        await self._run(create, self._path, self._identity)
        store = await self._opened()
        assert store is not None
        return store

    async def _run(self, function: Callable[..., T], *args: Any) -> T:
        """In the thread of files."""
        if self._broken is not None:
            raise self._broken
        try:
            return await asyncio.get_running_loop().run_in_executor(self._files, function, *args)
        except BrokenError as error:
            self._broken = error
            raise


class Schemas:
    """The methods of schemas, over all coordinators of this host."""

    def __init__(self, settings: Settings, ask: Ask) -> None:
        self._modulus = settings.cluster.coordinators
        self._files = ThreadPoolExecutor(1, "schemas")
        self._registries = {
            coordinator: Registry(
                manifest.schemas_path(settings.host.state_dir, coordinator),
                Identity(coordinator, self._modulus, settings.cluster.name),
                ask,
                self._files,
            )
            for coordinator in settings.host.owns
        }

    async def register(self, subject: Any, schema: Any, type: Any = None) -> int:
        """The schema's id, the same for the same schema of a subject."""
        name, content = checked_subject(subject), Name.of(schema, "schema")
        if isinstance(type, bytes):
            type = type.decode(errors="replace")
        if not isinstance(type, str | None):
            raise BadRequestError("type is a str, bin or nil")
        run = asyncio.get_running_loop().run_in_executor
        type, digest = await run(self._files, canonical.identify, content.raw, type)
        return await self._registry_of(name.raw).register(name, content, type, digest)

    async def get(self, id: Any) -> dict[str, Any]:
        if type(id) is not int:
            raise BadRequestError("a schema id is a number")
        if not 1 <= id <= ID_MAX:
            raise OutOfRangeError(f"a schema id is 1 to {ID_MAX}")
        found = await self._registry(id % self._modulus).get(id)
        if found is None:
            raise SchemaUnknownError(str(id))
        return found

    async def list(self, subject: Any = None, after: Any = None) -> dict[str, Any]:
        """A page of rows in the order of subject and version."""
        start = (b"", 0) if after is None else checked_place(after)
        if subject is None:
            pages = [await registry.rows(None, start) for registry in self._registries.values()]
        else:
            name = checked_subject(subject).raw
            pages = [await self._registry_of(name).rows(name, start)]
        return page_of(heapq.merge(*pages))

    def _registry_of(self, subject: bytes) -> Registry:
        return self._registry(zlib.crc32(subject) % self._modulus)

    def _registry(self, coordinator: int) -> Registry:
        registry = self._registries.get(coordinator)
        if registry is None:
            raise WrongCoordinatorError(f"coordinator {coordinator}")
        return registry

    async def close(self) -> None:
        for registry in self._registries.values():
            await registry.close()
        self._files.shutdown()


def checked_subject(value: object) -> Name:
    name = Name.of(value, "a subject")
    if len(name.raw) > KEY_BYTES:
        raise KeyTooLongError(f"{KEY_BYTES} bytes at most")
    return name


def checked_place(after: object) -> tuple[bytes, int]:
    match after:
        case [str() | bytes() as subject, int(version)] if 0 <= version < 2**63:
            return checked_subject(subject).raw, version
    raise BadRequestError("after is the subject and version of the last row had, or nil")


def page_of(rows: Iterator[Row]) -> dict[str, Any]:
    """As many as fit into a reply."""
    shown: list[list[Any]] = []
    size = 0
    for raw, version, is_text, id, type in rows:
        if len(shown) == PAGE_ROWS or size >= PAGE_BYTES:
            return {"schemas": shown, "next": shown[-1][:2]}
        shown.append([Name(raw, is_text).value, version, id, type])
        size += len(raw) + 32
    return {"schemas": shown, "next": None}
