"""The command `pharaohctl`: asks a running daemon, reads its statistics page, takes ids apart, cares for Obelisks.

Exit status: 0 done; 1 an error or an unfulfilled wish; 2 wrong usage; 3 no daemon; 4 degraded (`status`);
5 an Obelisk has problems (`obelisk verify`); 70 and above as the daemon itself (docs/errors.md).
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

import libpharaoh
from libpharaoh import scarab
from libpharaoh._socket import Connection, Hello
from libpharaoh.errors import (
    ConnectFailedError,
    InvalidArgumentError,
    PermissionDeniedError,
    PharaohError,
    SettingsError,
    TimedOutError,
)
from pharaohd import settings as settings_module
from pharaohd.settings import Settings
from pharaohd.stats import NO_COORDINATOR, DaemonStats, Reader, WorkerState, WorkerStats

EXIT_ERROR = 1
EXIT_NO_DAEMON = 3
EXIT_DEGRADED = 4
EXIT_PROBLEMS = 5
BASE32_LENGTH = 13
DIGITS_MAX = 100  # beyond any id; int() itself refuses thousands
RELOAD_PATIENCE_S = 10.0
RELOAD_POLL_S = 0.02
RELOAD_HINT = "`pharaohd --validate --config FILE` tells what is wrong"
HEARTBEAT_STALE_MS = 5000
EXIT_INTERRUPTED = 130
PATIENCE_S = 2.0
CONNECT_S = 0.5
PROBE_S = 0.02  # where an absent daemon is no error
UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)

Row = Mapping[str, object]


@dataclass(slots=True)
class Target:
    """Which daemon and which files are meant, and how to write: the options that every command takes."""

    socket: str | None = None
    dir: str | None = None
    config: str | None = None
    state_dir: str | None = None
    output: str = "table"

    def settings(self) -> Settings:
        """The settings as the daemon of --dir or --config has them, with --state-dir above all."""
        config = self.config or os.environ.get("PHARAOHD_CONFIG")
        directory = Path(self.dir) if self.dir else None
        loaded = settings_module.load(Path(config) if config else None, directory, os.environ)
        if self.state_dir is None:
            return loaded
        return dataclasses.replace(loaded, host=dataclasses.replace(loaded.host, state_dir=self.state_dir))

    def socket_path(self) -> str:
        """--socket, else that of --dir or --config, else PHARAOH_SOCKET, else the daemon's default."""
        if self.socket is not None:
            return self.socket
        if self.dir is not None:
            return os.path.join(self.dir, "rpc.sock")
        if self.config is None and os.environ.get("PHARAOH_SOCKET"):
            return os.environ["PHARAOH_SOCKET"]
        return self.settings().host.socket_path


# ---- writing ----


def cell(value: object) -> str:
    """A value as a table shows it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def table(rows: Sequence[Row], headers: Mapping[str, str] | None = None) -> str:
    """Aligned columns: numbers to the right, the rest to the left. `headers` chooses, orders and renames keys."""
    if not rows:
        return ""
    headers = headers or {key: key for key in rows[0]}
    lines = [list(headers.values())] + [[cell(row[key]) for key in headers] for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    right = [all(isinstance(row[key], int | float | None) for row in rows) for key in headers]

    def aligned(line: list[str]) -> str:
        cells = zip(line, widths, right, strict=True)
        return "  ".join(text.rjust(width) if number else text.ljust(width) for text, width, number in cells).rstrip()

    return "\n".join(aligned(line) for line in lines)


def write(target: Target, value: object, text: str) -> None:
    """`value` as JSON, or `text`, as -o has it."""
    click.echo(json.dumps(value, indent=2, default=str) if target.output == "json" else text)


def write_rows(target: Target, rows: Sequence[Row], headers: Mapping[str, str] | None = None) -> None:
    """A list of objects, or a table."""
    write(target, rows, table(rows, headers))


def write_facts(target: Target, facts: Row) -> None:
    """One object, or a line per fact."""
    width = max(len(key) for key in facts)
    write(target, facts, "\n".join(f"{key.ljust(width)}  {cell(value)}" for key, value in facts.items()))


# ---- the options that every command takes ----


def _remember(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    target = context.ensure_object(Target)
    if value is not None and parameter.name is not None:
        setattr(target, parameter.name, value)


def _option(*names: str, help: str, type: click.Choice[str] | None = None) -> Callable[[Any], Any]:  # noqa: A002
    return click.option(*names, type=type, help=help, expose_value=False, callback=_remember)


COMMON_OPTIONS = (
    _option("--socket", help="The daemon's rpc.sock. Default: PHARAOH_SOCKET, else that of the settings."),
    _option("--dir", help="The daemon is `pharaohd --dir DIR`."),
    _option("--config", help="The daemon is `pharaohd --config FILE`."),
    _option("--state-dir", help="Where the Obelisks lie. Default: that of the settings."),
    _option("-o", "--output", type=click.Choice(["table", "json"]), help="How to write. Default: table."),
)


def common(function: Any) -> Any:
    """Adds the common options, so that they may stand before and after the command's name."""
    for option in reversed(COMMON_OPTIONS):
        function = option(function)
    return function


