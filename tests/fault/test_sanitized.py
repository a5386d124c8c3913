"""The whole daemon, its C built with the address and undefined-behaviour sanitizers, under good and bad clients."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgpack
import pytest

from tests.support import ledger
from tests.support.crowd import ids_of_a_crowd
from tests.support.daemon import ROOT, Daemon, short_directory, wait_until
from tests.support.load_client import load_clients
from tools import mutate

SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
SPAN_S = 1.0


def runtime_libraries() -> str | None:
    """For LD_PRELOAD; None when this compiler has none."""
    names = [
        subprocess.run(["cc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    return ":".join(names) if all(map(os.path.isabs, names)) else None


def sanitized_tree(directory: Path) -> Path:
    """A copy of the packages with their modules built anew."""
    tree = directory / "t"
    for package in ("libpharaoh", "pharaohd", "tools"):
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("*.so", "*.o", "__pycache__"))
    environ = os.environ | {"PYTHONPATH": str(tree), "CFLAGS": SANITIZE, "LDFLAGS": SANITIZE}
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tree)
    subprocess.run([sys.executable, *mutate.BUILD], cwd=tree, env=environ, check=True, capture_output=True, timeout=100)
    return tree


def send_garbage(path: str, rng: random.Random) -> None:
    """One connection: good requests, some of them damaged, until the daemon hangs up or all is sent."""
    frames = [
        msgpack.packb([0, number, method, params])
        for number, (method, params) in enumerate(
            [("next_id", []), ("next_ids", [8192]), ("get_timestamp", ["k"]), ("route", [b"k"]), ("stats", []),
             ("attach", ["x", 10]), ("hello", ["x", 1]), ("no_such", [None]), ("ping", []), ("cluster", []),
             *dense_requests(rng)]
        )
    ]  # fmt: skip
    stream = bytearray(b"".join(rng.choices(frames, k=60)))
    for _ in range(rng.randrange(4)):
        stream[rng.randrange(len(stream))] = rng.randrange(256)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(path)
        try:
            connection.sendall(stream)
            connection.shutdown(socket.SHUT_WR)
            while rng.random() < 0.9 and connection.recv(1 << 16):
                pass
        except OSError:
            return  # it hung up, or answers nothing to half a frame


def dense_requests(rng: random.Random) -> list[tuple[str, list[object]]]:
    """Few names and sessions, so that they meet again."""
    found: list[tuple[str, list[object]]] = [("counter_list", []), ("counter_list", [rng.randrange(100)])]
    for _ in range(12):
        name = rng.choice([b"", "a", "b", bytes(rng.randrange(4097)), rng.randbytes(4)])
        token = rng.choice(
            [None, [rng.randrange(1, 200), rng.randrange(4)], [rng.randrange(1, 99), 1, rng.choice("xy")]]
        )
        found += [
            ("assign_offset", [name, rng.choice([0, 1, 2**31 - 1]), token]),
            ("join_group", [name, b"m", token]),
            ("counter_read", [rng.choice(["group", "offset"]), name]),
            ("counter_raise", ["offset", name, rng.randrange(1000)]),
        ]
    return found


def all_gone(daemon: Daemon) -> bool:
    """Whether no client is left; a link from the sibling counts as a connection."""
    return all(worker.connections <= 1 and worker.rings == 0 for worker in daemon.workers())


def test_a_sanitized_daemon_finds_nothing(rng: random.Random, effort: float) -> None:
    preload = runtime_libraries()
    if preload is None:
        pytest.skip("needs the sanitizers' libraries")
    with short_directory() as directory:
        tree = sanitized_tree(directory)
        prefix = (
            "env", f"LD_PRELOAD={preload}", f"PYTHONPATH={tree}", "PYTHONSAFEPATH=1",
            "ASAN_OPTIONS=detect_leaks=0:abort_on_error=1",
        )  # fmt: skip
        with Daemon(directory, coordinators=2, prefix=prefix) as daemon:
            pids = daemon.worker_pids()
            assert all(f"{tree}/pharaohd/_core" in Path(f"/proc/{pid}/maps").read_text() for pid in pids.values())
            with load_clients(daemon.socket, directory, ("ring", "single", "socket", "strict")) as clients:
                for client in clients:
                    client.wait_drawing()
                end = time.monotonic() + SPAN_S * effort
                while time.monotonic() < end:
                    send_garbage(daemon.socket, rng)
                crowd = ids_of_a_crowd([daemon.own_socket(0), daemon.own_socket(1)])
                clients[0].kill()
                time.sleep(SPAN_S / 10)
            ledgers = [client.runs() for client in clients]
            ledger.check_unique(ledgers, at_least=1000)
            assert len(set(crowd)) == len(crowd)
            violations = sum(worker.violations for worker in daemon.workers())
            wait_until(lambda: all_gone(daemon), "every connection gone")
            assert daemon.worker_pids() == pids, daemon.log()
            assert daemon.stop() == 0
        log = daemon.log()
        assert violations > 0, "no damaged frame was noticed"
        assert "Sanitizer" not in log, log
        assert "runtime error" not in log, log
