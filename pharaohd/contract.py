"""What the supervisor and its children, the workers and the router, agree on. Neither imports the other.

A child is forked. It is given a `WorkerSpec` or a `RouterSpec` and talks to the supervisor over one stream socket, a
JSON object per line:

- child → supervisor: `{"event": "ready"}` once it serves; `{"event": "failed", "code": int, "message": str}` before
  it exits because it cannot serve (`code` is one of spec/errors.toml).
- supervisor → child: `{"do": "stop"}` (a worker writes its exact position; exit 0);
  `{"do": "reload", "settings": {…}}`.
- The supervisor's end closing (it died) means stop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
    private_fd: int
    """The listening private/NNNN.sock: requests of the daemon's other processes."""
    control_fd: int
    """The stream to the supervisor."""
    stats_address: int
    """Where the statistics page (struct ph_stats_header) is mapped in this process."""
    host_page_address: int
    """Where the host's page (struct ph_host_page) is mapped in this process."""
    core_settings: Any
    """struct ph_settings *, of `settings`."""
    settings: Settings


@dataclass(frozen=True, slots=True)
class RouterSpec:
    """Everything the router needs. Descriptors are inherited through fork; the router owns and closes them."""

    listen_fd: int
    """The listening private/router.sock."""
    control_fd: int
    """The stream to the supervisor."""
    slot: Any
    """struct ph_stats_slot of its own, for the heartbeat."""
    settings: Settings


WorkerEntry = Callable[[WorkerSpec], int]
"""Runs a worker to its end and returns its exit status."""

RouterEntry = Callable[[RouterSpec], int]
"""Runs the router to its end and returns its exit status."""
