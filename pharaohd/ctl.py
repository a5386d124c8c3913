"""The command `pharaohctl`: asks a running daemon, reads its statistics page, takes ids apart, cares for Obelisks.

Errors are PharaohErrors: name, message and remedy go to standard error, and EXIT_STATUSES tells how it ends.
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
    ObeliskChangedError,
    ObeliskCorruptError,
    ObeliskForeignError,
    ObeliskMissingError,
    ObeliskTooNewError,
    PermissionDeniedError,
    PharaohError,
    SettingsError,
    StateDirError,
    TimedOutError,
)
from pharaohd import manifest, obelisk
from pharaohd import settings as settings_module
from pharaohd._core import lib
from pharaohd.obelisk import Identity, ObeliskReport, Record
from pharaohd.settings import Settings
from pharaohd.stats import NO_COORDINATOR, DaemonStats, Reader, WorkerState, WorkerStats

EXIT_STATUSES = """Exit status: 0 done; 1 an error; 2 wrong usage; 3 no daemon; 4 degraded; 5 an Obelisk has problems;
70 and above as the daemon's own (docs/errors.md)."""
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


def _option(*names: str, metavar: str, text: str, choice: click.Choice[str] | None = None) -> Callable[[Any], Any]:
    return click.option(*names, metavar=metavar, type=choice, help=text, expose_value=False, callback=_remember)


COMMON_OPTIONS = (
    _option("--socket", metavar="PATH", text="The daemon's rpc.sock. Default: PHARAOH_SOCKET, else the settings'."),
    _option("--dir", metavar="DIR", text="The daemon is `pharaohd --dir DIR`."),
    _option("--config", metavar="FILE", text="The daemon is `pharaohd --config FILE`. Default: PHARAOHD_CONFIG."),
    _option("--state-dir", metavar="DIR", text="Where the Obelisks lie. Default: the settings' host.state_dir."),
    _option("-o", "--output", metavar="table|json", choice=click.Choice(["table", "json"]), text="Default: table."),
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


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_STATUSES)
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


