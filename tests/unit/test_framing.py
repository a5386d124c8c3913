"""Frames: whole, cut anywhere, and hostile."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libpharaoh._framing import REPLY_BYTES_MAX, ReplyDecoder, encode_request
from libpharaoh.errors import PharaohError, ProtocolViolationError, RingLimitError


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
