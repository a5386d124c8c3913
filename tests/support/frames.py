"""Streams of frames that leave nothing untried: every legal width of every number, string and head (F46)."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import msgpack

from tests.support.reference import FAR, FRAME_BYTES_MAX, MSGID_END, PAST, RULES

UINTS = [(0xCC, 1), (0xCD, 2), (0xCE, 4), (0xCF, 8)]
INTS = [(0xD0, 1), (0xD1, 2), (0xD2, 4), (0xD3, 8)]
STRS = [(0xD9, 1), (0xDA, 2), (0xDB, 4)]
BINS = [(0xC4, 1), (0xC5, 2), (0xC6, 4)]
EXTS = [(0xC7, 1), (0xC8, 2), (0xC9, 4)]
FIXEXTS = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}


def headed(codes: list[tuple[int, int]], number: int) -> list[bytes]:
    """The heads that can announce so much."""
    return [bytes([code]) + number.to_bytes(size, "big") for code, size in codes if number < 1 << 8 * size]


def ints(value: int) -> list[bytes]:
    """All forms of an integer, the shortest first."""
    fixed = [struct.pack("b", value)] if -32 <= value < 128 else []
    signed = [
        bytes([code]) + value.to_bytes(size, "big", signed=True)
        for code, size in INTS
        if -(1 << 8 * size - 1) <= value < 1 << 8 * size - 1
    ]
    return fixed + (headed(UINTS, value) if value >= 0 else []) + signed


def texts(data: bytes) -> list[bytes]:
    """All forms of a string, as str and as bin."""
    fixed = [bytes([0xA0 | len(data)])] if len(data) < 32 else []
    return [head + data for head in fixed + headed(STRS, len(data)) + headed(BINS, len(data))]


def array_heads(count: int) -> list[bytes]:
    return ([bytes([0x90 | count])] if count < 16 else []) + headed([(0xDC, 2), (0xDD, 4)], count)


def map_heads(count: int) -> list[bytes]:
    return ([bytes([0x80 | count])] if count < 16 else []) + headed([(0xDE, 2), (0xDF, 4)], count)


def exts(code: int, data: bytes) -> list[bytes]:
    kind = struct.pack("b", code)
    fixed = [bytes([FIXEXTS[len(data)]])] if len(data) in FIXEXTS else []
    return [head + kind + data for head in fixed + headed(EXTS, len(data))]


NUMBERS = [
    0,
    1,
    7,
    31,
    32,
    100,
    127,
    128,
    255,
    256,
    8192,
    8193,
    32767,
    32768,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
]
LONG_NUMBERS = [2**32, 2**40, PAST - 1, FAR, 2**63 - 1, 2**63, 2**64 - 1]
METHODS = [*RULES, b"", b"nextId", b"next_id\0", b"next_i", b"next_ids_of_a_method_with_a_long_name"]
CANARY = b"canary"
"""A name that is counted nowhere but in requests that are data."""


class Frames:
    """A source of frames. With `plain` as probability a value takes its shortest form."""

    def __init__(self, rng: random.Random, plain: float) -> None:
        self.rng = rng
        self.plain = plain

    def chance(self, of: float) -> bool:
        return self.rng.random() < of

    def one_of(self, forms: list[bytes]) -> bytes:
        return forms[0] if self.chance(self.plain) else self.rng.choice(forms)

    def integer(self, value: int) -> bytes:
        return self.one_of(ints(value))

    def text(self, data: bytes) -> bytes:
        return self.one_of(texts(data))

    def array(self, items: list[bytes]) -> bytes:
        return self.one_of(array_heads(len(items))) + b"".join(items)

    def mapping(self, items: list[bytes]) -> bytes:
        return self.one_of(map_heads(len(items) // 2)) + b"".join(items[: len(items) // 2 * 2])

    def fraction(self) -> bytes:
        value = self.rng.choice([0.0, 1.0, 7.0, -0.5, 1e18])
        return self.one_of([b"\xcb" + struct.pack(">d", value), b"\xca" + struct.pack(">f", value)])

    def ext(self) -> bytes:
        if self.chance(0.3):  # timestamps, as msgpack takes them
            return self.rng.choice(exts(-1, bytes(4)) + exts(-1, bytes(8)) + exts(-1, bytes(12)))
        return self.one_of(exts(self.rng.randrange(128), self.data(self.rng.choice([0, 1, 2, 3, 4, 8, 16, 17, 40]))))

    def data(self, length: int) -> bytes:
        """Bytes that are requests, wherever one begins to read."""
        sled = msgpack.packb([0, 8, "assign_offset", [CANARY, 1000]]) + msgpack.packb([0, 9, "next_id", []])
        pieces = [
            b"k" * self.rng.randrange(12),
            sled,
            b"\xa7next_id\x90",
            b"\x94\x00\x07\xa4ping\x90",
            b"\x90",
            b"\xc0",
        ]
        made = self.rng.choice([b"", bytes(4), b"k" * 70])
        while len(made) < length:
            made += self.rng.choice(pieces) or b"\x00"
        return made[:length]

    def key(self) -> bytes:
        return self.data(self.rng.choice([0, 1, 5, 31, 32, 63, 70, 100, 110, 255, 256, 300, 4096, 4097]))

    def number(self) -> int:
        return self.rng.choice(NUMBERS if self.chance(0.8) else LONG_NUMBERS)

    def value(self, depth: int = 0) -> bytes:
        """Anything."""
        kinds: list[Callable[[], bytes]] = [
            lambda: b"\xc0",
            lambda: self.rng.choice([b"\xc2", b"\xc3"]),
            lambda: self.integer(self.number()),
            lambda: self.integer(self.rng.choice([-1, -32, -33, -128, -129, -32769, -(2**31) - 1, -(2**63)])),
            self.fraction,
            self.ext,
            lambda: self.text(self.key()),
        ]
        if depth < 4:
            kinds += [lambda: self.array(self.values(depth + 1)), lambda: self.mapping(self.values(depth + 1))]
        if depth == 0:
            kinds.append(self.nested)
        return self.rng.choice(kinds)()

    def values(self, depth: int) -> list[bytes]:
        return [self.value(depth) for _ in range(self.rng.choice([0, 0, 1, 2, 2, 3, 16]) // depth)]

    def nested(self) -> bytes:
        """Up to the limit within a request, and at times beyond."""
        value = self.one_of([b"\xc0", b"\x90", b"\x80"])
        for _ in range(self.rng.choice([1, 3, 5, 6, 6, 6, 7] if self.chance(0.2) else [1, 3, 5, 6])):
            value = self.array([value]) if self.chance(0.5) else self.mapping([b"\x01", value])
        return value

    def params(self, method: bytes) -> list[bytes]:
        """Mostly those that the method takes."""
        number, key, after = self.number(), self.key(), self.rng.choice([1, 2**40, PAST - 1, FAR, 2**64 - 1])
        full: dict[bytes, list[bytes]] = {
            b"next_ids": [self.integer(min(number, 9000))],
            b"assign_offset": [self.text(key), self.integer(number), b"\xc0"][: self.rng.randint(1, 3)],
            b"route": [self.text(key)],
            b"hello": [self.text(key), self.integer(self.rng.choice([1, 1, 1, 2]))],
        }
        keyed = [self.text(key), self.rng.choice([b"\xc0", self.integer(after)])]
        with_key = (b"get_timestamp", b"begin_transaction", b"create_session", b"next_event_id")
        params = keyed[: self.rng.randint(1, 2)] if method in with_key else full.get(method, [])
        if self.chance(0.15):
            params.append(self.value())
        if params and self.chance(0.15):
            params[self.rng.randrange(len(params))] = self.value()
        if params and self.chance(0.05):
            params.pop()
        return params

    def msgid(self) -> bytes:
        return self.integer(self.rng.choice(NUMBERS) if self.chance(0.5) else self.rng.randrange(MSGID_END))

    def request(self) -> bytes:
        method = self.rng.choice(METHODS)
        return self.array([self.integer(0), self.msgid(), self.text(method), self.array(self.params(method))])

    def misfit(self) -> bytes:
        """A request that can be answered, and breaks a rule."""
        parts = [self.text(b"next_id"), b"\x90"]
        spoil = self.rng.randrange(4)
        if spoil == 0:
            parts = [self.value() for _ in range(self.rng.choice([0, 1, 3, 4]))]
        elif spoil == 1:
            parts[0] = self.value()
        else:
            parts[1] = self.rng.choice([b"\xc0", b"\x80", self.value(), self.mapping(self.values(1))])
        return self.array([self.integer(0), self.msgid(), *parts])

    def notification(self) -> bytes:
        if self.chance(0.5):
            return self.array([self.integer(2), self.text(self.rng.choice(METHODS)), self.value()])
        return self.array([self.integer(2), *(self.value() for _ in range(self.rng.randrange(5)))])

    def long(self) -> bytes:
        """A frame about as long as it may be."""
        head = b"\x94\x00\x07\xa4ping\x91"
        length = FRAME_BYTES_MAX + self.rng.choice([-1000, -1, 0, 0, 1]) - len(head) - 5
        return head + b"\xc6" + length.to_bytes(4, "big") + self.data(length)

    def refused(self) -> bytes:
        """Something that cannot be answered."""
        msgids = [
            self.integer(MSGID_END),
            self.integer(-1),
            self.fraction(),
            self.text(b"7"),
            b"\xc0",
            b"\xc3",
            b"\x91\x07",
        ]
        tail = [self.text(b"ping"), b"\x90"]
        return self.rng.choice(
            [
                self.array([self.integer(0), self.rng.choice(msgids), *tail]),
                self.array(
                    [
                        self.rng.choice([self.integer(3), self.integer(-1), b"\xc0", b"\xc2", self.fraction()]),
                        b"\x07",
                        *tail,
                    ]
                ),
                self.array([self.integer(1), self.msgid(), *self.values(1)]),
                self.array([self.integer(0), self.msgid(), self.text(b"ping"), self.array([b"\xc1"])]),
                self.array([self.integer(0)]),
                b"\x90",
                self.mapping([b"\x00", b"\x07"]),
                self.text(b"ping"),
                b"GET / HTTP/1.1\r\n\r\n",
                b"\xc1",
            ]
        )

    def frame(self) -> bytes:
        return self.rng.choices([self.request, self.misfit, self.notification], [8, 1, 1])[0]()

    def stream(self, count: int) -> bytes:
        """So many frames; at times a long one among them, or one that closes the connection."""
        frames = [self.frame() for _ in range(count)]
        for kind, share in ((self.long, 0.02), (self.refused, 0.1)):
            if self.chance(share):
                frames.insert(self.rng.randrange(count + 1), kind())
        return b"".join(frames)


def every_width(value: int) -> list[bytes]:
    """`[0, value, "next_ids", [1]]` in all widths of all its parts."""
    return [
        head + kind + msgid + method + params + number
        for head in array_heads(4)
        for kind in ints(0)[::3]
        for msgid in ints(value)
        for method in texts(b"next_ids")
        for params in array_heads(1)
        for number in ints(1)
    ]
