"""What the clients make of arguments and replies: a function for each request that goes by socket.

The blocking client, that of asyncio and the fake carry the same `Call` out in their own ways.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, NamedTuple, TypeAlias, TypedDict, TypeVar

from libpharaoh._limits import COUNT_MAX, SCHEMA_BYTES
from libpharaoh._socket import Hello
from libpharaoh.errors import InvalidArgumentError, KeyTooLongError, ProtocolViolationError, SchemaInvalidError
from libpharaoh.scarab import ID_MAX, key_bytes, whole_number

INT32_MAX = 2**31 - 1
INT63_MAX = 2**63 - 1
SCHEMA_TYPES = ("json", "avro", "bytes")

Token: TypeAlias = tuple[int, int] | tuple[int, int, str | bytes]
"""(session, sequence) or (session, sequence, client id): tells a retry from another request."""
_T = TypeVar("_T")


class Schema(TypedDict):
    """What `get_schema` returns."""

    id: int
    subject: str | bytes
    version: int
    schema: str | bytes
    """As it was first registered."""
    type: str


class SchemaVersion(NamedTuple):
    """One row of `list_schemas`."""

    subject: str | bytes
    version: int
    id: int
    type: str


class Route(TypedDict):
    """Where a key is served."""

    coordinator: int
    host: str
    endpoint: str
    """The path of that coordinator's own socket; "" when another host owns it, and so may `host` be."""
    local: bool


@dataclass(frozen=True, slots=True)
class Call(Generic[_T]):
    """One request. `checked` makes its result of the reply's; it raises ProtocolViolationError."""

    method: str
    params: list[Any]
    checked: Callable[[object], _T]


def _checked_pong(result: object) -> None:
    if result != "pong":
        raise ProtocolViolationError(f"ping was answered with {str(result):.100}")


def _map(method: str) -> Callable[[object], dict[str, Any]]:
    def checked(result: object) -> dict[str, Any]:
        if not isinstance(result, dict):
            raise ProtocolViolationError(f"{method} is a {type(result).__name__}, not a map")
        return result

    return checked


# --- From here on each function that returns a Call is a method of every client: tools/gen_clients.py.


def ping() -> Call[None]:
    """Returns when the daemon has answered. Raises what next_id raises.

    >>> client.ping()                           # doctest: +SKIP
    """
    return Call("ping", [], _checked_pong)


def stats() -> Call[dict[str, Any]]:
    """The daemon's figures, as in docs/reference/protocol.md.

    >>> client.stats()["ids_ring"]              # doctest: +SKIP
    8192
    """
    return Call("stats", [], _map("stats"))


def cluster() -> Call[dict[str, Any]]:
    """The cluster as the daemon sees it, as in docs/reference/protocol.md.

    >>> client.cluster()["owners"]                              # doctest: +SKIP
    {'a': [0, 1, 2, 3]}
    """
    return Call("cluster", [], _map("cluster"))


def join_group(group: str | bytes, member: str | bytes, *, token: Token | None = None, hello: Hello) -> Call[int]:
    """The group's next generation: 1, 2, 3 ... without a gap, up to 2**31 - 1. Durable when it is returned.

    `token` is as for `assign_offset`; one without a client id takes the member for it.

    Raises what `assign_offset` raises.

    >>> client.join_group("readers", "reader-1")                # doctest: +SKIP
    1
    """
    params = [checked_key(group, hello), checked_key(member, hello), _wire_token(token, hello)]
    return Call("join_group", params, _number("join_group", 1, INT32_MAX))


def assign_offset(partition: str | bytes, count: int = 1, *, token: Token | None = None, hello: Hello) -> Call[int]:
    """The first of `count` (1 to 2**31 - 1) offsets of `partition`, from 0, without a gap. Durable when returned.

    A failed attempt is repeated within the timeout. Without a token, one whose reply was lost leaves a gap. With a
    token, (session, sequence) or (session, sequence, client id), the value is given once: the same token gets the
    same offset again, also from another process and after a crash. `session` is an id of `create_session`;
    `sequence` (0 to 2**63 - 1) rises from request to request of the session. Once a partition has seen a newer
    session of a client id, the older ones of it are refused.

    Raises InvalidArgumentError, KeyTooLongError, FencedError for an older sequence or session,
    SessionForgottenError when it is not known any more whether the token was used, BadRequestError when it was used
    with another count, CounterExhaustedError, CounterLimitError, WrongCoordinatorError when another host owns the
    partition, and retryable errors: no other coordinator answers for the partition's own one.

    >>> client.assign_offset("orders-7", 100)                   # doctest: +SKIP
    1042
    >>> client.assign_offset("orders-7")                        # doctest: +SKIP
    1142
    """
    whole_number(count, "count", 1, hello.limits.get("count_max", COUNT_MAX))
    params = [checked_key(partition, hello), count, _wire_token(token, hello)]
    return Call("assign_offset", params, _number("assign_offset", 0, INT63_MAX))


