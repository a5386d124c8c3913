"""A ring as its memory shows it: posts a request and looks for what came, in separate steps.

So that a death in between can be arranged. The offsets are those of libpharaoh/csrc/ph_ring_layout.h.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from typing import Any

from libpharaoh._ring import RING_VERSION
from libpharaoh._socket import Connection
from libpharaoh.scarab import Layout

PATIENCE_S = 30.0
SEGMENT_BYTES = 8192
HEAD, ANSWER, SLOTS = 128, 256, 384
REQUEST = 128
ELSEWHERE, REFUSED = 1, 2
SLOT = struct.Struct("<4Q")
WORD = struct.Struct("<Q")


class RawRing:
    """Nothing here sleeps or retries but `__init__`."""

    def __init__(self, path: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        self._connection = Connection.connect(path, deadline)
        self._connection.hello("raw ring", deadline)
        result, received = self._connection.request_descriptors("attach", ["raw ring", 1000], 3, deadline)
        descriptors = received.detach()
        self.layout = Layout()
        self._grants = mmap.mmap(descriptors[0], SEGMENT_BYTES, access=mmap.ACCESS_READ)
        self._client = mmap.mmap(descriptors[1], SEGMENT_BYTES)
        self._bell = descriptors[2]
        for descriptor in descriptors[:2]:
            os.close(descriptor)
        self.coordinator = self._word(self._grants, 16)
        assert result["version"] == RING_VERSION

    def _word(self, segment: mmap.mmap, at: int) -> int:
        return int(WORD.unpack_from(segment, at)[0])

    def ring(self) -> None:
        os.write(self._bell, WORD.pack(1))

    def post(self, coordinator: int | None = None) -> None:
        """A strict request, for an id of the ring's own coordinator or of another one."""
        number = self._word(self._client, REQUEST) + 1
        WORD.pack_into(self._client, REQUEST + 32, self.coordinator if coordinator is None else coordinator)
        WORD.pack_into(self._client, REQUEST + 8, 0)
        WORD.pack_into(self._client, REQUEST + 16, 0)
        WORD.pack_into(self._client, REQUEST, number)
        self.ring()

    def status(self) -> int | None:
        """How the newest strict request was answered, if it was."""
        answered = self._word(self._grants, ANSWER) == self._word(self._client, REQUEST)
        return self._word(self._grants, ANSWER + 8) if answered else None

    def answer(self) -> int | None:
        """The id that answers the newest strict request, if it has come and is not to be asked for elsewhere."""
        status = self.status()
        assert status != REFUSED
        return None if status != 0 else self._word(self._grants, ANSWER + 16)

    def head(self) -> int:
        """Grants ever given."""
        return self._word(self._grants, HEAD)

    def want(self) -> None:
        """Takes all that is there, at once, and asks for more."""
        taken = self._word(self._client, 16) + sum(len(run) for run in self.take())
        WORD.pack_into(self._client, 16, taken)
        WORD.pack_into(self._client, 0, self.head())
        self.ring()

    def take(self, since: int | None = None) -> list[range]:
        """The ids of the grants since the last `want`, or since so many had been given."""
        runs = []
        for number in range(self._word(self._client, 0) if since is None else since, self.head()):
            first, count, _, _ = SLOT.unpack_from(self._grants, SLOTS + SLOT.size * (number % 64))
            runs.append(self._ids(int(first), int(count)))
        return runs

    def _ids(self, tick: int, count: int) -> range:
        bits = self.layout.sequence_bits
        ms, sequence = tick >> bits, tick & (self.layout.sequence_count - 1)
        first = (ms << self.layout.coordinator_bits | self.coordinator) << bits | sequence
        return range(first, first + count)

    def close(self) -> None:
        self._connection.close()
        self._grants.close()
        self._client.close()
        os.close(self._bell)

    def __enter__(self) -> RawRing:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
