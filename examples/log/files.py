"""Numbered files that are written once, and the log made of them."""

from __future__ import annotations

import json
import os
import re
import tempfile
import zlib
from dataclasses import asdict, dataclass
from typing import Generic, Self, TypeVar

from libpharaoh import Client
from libpharaoh.errors import FencedError

_Entry = TypeVar("_Entry")
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")


class SucceededError(FencedError):
    """Fenced by the log's files: another process has taken this one's place."""

    message = "another process has taken this one's place"
    hint = ""


class LogError(Exception):
    """The log's files are not what they must be, or a name cannot be one of a file."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a log is. Its id keeps its counters apart from those of other logs, and of an earlier one at its place."""

    id: int
    partitions: int


@dataclass(frozen=True, slots=True)
class Batch:
    """An entry of a producer's journal. Without payloads: a session begins here."""

    producer: str
    session: int
    number: int
    partition: int
    position: int
    """How many payloads the producer has taken from its source, these included."""
    payloads: list[str]


@dataclass(frozen=True, slots=True)
class State:
    """What a consumer group has come to."""

    generation: int
    members: dict[str, int]
    """Name → session."""
    newest: int
    """The greatest session that any member ever had."""
    committed: list[int]
    """The offset that comes next, for each partition."""


class Numbered(Generic[_Entry]):
    """A directory of files of one kind. Their names are numbers; they never change."""

    def __init__(self, path: str, kind: type[_Entry]) -> None:
        self.path, self._kind = path, kind
        if not os.path.isdir(path):
            os.makedirs(path, exist_ok=True)
            sync(os.path.dirname(path))

    def put(self, number: int, entry: _Entry) -> bool:
        """Puts an entry in its place and on the disk; False when the place is taken."""
        body = json.dumps(asdict(entry))  # type: ignore[call-overload]
        descriptor, temporary = tempfile.mkstemp(prefix=".", dir=self.path)
        try:
            with open(descriptor, "w") as file:
                file.write(f"{zlib.crc32(body.encode()):08x} {body}\n")
                file.flush()
                os.fsync(descriptor)
            os.link(temporary, self.file(number))
        except FileExistsError:
            return False
        finally:
            os.unlink(temporary)
        sync(self.path)
        return True

    def adopt(self, number: int, path: str) -> None:
        """Puts a file from elsewhere in its place, unless it is there already."""
        try:
            os.link(path, self.file(number))
        except FileExistsError:
            if not os.path.samefile(path, self.file(number)):
                raise LogError(f"{self.file(number)} is taken, and not by {path}") from None
        sync(self.path)

    def get(self, number: int) -> _Entry | None:
        """The entry; None when there is none."""
        try:
            with open(self.file(number), newline="") as file:
                text = file.read()
        except FileNotFoundError:
            return None
        body = text[9:].removesuffix("\n")
        if text != f"{zlib.crc32(body.encode()):08x} {body}\n":
            raise LogError(f"{self.file(number)} is damaged")
        return self._kind(**json.loads(body))

    def last(self, known: int = 0) -> int:
        """The greatest number of files without a gap, 0 for none. `known`: one that is there for certain."""
        known = known or max(self.numbers(), default=0)
        while os.path.exists(self.file(known + 1)):
            known += 1
        return known

    def numbers(self) -> list[int]:
        return sorted(int(name) for name in os.listdir(self.path) if not name.startswith("."))

    def file(self, number: int) -> str:
        return f"{self.path}/{number:020}"

    def holds(self, path: str) -> bool:
        """Whether a file from elsewhere is here, under any number."""
        wanted = os.stat(path).st_ino
        with os.scandir(self.path) as files:
            return any(file.inode() == wanted for file in files)


class Log:
    """An existing log."""

    def __init__(self, path: str) -> None:
        identity = Numbered(f"{path}/log", Identity).get(1) if os.path.isdir(path) else None
        if identity is None:
            raise LogError(f"{path} is no log; `init` makes one")
        self.path, self.id = path, identity.id
        self.partitions = [Numbered(f"{path}/partitions/{p}", Batch) for p in range(identity.partitions)]

    @classmethod
    def create(cls, path: str, partitions: int, client: Client) -> Self:
        if not Numbered(f"{path}/log", Identity).put(1, Identity(client.next_id(), partitions)):
            raise LogError(f"{path} is a log already")
        return cls(path)

    def records(self) -> int:
        """How many records lie in all partitions."""
        return sum(len(existing(files, number).payloads) for files in self.partitions for number in files.numbers())

    def producers(self) -> list[str]:
        return listed(f"{self.path}/producers")

    def journal(self, producer: str) -> Numbered[Batch]:
        return Numbered(f"{self.path}/producers/{checked(producer)}", Batch)

    def groups(self) -> list[str]:
        return listed(f"{self.path}/groups")

    def group(self, name: str) -> Numbered[State]:
        return Numbered(f"{self.path}/groups/{checked(name)}", State)

    def counter(self, name: int | str) -> str:
        """What Pharaoh knows a partition or a group by."""
        return f"log {self.id} {name}"

    def newest(self, producer: str) -> Batch | None:
        """The newest batch of a producer: the only one that may not have been placed."""
        journal = self.journal(producer)
        for number in range(journal.last(), 0, -1):
            batch = journal.get(number)
            if batch is None or batch.payloads:
                return batch
        return None

    def place(self, batch: Batch, client: Client) -> int:
        """Gives a batch its offset and its place there; again the same ones when it has them. Returns the offset.

        Raises FencedError when somebody else has done so, and the producer has gone on since.
        """
        token = (batch.session, batch.number, batch.producer)
        offset = client.assign_offset(self.counter(batch.partition), len(batch.payloads), token=token)
        self.partitions[batch.partition].adopt(offset, self.journal(batch.producer).file(batch.number))
        return offset

    def finish(self, batch: Batch, client: Client) -> None:
        """Places a batch of another process, unless that has been done."""
        journal = self.journal(batch.producer)
        if not self.partitions[batch.partition].holds(journal.file(batch.number)):
            sync(journal.path)  # its producer may not have come to that, and it must not get lost with its offset
            self.place(batch, client)


def existing(files: Numbered[_Entry], number: int) -> _Entry:
    """An entry that is there."""
    entry = files.get(number)
    if entry is None:
        raise LogError(f"{files.file(number)} is gone")
    return entry


def listed(directory: str) -> list[str]:
    return sorted(os.listdir(directory)) if os.path.isdir(directory) else []


def checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise LogError(f"{name!r} cannot be the name of a file")
    return name


def sync(directory: str) -> None:
    """Makes the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