def command(group: click.Group, name: str) -> Callable[[Callable[..., int | None]], click.Command]:
    """A command of `group` with the common options; its function gets the Target first."""

    def declare(function: Callable[..., int | None]) -> click.Command:
        return group.command(name)(common(click.pass_obj(function)))

    return declare


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog="Exit status: see README.md.")
@common
def cli() -> None:
    """Asks and cares for a Pharaoh daemon."""


# ---- ids ----


def read_id(text: str) -> int:
    """An id as people write it: 0x… is hexadecimal, 13 letters and digits are base32, other digits are decimal."""
    if re.fullmatch(r"0x[0-9a-fA-F]+", text):
        return int(text, 16)
    if len(text) == BASE32_LENGTH:
        return scarab.from_base32(text)
    if re.fullmatch(r"[0-9]+", text):
        return int(text[:DIGITS_MAX])
    raise InvalidArgumentError(f"{text!r} is neither a decimal, a 0x… nor a base32 id")


def read_time(text: str) -> datetime:
    """`now`, @SECONDS since 1970, or ISO 8601; UTC unless the text names a zone."""
    try:
        if text == "now":
            return datetime.now(UTC)
        if text.startswith("@"):
            return UNIX_EPOCH + round(float(text[1:]) * 1000) * MILLISECOND
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise InvalidArgumentError(f"{text!r} is no time: use 2026-07-18T16:53:51Z, @1784393631 or now") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def facts_of_id(value: int, layout: scarab.Layout) -> Row:
    """What an id says. The id itself is text: many readers of JSON keep only 53 bits of a number."""
    parts = scarab.parse(value, layout)
    return {
        "id": str(value),
        "base32": parts.to_base32(),
        "time": parts.datetime.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "coordinator": parts.coordinator,
        "sequence": parts.sequence,
        "layout": str(layout),
    }


def layout_of(target: Target, layout: str | None, epoch: str | None) -> scarab.Layout:
    """The layout asked for, else the running daemon's, else that of the settings."""
    if layout is None and epoch is None:
        try:
            with connected(target.socket_path(), PROBE_S) as (_, hello):
                return hello.layout
        except ConnectFailedError:
            pass
    cluster = target.settings().cluster
    epoch_ms = cluster.epoch_ms if epoch is None else (read_time(epoch) - UNIX_EPOCH) // MILLISECOND
    return scarab.Layout.from_text(layout or str(cluster.layout), epoch_ms)


def layout_options(function: Any) -> Any:
    """--layout and --epoch, for what also works without a daemon."""
    epoch = click.option("--epoch", metavar="TIME", help="Time 0 of the ids. Default: the daemon's, or the settings'.")
    layout = click.option("--layout", metavar="41-10-13", help="The bits. Default: the daemon's, or the settings'.")
    return layout(epoch(function))


