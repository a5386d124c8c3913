"""The running daemon: its state by the statistics page, its coordinators one by one, its settings, its clock."""

from __future__ import annotations

import dataclasses
import os
import signal
import time

import click

from libpharaoh import scarab
from libpharaoh.errors import PermissionDeniedError, SettingsError, TimedOutError
from pharaohd.ctl.common import (
    EXIT_DEGRADED,
    Row,
    Target,
    cell,
    command,
    common_options,
    lines,
    write,
    write_facts,
    write_rows,
)
from pharaohd.ctl.reach import ask_each, client_of, connected, layout_of, request
from pharaohd.ctl.texts import read_key, text_of_numbers
from pharaohd.stats import NO_COORDINATOR, DaemonStats, Reader, WorkerState, WorkerStats

section = click.Group()

RELOAD_PATIENCE_S = 10.0
RELOAD_POLL_S = 0.02
RELOAD_HINT = "`pharaohd --validate --config FILE` tells what is wrong"
HEARTBEAT_STALE_MS = 5000
CEILING_STALE_MS = 1000
CLOCK_AHEAD_MS = 300_000
"""From here on the time that ids carry is told to whoever watches, although nothing is wrong with the ids."""
WORKER_HEADERS = {
    "coordinator": "coord",
    "state": "state",
    "pid": "pid",
    "restart_count": "restarts",
    "exit_code": "exit",
    "ids_ring": "ids ring",
    "ids_socket": "socket",
    "ids_strict": "strict",
    "ids_dense": "dense",
    "counters": "counters",
    "requests": "requests",
    "errors": "errors",
    "rings": "rings",
    "connections": "conns",
    "ceiling_ahead_ms": "ceiling ms",
    "sync_ms_last": "sync ms",
    "sync_ms_max": "max",
    "clock_ahead_ms": "clock +ms",
    "clock_jump_ms": "jump ms",
    "heartbeat_age_ms": "beat ms",
}


def is_live(worker: WorkerStats) -> bool:
    """Whether it serves and its heart beats (once a second)."""
    return worker.state == WorkerState.LIVE and heartbeat_age_ms(worker) <= HEARTBEAT_STALE_MS


def heartbeat_age_ms(worker: WorkerStats) -> int:
    return max(0, time.monotonic_ns() - worker.heartbeat_ns) // 1_000_000


