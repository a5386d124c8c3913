"""A server that does nothing but answer, beside which it shows what sockets alone cost on this machine."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Self

from bench import native
from bench.native import BenchError

WATCHDOG_S = 10.0


class Bare:
    """bench/csrc/bare.c on a Unix socket. A context manager: gone afterwards."""

    def __init__(self, directory: Path) -> None:
        self.socket = str(directory / "bare.sock")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen([native.build("bare"), self.socket], stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + WATCHDOG_S
        while not Path(self.socket).exists():
            if time.monotonic() > deadline or self._process.poll() is not None:
                self.__exit__()
                raise BenchError("the bare server does not serve")
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
