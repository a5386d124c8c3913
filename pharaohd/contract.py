"""What the supervisor and a worker agree on. Neither imports the other.

A worker is a forked child. It is given a `WorkerSpec` and talks to the supervisor over one stream socket, a JSON object
per line:

- worker → supervisor: `{"event": "ready"}` once it serves; `{"event": "failed", "code": int, "message": str}` before
  it exits because it cannot serve (`code` is one of spec/errors.toml).
- supervisor → worker: `{"do": "stop"}` (write the exact position, exit 0); `{"do": "reload", "settings": {…}}`.
- The supervisor's end closing (it died) means stop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pharaohd.settings import Settings


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """Everything one worker needs. Descriptors are inherited through fork; the worker owns and closes them."""

    coordinator: int
    slot: int
    """Index of the worker's slot in the statistics page."""
    obelisk_path: str
    counters_path: str
    """The journal of dense counters, beside the Obelisk."""
    socket_path: str
    """rpc.sock, as clients name it; the sockets of single coordinators lie in `coordinators/` beside it."""
    listen_fd: int
    """The listening rpc.sock, shared by all workers."""
    own_fd: int
    """The listening coordinators/NNNN.sock of this worker alone."""
    control_fd: int
    """The stream to the supervisor."""
    stats_address: int
    """Where the statistics page (struct ph_stats_header) is mapped in this process."""
    settings: Settings


WorkerEntry = Callable[[WorkerSpec], int]
"""Runs a worker to its end and returns its exit status."""
