"""What the parts of one run share: how long to measure, where, and what could not be had."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Self, TypeVar

from bench.bare import Bare
from bench.daemon import Daemon
from bench.native import ROOT
from bench.peers import Redis, Skipped

_T = TypeVar("_T")


class Context:
    """A context manager: every daemon and every redis-server that was asked for is gone afterwards."""

    def __init__(self, *, quick: bool, rounds: int) -> None:
        self.quick = quick
        self.rounds = rounds
        self.seconds = 0.2 if quick else 1.0
        """Of one contestant in one round."""
        self.skipped: list[str] = []
        self.failures: list[str] = []
        self.redis_version = ""
        """Of the one that was measured, if any was."""
        self._stack = ExitStack()
        self._peers: dict[bool, Redis | None] = {}

    def __enter__(self) -> Self:
        # Not the system's temporary directory, which is often in memory: a sync has to cost what it costs.
        (ROOT / "build").mkdir(exist_ok=True)
        self.scratch = Path(tempfile.mkdtemp(prefix="b-", dir=ROOT / "build"))
        return self

    def __exit__(self, *_: object) -> None:
        self.end_part()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def end_part(self) -> None:
        """Stops all that was started for a part, and drops its files, so that the next one has the machine."""
        self._stack.close()
        self._peers.clear()

    def daemon(self, settings: str = "", coordinators: int = 1) -> Daemon:
        """A fresh one; with one coordinator it has one serving thread, as redis-server has. settings: more TOML."""
        return self._stack.enter_context(self.idle_daemon(coordinators, settings))

    def idle_daemon(self, coordinators: int = 1, settings: str = "") -> Daemon:
        """One that is not started yet, and the caller's to stop."""
        return Daemon(self._directory("p"), coordinators, settings)

    def enter(self, manager: AbstractContextManager[_T]) -> _T:
        """Until the part's end."""
        return self._stack.enter_context(manager)

    def bare(self) -> Bare:
        """A server that does nothing but answer."""
        return self._stack.enter_context(Bare(self._directory("b")))

    def redis(self, *, durable: bool) -> Redis | None:
        """The one with or without appendfsync always; None when it cannot be had, which is noted."""
        if durable not in self._peers:
            try:
                peer = self._stack.enter_context(Redis(self._directory("r"), durable=durable))
                self._peers[durable] = peer
                self.redis_version = peer.version()
            except Skipped as why:
                self._peers[durable] = None
                self.skip(str(why))
        return self._peers[durable]

    def _directory(self, prefix: str) -> Path:
        directory = Path(tempfile.mkdtemp(prefix=prefix, dir=self.scratch))
        self._stack.callback(shutil.rmtree, directory, ignore_errors=True)
        return directory

    def fail(self, what: str) -> None:
        """Notes a part that could not be measured although it should."""
        self.failures.append(what)
        self.skip(f"failed: {what}")

    def skip(self, what: str) -> None:
        """Names what could not be measured."""
        if what not in self.skipped:
            self.skipped.append(what)
