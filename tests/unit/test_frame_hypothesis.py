"""C and msgpack judge the same streams of frames (F36, F46).

What is a frame, where it ends, what it asks for, and what closes the connection: tests/support/reference.py says so by
the msgpack library; `fuzz_frame judge` says what the codec says, and first tries each frame in pieces.
"""

from __future__ import annotations

import itertools
import json
import random
import subprocess
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.support import csrc
from tests.support.frames import Frames, every_width
from tests.support.reference import DEPTH_MAX, FRAME_BYTES_MAX, Map, Message, depth_of, read

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=40)
    | st.binary(max_size=300)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=20))
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.integers(0, 2**64 - 1) | st.text(), inner),
    max_leaves=30,
)

Verdict = list[Any]
"""One stream: its messages, and at the end "more" or "refused"."""


class Judge:
    """`fuzz_frame judge`: the C side."""

    def __init__(self) -> None:
        command = [str(csrc.build("fuzz_frame")), "judge"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __call__(self, stream: bytes) -> Verdict:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(len(stream).to_bytes(4, "big") + stream)
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the judge died"
        verdict: Verdict = json.loads(line)
        return verdict

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    judge = Judge()
    try:
        yield judge
    finally:
        judge.close()


def shown(message: Message) -> list[Any]:
    """As the judge shows it."""
    if message.kind == "notification":
        return ["notification", message.length]
    if message.kind != "request":
        return [message.kind, message.length, message.msgid]
    params = shown_params(message.params)
    return ["request", message.length, message.msgid, message.method.hex(), len(message.params), params]


def shown_params(params: tuple[Any, ...]) -> list[Any]:
    """null, numbers, text in hexadecimal, up to the first that is none of these."""
    found: list[Any] = []
    for value in params:
        if isinstance(value, bytes):
            found.append(value.hex())
        elif value is None or (type(value) is int and value >= 0):
            found.append(value)
        else:
            break
    return found


def expected(stream: bytes) -> Verdict:
    messages, end = read(stream)
    return [*map(shown, messages), end]


@given(st.randoms(use_true_random=True), st.sampled_from([0.0, 0.5, 0.95]), st.integers(1, 12))
@settings(max_examples=500)
def test_streams(judge: Judge, rng: random.Random, plain: float, count: int) -> None:
    """F46: all that a client may send, in all widths, and what it may not."""
    stream = Frames(rng, plain).stream(count)
    assert judge(stream) == expected(stream)


@given(st.randoms(use_true_random=True), st.sampled_from([0.0, 0.5, 0.95]))
@settings(max_examples=100)
def test_a_stream_that_ends_anywhere(judge: Judge, rng: random.Random, plain: float) -> None:
    """F46: of what has arrived the whole frames are taken, and the rest is waited for."""
    stream = Frames(rng, plain).stream(3)
    *messages, end = expected(stream)
    assume(end == "more")
    ends = list(itertools.accumulate(message[1] for message in messages))
    for length in range(0, len(stream), 1 + len(stream) // 200):
        assert judge(stream[:length]) == [*messages[: sum(place <= length for place in ends)], "more"]


def test_every_width(judge: Judge) -> None:
    """F46: one request in all widths of all its parts."""
    for value in (7, 2**32 - 1):
        frames = every_width(value)
        for at in range(0, len(frames), 20):
            verdict = judge(b"".join(frames[at : at + 20]))
            assert verdict == [
                *(["request", len(frame), value, b"next_ids".hex(), 1, [1]] for frame in frames[at : at + 20]), "more"
            ]  # fmt: skip


@given(st.integers(0, 2**32 - 1), st.text(max_size=300), st.lists(values, max_size=20), st.binary(max_size=20))
@settings(max_examples=100)
def test_every_request_within_the_limits_is_taken(
    judge: Judge, msgid: int, method: str, params: list[Any], behind: bytes
) -> None:
    request = [0, msgid, method, params]
    data = msgpack.packb(request)
    verdict = judge(data + behind)
    if depth_of(as_lists(request)) > DEPTH_MAX or len(data) > FRAME_BYTES_MAX:
        assert verdict == ["refused"]
    else:
        assert verdict[0][:5] == ["request", len(data), msgid, method.encode().hex(), len(params)]
        assert judge(data[:-1]) == ["more"]


def as_lists(value: Any) -> Any:
    """Maps as the reference has them."""
    if isinstance(value, dict):
        return Map((as_lists(key), as_lists(part)) for key, part in value.items())
    return [as_lists(part) for part in value] if isinstance(value, list) else value


def check(judge: Judge, data: bytes) -> None:
    """Bytes of any kind. Of a frame that has not arrived whole C may know already that it will be refused."""
    *messages, end = judge(data)
    *theirs, their_end = expected(data)
    if their_end == "meaningless":
        assert messages[: len(theirs)] == theirs
        return
    assert messages == theirs
    assert end == their_end or (end, their_end) == ("refused", "more")


mutations = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255), st.sampled_from(["set", "cut", "add"])))


@given(values, mutations)
@settings(max_examples=200)
def test_what_c_takes_msgpack_takes(judge: Judge, value: Any, mutations: list[tuple[int, int, str]]) -> None:
    data = bytearray(msgpack.packb([0, 1, "method", [value]]))
    for position, byte, kind in mutations:
        at = position % (len(data) + 1)
        if kind == "set":
            data[at : at + 1] = bytes([byte])
        elif kind == "add":
            data[at:at] = bytes([byte])
        else:
            del data[at : at + byte % 8]
    check(judge, bytes(data))


@given(st.binary(min_size=1, max_size=200))
@settings(max_examples=100)
def test_arbitrary_bytes(judge: Judge, data: bytes) -> None:
    check(judge, data)
