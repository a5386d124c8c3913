"""The C frame scanner and msgpack judge the same bytes (F36).

What C takes, msgpack must take, with the same end and parts; a valid request must be taken by C. C refuses more:
frames over its limits and messages that are no array or map.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import csrc

DEPTH_MAX = 8
FRAME_BYTES_MAX = 65536

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


@dataclass(frozen=True)
class Verdict:
    """What C says about some bytes: "more", "malformed", or "frame" with its length and parts."""

    result: str
    length: int = 0
    kind: str = ""
    msgid: int = 0
    param_count: int = 0
    method: bytes = b""


class Judge:
    """`fuzz_frame judge`: the C side."""

    def __init__(self) -> None:
        command = [str(csrc.build("fuzz_frame")), "judge"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __call__(self, data: bytes) -> Verdict:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(len(data).to_bytes(4, "big") + data)
        self.process.stdin.flush()
        words = self.process.stdout.readline().decode().split()
        assert words, "the judge died"
        if words[0] != "frame":
            return Verdict(words[0])
        method = bytes.fromhex(words[5].strip('"'))
        return Verdict("frame", int(words[1]), words[2], int(words[3]), int(words[4]), method)

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


def decoded(data: bytes) -> tuple[str, Any]:
    """What msgpack says: "value" with it (maps as lists of pairs), "incomplete", "malformed" or "meaningless"."""
    caps = dict.fromkeys(("max_array_len", "max_map_len", "max_str_len", "max_bin_len", "max_ext_len"), FRAME_BYTES_MAX)
    options: dict[str, Any] = {"raw": True, "strict_map_key": False, "object_pairs_hook": list, **caps}
    try:
        return "value", msgpack.unpackb(data, ext_hook=lambda code, data: (code, data), **options)
    except ValueError as error:
        if "incomplete" in str(error):
            return "incomplete", None
        # An extension of type -1 is a timestamp to msgpack, which looks further into it than a frame's form.
        if "imestamp" in str(error) or "nanoseconds" in str(error):
            return "meaningless", None
        return "malformed", str(error)


def depth_of(value: Any) -> int:
    """Nested containers that hold something. A map is a dict or a list of pairs."""
    pairs = value.items() if isinstance(value, dict) else value
    if not isinstance(value, (dict, list)) or not value:
        return 0
    return 1 + max(depth_of(part) for item in pairs for part in (item if isinstance(item, tuple) else (item,)))


@given(st.integers(0, 2**32 - 1), st.text(max_size=300), st.lists(values, max_size=20), st.binary(max_size=20))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_request_within_the_limits_is_taken(
    judge: Judge, msgid: int, method: str, params: list[Any], behind: bytes
) -> None:
    request = [0, msgid, method, params]
    data = msgpack.packb(request)
    verdict = judge(data + behind)
    if depth_of(request) > DEPTH_MAX or len(data) > FRAME_BYTES_MAX:
        assert verdict.result == "malformed"
    else:
        assert verdict == Verdict("frame", len(data), "request", msgid, len(params), method.encode())
        assert judge(data[:-1]).result == "more"


def check(judge: Judge, data: bytes) -> Verdict:
    verdict = judge(data)
    outcome, frame = decoded(data[: verdict.length] if verdict.result == "frame" else data)
    if verdict.result == "more":
        assert outcome in ("incomplete", "meaningless"), frame
    elif verdict.result == "frame" and outcome != "meaningless":
        assert outcome == "value", frame
        assert isinstance(frame, list)
        if verdict.kind in ("request", "notification"):
            *_, method, params = frame
            assert (method, len(params)) == (verdict.method, verdict.param_count)
            assert verdict.kind == "notification" or frame[1] == verdict.msgid
    return verdict


mutations = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255), st.sampled_from(["set", "cut", "add"])))


@given(values, mutations)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
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
@settings(max_examples=100, deadline=None)
def test_arbitrary_bytes(judge: Judge, data: bytes) -> None:
    verdict = check(judge, data)
    if verdict.result == "malformed":
        outcome, value = decoded(data)
        assert outcome != "value" or not isinstance(value, list) or not value or depth_of(value) > DEPTH_MAX