def register_schema(subject: str | bytes, schema: str | bytes, type: str | None = None, *, hello: Hello) -> Call[int]:
    """The id (1 to 2**31 - 1) of this schema of `subject`: the same id for the same schema, so it may be repeated.

    type: "json" and "avro" schemas are the same when they differ only in how their JSON is written; "bytes" are
    taken as they are; None finds out whether it is JSON.

    Raises InvalidArgumentError, KeyTooLongError, SchemaInvalidError, CounterExhaustedError, WrongCoordinatorError
    when another host owns the subject, SchemasUnusableError, and retryable errors.

    >>> client.register_schema("orders-value", '{"type": "string"}')        # doctest: +SKIP
    9
    >>> client.register_schema("orders-value", '{ "type":"string" }')       # doctest: +SKIP
    9
    """
    checked_key(subject, hello)
    if not isinstance(schema, str | bytes):
        raise InvalidArgumentError(f"a schema is str or bytes, not {schema.__class__.__name__}")
    if type is not None and type not in SCHEMA_TYPES:
        raise InvalidArgumentError(f"type must be one of {', '.join(SCHEMA_TYPES)} or None, not {type!r}")
    length, limit = len(key_bytes(schema)), hello.limits.get("schema_bytes", SCHEMA_BYTES)
    if length > limit:  # the daemon would close the connection over a frame of that size
        raise SchemaInvalidError(f"{length} bytes, at most {limit}")
    return Call("register_schema", [subject, schema, type], _number("register_schema", 1, INT32_MAX))


def get_schema(id: int) -> Call[Schema]:
    """The schema that `register_schema` gave this id. Raises SchemaUnknownError and what register_schema raises.

    >>> client.get_schema(9)["schema"]                          # doctest: +SKIP
    '{"type": "string"}'
    """
    whole_number(id, "id", 1, INT32_MAX)

    def checked(result: object) -> Schema:
        match result:
            case {
                "id": int(number),
                "subject": str() | bytes() as subject,
                "version": int(version),
                "schema": str() | bytes() as schema,
                "type": str(type),
            } if number == id and version >= 1:
                return Schema(id=id, subject=subject, version=version, schema=schema, type=type)
        raise ProtocolViolationError(f"get_schema was not answered with schema {id}")

    return Call("get_schema", [id], checked)


def schemas_page(
    subject: str | bytes | None, had: list[SchemaVersion], hello: Hello
) -> Call[tuple[list[SchemaVersion], bool]]:
    """One request of `list_schemas`: the rows behind those of the pages `had`, and whether there are more."""
    if subject is not None:
        checked_key(subject, hello)

    def checked(result: object) -> tuple[list[SchemaVersion], bool]:
        match result:
            case {"schemas": [*rows], "next": more} if all(_is_row(row) for row in rows) and (rows or more is None):
                page = [SchemaVersion(*row) for row in rows]
            case _:
                raise ProtocolViolationError("list_schemas was not answered with rows of schemas")
        # Rows that rise bring every list to its end, whatever the daemon does.
        if not all(low < high for low, high in pairwise(map(_place, [*had[-1:], *page]))):
            raise ProtocolViolationError("list_schemas was answered with rows out of order")
        return page, more is not None

    after = [had[-1].subject, had[-1].version] if had else None
    return Call("list_schemas", [subject, after], checked)


def route(key: str | bytes, *, hello: Hello) -> Call[Route]:
    """Which coordinator serves a key, on which host, and the path of its own socket when it is this one.

    >>> client.route("orders")                                  # doctest: +SKIP
    {'coordinator': 2, 'host': 'a', 'endpoint': '/run/pharaohd/coordinators/0002.sock', 'local': True}
    """

    def checked(result: object) -> Route:
        match result:
            case {"coordinator": int(number), "host": str(host), "endpoint": str(endpoint), "local": bool(local)}:
                return Route(coordinator=number, host=host, endpoint=endpoint, local=local)
        raise ProtocolViolationError("route was not answered with a coordinator and its place")

    return Call("route", [checked_key(key, hello)], checked)


def checked_key(key: str | bytes, hello: Hello) -> bytes:
    """The key's bytes. Raises InvalidArgumentError and KeyTooLongError."""
    raw = key_bytes(key)
    limit = hello.limits.get("key_bytes", len(raw))
    if len(raw) > limit:
        raise KeyTooLongError(f"{len(raw)} bytes, at most {limit}")
    return raw


def lowest(after: int | None, last: int) -> int:
    """What the next strict id must exceed. Raises InvalidArgumentError when `after` is no id."""
    return last if after is None else max(whole_number(after, "after", 0, ID_MAX), last)


def _wire_token(token: Token | None, hello: Hello) -> list[Any] | None:
    if token is None:
        return None
    if not isinstance(token, tuple) or len(token) not in (2, 3):
        raise InvalidArgumentError(f"a token is (session, sequence) or (session, sequence, client id), not {token!r}")
    session = whole_number(token[0], "a token's session", 1, ID_MAX)
    sequence = whole_number(token[1], "a token's sequence", 0, INT63_MAX)
    return [session, sequence] if len(token) == 2 else [session, sequence, checked_key(token[2], hello)]


def _number(method: str, low: int, high: int) -> Callable[[object], int]:
    def checked(result: object) -> int:
        if type(result) is not int or not low <= result <= high:
            raise ProtocolViolationError(f"{method} was answered with {str(result):.100}")
        return result

    return checked


def _place(row: SchemaVersion) -> tuple[bytes, int]:
    return key_bytes(row.subject), row.version


def _is_row(row: object) -> bool:
    """Whether these are the fields of a SchemaVersion."""
    match row:
        case [str() | bytes(), int(version), int(id), str()]:
            return version >= 1 and 1 <= id <= INT32_MAX
    return False
