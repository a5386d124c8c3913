"""What one Python client does, for a tool to count: `-m tests.counted.lone_client SOCKET next_id|next_ids COUNT`."""

from __future__ import annotations

import sys

import libpharaoh

BATCH = 1000


def main(socket: str, method: str, count: int) -> None:
    with libpharaoh.connect(socket, max_age_ms=10_000) as client:
        client.next_id()
        if method == "next_id":
            for _ in range(count):
                client.next_id()
        else:
            for _ in range(count // BATCH):
                client.next_ids(BATCH)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
