"""etcd, which many ask for rising numbers: the revision of a put is unique, rising, and durable before the reply."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from bench.context import Context
from bench.measure import OURS, Comparison, Verifier, take_turns
from bench.native import BenchError
from bench.peers import Skipped
from bench.sockets import loaded
from tools import debian

WATCHDOG_S = 30.0
MANY = 50
PUT = json.dumps({"key": "aw==", "value": "MQ=="})


def etcd(context: Context) -> list[Comparison]:
    """Puts by etcd's JSON gateway beside dense offsets: what each makes durable before it replies."""
    try:
        peer = context.enter(Etcd(context.scratch / "etcd"))
    except Skipped as why:
        context.skip(str(why))
        return []
    daemon, found = context.daemon(), []
    verifiers = {name: Verifier() for name in (OURS, "etcd")}
    for connections in (1, MANY):
        contestants = {
            OURS: loaded("dense", daemon, connections, 1, context, verifiers[OURS]),
            "etcd put": loaded("etcd", peer, connections, 1, context, verifiers["etcd"]),
        }
        what = f"offsets by {connections} connection{'s' if connections > 1 else ''}"
        taken = take_turns(contestants, context.rounds)
        found.append(Comparison("etcd", what, "requests/s", taken, latency_plot=f"etcd: {what}"))
    return found


def command() -> str:
    """The program: the machine's own, else Debian's, unpacked below build/. Raises Skipped."""
    installed = shutil.which("etcd")
    if installed is not None:
        return installed
    try:
        return str(debian.unpacked("etcd-server", ["etcd-server"]) / "usr" / "bin" / "etcd")
    except debian.NotHere as why:
        raise Skipped(str(why)) from None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Etcd:
    """One member, of a cluster of its own unless `peers` names the others' ports. A context manager."""

    def __init__(self, directory: Path, name: str = "m0", peers: dict[str, int] | None = None) -> None:
        self.port = free_port()
        self.socket = str(self.port)
        """As the load generator wants it."""
        self._directory, self._name = directory, name
        self._peers = peers or {name: free_port()}
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.spawn()
        self.wait()
        return self

    def spawn(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        here, client = f"http://127.0.0.1:{self._peers[self._name]}", f"http://127.0.0.1:{self.port}"
        cluster = ",".join(f"{name}=http://127.0.0.1:{port}" for name, port in self._peers.items())
        options = {
            "name": self._name, "data-dir": str(self._directory / self._name), "initial-cluster": cluster,
            "listen-peer-urls": here, "initial-advertise-peer-urls": here,
            "listen-client-urls": client, "advertise-client-urls": client, "log-level": "error",
        }  # fmt: skip
        words = [command(), *(f"--{key}={value}" for key, value in options.items())]
        with open(self._directory / f"{self._name}.log", "ab") as log:
            environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)

    def wait(self) -> None:
        """Returns once it has taken a put. Raises BenchError."""
        deadline = time.monotonic() + WATCHDOG_S
        while self.put() is None:
            if time.monotonic() > deadline or (self.process is not None and self.process.poll() is not None):
                self.__exit__()
                raise BenchError(f"etcd does not serve; see {self._directory}")
            time.sleep(0.05)

    def put(self, timeout: float = 1.0) -> int | None:
        """The revision of a put; None when there is no answer."""
        found = self.ask("/v3/kv/put", PUT, timeout)
        return int(found["header"]["revision"]) if found else None

    def ask(self, path: str, body: str, timeout: float = 1.0) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("POST", path, body)
            reply = connection.getresponse()
            content = reply.read()
            return json.loads(content) if reply.status == 200 else None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def leads(self) -> bool:
        status = self.ask("/v3/maintenance/status", "{}")
        return bool(status) and status["leader"] == status["header"]["member_id"]

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def leader_lost_ms(directory: Path) -> float:
    """Three members on this host; milliseconds from SIGKILL for the leader to the next put. Raises Skipped."""
    peers = {f"m{number}": free_port() for number in range(3)}
    members = [Etcd(directory, name, peers) for name in peers]
    with ExitStack() as stack:
        for member in members:
            stack.callback(member.__exit__)
            member.spawn()
        for member in members:
            member.wait()
        leader = next(member for member in members if member.leads())
        before = leader.put()
        others = [member for member in members if member is not leader]
        assert leader.process is not None
        killed = time.perf_counter()
        leader.__exit__()
        deadline = time.monotonic() + WATCHDOG_S
        while time.monotonic() < deadline:
            for member in others:
                revision = member.put(0.3)
                if revision is not None:
                    took_ms = 1000 * (time.perf_counter() - killed)
                    Verifier().add([before or 0, revision])
                    return took_ms
        raise BenchError("etcd's cluster did not recover")
