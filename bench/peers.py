"""What Pharaoh is measured beside. A peer that cannot be had is named as skipped, never replaced."""

from __future__ import annotations

import importlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from bench.native import BenchError
from tools import debian

# The program (which lies in redis-tools) and what it links to; unpacked, not installed, so that no service starts.
DEBIAN_PACKAGES = ("redis-server", "redis-tools", "libatomic1", "libjemalloc2", "liblzf1", "libssl3", "libsystemd0")
WATCHDOG_S = 10.0


class Skipped(Exception):
    """A peer that cannot be had here, and why."""


def module(name: str) -> Any:
    """A peer from the bench extras. Raises Skipped."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Skipped(f"{name}: {error}") from None


def redis_command() -> tuple[list[str], dict[str, str]]:
    """redis-server and its environment: the machine's own, else Debian's, unpacked below build/. Raises Skipped."""
    found = shutil.which("redis-server")
    if found is not None:
        return [found], dict(os.environ)
    try:
        tree = debian.unpacked("redis-server", DEBIAN_PACKAGES)
    except debian.NotHere as why:
        raise Skipped(str(why)) from None
    program = tree / "usr" / "bin" / "redis-server"
    environment = debian.environment(tree)
    if subprocess.run([program, "--version"], env=environment, capture_output=True, check=False).returncode != 0:
        raise Skipped(f"redis-server: {program} does not run here")
    return [str(program)], environment


class Redis:
    """A redis-server of the bench's own, on a Unix socket as Pharaoh is. A context manager: gone afterwards."""

    def __init__(self, directory: Path, *, durable: bool) -> None:
        """durable: an append-only file, synced before each reply (appendfsync always); otherwise no persistence."""
        self.directory = directory
        self.socket = str(directory / "redis.sock")
        self._durable = durable
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        command, environment = redis_command()
        persistence = ["--appendonly", "yes", "--appendfsync", "always"] if self._durable else ["--appendonly", "no"]
        # Its log is not rewritten meanwhile: that would be another program's load.
        persistence += ["--auto-aof-rewrite-percentage", "0"]
        options = ["--port", "0", "--unixsocket", self.socket, "--dir", str(self.directory), "--save", "", *persistence]
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                [*command, *options], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _wait(self) -> None:
        deadline = time.monotonic() + WATCHDOG_S
        while True:
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(self.socket) == 0:
                    return
            if time.monotonic() > deadline or (self._process is not None and self._process.poll() is not None):
                raise BenchError(f"redis-server does not serve; see {self.directory / 'log'}")
            time.sleep(0.01)

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def version(self) -> str:
        command, environment = redis_command()
        result = subprocess.run([*command, "--version"], env=environment, capture_output=True, text=True, check=True)
        return next((word.removeprefix("v=") for word in result.stdout.split() if word.startswith("v=")), "?")


def python_generators() -> tuple[dict[str, Callable[[], object]], list[str]]:
    """Calls that make one unique value inside a process: name → call; and what is skipped."""
    import time as clock
    import uuid

    def snowflake() -> Callable[[], object]:
        call: Callable[[], object] = module("snowflake").SnowflakeGenerator(1).__next__
        return call

    def sonyflake() -> Callable[[], object]:
        call: Callable[[], object] = module("sonyflake").SonyFlake().next_id
        return call

    makers: dict[str, Callable[[], Callable[[], object]]] = {
        "uuid_utils.uuid7": lambda: module("uuid_utils").uuid7,
        "fastuuid.uuid7": lambda: module("fastuuid").uuid7,
        "snowflake-id": snowflake,
        "python-ulid": lambda: module("ulid").ULID,
        "sonyflake-py": sonyflake,
        "uuid.uuid4": lambda: uuid.uuid4,
        "time.time_ns (not unique)": lambda: clock.time_ns,
    }
    calls: dict[str, Callable[[], object]] = {}
    skipped = []
    for name, make in makers.items():
        try:
            calls[name] = make()
        except Skipped as why:
            skipped.append(str(why))
    return calls, skipped
