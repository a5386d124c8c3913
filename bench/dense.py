"""Dense counters, durable before each reply: throughput, the time of one alone, and what a million of them cost."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

from bench import native
from bench.context import Context
from bench.daemon import Daemon
from bench.measure import OURS, Bar, Comparison, Sample, Verifier, take_turns
from bench.native import BenchError
from bench.sockets import IN_FLIGHT, MANY, REDIS_DURABLE, loaded
from libpharaoh._framing import ReplyDecoder, encode_request
from libpharaoh._socket import Connection

BARE_SYNC = "write and fdatasync of the same file system"
FEW_NAMES, MANY_NAMES = 10, 1_000_000
NAMES_AT_ONCE = 1000
WATCHDOG_S = 60.0


def dense(context: Context) -> list[Comparison]:
    """assign_offset by 50 connections with 16 in flight, and by one; then with ten names and with a million."""
    daemon = context.daemon()
    redis = context.redis(durable=True)
    verifier, redis_verifier = Verifier(), Verifier()
    contestants = {OURS: loaded("dense", daemon, MANY, IN_FLIGHT, context, verifier)}
    if redis is not None:
        contestants[REDIS_DURABLE] = loaded("redis", redis, MANY, IN_FLIGHT, context, redis_verifier)
    crowd = Comparison(
        "dense",
        f"{MANY} connections × {IN_FLIGHT} in flight",
        "requests/s",
        take_turns(contestants, context.rounds),
        {OURS: Bar(500_000, False, "requests/s"), REDIS_DURABLE: Bar(1.5, False)},
        latency_plot="dense: 50 connections × 16 in flight",
    )
    alone = {OURS: loaded("dense", daemon, 1, 1, context, verifier), BARE_SYNC: bare_sync(daemon.directory, context)}
    if redis is not None:
        alone[REDIS_DURABLE] = loaded("redis", redis, 1, 1, context, redis_verifier)
    taken = take_turns(alone, context.rounds)
    one = Comparison("dense", "1 connection", "requests/s", taken, latency_plot="dense: 1 connection")
    p50 = Comparison("dense", "one at a time, p50", "µs", one.told("p50, µs"), {BARE_SYNC: Bar(1.5, True)})
    return [crowd, one, p50, *names(context)]


def bare_sync(directory: Path, context: Context) -> Callable[[], Sample]:
    def measure() -> Sample:
        report = native.run("sync", directory.with_suffix(".sync"), context.seconds)
        assert report.latency_ns is not None
        extra = {f"{name}, µs": report.latency_ns[share] / 1000 for name, share in SHARES.items()}
        return Sample(report.per_second, extra, 0, report.latency_ns)

    return measure


SHARES = {"p50": "0.5", "p99": "0.99", "p99.9": "0.999"}


def names(context: Context) -> list[Comparison]:
    """The same load on a daemon of ten counters and on one of a million; their memory, and how long a restart takes."""
    many = MANY_NAMES // 100 if context.quick else MANY_NAMES
    small, large = context.daemon(), context.daemon()
    before = {daemon: memory_bytes(daemon) for daemon in (small, large)}
    for daemon, count in ((small, FEW_NAMES), (large, many)):
        fill(daemon, count)
    counted: dict[Daemon, list[int]] = {small: [], large: []}
    bytes_each = (memory_bytes(large) - before[large]) / many
    contestants = {
        OURS: spread(large, many, context, counted[large]),
        f"{FEW_NAMES} counters": spread(small, FEW_NAMES, context, counted[small]),
    }
    what = f"{many:,} counters"
    found = [
        Comparison("dense", f"{what}, {MANY} connections × {IN_FLIGHT} in flight", "requests/s",
                   take_turns(contestants, context.rounds)),
    ]  # fmt: skip
    for daemon, count in ((large, many), (small, FEW_NAMES)):
        daemon.stop()  # all that was counted is on the disk, and is read again
        daemon.spawn()
        if (total := sum_of_counters(daemon)) != count + sum(counted[daemon]):
            raise BenchError(f"{count + sum(counted[daemon])} offsets were handed out, and the counters say {total}")
    restarts = {OURS: restart(large, many), f"{FEW_NAMES} counters": restart(small, FEW_NAMES)}
    found.append(Comparison("dense", f"{what}: start → first offset", "ms", take_turns(restarts, context.rounds)))
    memory = take_turns({OURS: lambda: Sample(bytes_each, ids=many)}, 1)
    found.append(Comparison("dense", f"{what}: memory of each", "bytes", memory))
    return found


def spread(daemon: Daemon, names: int, context: Context, counted: list[int]) -> Callable[[], Sample]:
    """Requests for names chosen at random; how many there were is noted in `counted`, to be checked afterwards."""

    def measure() -> Sample:
        report = native.run("load", "spread", daemon.socket, MANY, IN_FLIGHT, context.seconds, names)
        counted.append(report.ids)
        assert report.latency_ns is not None
        extra = {f"{name}, µs": report.latency_ns[share] / 1000 for name, share in SHARES.items()}
        return Sample(report.per_second, extra, report.ids, report.latency_ns)

    return measure


def sum_of_counters(daemon: Daemon) -> int:
    """All that was ever handed out, as the daemon's one coordinator lists it."""
    deadline = time.monotonic() + WATCHDOG_S
    connection = Connection.connect(daemon.endpoint(0), deadline)
    total, cursor = 0, 0
    try:
        while cursor is not None:
            page = connection.request("counter_list", [cursor], deadline)
            total += sum(row[2] for row in page["counters"])
            cursor = page["next"]
    finally:
        connection.close()
    return total


def fill(daemon: Daemon, count: int) -> None:
    """Uses each of so many names once; raises BenchError when one of them had been used before."""
    decoder = ReplyDecoder()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(WATCHDOG_S)
        connection.connect(daemon.socket)
        for first in range(0, count, NAMES_AT_ONCE):
            batch = range(first, min(first + NAMES_AT_ONCE, count))
            connection.sendall(b"".join(encode_request(n, "assign_offset", [f"name {n}"]) for n in batch))
            missing = len(batch)
            while missing:
                for reply in decoder.feed(connection.recv(1 << 16)):
                    if reply.error is not None or reply.result != 0:
                        raise BenchError(f"name {reply.msgid} began with {reply.error or reply.result}")
                    missing -= 1


def memory_bytes(daemon: Daemon) -> int:
    """The resident memory of its one worker."""
    [worker] = daemon.workers()
    pages = int(Path(f"/proc/{worker.pid}/statm").read_text().split()[1])
    return pages * 4096


def restart(daemon: Daemon, count: int) -> Callable[[], Sample]:
    """Stops it; then from the start of the process to the answer to a first dense request."""
    last: list[int] = []

    def measure() -> Sample:
        daemon.stop()
        started = time.perf_counter()
        daemon.spawn()
        deadline = time.monotonic() + WATCHDOG_S
        connection = Connection.connect(daemon.socket, deadline)
        try:
            offset = connection.request("assign_offset", [f"name {count - 1}", 1], deadline)
        finally:
            connection.close()
        sample = Sample((time.perf_counter() - started) * 1000, ids=1)
        if last and offset != last[-1] + 1:
            raise BenchError(f"after offset {last[-1]} came {offset}")
        last.append(offset)
        return sample

    return measure
