"""Ids taken apart and put together, against spec/vectors/scarab.toml and against their own inverse."""

from __future__ import annotations

import doctest
import tomllib
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import libpharaoh
from libpharaoh import scarab
from libpharaoh.errors import InvalidArgumentError
from libpharaoh.scarab import ID_MAX, Layout, Scarab, compose, coordinator_for, from_base32, parse, range_for, shard

VECTORS: dict[str, list[dict[str, Any]]] = tomllib.loads(
    (Path(__file__).parents[2] / "spec/vectors/scarab.toml").read_text()
)
IDS = st.integers(0, ID_MAX)


@pytest.mark.parametrize("vector", VECTORS["id"], ids=lambda vector: f"{vector['layout']}:{vector['id']}")
def test_golden_ids(vector: dict[str, Any]) -> None:
    layout = Layout.from_text(vector["layout"])
    id = int(vector["id"])
    parts = parse(id, layout)
    assert (parts.milliseconds, parts.coordinator, parts.sequence) == (
        vector["milliseconds"],
        vector["coordinator"],
        vector["sequence"],
    )
    assert parts.unix_ms == vector["unix_ms"]
    assert parts.datetime == datetime.fromisoformat(vector["time"])
    assert parts.datetime.tzinfo is UTC
    assert parts.to_base32() == vector["base32"]
    assert Scarab.from_base32(vector["base32"], layout) == parts
    assert parts.to_int() == int(parts) == id
    assert compose(parts.milliseconds, parts.coordinator, parts.sequence, layout) == id
    assert compose(parts.datetime, parts.coordinator, parts.sequence, layout) == id


@pytest.mark.parametrize("vector", VECTORS["shard"], ids=lambda vector: f"{vector['id']}/{vector['count']}")
def test_golden_shards(vector: dict[str, Any]) -> None:
    assert shard(int(vector["id"]), vector["count"]) == vector["shard"]


@pytest.mark.parametrize("vector", VECTORS["route"], ids=lambda vector: f"{vector['key']}/{vector['modulus']}")
def test_golden_routes(vector: dict[str, Any]) -> None:
    assert scarab.key_bytes(vector["key"]).hex() == vector["utf8"]
    assert coordinator_for(vector["key"], vector["modulus"]) == vector["coordinator"]
    assert coordinator_for(vector["key"].encode(), vector["modulus"]) == vector["coordinator"]


@pytest.mark.parametrize("vector", VECTORS["base32_read"], ids=lambda vector: str(vector["text"]))
def test_base32_is_read_forgivingly(vector: dict[str, Any]) -> None:
    assert from_base32(vector["text"]) == int(vector["id"])


@pytest.mark.parametrize("vector", VECTORS["base32_refused"], ids=lambda vector: str(vector["why"]))
def test_base32_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        from_base32(vector["text"])


@given(IDS)
def test_parse_and_base32_have_inverses(id: int) -> None:
    assert parse(id).to_int() == id
    assert from_base32(parse(id).to_base32()) == id


@given(IDS, IDS)
def test_base32_sorts_as_ids_do(one: int, other: int) -> None:
    assert (one < other) == (scarab.to_base32(one) < scarab.to_base32(other))


@pytest.mark.parametrize("id", [-1, 2**64, 1.0, "1", True, None])
def test_what_is_no_id_is_refused(id: Any) -> None:
    for function in (parse, scarab.to_base32, lambda id: shard(id, 4)):
        with pytest.raises(InvalidArgumentError):
            function(id)


@pytest.mark.parametrize(
    "parts", [(2**41, 0, 0), (-1, 0, 0), (0, 1024, 0), (0, -1, 0), (0, 0, 8192), (0, 0, -1), (0, True, 0), (0.5, 0, 0)]
)
def test_compose_never_masks(parts: tuple[Any, Any, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        compose(*parts)


def test_compose_refuses_naive_and_early_datetimes() -> None:
    with pytest.raises(InvalidArgumentError, match="time zone"):
        compose(datetime(2026, 1, 1))  # noqa: DTZ001
    with pytest.raises(InvalidArgumentError):
        compose(datetime(2024, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC))


def test_compose_takes_any_time_zone_and_drops_microseconds() -> None:
    east = datetime(2026, 1, 1, 2, 0, 0, 1999, tzinfo=timezone(timedelta(hours=2)))
    assert parse(compose(east)).datetime == datetime(2026, 1, 1, 0, 0, 0, 1000, tzinfo=UTC)


@given(st.integers(0, 10_000), st.integers(1, 10_000), st.integers(-3000, 3000), st.integers(0, 1023))
def test_range_holds_exactly_the_ids_of_its_times(start: int, length: int, offset_us: int, coordinator: int) -> None:
    epoch = datetime(2025, 1, 1, tzinfo=UTC)
    start_time, end_time = epoch + timedelta(milliseconds=start), epoch + timedelta(milliseconds=start + length)
    first, last = range_for(start_time, end_time)
    assert range_for(start, start + length) == (first, last)
    near = max(0, start + length + offset_us // 1000)
    for id in (compose(near, coordinator, 0), compose(near, coordinator, 8191)):
        assert (first <= id <= last) == (start_time <= parse(id).datetime < end_time)


def test_range_rounds_fractions_up_as_comparison_does() -> None:
    half = datetime(2026, 1, 1, 0, 0, 0, 500, tzinfo=UTC)
    whole = datetime(2026, 1, 1, 0, 0, 0, 1000, tzinfo=UTC)
    with pytest.raises(InvalidArgumentError):
        range_for(half, whole)
    assert range_for(half, half + timedelta(milliseconds=1)) == range_for(whole, whole + timedelta(milliseconds=1))


def test_range_reaches_to_the_end_of_the_layout() -> None:
    assert range_for(2**41 - 1, 2**41)[1] == ID_MAX
    for start, end in ((5, 5), (6, 5), (-1, 5), (0, 2**41 + 1)):
        with pytest.raises(InvalidArgumentError):
            range_for(start, end)


@pytest.mark.parametrize(
    "text", ["", "41", "41-10", "41-10-14", "45-9-10", "37-14-13", "40-11-13", "41-16-7", "4x-10-13"]
)
def test_layouts_that_no_daemon_has(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        Layout.from_text(text)


def test_layout_is_written_as_it_is_read() -> None:
    assert str(Layout.from_text("40-10-14", 1)) == "40-10-14"
    with pytest.raises(InvalidArgumentError):
        Layout(epoch_ms=-1)


def test_shards_are_even_although_sequences_are_zero() -> None:
    sizes = Counter(shard(compose(ms, 3), 16) for ms in range(16_000))
    assert len(sizes) == 16
    assert min(sizes.values()) > 850
    assert max(sizes.values()) < 1150
    with pytest.raises(InvalidArgumentError):
        shard(1, 0)


@pytest.mark.parametrize("key", [None, 1, 1.5, ["a"], bytearray(b"a"), "\ud800"])
def test_keys_are_text_or_bytes(key: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        coordinator_for(key, 4)


def test_examples_of_the_docstrings() -> None:
    assert doctest.testmod(scarab, extraglobs={"libpharaoh": libpharaoh}).failed == 0
