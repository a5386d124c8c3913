"""Very many strict requests that wait for the same moment, of clients some of whom do not live to see it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from libpharaoh import Layout, compose
from tests.support.wire import Wire

LAYOUT = Layout()
CLIENTS = 60
OF_EACH = 64  # what one connection may have under way
KEYS = ("a", "b", "c")


def ids_of_a_crowd(sockets: Sequence[str]) -> list[int]:
    """What those that stay get; every second client hangs up meanwhile. Each request is answered once."""
    wires = [Wire(sockets[number % len(sockets)]) for number in range(CLIENTS)]
    try:
        due_ms = time.time_ns() // 1_000_000 - LAYOUT.epoch_ms + 900
        after = compose(due_ms, 0, 0, LAYOUT)
        asked = [wire.post(*[("get_timestamp", [KEYS[i % 3], after]) for i in range(OF_EACH)]) for wire in wires]
        time.sleep(0.1)
        for wire in wires[::2]:
            wire.close()
        replies = [wire.wait(numbers) for wire, numbers in zip(wires[1::2], asked[1::2], strict=True)]
    finally:
        for wire in wires:
            wire.close()
    for reply in (reply for of_one in replies for reply in of_one):
        assert reply.error is None, reply.error
        assert reply.result > after
    return [int(reply.result) for of_one in replies for reply in of_one]
