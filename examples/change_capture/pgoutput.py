"""PostgreSQL's own format of logical replication, version 1, from bytes to changes.

Its manual has it under "Logical Replication Message Formats".
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

Row = dict[str, str | None]


class Change(NamedTuple):
    """What happened to one row; or to all of a table (truncate), without key and row."""

    table: str
    op: str
    key: Row | None
    """Who it was before the change."""
    row: Row | None
    """What it is afterwards, without large values that an update left alone."""


@dataclass(slots=True)
class Committed:
    """A transaction. end: the log's place after it."""

    end: int = 0
    changes: list[Change] = field(default_factory=list)


class Relation(NamedTuple):
    name: str
    columns: list[str]
    key: set[str]


class Message:
    """Reads one message from its start on."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, form: str) -> int:
        (value,) = struct.unpack_from(f">{form}", self._data, self._at)
        self._at += struct.calcsize(form)
        return int(value)

    def kind(self) -> str:
        return chr(self.take("B"))

    def string(self) -> str:
        end = self._data.index(b"\0", self._at)
        text = self._data[self._at : end].decode()
        self._at = end + 1
        return text

    def text(self) -> str:
        length = self.take("I")
        self._at += length
        return self._data[self._at - length : self._at].decode()

    def row(self, columns: list[str]) -> Row:
        """Without the columns that are marked as unchanged."""
        row: Row = {}
        for column in columns[: self.take("H")]:
            match self.kind():
                case "n":
                    row[column] = None
                case "t":
                    row[column] = self.text()
                case "u":
                    pass
                case other:
                    raise ValueError(f"a column of kind {other!r}")
        return row


def transactions(messages: Iterable[bytes]) -> Iterator[Committed]:
    """All messages of one reading: it names each table before the first change to it."""
    relations: dict[int, Relation] = {}
    current = Committed()
    for data in messages:
        message = Message(data)
        match message.kind():
            case "B":
                current = Committed()
            case "C":
                message.take("B")  # flags
                message.take("Q")  # where its commit record begins
                current.end = message.take("Q")
                yield current
            case "R":
                number = message.take("I")
                relations[number] = _relation(message)
            case "I" | "U" | "D" as kind:
                current.changes.append(_change(kind, message, relations[message.take("I")]))
            case "T":
                count = message.take("I")
                message.take("B")  # options
                for _ in range(count):
                    current.changes.append(Change(relations[message.take("I")].name, "truncate", None, None))
            case "Y" | "O":
                pass  # a type's name; where the change came from
            case other:
                raise ValueError(f"a message of kind {other!r}")


def _relation(message: Message) -> Relation:
    name = f"{message.string()}.{message.string()}"
    message.take("B")  # which identity its rows have
    columns, key = [], set()
    for _ in range(message.take("H")):
        part_of_key = message.take("B")
        columns.append(message.string())
        if part_of_key:
            key.add(columns[-1])
        message.take("I")  # type
        message.take("I")  # and its modifier
    return Relation(name, columns, key)


def _change(kind: str, message: Message, relation: Relation) -> Change:
    def identity(row: Row) -> Row:
        return {column: row[column] for column in relation.columns if column in relation.key}

    old = new = None
    part = message.kind()
    if part in "KO":
        old = message.row(relation.columns)
        part = message.kind() if kind == "U" else ""
    if part == "N":
        new = message.row(relation.columns)
    before = old if old is not None else new  # an update sends the old key only when it has changed
    assert before is not None
    op = {"I": "insert", "U": "update", "D": "delete"}[kind]
    return Change(relation.name, op, identity(before), new)
