"""tsoracle, a timestamp oracle in Rust that syncs a window ahead, as Pharaoh does: built from crates where cargo is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Self

from bench.context import Context
from bench.etcd import free_port
from bench.measure import OURS, Comparison, Sample, Verifier, take_turns
from bench.native import ROOT, WATCHDOG_S, BenchError, Report
from bench.peers import Skipped
from bench.sockets import loaded
from tools import debian

MANY = 50
CARGO_DIR = ROOT / "build" / "cargo"
BUILD_S = 1200
PROTOC_PACKAGES = ("protobuf-compiler", "libprotoc32", "libprotobuf32", "libprotobuf-dev")


def tsoracle(context: Context) -> list[Comparison]:
    """Timestamps over gRPC, each connection one after the other, beside ours over the Unix socket."""
    try:
        peer = context.enter(Tsoracle(context.scratch / "tsoracle"))
    except Skipped as why:
        context.skip(str(why))
        return []
    daemon, found = context.daemon(), []
    verifiers = {name: Verifier() for name in (OURS, "tsoracle")}
    for connections in (1, MANY):

        def theirs(connections: int = connections) -> Sample:
            report = peer.load(connections, context.seconds)
            ids = verifiers["tsoracle"].add_range(report.first, report.last, report.ids)
            return Sample(report.per_second, {}, ids, report.latency_ns)

        contestants = {OURS: loaded("pharaoh", daemon, connections, 1, context, verifiers[OURS]), "tsoracle": theirs}
        what = f"{connections} connection{'s' if connections > 1 else ''}"
        taken = take_turns(contestants, context.rounds)
        found.append(Comparison("tsoracle", what, "requests/s", taken, latency_plot=f"tsoracle: {what}"))
    return found


def environment() -> dict[str, str]:
    """With protoc, which the crates need: the machine's own, else Debian's, unpacked below build/. Raises Skipped."""
    if shutil.which("protoc") is not None:
        return dict(os.environ)
    try:
        tree = debian.unpacked("protobuf-compiler", PROTOC_PACKAGES)
    except debian.NotHere as why:
        raise Skipped(f"tsoracle: {why}") from None
    return debian.environment(tree) | {
        "PROTOC": str(tree / "usr/bin/protoc"),
        "PROTOC_INCLUDE": str(tree / "usr/include"),
    }


def built() -> tuple[Path, Path]:
    """The server and the load generator; built once, which takes minutes. Raises Skipped."""
    if shutil.which("cargo") is None:
        raise Skipped("tsoracle: needs cargo")
    target = ["--target-dir", str(CARGO_DIR / "target")]
    features = ["--no-default-features", "--features", "file"]
    commands = [
        ["cargo", "install", "--quiet", "--locked", "tsoracle@2.3.3", *features, "--root", str(CARGO_DIR), *target],
        ["cargo", "build", "--quiet", "--release", "--manifest-path", str(ROOT / "bench/rust/Cargo.toml"), *target],
    ]
    variables = environment()
    for command in commands:
        result = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=BUILD_S)
        if result.returncode != 0:
            raise Skipped(f"tsoracle: {' '.join(command[:4])}: {result.stderr.strip().splitlines()[-1:]}")
    return CARGO_DIR / "bin" / "tsoracle", CARGO_DIR / "target" / "release" / "tsoracle-load"


class Tsoracle:
    """A server with the file driver, which syncs a window ahead. A context manager. Raises Skipped."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._address = f"127.0.0.1:{free_port()}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        server, self._loader = built()
        self._directory.mkdir(parents=True)
        options = ["serve", "file", "--listen", self._address, "--state-dir", str(self._directory / "state")]
        with open(self._directory / "log", "ab") as log:
            self._process = subprocess.Popen([server, *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + WATCHDOG_S
        while True:
            try:
                self.load(1, 0.01)
                return self
            except BenchError as error:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    self.__exit__()
                    raise BenchError(f"tsoracle does not serve: {error}; see {self._directory / 'log'}") from None
            time.sleep(0.1)

    def load(self, connections: int, seconds: float) -> Report:
        command = [str(self._loader), f"http://{self._address}", str(connections), str(seconds)]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WATCHDOG_S)
        if result.returncode != 0:
            raise BenchError(f"tsoracle-load: {result.stderr.strip()}")
        return Report(**json.loads(result.stdout))

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
