"""When two schemas are the same: they have one type and one canonical form (docs/internals/schemas.md).

Two schemas that say different things never share a form; the same one written differently may have two, where telling
would be guessing. The only import of fastavro, and that when first needed: workers and supervisor do without.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from libpharaoh._limits import SCHEMA_BYTES
from libpharaoh.errors import SchemaInvalidError

DEPTH_MAX = 128
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
FULL_NAME = re.compile(rf"{NAME.pattern}(\.{NAME.pattern})*")
NAMED = ("record", "error", "enum", "fixed")
PRIMITIVE = ("null", "boolean", "int", "long", "float", "double", "bytes", "string")


def identify(content: bytes, type: str | None) -> tuple[str, bytes]:
    """The schema's type and a digest of type and canonical form. Raises SchemaInvalidError."""
    if len(content) > SCHEMA_BYTES:
        raise SchemaInvalidError(f"{len(content)} bytes; at most {SCHEMA_BYTES}")
    if type is None:
        type, form = guess(content)
    elif type not in FORMS:
        raise SchemaInvalidError(f"there is no type {type!r:.40}")
    else:
        try:
            form = FORMS[type](content)
        except ValueError as error:
            said = str(error).encode("ascii", "backslashreplace").decode()
            raise SchemaInvalidError(f"{type}: {said:.400}") from None
    return type, hashlib.sha256(type.encode() + b"\0" + form).digest()


def guess(content: bytes) -> tuple[str, bytes]:
    """A JSON document (an object, array or string) counts as such, anything else by its bytes."""
    try:
        document = parse(content)
        return ("json", form_of(document)) if isinstance(document, dict | list | str) else ("bytes", content)
    except ValueError:
        return "bytes", content


def json_form(content: bytes) -> bytes:
    return form_of(parse(content))


def avro_form(content: bytes) -> bytes:
    """All that the schema says, with full names. Raises ValueError when it is not valid.

    Not Avro's own canonical form: that drops defaults, aliases and logical types, by which readers go too.
    """
    from fastavro.schema import SchemaParseException, parse_schema

    document = parse(content)
    form_of(document)  # bounds its depth before anything else descends into it
    try:
        # As a part of another schema: the outermost one would be taken for parsed already if it says so.
        parse_schema({"type": "array", "items": document})
        return form_of(resolved(document, ""))
    except (LookupError, TypeError, AttributeError, ArithmeticError, SchemaParseException) as error:
        raise ValueError(f"{error.__class__.__name__}: {error}") from None


FORMS: dict[str, Callable[[bytes], bytes]] = {"json": json_form, "avro": avro_form, "bytes": bytes}


# JSON


class Real(float):
    """A number that was written with a fraction or an exponent, or as -0: the float rounds, the literal does not."""

    __slots__ = ("literal",)
    literal: str


def real(literal: str) -> Real:
    number = Real(literal)
    number.literal = literal
    return number


def whole(literal: str) -> int | Real:
    return real(literal) if literal == "-0" else int(literal)


def parse(content: bytes) -> Any:
    """The JSON document. Raises ValueError, also for one of which two readers could think differently."""
    try:
        return json.loads(
            content.decode(), parse_float=real, parse_int=whole, parse_constant=refuse, object_pairs_hook=members
        )
    except RecursionError:
        raise ValueError("too deep") from None


def refuse(literal: str) -> None:
    raise ValueError(f"{literal} is not JSON")


def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a name twice")
    return found


def form_of(document: Any) -> bytes:
    """One text for all ways to write the document: no white space, names in order, numbers by their exact values.

    An integer is never the same as a number with a fraction: 1 is not 1.0. Raises ValueError.
    """
    return written(document, DEPTH_MAX).encode("ascii")


def written(value: Any, depth: int) -> str:
    if depth == 0:
        raise ValueError(f"more than {DEPTH_MAX} levels deep")
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(name)}:{written(value[name], depth - 1)}" for name in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(written(item, depth - 1) for item in value) + "]"
    return exact(value.literal) if isinstance(value, Real) else json.dumps(value)


def exact(literal: str) -> str:
    """1.50 and 15e-1 alike are "15e-1". Zero keeps its sign: not every reader drops it."""
    try:
        sign, digits, exponent = Decimal(literal).as_tuple()
    except ArithmeticError:
        raise ValueError(f"{literal:.40} has no exact value") from None
    assert isinstance(exponent, int)
    text = "".join(map(str, digits))
    kept = text.rstrip("0")
    power = exponent + len(text) - len(kept) if kept else 0
    return f"{'-' * sign}{kept or '0'}e{power}"


# Avro, as far as the parser does not see to it


def resolved(schema: Any, namespace: str) -> Any:
    """A schema that the parser takes, with full names and all else as it stands.

    Raises ValueError for what Avro forbids and the parser lets pass.
    """
    if isinstance(schema, str):
        return f"{namespace}.{schema}" if namespace and "." not in schema and schema not in PRIMITIVE else schema
    if isinstance(schema, list):
        members = [resolved(member, namespace) for member in schema]
        kinds = [kind_of(member) for member in members]
        require("union" not in kinds and len(set(kinds)) == len(kinds), "a union has a member twice, or a union in it")
        return members
    type = schema["type"]
    result = dict(schema)
    if type in NAMED:
        namespace = name_fully(result, namespace)
    if type in ("record", "error"):
        require(isinstance(schema["fields"], list), "fields are a list")
        result["fields"] = [field_of(field, namespace) for field in schema["fields"]]
        names = [field["name"] for field in schema["fields"]]
        require(len(set(names)) == len(names), "a record has a field twice")
    elif type in ("array", "map"):
        inner = "items" if type == "array" else "values"
        result[inner] = resolved(schema[inner], namespace)
    elif type == "fixed":
        size = schema["size"]
        require(isinstance(size, int) and not isinstance(size, bool) and size >= 0, f"size {size!r} of a fixed")
    elif type == "enum":
        require(isinstance(schema["symbols"], list), "symbols are a list")
    return result


def name_fully(named: dict[str, Any], namespace: str) -> str:
    """Puts the full name in the place of name and namespace; returns the namespace that holds within."""
    namespace = named.pop("namespace", namespace) or ""
    if "." not in named["name"] and namespace:
        named["name"] = f"{namespace}.{named['name']}"
    require(FULL_NAME.fullmatch(named["name"]), f"{named['name']!r} is no name")
    check_aliases(named)
    return str(named["name"].rpartition(".")[0])


def field_of(field: dict[str, Any], namespace: str) -> dict[str, Any]:
    name, order = field["name"], field.get("order", "ascending")
    require(NAME.fullmatch(name), f"{name!r} is no name of a field")
    require(order in ("ascending", "descending", "ignore"), f"order {order!r}")
    check_aliases(field)
    return field | {"type": resolved(field["type"], namespace)}


def check_aliases(named: dict[str, Any]) -> None:
    aliases = named.get("aliases", [])
    good = isinstance(aliases, list) and all(isinstance(one, str) and FULL_NAME.fullmatch(one) for one in aliases)
    require(good, f"aliases {aliases!r}")


def kind_of(schema: Any) -> str:
    """What may stand in a union once."""
    if isinstance(schema, list):
        return "union"
    if isinstance(schema, dict):
        return str(schema["name"] if schema["type"] in NAMED else schema["type"])
    return str(schema)


def require(condition: object, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)
