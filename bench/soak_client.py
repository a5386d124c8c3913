"""`python -m bench.soak_client SOCKET SECONDS`: one causal Python client, its calls in turn; ids to standard output.

Its pace is that of the pipe's reader, who checks each id, and of a pause: three other clients want the machine's cores.
"""

from __future__ import annotations

import sys
import time
from array import array

import libpharaoh

PAUSE_S = 0.005


def main(socket: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    with libpharaoh.connect(socket, timeout=30, causal=True) as client:
        while time.monotonic() < end:
            ids = array("Q", (client.next_id() for _ in range(500)))
            ids.append(client.get_timestamp())
            ids += client.next_ids(1000)
            sys.stdout.buffer.write(ids.tobytes())
            time.sleep(PAUSE_S)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
