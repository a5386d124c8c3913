"""What the supervisor knows of each child: its child, which stays, and the processes that come and go in it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from libpharaoh.errors import StartError
from pharaohd import log, policy, process
from pharaohd.stats import NO_COORDINATOR

ROUTER = NO_COORDINATOR
"""The router's place among the coordinators': none, and behind them all."""


@dataclass(eq=False, slots=True)
class ChildProcess:
    """One process, from fork until it is reaped."""

    handle: process.Child
    stream: socket.socket
    forked_ns: int
    inbox: bytes = b""
    error: StartError | None = None
    aborted: bool = False


@dataclass(eq=False, slots=True)
class ChildSlot:
    """A coordinator's place or the router's: its processes come and go."""

    number: int
    """The coordinator, or ROUTER."""
    title: str
    """As `ps` shows it: "worker 0042", "router"."""
    slot: Any
    """Where it is seen, and says that it is alive: one of the statistics page, or for the router one of its own."""
    own_fds: tuple[int, ...]
    """The listening sockets that only its processes accept on."""
    keep: tuple[int, ...]
    """The other descriptors that they keep."""
    life: Callable[[int], Callable[[], int]]
    """What a process does, given its end of the stream. Made before the fork: what is made after it is not shared."""
    log: log.Logger
    history: policy.History = field(default_factory=policy.History)
    run: ChildProcess | None = None
    started: bool = False
    """Whether it was ever forked."""

    @property
    def kind(self) -> str:
        return self.title.split()[0]

    @property
    def whose(self) -> str:
        """For messages: "coordinator 42", "router"."""
        return self.title if self.number == ROUTER else f"coordinator {self.number}"
