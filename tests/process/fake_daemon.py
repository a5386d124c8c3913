"""A daemon whose workers are small Python functions: `python fake_daemon.py DIR [CONFIG]`.

How a worker behaves is read, when it starts, from DIR/mood-NNNN, or else DIR/mood:
serve (the default), crash, fatal, deaf (never stops), hang (no heartbeat), slow-stop (needs a second). The router's
mood is that of DIR/mood-router alone.
FAKE_USER in the environment: the number of the user to become once everything is imported.
Each start of a worker appends its pid to DIR/started-NNNN; what it is told is appended to DIR/told-NNNN.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

from libpharaoh.errors import ObeliskCorruptError, SettingsError, StartError
from pharaohd import log, router, settings
from pharaohd._core import ffi
from pharaohd.cli import creator, report
from pharaohd.contract import RouterSpec, WorkerSpec
from pharaohd.stats import HEADER_BYTES
from pharaohd.supervisor import Supervisor

DIRECTORY = Path(sys.argv[1])
CONFIG = Path(sys.argv[2]) if len(sys.argv) > 2 else None


def mood_of(coordinator: int) -> str:
    for name in (f"mood-{coordinator:04d}", "mood"):
        if (DIRECTORY / name).exists():
            return (DIRECTORY / name).read_text()
    return "serve"


def append(name: str, line: str) -> None:
    with (DIRECTORY / name).open("a") as file:
        file.write(line + "\n")


def beat(spec: WorkerSpec) -> None:
    slots = ffi.cast("struct ph_stats_slot *", spec.stats_address + HEADER_BYTES)
    slots[spec.slot].heartbeat_ns = time.monotonic_ns()


def run(spec: WorkerSpec) -> int:
    name = f"{spec.coordinator:04d}"
    mood = mood_of(spec.coordinator)
    append(f"started-{name}", str(os.getpid()))
    stream = socket.socket(fileno=spec.control_fd)
    if mood == "crash":
        return 3
    if mood == "fatal":
        error = {"event": "failed", "code": ObeliskCorruptError.code, "message": "both records are bad"}
        stream.sendall(json.dumps(error).encode() + b"\n")
        return ObeliskCorruptError.exit_status or 1
    append(f"descriptors-{name}", json.dumps({fd: os.readlink(f"/proc/self/fd/{fd}") for fd in open_descriptors()}))
    if mood == "hang":
        signal.signal(signal.SIGABRT, signal.SIG_IGN)
    stream.sendall(b'{"event": "ready"}\n')
    stream.settimeout(0.5)
    while True:
        if mood != "hang":
            beat(spec)
        try:
            words = stream.recv(65536)
        except TimeoutError:
            continue
        if not words and mood == "hang":
            return 0
        if words:
            append(f"told-{name}", words.decode().strip())
        if mood == "slow-stop":
            time.sleep(1)
        if (not words or b"stop" in words) and mood not in ("deaf", "hang"):
            return 0
        if not words:
            return 0


def route(spec: RouterSpec) -> int:
    """The real router, unless DIR/mood-router says otherwise: crash, fatal, deaf, hang."""
    append("started-router", str(os.getpid()))
    file = DIRECTORY / "mood-router"
    mood = file.read_text() if file.exists() else "serve"
    if mood == "serve":
        return router.run(spec)
    if mood == "crash":
        return 3
    stream = socket.socket(fileno=spec.control_fd)
    if mood == "fatal":
        error = {"event": "failed", "code": SettingsError.code, "message": "it cannot be"}
        stream.sendall(json.dumps(error).encode() + b"\n")
        return SettingsError.exit_status or 1
    stream.sendall(b'{"event": "ready"}\n')
    while True:
        if mood == "deaf":
            spec.slot.heartbeat_ns = time.monotonic_ns()
        time.sleep(0.5)


def open_descriptors() -> list[int]:
    return [fd for fd in map(int, os.listdir("/proc/self/fd")) if os.path.lexists(f"/proc/self/fd/{fd}")]


def main() -> int:
    def load() -> settings.Settings:
        return settings.load(CONFIG, DIRECTORY, os.environ)

    if user := int(os.environ.get("FAKE_USER", "0")):
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    try:
        current = load()
        log.configure(current.log.level, current.log.format)
        Supervisor(current, run, route, creator(current), load, may_be_new=True).run()
    except StartError as error:
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
