"""Frames: whole, cut anywhere, and hostile."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libpharaoh._framing import (
    REPLY_BYTES_MAX,
    REQUEST_BYTES_MAX,
    ReplyDecoder,
    RequestDecoder,
    encode_error,
    encode_request,
    encode_result,
)
from libpharaoh.errors import PharaohError, ProtocolViolationError, RingLimitError, SchemaInvalidError


def test_a_request_is_what_the_specification_says() -> None:
    assert encode_request(7, "next_ids", [3]) == bytes.fromhex("94 00 07 a8") + b"next_ids" + bytes.fromhex("91 03")
    assert msgpack.unpackb(encode_request(2**32 - 1, "x", [b"\xff", None])) == [0, 2**32 - 1, "x", [b"\xff", None]]


@given(st.lists(st.integers(0, 2**64 - 1), max_size=20), st.data())
def test_replies_cut_anywhere(results: list[int], data: st.DataObject) -> None:
    stream = b"".join(msgpack.packb([1, number, None, result]) for number, result in enumerate(results))
    decoder, replies = ReplyDecoder(), []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        replies += decoder.feed(stream[:cut])
        stream = stream[cut:]
    assert [(reply.msgid, reply.result) for reply in replies] == list(enumerate(results))
    assert all(reply.error is None for reply in replies)


def test_errors_have_their_class() -> None:
    (reply,) = ReplyDecoder().feed(msgpack.packb([1, 0, [4007, "RING_LIMIT", "no room", True, "wait"], None]))
    assert isinstance(reply.error, RingLimitError)
    assert reply.error.hint == "wait"


def test_errors_of_a_newer_daemon_are_kept() -> None:
    (reply,) = ReplyDecoder().feed(msgpack.packb([1, 0, [4999, "NEW", "something new", True, None], None]))
    assert isinstance(reply.error, PharaohError)
    assert (reply.error.code, reply.error.name, reply.error.retryable) == (4999, "NEW", True)


@pytest.mark.parametrize(
    "frame",
    [
        1,
        "text",
        {},
        [],
        [0, 1, "ping", []],
        [2, "ping", []],
        [1, 0, None],
        [1, 0, None, None, None],
        [1, "0", None, None],
        [1, True, None, None],
        [1, 0, "error", None],
        [1, 0, [4007], None],
        [1, 0, ["4007", "RING_LIMIT", "no room", True, ""], None],
        [1, 0, [4007, "RING_LIMIT", "no room", 1, ""], None],
    ],
    ids=str,
)
def test_frames_that_are_no_replies(frame: Any) -> None:
    with pytest.raises(ProtocolViolationError):
        ReplyDecoder().feed(msgpack.packb(frame))


@pytest.mark.parametrize(
    "data",
    [
        bytes.fromhex("dd7fffffff"),  # an array of two thousand million
        bytes.fromhex("dd0000ffff") * 10,
        bytes.fromhex("df7fffffff"),  # a map
        bytes.fromhex("c1"),  # never used
        bytes.fromhex("c70105ff"),  # an extension
        b"\x91" * 2000,  # deeper than anything
        b"\x94\x01\x00\xc0\xa1\xff",  # text that is not UTF-8
        b"\xdc\x3f\xff" + bytes(REPLY_BYTES_MAX + 1),
    ],
    ids=lambda data: bytes(data[:8]).hex(),
)
def test_bombs(data: bytes) -> None:
    """F36: refused without taking the memory that they announce."""
    with pytest.raises(ProtocolViolationError):
        ReplyDecoder().feed(data)


@pytest.mark.parametrize("header", ["db7fffffff", "c67fffffff"])
def test_endless_text_is_given_up(header: str) -> None:
    """F36: what is announced may come in pieces, but not more than a reply can be."""
    decoder = ReplyDecoder()
    assert decoder.feed(bytes.fromhex(header)) == []
    pieces = [bytes(65536)] * (REPLY_BYTES_MAX // 65536 + 1)
    with pytest.raises(ProtocolViolationError):
        list(map(decoder.feed, pieces))


# The server's side

params = st.lists(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=40) | st.binary(max_size=300),
    max_size=5,
)


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.text(max_size=9), params), max_size=9), st.data())
def test_requests_cut_anywhere(requests: list[tuple[int, str, list[Any]]], data: st.DataObject) -> None:
    stream = b"".join(encode_request(*request) for request in requests)
    decoder, found = RequestDecoder(), []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        found += decoder.feed(stream[:cut])
        stream = stream[cut:]
    assert [(one.msgid, one.method, one.params) for one in found] == requests


@pytest.mark.parametrize("piece", [1, 7, 65_536])
def test_odd_params_leave_the_stream_in_step(piece: int) -> None:
    odd = [b"\xc0", b"\x80", b"\x91\xc7\x03\xff\x00\x00\x00", b"\x91\x81\x91\x01\x02", b"\x91\xd4\x05\x00"]
    stream = b"".join(b"\x94\x00\x07\xa1x" + one + encode_request(8, "y", [1]) for one in odd)
    decoder, found = RequestDecoder(), []
    for at in range(0, len(stream), piece):
        found += decoder.feed(stream[at : at + piece])
    assert [one.msgid for one in found] == [7, 8] * len(odd)
    assert [one.params for one in found[1::2]] == [[1]] * len(odd)
    assert [one.params for one in found[0:8:2]] == [None] * 4


def test_text_that_is_not_utf_8_is_told_from_text() -> None:
    (one,) = RequestDecoder().feed(b"\x94\x00\x07\xa1x\x91\xa2\xc3\x28")
    assert one.params == ["\udcc3("]


def test_a_request_is_as_long_as_a_frame_may_be() -> None:
    longest = encode_request(1, "x", [b"x" * (REQUEST_BYTES_MAX - 9)])
    assert len(longest) == REQUEST_BYTES_MAX
    decoder = RequestDecoder()
    assert len(decoder.feed(longest)) == 1
    assert decoder.feed(longest[:-1]) == []
    assert len(decoder.feed(longest[-1:] + longest[:-1])) == 1
    longer = encode_request(1, "x", [b"x" * (REQUEST_BYTES_MAX - 8)])
    for cut in (9, REQUEST_BYTES_MAX):
        decoder = RequestDecoder()
        assert decoder.feed(longer[:cut]) == []
        with pytest.raises(ProtocolViolationError):
            decoder.feed(longer[cut:])
    with pytest.raises(ProtocolViolationError):
        RequestDecoder().feed(encode_request(1, "x", [b"x" * REQUEST_BYTES_MAX])[: REQUEST_BYTES_MAX + 1])


@given(st.binary(max_size=400))
def test_no_bytes_break_the_server_s_decoder(data: bytes) -> None:
    decoder = RequestDecoder()
    try:
        decoder.feed(data)
    except ProtocolViolationError:
        return


@given(st.text(max_size=40), st.none() | st.text(min_size=1, max_size=10))
def test_errors_and_results_come_back(detail: str, hint: str | None) -> None:
    error = SchemaInvalidError(detail.strip(), hint=hint)
    fine, wrong = ReplyDecoder().feed(encode_result(3, {"a": [b"\xff"]}) + encode_error(4, error))
    assert (fine.msgid, fine.error, fine.result) == (3, None, {"a": [b"\xff"]})
    assert isinstance(wrong.error, SchemaInvalidError)
    assert wrong.error.detail == error.detail
    assert wrong.error.hint == error.hint