def facts_of_worker(worker: WorkerStats, layout: scarab.Layout) -> Row:
    """A slot of the page, with what people and alarms want derived from it."""
    facts = dataclasses.asdict(worker)
    facts["state"] = worker.state_name
    now_ms = max(worker.virtual_ms, worker.next_tick // layout.sequence_count)
    facts["ceiling_ahead_ms"] = max(0, worker.ceiling // layout.sequence_count - now_ms)
    facts["sync_ms_last"] = round(worker.sync_ns_last / 1e6, 2)
    facts["sync_ms_max"] = round(worker.sync_ns_max / 1e6, 2)
    facts["heartbeat_age_ms"] = heartbeat_age_ms(worker) if worker.heartbeat_ns else None
    return facts


@command(section, "status")
def status_command(target: Target) -> int:
    """Is all well?

    Exit status 0: every worker is live, disk and clock keep up; 3: no daemon; 4: degraded.
    ceilings_stale: coordinators whose disk has not synced for a second what was asked for.
    clock_alarms: coordinators that do not follow a forward jump. clock_ahead_ms: degraded from five minutes on.
    """
    with Reader(os.path.dirname(target.socket_path())) as page:
        daemon, workers = page.daemon(), page.workers()
    live = {worker.coordinator for worker in workers if is_live(worker)}
    stale = [worker.coordinator for worker in workers if worker.ceiling_wait_ms > CEILING_STALE_MS]
    alarms = [worker.coordinator for worker in workers if worker.clock_jump_ms]
    ahead_ms = max((worker.clock_ahead_ms for worker in workers), default=0)
    well = len(live) == len(workers) and not stale and not alarms and ahead_ms < CLOCK_AHEAD_MS
    facts = {
        "status": "ok" if well else "degraded",
        "supervisor_pid": daemon.supervisor_pid,
        "uptime_s": max(0, time.time_ns() - daemon.started_ns) // 1_000_000_000,
        "workers_live": len(live),
        "workers_total": len(workers),
        "workers_not_live": [worker.coordinator for worker in workers if worker.coordinator not in live],
        "clock_ahead_ms": ahead_ms,
        "ceilings_stale": stale,
        "first_live": None if daemon.first_live == NO_COORDINATOR else daemon.first_live,
        "restarts": sum(worker.restart_count for worker in workers),
        "clock_alarms": alarms,
        "ids_issued": sum(worker.ids_ring + worker.ids_socket + worker.ids_strict for worker in workers),
        "dense_values": sum(worker.ids_dense for worker in workers),
        "counters": sum(worker.counters for worker in workers),
        "settings_serial": daemon.settings_serial,
        "reload_failures": daemon.reload_failures,
    }
    write_facts(target, facts)
    return 0 if well else EXIT_DEGRADED


@command(section, "workers")
def workers_command(target: Target) -> None:
    """A line per coordinator: worker, ids, ceiling, clock.

    ceiling ms: how far the durable ceiling lies ahead; 0 while nobody asks for ids.
    clock +ms: how far the ids' time is ahead of the wall clock.
    jump ms: a forward jump that is not followed until `pharaohctl clock accept`.
    """
    with Reader(os.path.dirname(target.socket_path())) as page:
        workers = page.workers()
    layout = layout_of(target, None, None)
    write_rows(target, [facts_of_worker(worker, layout) for worker in workers], WORKER_HEADERS)


@command(section, "ping")
def ping_command(target: Target) -> None:
    """Is the daemon there? Prints the round trip."""
    with connected(target.socket_path()) as (connection, hello):
        started_ns = time.monotonic_ns()
        answer = request(connection, "ping")
        duration_us = (time.monotonic_ns() - started_ns) // 1000
    facts = {"answer": answer, "coordinator": hello.coordinator, "server": hello.server, "round_trip_us": duration_us}
    write(target, facts, f"{answer} from coordinator {hello.coordinator} (pharaohd {hello.server}) in {duration_us} us")


@command(section, "stats")
@click.argument("coordinators", nargs=-1, type=int, metavar="[N…]")
def stats_command(target: Target, coordinators: tuple[int, ...]) -> int:
    """Every figure of the coordinators.

    Without N: of all that this host owns.
    """
    answers, status = ask_each(target, coordinators, "stats")
    text = "\n".join(f"{number:04d}.{key}  {value}" for number, one in answers.items() for key, value in one.items())
    write(target, answers, text)
    return status


@command(section, "route")
@click.argument("key", metavar="KEY", type=read_key)
def route_command(target: Target, key: str | bytes) -> None:
    """Which coordinator serves a key, and where.

    KEY: text, or hex:… for bytes.
    """
    with client_of(target) as client:
        write_facts(target, client.route(key))


@command(section, "cluster")
def cluster_command(target: Target) -> None:
    """Who owns which coordinators, and which live."""
    with client_of(target) as client:
        facts = client.cluster()
    write(target, facts, lines({key: in_short(value) for key, value in facts.items()}))


def in_short(value: object) -> str:
    """A part of the cluster's description on one line."""
    if isinstance(value, dict):
        return "  ".join(f"{key}: {in_short(part)}" for key, part in value.items()) or cell(None)
    if isinstance(value, list):
        return (text_of_numbers(value) if all(isinstance(part, int) for part in value) else str(value)) or cell(None)
    return cell(value)


@section.group("clock")
@common_options
def clock_group() -> None:
    """The host's time: accept."""


@command(clock_group, "accept")
def clock_accept_command(target: Target) -> None:
    """Follow a forward jump of the wall clock that raised an alarm.

    The ids' time then jumps too, on the whole host, and never comes back: make sure first that the wall clock is right.
    """
    with connected(target.socket_path()) as (connection, _):
        moved_ms = request(connection, "clock_accept")
    write(target, {"moved_ms": moved_ms}, f"host time moved on by {moved_ms} ms")


@command(section, "reload")
def reload_command(target: Target) -> None:
    """Make the daemon read its settings again."""
    with Reader(os.path.dirname(target.socket_path())) as page:
        before = page.daemon()
        try:
            os.kill(before.supervisor_pid, signal.SIGHUP)
        except PermissionError:
            raise PermissionDeniedError(f"the supervisor's pid is {before.supervisor_pid}") from None
        after = await_reload(page, before)
    if after.settings_serial == before.settings_serial:
        raise SettingsError("the daemon refused its new settings and keeps the old ones", hint=RELOAD_HINT)
    facts = {"settings_serial": after.settings_serial, "supervisor_pid": after.supervisor_pid}
    write(target, facts, f"reloaded: settings serial {before.settings_serial} → {after.settings_serial}")


def await_reload(page: Reader, before: DaemonStats) -> DaemonStats:
    """The page's header once it tells of a reload, done or refused. Raises TimedOutError."""
    deadline = time.monotonic() + RELOAD_PATIENCE_S
    while time.monotonic() < deadline:
        now = page.daemon()
        if (now.settings_serial, now.reload_failures) != (before.settings_serial, before.reload_failures):
            return now
        time.sleep(RELOAD_POLL_S)
    raise TimedOutError(f"no sign of a reload within {RELOAD_PATIENCE_S:.0f} s", hint="see the daemon's log")
