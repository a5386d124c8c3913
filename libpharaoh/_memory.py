"""Dense counters, their sessions, and schemas in memory: what the fake client counts with.

Serves requests as they stand on the wire. Durability and the limits that only a daemon can reach are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from libpharaoh._socket import Hello
from libpharaoh.errors import (
    BadRequestError,
    FencedError,
    SchemaInvalidError,
    SchemaUnknownError,
    SessionForgottenError,
    UnknownMethodError,
)
from libpharaoh.scarab import coordinator_for, key_bytes

HOST = "fake"
SESSIONS_MAX = 64
PAGE_ROWS = 256


@dataclass(frozen=True, slots=True)
class _Request:
    """The last one of a session."""

    sequence: int
    count: int
    first: int
    client: bytes | None


class _Counter:
    """One dense counter and its sessions, the one used last at the end."""

    def __init__(self, first: int) -> None:
        self._next = first
        self._sessions: dict[int, _Request] = {}
        self._overtaken: set[int] = set()
        """Those that a newer session of their client has fenced."""
        self._forgotten = 0
        """The greatest one that was dropped."""

    def take(self, count: int, token: list[Any] | None = None) -> int:
        """The first of `count` values, or what the token had before."""
        if token is None:
            return self._advance(count)
        session, sequence, client = token
        last = self._sessions.get(session)
        overtaken = session in self._overtaken or any(self._of_client(client, newer_than=session))
        if overtaken or (last is not None and sequence < last.sequence):
            raise FencedError
        if last is None and session <= self._forgotten:
            raise SessionForgottenError
        if last is not None and sequence == last.sequence:
            if count != last.count:
                raise BadRequestError(f"this token was used with a count of {last.count}")
            return last.first
        first = self._advance(count)
        client = last.client if client is None and last is not None else client
        self._remember(session, _Request(sequence, count, first, client))
        return first

    def _advance(self, count: int) -> int:
        self._next += count
        return self._next - count

    def _remember(self, session: int, request: _Request) -> None:
        self._sessions.pop(session, None)
        self._overtaken.update(self._of_client(request.client, older_than=session))
        if len(self._sessions) == SESSIONS_MAX:
            oldest = next(iter(self._sessions))
            del self._sessions[oldest]
            self._overtaken.discard(oldest)
            self._forgotten = max(self._forgotten, oldest)
        self._sessions[session] = request

    def _of_client(self, client: bytes | None, newer_than: int = 0, older_than: int = 2**64) -> Iterator[int]:
        for session, request in self._sessions.items():
            if client is not None and request.client == client and newer_than < session < older_than:
                yield session


class Memory:
    """One cluster's counters and schemas, all on one host. Not locked."""

    def __init__(self, hello: Hello) -> None:
        self._hello = hello
        self._counters: dict[tuple[str, bytes | int], _Counter] = {}
        self._schemas: dict[int, dict[str, Any]] = {}
        self._ids: dict[tuple[bytes, str, bytes], int] = {}

    def serve(self, method: str, params: list[Any]) -> Any:
        """The result of a request of `_calls`. Raises the errors of a daemon."""
        match method, params:
            case "join_group", [group, member, token]:
                return self._counter("group", group, 1).take(1, _with_client(token, member))
            case "assign_offset", [partition, count, token]:
                return self._counter("offset", partition, 0).take(count, _with_client(token, None))
            case "register_schema", [subject, schema, type]:
                return self._register(subject, schema, type)
            case "get_schema", [id]:
                if id not in self._schemas:
                    raise SchemaUnknownError
                return self._schemas[id]
            case "list_schemas", [subject, after]:
                return self._page(subject, after)
            case "route", [key]:
                number = coordinator_for(key, self._hello.modulus)
                endpoint = self._hello.endpoint(number)
                return {"coordinator": number, "host": HOST, "endpoint": endpoint, "local": True}
            case "cluster", []:
                return self._cluster()
        raise UnknownMethodError

    def _counter(self, kind: str, name: bytes | int, first: int) -> _Counter:
        return self._counters.setdefault((kind, name), _Counter(first))

    def _register(self, subject: str | bytes, schema: str | bytes, type: str | None) -> int:
        type, canonical = _canonical(schema, type)
        raw = key_bytes(subject)
        known = self._ids.get((raw, type, canonical))
        if known is not None:
            return known
        number = coordinator_for(raw, self._hello.modulus)
        id = self._counter("schema", number, 1).take(1) * self._hello.modulus + number
        version = 1 + sum(1 for row in self._schemas.values() if key_bytes(row["subject"]) == raw)
        self._schemas[id] = {"id": id, "subject": subject, "version": version, "schema": schema, "type": type}
        self._ids[raw, type, canonical] = id
        return id

    def _page(self, subject: str | bytes | None, after: list[Any] | None) -> dict[str, Any]:
        """As many rows as a page has, behind `after`."""

        def place(row: dict[str, Any]) -> tuple[bytes, int]:
            return key_bytes(row["subject"]), row["version"]

        def wanted() -> Iterator[dict[str, Any]]:
            for row in sorted(self._schemas.values(), key=place):
                if subject is not None and key_bytes(row["subject"]) != key_bytes(subject):
                    continue
                if after is None or place(row) > (key_bytes(after[0]), after[1]):
                    yield row

        rows = [[row["subject"], row["version"], row["id"], row["type"]] for row in wanted()]
        return {"schemas": rows[:PAGE_ROWS], "next": rows[PAGE_ROWS - 1][:2] if len(rows) > PAGE_ROWS else None}

    def _cluster(self) -> dict[str, Any]:
        owned = list(self._hello.coordinators)
        return {
            "name": HOST,
            "modulus": self._hello.modulus,
            "host": HOST,
            "owners": {HOST: owned},
            "live": owned,
            "peers": [],
            "clock_offsets": {},
        }


def _with_client(token: list[Any] | None, client: bytes | None) -> list[Any] | None:
    """The token with a client id: its own or this one."""
    return [*token, client] if token is not None and len(token) == 2 else token


def _canonical(schema: str | bytes, type: str | None) -> tuple[str, bytes]:
    """The type of a schema, and what is the same for two that are the same. A daemon also checks Avro."""
    raw = key_bytes(schema)
    if type == "bytes":
        return type, raw
    try:
        document = json.loads(raw.decode(), object_pairs_hook=_without_repeats, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        if type is None:
            return "bytes", raw
        raise SchemaInvalidError(f"{type}: {error}") from None
    if type is None and not isinstance(document, dict | list | str):
        return "bytes", raw
    return type or "json", json.dumps(document, sort_keys=True).encode()


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return members


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")