@command(cli, "next")
@click.option("-n", "count", type=click.IntRange(1, 1_000_000), default=1, show_default=True, help="How many.")
@click.option("--base32", is_flag=True, help="As 13 letters and digits.")
def next_command(target: Target, count: int, base32: bool) -> None:
    """Take ids from the daemon."""
    with libpharaoh.connect(target.socket_path(), name="pharaohctl", timeout=PATIENCE_S) as client:
        ids = [client.next_id()] if count == 1 else list(client.next_ids(count))
    texts = [scarab.to_base32(value) if base32 else str(value) for value in ids]
    write(target, texts, "\n".join(texts))


@command(cli, "decode")
@click.argument("ids", nargs=-1, required=True, metavar="ID…")
@layout_options
def decode_command(target: Target, ids: tuple[str, ...], layout: str | None, epoch: str | None) -> None:
    """Take ids apart. ID: decimal, 0x… or base32."""
    chosen = layout_of(target, layout, epoch)
    write_rows(target, [facts_of_id(read_id(text), chosen) for text in ids])


@command(cli, "compose")
@click.argument("time", metavar="TIME")
@click.option("--coordinator", type=int, default=0, show_default=True)
@click.option("--sequence", type=int, default=0, show_default=True)
@layout_options
def compose_command(
    target: Target, time: str, coordinator: int, sequence: int, layout: str | None, epoch: str | None
) -> None:
    """Put an id together, for a query: only the daemon's ids are unique.

    TIME: ISO 8601 (UTC unless it names a zone), @SECONDS since 1970, or now.
    """
    chosen = layout_of(target, layout, epoch)
    facts = facts_of_id(scarab.compose(read_time(time), coordinator, sequence, chosen), chosen)
    write(target, facts, str(facts["id"]))


@command(cli, "range")
@click.argument("start", metavar="START")
@click.argument("end", metavar="END")
@layout_options
def range_command(target: Target, start: str, end: str, layout: str | None, epoch: str | None) -> None:
    """The lowest and highest id of a time span, START included and END not: for SQL's BETWEEN."""
    chosen = layout_of(target, layout, epoch)
    first, last = scarab.range_for(read_time(start), read_time(end), chosen)
    write(target, {"first": str(first), "last": str(last)}, f"{first} {last}")


# ---- a running daemon ----


@contextmanager
def connected(path: str, connect_s: float = CONNECT_S) -> Iterator[tuple[Connection, Hello]]:
    """A connection to a socket of the daemon, introduced. Raises ConnectFailedError when there is no daemon."""
    connection = Connection.connect(path, time.monotonic() + connect_s)
    try:
        yield connection, connection.hello("pharaohctl", time.monotonic() + PATIENCE_S)
    finally:
        connection.close()


def ask(path: str, method: str) -> Any:
    """One request without parameters."""
    with connected(path) as (connection, _):
        return connection.request(method, [], time.monotonic() + PATIENCE_S)


@command(cli, "ping")
def ping_command(target: Target) -> None:
    """Is the daemon there? Prints the round trip."""
    with connected(target.socket_path()) as (connection, hello):
        started_ns = time.monotonic_ns()
        answer = connection.request("ping", [], time.monotonic() + PATIENCE_S)
        duration_us = (time.monotonic_ns() - started_ns) // 1000
    facts = {"answer": answer, "coordinator": hello.coordinator, "server": hello.server, "round_trip_us": duration_us}
    write(target, facts, f"{answer} from coordinator {hello.coordinator} (pharaohd {hello.server}) in {duration_us} us")


@command(cli, "stats")
@click.argument("coordinators", nargs=-1, type=int, metavar="[N…]")
def stats_command(target: Target, coordinators: tuple[int, ...]) -> None:
    """What coordinators answer to `stats`: every counter. Without N: of all that this host owns."""
    path = target.socket_path()
    with connected(path) as (_, hello):
        chosen = coordinators or hello.coordinators
    answers = {number: ask(hello.endpoint(number), "stats") for number in chosen}
    text = "\n".join(f"{number:04d}.{key}  {value}" for number, one in answers.items() for key, value in one.items())
    write(target, answers, text)


@cli.group("clock")
@common
def clock_group() -> None:
    """The coordinators' clocks."""


