"""When two schemas are the same.

Invariants: what says the same in another way has the same digest where that is certain; what says something else never
has; whatever comes in, the answer is a digest or SCHEMA_INVALID.
"""

from __future__ import annotations

import json
import subprocess
import sys
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libpharaoh._limits import SCHEMA_BYTES
from libpharaoh.errors import SchemaInvalidError
from pharaohd.canonical import DEPTH_MAX, Real, form_of, identify, parse

documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
literals = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", "-"]),
    st.integers(0, 10**25),
    st.just("") | st.integers(0, 10**9).map(".{}".format),
    st.just("")
    | st.builds("{}{}{}".format, st.sampled_from("eE"), st.sampled_from(["", "+", "-"]), st.integers(0, 400)),
)


def digest(schema: str | bytes, type: str | None) -> bytes:
    return identify(schema if isinstance(schema, bytes) else schema.encode(), type)[1]


def same(first: str, second: str, type: str | None = "json") -> bool:
    return digest(first, type) == digest(second, type)


def avro(schema: Any) -> bytes:
    return digest(json.dumps(schema), "avro")


def equal(first: Any, second: Any) -> bool:
    """Whether two JSON documents say the same: Python takes 1, 1.0 and True for one."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(equal, first, second))
    return type(first) is type(second) and repr(first) == repr(second)


# JSON


@given(documents, st.sampled_from([None, 1, 4, "\t"]), st.booleans())
def test_white_space_escapes_and_order_do_not_count(document: Any, indent: int | str | None, ascii_only: bool) -> None:
    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shuffled(value[key]) for key in reversed(value)}
        return [*map(shuffled, value)] if isinstance(value, list) else value

    other = json.dumps(shuffled(document), indent=indent, ensure_ascii=ascii_only)
    assert same(json.dumps(document), other)


@given(documents, documents)
def test_other_documents_have_other_forms(first: Any, second: Any) -> None:
    assert same(json.dumps(first), json.dumps(second)) == equal(first, second)


@given(documents)
def test_a_form_is_a_form_of_itself(document: Any) -> None:
    form = form_of(parse(json.dumps(document).encode()))
    assert form_of(parse(form)) == form


@given(literals, literals)
def test_numbers_are_the_same_by_their_exact_values(first: str, second: str) -> None:
    def is_whole(literal: str) -> bool:
        return literal.lstrip("-").isdigit() and literal != "-0"

    exact = Decimal(first).compare_total(Decimal(second)) == 0 if is_whole(first) else Decimal(first) == Decimal(second)
    signs = first.startswith("-") == second.startswith("-")
    assert same(first, second) == (is_whole(first) == is_whole(second) and exact and signs)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("1", "1.0"),
        ("9007199254740992", "9007199254740993"),  # 2^53 and the next: one double
        ("9007199254740992.0", "9007199254740993.0"),
        ("0.1", "0.1000000000000000055511151231257827"),
        ("1e400", "1e401"),
        ("1e-400", "0.0"),
        ("0", "-0"),
        ("0.0", "-0.0"),
        ('"1"', "1"),
        ("true", "1"),
        ("null", '"null"'),
        ("[]", "{}"),
        ("[[1],2]", "[1,[2]]"),
        ('{"a":{"b":1}}', '{"a":1,"b":1}'),
        ('"a\\u0000b"', '"ab"'),
        ('"\\ud800"', '"\\udfff"'),
        ('"é"', '"e\\u0301"'),
    ],
)
def test_what_looks_the_same_and_is_not(first: str, second: str) -> None:
    assert not same(first, second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("1.50", "15e-1"),
        ("100.0", "1E+2"),
        ("0.0", "0e7"),
        ('"\\u0041"', '"A"'),
        ('"\\ud83d\\ude00"', '"😀"'),
        ('"\\/"', '"/"'),
        (' {"b" : 1,\n"a":2}', '{"a":2,"b":1}'),
    ],
)
def test_what_looks_different_and_is_the_same(first: str, second: str) -> None:
    assert same(first, second)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"a":1,"a":1}',
        '{"a":1,"\\u0061":2}',
        "NaN",
        "[Infinity]",
        "-Infinity",
        "01",
        "1 2",
        "'a'",
        "[1,]",
        "\ufeff{}",
        '"\t"',
        "1e1000000000000000000",
        "1" * 5000,
        "[" * (DEPTH_MAX + 1) + "]" * (DEPTH_MAX + 1),
        "[" * 28_000 + "]" * 28_000,
        b"\xff",
        b'"\xed\xa0\x80"',
    ],
    ids=lambda text: repr(text[:20]),
)
def test_what_is_not_json_or_has_no_one_form_is_refused(text: str | bytes) -> None:
    with pytest.raises(SchemaInvalidError):
        digest(text, "json")
    with pytest.raises(SchemaInvalidError):
        digest(text, "avro")
    raw = text if isinstance(text, bytes) else text.encode()
    assert identify(raw, None) == ("bytes", digest(raw, "bytes"))  # without a type it counts by its bytes


def test_the_deepest_json() -> None:
    assert identify(b"[" * (DEPTH_MAX - 1) + b"]" * (DEPTH_MAX - 1), None)[0] == "json"


# Types


@pytest.mark.parametrize(
    ("text", "type"),
    [("{}", "json"), ("[]", "json"), (' "s"', "json"), ("5", "bytes"), ("true", "bytes"), ("null", "bytes"),
     ("", "bytes"), ('syntax = "proto3";', "bytes"), ("{]", "bytes")],
)  # fmt: skip
def test_the_type_is_told_from_the_text(text: str, type: str) -> None:
    found, found_digest = identify(text.encode(), None)
    assert (found, found_digest) == (type, digest(text, type))


def test_types_are_kept_apart() -> None:
    assert len({digest('"string"', type) for type in ("json", "avro", "bytes")}) == 3


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_bytes_count_as_they_are(first: bytes, second: bytes) -> None:
    assert (digest(first, "bytes") == digest(second, "bytes")) == (first == second)


@pytest.mark.parametrize("type", ["", "JSON", "xml", "\udcff"])
def test_there_is_no_such_type(type: str) -> None:
    with pytest.raises(SchemaInvalidError, match="there is no type"):
        identify(b"{}", type)


@pytest.mark.parametrize("type", [None, "json", "avro", "bytes"])
def test_the_longest_schema(type: str | None) -> None:
    longest = b'"string"'.ljust(SCHEMA_BYTES)
    identify(longest, type)
    with pytest.raises(SchemaInvalidError, match="57345 bytes"):
        identify(longest + b" ", type)


@given(st.binary(max_size=300) | documents.map(lambda one: json.dumps(one).encode()))
def test_whatever_comes_in(content: bytes) -> None:
    for type in (None, "json", "avro", "bytes"):
        try:
            found, found_digest = identify(content, type)
        except SchemaInvalidError as error:
            str(error).encode("ascii")
        else:
            assert found == (type or found)
            assert len(found_digest) == 32


# Avro


def record(*fields: Any, **others: Any) -> dict[str, Any]:
    return {"type": "record", "name": "R", "fields": [*fields], **others}


def field(type: Any, **others: Any) -> dict[str, Any]:
    return {"name": "f", "type": type, **others}


FIXED = {"type": "fixed", "name": "F", "size": 4}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (record(namespace="a.b"), record() | {"name": "a.b.R"}),
        (record(field("R"), namespace="a"), record(field("a.R"), namespace="a")),
        (record(field(FIXED), namespace="a"), record(field(FIXED | {"namespace": "a"}), namespace="a")),
        (record(field(FIXED), namespace="a"), record(field(FIXED | {"name": "a.F"}), namespace="a")),
        (record(namespace=""), record()),
        (record() | {"name": "a.R", "namespace": "ignored"}, record(namespace="a")),
    ],
)
def test_full_names_count(first: Any, second: Any) -> None:
    assert avro(first) == avro(second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (record(field("int")), record(field("int", default=0))),
        (record(field("int", default=0)), record(field("int", default=1))),
        (record(field("double", default=1.0)), record(field("double", default=1))),
        (record(field("long", default=2**53)), record(field("long", default=2**53 + 1))),
        (record(), record(aliases=["Old"])),
        (record(field("int")), record(field("int", aliases=["g"]))),
        (record(), record(doc="what it is for")),
        (record(field("int")), record(field({"type": "int", "logicalType": "date"}))),
        (record(field("int")), record(field("int", order="ignore"))),
        (record(), record(namespace="a")),
        (record(field(FIXED), namespace="a"), record(field(FIXED | {"namespace": "b"}), namespace="a")),
        (record(field(FIXED), namespace="a"), record(field(FIXED | {"namespace": ""}), namespace="a")),
        (["null", "int"], ["int", "null"]),
        ({"type": "string", "size": 255}, {"type": "string", "size": 300}),  # a property of the application's own
        ({"type": "map", "values": "int", "name": "a"}, {"type": "map", "values": "int", "name": "b"}),
        ({"type": "enum", "name": "E", "symbols": ["A", "B"]}, {"type": "enum", "name": "E", "symbols": ["B", "A"]}),
    ],
)
def test_what_readers_go_by_counts(first: Any, second: Any) -> None:
    assert avro(first) != avro(second)


@pytest.mark.parametrize(
    "schema",
    [
        5, None, {}, "nothing", {"type": "nothing"}, {"type": ["int"]}, {"type": {"type": "int"}},
        {"type": "array"}, {"type": "map"}, {"type": "array", "items": 5},
        {"type": "record", "fields": []}, {"type": "record", "name": "R"}, record() | {"fields": {}},
        record() | {"name": 5}, record() | {"name": ""}, record() | {"name": "1st"}, record() | {"name": "a..b"},
        record(namespace=5), record(namespace="a-b"), record(aliases="Old"), record(aliases=["1st"]),
        record(5), record({"type": "int"}), record({"name": "f"}), record({"name": "f g", "type": "int"}),
        record({"name": 5, "type": "int"}), record(field("int"), field("int")), record(field("int", order="up")),
        record(field("int", default="one")), record(field(["null", "int"], default="one")), record(field("Q")),
        record(field(FIXED), field(FIXED) | {"name": "g"}),
        {"type": "fixed", "name": "F"}, FIXED | {"size": "4"}, FIXED | {"size": -1}, FIXED | {"size": True},
        FIXED | {"size": 10**400, "logicalType": "decimal", "precision": 3},
        {"type": "enum", "name": "E"}, {"type": "enum", "name": "E", "symbols": "AB"},
        {"type": "enum", "name": "E", "symbols": ["A", "A"]}, {"type": "enum", "name": "E", "symbols": ["A B"]},
        ["int", "int"], ["int", ["string"]], [FIXED, FIXED], ["int", {"type": "int", "logicalType": "date"}],
        {"__fastavro_parsed": True, "__named_schemas": {}, "type": "nothing"},
        [{"__fastavro_parsed": True, "__named_schemas": {}, "type": "nothing"}],
    ],
    ids=json.dumps,
)  # fmt: skip
def test_what_is_not_avro_is_refused(schema: Any) -> None:
    with pytest.raises(SchemaInvalidError):
        avro(schema)


@pytest.mark.parametrize(
    "schema",
    ["string", ["null", "string"], record(), FIXED, {"type": "map", "values": record(field(["null", "R"]))},
     {"type": "enum", "name": "E", "symbols": ["A"], "default": "A"}, record(field("long", default=-(2**63)))],
)  # fmt: skip
def test_avro_is_taken(schema: Any) -> None:
    avro(schema)


def test_a_number_keeps_what_it_was_written_as() -> None:
    value = parse(b"0.30000000000000000001")
    assert isinstance(value, Real)
    assert value.literal == "0.30000000000000000001"


def test_nobody_but_the_router_loads_the_libraries_of_schemas() -> None:
    """Workers are many: what is loaded before they are forked costs memory in each."""
    code = (
        "import sys, pharaohd.cli, pharaohd.supervisor, pharaohd.worker\n"
        "print([one for one in ('fastavro', 'sqlite3', 'pharaohd.schemas') if one in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