def text_of_ms(unix_ms: int) -> str:
    """A time as `read_time` reads it."""
    return (UNIX_EPOCH + unix_ms * MILLISECOND).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def facts_of_id(value: int, layout: scarab.Layout) -> Row:
    """What an id says. The id itself is text: many readers of JSON keep only 53 bits of a number."""
    parts = scarab.parse(value, layout)
    return {
        "id": str(value),
        "base32": parts.to_base32(),
        "time": text_of_ms(parts.unix_ms),
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


def ask_each(target: Target, numbers: Sequence[int], method: str) -> tuple[dict[int, Any], int]:
    """What coordinators, by default all that the host owns, answer to a method; and the exit status.

    One that does not answer is told on standard error and does not stop the others from being asked.
    """
    with connected(target.socket_path()) as (_, hello):
        pass
    if unknown := sorted(set(numbers) - set(hello.coordinators)):
        raise InvalidArgumentError(f"this host owns no coordinator {unknown[0]}: `pharaohctl workers` lists them")
    answers, status = {}, 0
    for number in numbers or hello.coordinators:
        try:
            with connected(hello.endpoint(number)) as (connection, _):
                answers[number] = connection.request(method, [], time.monotonic() + PATIENCE_S)
        except PharaohError as error:
            status = EXIT_DEGRADED if error.retryable else EXIT_ERROR
            explain(error)
    return answers, status


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
def stats_command(target: Target, coordinators: tuple[int, ...]) -> int:
    """What coordinators answer to `stats`: every counter. Without N: of all that this host owns."""
    answers, status = ask_each(target, coordinators, "stats")
    text = "\n".join(f"{number:04d}.{key}  {value}" for number, one in answers.items() for key, value in one.items())
    write(target, answers, text)
    return status


@cli.group("clock")
@common
def clock_group() -> None:
    """The coordinators' clocks."""


@command(clock_group, "accept")
@click.argument("coordinators", nargs=-1, type=int, metavar="[N…]")
def clock_accept_command(target: Target, coordinators: tuple[int, ...]) -> int:
    """Follow a forward jump of the wall clock that raised an alarm. Without N: on all coordinators.

    The ids' time then jumps too, and never comes back: make sure first that the wall clock is right.
    """
    answers, status = ask_each(target, coordinators, "clock_accept")
    write_rows(target, [{"coordinator": number, "moved_ms": moved_ms} for number, moved_ms in answers.items()])
    return status


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
    now_ms = max(worker.virtual_ms, worker.next_tick // layout.sequence_count)
    facts["ceiling_ahead_ms"] = max(0, worker.ceiling // layout.sequence_count - now_ms)
    facts["sync_ms_last"] = round(worker.sync_ns_last / 1e6, 2)
    facts["sync_ms_max"] = round(worker.sync_ns_max / 1e6, 2)
    facts["heartbeat_age_ms"] = heartbeat_age_ms(worker) if worker.heartbeat_ns else None
    return facts


@command(cli, "workers")
def workers_command(target: Target) -> None:
    """One line per coordinator: its worker, what it issued, its ceiling and its clock.

    ceiling ms: how far the durable ceiling lies ahead; 0 while nobody asks for ids.
    clock +ms: how far the ids' time is ahead of the wall clock.
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


# ---- Obelisks ----

VERIFY_HEADERS = {"coordinator": "coord", "verdict": "verdict", "ceiling": "ceiling", "clean": "clean", "path": "path"}
TORN_RECORD_REMEDY = "none needed: a start goes by the other record, and the next one is written over this"
REREAD_S = 0.01


def is_number(text: str) -> bool:
    """Whether N is meant and not a PATH."""
    return text.isascii() and text.isdigit()


def coordinator_of(text: str, loaded: Settings) -> int:
    """N as an operator writes it: 7 or 0007."""
    count = loaded.cluster.coordinators
    if not is_number(text) or len(text) > 4 or int(text) >= count:
        raise InvalidArgumentError(f"a coordinator of this cluster is a number below {count}, not {text!r}")
    return int(text)


def obelisk_path(loaded: Settings, coordinator: int) -> str:
    return manifest.obelisk_path(loaded.host.state_dir, coordinator)


def facts_of_record(record: Record) -> Row:
    facts = dataclasses.asdict(record)
    facts["ceiling_time"] = text_of_ms(record.ceiling_ms) if record.valid else None
    return facts


def facts_of_report(report: ObeliskReport) -> dict[str, object]:
    """What a file says, with the identity's bytes in hexadecimal."""
    identity, newest = report.identity, report.newest
    facts: dict[str, object] = {"path": report.path, "version": report.version}
    if identity is not None:
        facts |= {
            "coordinator": identity.coordinator,
            "modulus": identity.modulus,
            "layout": str(identity.layout),
            "epoch": text_of_ms(identity.epoch_ms),
            "cluster_id": identity.cluster_id.hex(),
            "host_id": identity.host_id.hex(),
            "made_on_this_host": identity.host_id == obelisk.host_id(),
        }
    if newest is not None:
        facts |= {"ceiling": newest.ceiling, "ceiling_time": text_of_ms(newest.ceiling_ms), "clean": newest.clean}
    return facts


@cli.group("obelisk")
@common
def obelisk_group() -> None:
    """The coordinators' crash-safe files, in host.state_dir."""


@command(obelisk_group, "inspect")
@click.argument("which", metavar="PATH|N")
def inspect_command(target: Target, which: str) -> None:
    """What a file holds, sound or not; judges nothing. Also while its worker serves."""
    loaded = target.settings()
    path = obelisk_path(loaded, coordinator_of(which, loaded)) if is_number(which) else which
    report = obelisk.inspect(path)
    facts = facts_of_report(report)
    records = [facts_of_record(record) for record in report.records]
    columns = ("slot", "valid", "number", "ceiling", "ceiling_time", "clean", "boot_id")
    width = max(len(key) for key in facts)
    text = [f"{key.ljust(width)}  {cell(value)}" for key, value in facts.items()]
    text += [f"{'problem'.ljust(width)}  {problem}" for problem in report.problems]
    text += ["", table(records, {key: key for key in columns})] if records else []
    write(target, {**facts, "records": records, "problems": report.problems}, "\n".join(text))


@command(obelisk_group, "verify")
@click.argument("which", nargs=-1, metavar="[PATH|N…]")
def verify_command(target: Target, which: tuple[str, ...]) -> int:
    """Would a start accept these files? Exit status 5 when one has a problem.

    N is judged against the settings; a PATH only by itself. Without arguments: every coordinator that this host owns
    or that its state directory has ever had.
    """
    loaded = target.settings()
    rows = [verified_path(text, loaded) for text in which if not is_number(text)]
    numbers = [coordinator_of(text, loaded) for text in which if is_number(text)] if which else coordinators_of(loaded)
    rows += [verified(number, loaded) for number in numbers]
    notes = []
    for row in rows:
        notes += [f"{row['path']}: problem: {problem}" for problem in row["problems"]]
        notes += [f"{row['path']}: warning: {warning}" for warning in row["warnings"]]
        notes += [f"{row['path']}: remedy: {row['remedy']}"] if row["remedy"] else []
    text = table(rows, VERIFY_HEADERS) or f"no Obelisk in {loaded.host.state_dir} yet"
    write(target, rows, "\n".join([text, *notes]))
    return EXIT_PROBLEMS if any(row["problems"] for row in rows) else 0


def coordinators_of(loaded: Settings) -> list[int]:
    """Those that the manifest knows, and those owned whose file exists. Raises StateDirError, ManifestError."""
    try:
        known = manifest.read(loaded.host.state_dir)
    except OSError as error:
        raise StateDirError(f"{error.filename}: {error.strerror}") from error
    owned = [number for number in loaded.host.owns if os.path.lexists(obelisk_path(loaded, number))]
    return sorted({*known, *owned})


def verified(number: int, loaded: Settings) -> dict[str, Any]:
    """The row of one coordinator's file, judged against the settings."""
    path = obelisk_path(loaded, number)
    try:
        report = steady_report(path, obelisk.identity_for(loaded, number), loaded.clock.end_warning_days)
    except ObeliskMissingError as error:
        return verdict(number, path, None, [error.message], [], error.hint)
    return judged(number, report, obelisk.identity_for(loaded, number))


def verified_path(path: str, loaded: Settings) -> dict[str, Any]:
    """The row of a file that may be anyone's."""
    report = steady_report(path, None, loaded.clock.end_warning_days)
    return judged(report.identity.coordinator if report.identity else None, report, report.identity)


def steady_report(path: str, expected: Identity | None, end_warning_days: int) -> ObeliskReport:
    """`obelisk.verify`, twice when there is a problem: the first look may have met a record that was being written."""
    report = obelisk.verify(path, expected, end_warning_days)
    if report.problems:
        time.sleep(REREAD_S)
        report = obelisk.verify(path, expected, end_warning_days)
    return report


def judged(number: int | None, report: ObeliskReport, expected: Identity | None) -> dict[str, Any]:
    hint = remedy_for(report, expected) if report.problems else ""
    return verdict(number, report.path, report.newest, list(report.problems), list(report.warnings), hint)


def verdict(
    number: int | None, path: str, newest: Record | None, problems: list[str], warnings: list[str], hint: str
) -> dict[str, Any]:
    return {
        "coordinator": number,
        "verdict": "PROBLEM" if problems else "warning" if warnings else "ok",
        "ceiling": text_of_ms(newest.ceiling_ms) if newest else None,
        "clean": newest.clean if newest else None,
        "path": path,
        "problems": problems,
        "warnings": warnings,
        "remedy": hint if number is None else re.sub(r"\bN\b", str(number), hint),
    }


def remedy_for(report: ObeliskReport, expected: Identity | None) -> str:
    """The hint of the error that a start would refuse this file with."""
    identity = report.identity
    if report.version > lib.PH_OBELISK_VERSION:
        return ObeliskTooNewError.hint
    if identity is None or report.newest is None or os.path.getsize(report.path) < lib.PH_OBELISK_BYTES:
        return ObeliskCorruptError.hint
    if expected is not None and identity.coordinator != expected.coordinator:
        return ObeliskCorruptError.hint  # a sibling's file in its place: nothing to adopt
    if expected is None or not list(obelisk.differences(identity, expected)):
        return TORN_RECORD_REMEDY
    own = dataclasses.replace(expected, layout=identity.layout, epoch_ms=identity.epoch_ms, modulus=identity.modulus)
    return ObeliskForeignError.hint if list(obelisk.differences(identity, own)) else ObeliskChangedError.hint


@command(obelisk_group, "adopt")
@click.argument("numbers", nargs=-1, metavar="N…")
@click.option("--bump", is_flag=True, help="Start above whatever the original may have issued since it was copied.")
@click.option("--all", "everything", is_flag=True, help="Every file there is, and rebuild the manifest from them.")
def adopt_command(target: Target, numbers: tuple[str, ...], bump: bool, everything: bool) -> None:
    """Make copied or restored files this host's and this cluster's own.

    Only when the originals are out of use for good: two daemons with one coordinator issue the same ids.
    """
    if bool(numbers) == everything:
        raise click.UsageError("name coordinators, or --all")
    loaded = target.settings()
    chosen = coordinators_present(loaded) if everything else [coordinator_of(text, loaded) for text in numbers]
    rows = []
    for number in chosen:
        path, identity = obelisk_path(loaded, number), obelisk.identity_for(loaded, number)
        ceiling = obelisk.adopt(path, identity, bump=bump, margin_ms=obelisk.repair_margin_ms(loaded))
        rows.append(row_of_repair(loaded, number, ceiling))
    register(loaded, chosen, anew=everything)
    write_rows(target, rows)
    for number in sorted(set(loaded.host.owns) - set(chosen)) if everything else []:
        command_line = f"`pharaohctl obelisk bump {number} --create`"
        click.echo(f"warning: coordinator {number} has no Obelisk; if it ever had one: {command_line}", err=True)


def coordinators_present(loaded: Settings) -> list[int]:
    """Those whose file lies in the state directory, by the files' names alone. Raises StateDirError."""
    try:
        names = os.listdir(manifest.obelisks_dir(loaded.host.state_dir))
    except OSError as error:
        raise StateDirError(f"{error.filename}: {error.strerror}") from error
    found = [re.fullmatch(r"([0-9]{4})\.obelisk", name) for name in names]
    return sorted(int(match[1]) for match in found if match)


@command(obelisk_group, "bump")
@click.argument("number", metavar="N")
@click.option("--create", is_flag=True, help="Also when the file is lost or damaged: make it anew.")
def bump_command(target: Target, number: str, create: bool) -> None:
    """Raise a coordinator's ceiling above everything that it can have issued by now.

    Trusts this host's clock: set it right first.
    """
    loaded = target.settings()
    chosen = coordinator_of(number, loaded)
    identity = obelisk.identity_for(loaded, chosen)
    margin_ms = obelisk.repair_margin_ms(loaded)
    ceiling = obelisk.bump(obelisk_path(loaded, chosen), identity, create_missing=create, margin_ms=margin_ms)
    register(loaded, [chosen], anew=False)
    write_rows(target, [row_of_repair(loaded, chosen, ceiling)])


def row_of_repair(loaded: Settings, number: int, ceiling: int) -> Row:
    unix_ms = (ceiling >> loaded.cluster.layout.sequence_bits) + loaded.cluster.epoch_ms
    path = obelisk_path(loaded, number)
    give_to_owner(path, loaded.host.state_dir)
    return {"coordinator": number, "ceiling": text_of_ms(unix_ms), "path": path}


def register(loaded: Settings, numbers: Sequence[int], *, anew: bool) -> None:
    """Enters coordinators in the manifest, unless they stand there. anew: into a manifest of only these."""
    state_dir = loaded.host.state_dir
    known: manifest.Coordinators = {} if anew else manifest.read(state_dir)
    if anew or any(known.get(number) != "created" for number in numbers):
        manifest.write(state_dir, known | dict.fromkeys(numbers, "created"))
        give_to_owner(manifest.manifest_path(state_dir), state_dir)


def give_to_owner(path: str, state_dir: str) -> None:
    """What root repaired must stay the daemon's."""
    if os.geteuid() == 0:
        owner = os.stat(state_dir)
        os.chown(path, owner.st_uid, owner.st_gid)


# ---- the end ----


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