@command(clock_group, "accept")
@click.argument("coordinators", nargs=-1, type=int, metavar="[N…]")
def clock_accept_command(target: Target, coordinators: tuple[int, ...]) -> None:
    """Follow a forward jump of the wall clock that raised an alarm. Without N: on all coordinators.

    The ids' time then jumps too, and never comes back: make sure first that the wall clock is right.
    """
    with connected(target.socket_path()) as (_, hello):
        chosen = coordinators or hello.coordinators
    rows = [{"coordinator": number, "accepted": ask(hello.endpoint(number), "clock_accept")} for number in chosen]
    write_rows(target, rows)


# ---- the statistics page ----

WORKER_HEADERS = {
    "coordinator": "coord",
    "state": "state",
    "pid": "pid",
    "restart_count": "restarts",
    "exit_code": "exit",
    "ids_ring": "ids ring",
    "ids_socket": "socket",
    "ids_strict": "strict",
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
    facts["ceiling_ahead_ms"] = max(0, worker.ceiling - worker.next_tick) // layout.sequence_count
    facts["sync_ms_last"] = round(worker.sync_ns_last / 1e6, 2)
    facts["sync_ms_max"] = round(worker.sync_ns_max / 1e6, 2)
    facts["heartbeat_age_ms"] = heartbeat_age_ms(worker) if worker.heartbeat_ns else None
    return facts


@command(cli, "workers")
def workers_command(target: Target) -> None:
    """One line per coordinator: its worker, what it issued, its ceiling and its clock.

    ceiling ms: how far the durable ceiling lies ahead. clock +ms: how far the ids' time is ahead of the wall clock.
    jump ms: a forward jump that is not followed until `pharaohctl clock accept`.
    """
    with Reader(os.path.dirname(target.socket_path())) as page:
        workers = page.workers()
    layout = layout_of(target, None, None)
    write_rows(target, [facts_of_worker(worker, layout) for worker in workers], WORKER_HEADERS)


@command(cli, "status")
def status_command(target: Target) -> int:
    """Is all well? Exit status 0: every worker is live; 3: no daemon; 4: degraded."""
    with Reader(os.path.dirname(target.socket_path())) as page:
        daemon, workers = page.daemon(), page.workers()
    live = {worker.coordinator for worker in workers if is_live(worker)}
    facts = {
        "status": "ok" if len(live) == len(workers) else "degraded",
        "supervisor_pid": daemon.supervisor_pid,
        "uptime_s": max(0, time.time_ns() - daemon.started_ns) // 1_000_000_000,
        "workers_live": len(live),
        "workers_total": len(workers),
        "workers_not_live": [worker.coordinator for worker in workers if worker.coordinator not in live],
        "first_live": None if daemon.first_live == NO_COORDINATOR else daemon.first_live,
        "restarts": sum(worker.restart_count for worker in workers),
        "clock_alarms": [worker.coordinator for worker in workers if worker.clock_jump_ms],
        "ids_issued": sum(worker.ids_ring + worker.ids_socket + worker.ids_strict for worker in workers),
        "settings_serial": daemon.settings_serial,
        "reload_failures": daemon.reload_failures,
    }
    write_facts(target, facts)
    return 0 if len(live) == len(workers) else EXIT_DEGRADED


@command(cli, "reload")
def reload_command(target: Target) -> None:
    """Make the daemon read its settings again, and wait until it has."""
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


def explain(error: PharaohError) -> int:
    """Tells what went wrong and what helps, on standard error; returns the exit status."""
    text = f"{error.name}: {error.message}" + (f": {error.detail}" if error.detail else "")
    click.echo(f"pharaohctl: {text}", err=True)
    if error.hint:
        click.echo(f"remedy: {error.hint}", err=True)
    if isinstance(error, ConnectFailedError):
        return EXIT_NO_DAEMON
    return error.exit_status or EXIT_ERROR


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    try:
        status = cli.main(arguments, prog_name="pharaohctl", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except PharaohError as error:
        return explain(error)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader (head) has seen enough; the interpreter must not complain at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except OSError as error:
        click.echo(f"pharaohctl: {error}", err=True)
        return EXIT_ERROR


if __name__ == "__main__":
    sys.exit(main())
