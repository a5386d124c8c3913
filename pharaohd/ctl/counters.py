"""The counters behind dense values: listed, read, raised, exported and imported."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, repeat
from typing import IO

import click

from libpharaoh._calls import checked_key
from libpharaoh._socket import Connection, Hello
from libpharaoh.errors import (
    CounterLowerError,
    CounterUnknownError,
    InvalidArgumentError,
    PharaohError,
    ProtocolViolationError,
)
from libpharaoh.scarab import coordinator_for, key_bytes
from pharaohd.ctl.common import EXIT_DEGRADED, Row, Target, command, common_options, lines, write, write_facts
from pharaohd.ctl.reach import connected, endpoints_of, request, told
from pharaohd.ctl.texts import is_number, json_of_key, read_key, text_of_key

KINDS = ("group", "offset", "schema")
KIND = click.argument("kind", metavar="group|offset|schema", type=click.Choice(KINDS))
NEXT_MAX = 2**63
IN_FLIGHT = 16  # an import's lines at a time: what waits for one sync shares it
LINE = "{kind:6}  {coordinator:>5}  {next:>19}  {sessions:>8}  {name}"
HEADERS = {"kind": "kind", "name": "name", "coordinator": "coord", "next": "next", "sessions": "sessions"}

section = click.Group()


@section.group("counters")
@common_options
def counters_group() -> None:
    """Counters of dense values: list, read, raise, export …

    The generations of groups, the offsets of partitions, the ids of schemas. NAME is a group or partition: text, or
    hex:… for bytes. The schemas of a coordinator share one counter: for kind schema NAME is the coordinator's number.
    """


@dataclass(frozen=True, slots=True)
class Counter:
    """One counter of a coordinator."""

    kind: str
    name: bytes
    coordinator: int
    next: int
    sessions: int

    def facts(self) -> Row:
        """As JSON has it: a line of an export."""
        return {
            "kind": self.kind,
            **json_of_key("name", self.name),
            "coordinator": self.coordinator,
            "next": self.next,
            "sessions": self.sessions,
        }

    def shown(self) -> Row:
        """As people have it."""
        return {
            "kind": self.kind,
            "name": text_of_key(self.name),
            "coordinator": self.coordinator,
            "next": self.next,
            "sessions": self.sessions,
        }


def pages(connection: Connection, coordinator: int) -> Iterator[Counter]:
    """All counters of the coordinator at the other end, in the order in which they were first used."""
    cursor = 0
    while True:
        match request(connection, "counter_list", cursor):
            case {"counters": [*rows], "next": None | int() as more} if more is None or more > cursor:
                for row in rows:
                    yield counter_of(row, coordinator)
            case _:
                raise ProtocolViolationError("counter_list was not answered with a page of counters")
        if more is None:
            return
        cursor = more


def counter_of(row: object, coordinator: int) -> Counter:
    match row:
        case [str(kind), bytes(name), int(following), int(sessions)]:
            return Counter(kind, name, coordinator, following, sessions)
    raise ProtocolViolationError("counter_list was answered with something that is no counter")


def every_counter(endpoints: dict[int, str], failures: list[PharaohError]) -> Iterator[Counter]:
    """The counters of several coordinators, as they come: there may be millions.

    A coordinator's error is told and goes to `failures`; the others are listed all the same.
    """
    for number, path in endpoints.items():
        try:
            with connected(path) as (connection, _):
                yield from pages(connection, number)
        except PharaohError as error:
            told(error)
            failures.append(error)


@command(counters_group, "list")
@click.argument("coordinators", nargs=-1, type=int, metavar="[N…]")
@click.option("--kind", type=click.Choice(KINDS), help="Only these.")
@click.option("--prefix", metavar="TEXT", type=read_key, default="", help="Only names that begin so.")
def list_command(target: Target, coordinators: tuple[int, ...], kind: str | None, prefix: str | bytes) -> int:
    """What the next request of each counter would get.

    And how many sessions it remembers.     Without N: those of all coordinators that this host owns.
    """
    failures: list[PharaohError] = []
    start = key_bytes(prefix)
    found = (
        counter
        for counter in every_counter(endpoints_of(target, coordinators), failures)
        if kind in (None, counter.kind) and counter.name.startswith(start)
    )
    if target.output == "json":
        before = "["
        for counter in found:
            click.echo(before + json.dumps(counter.facts()), nl=False)
            before = ",\n"
        click.echo("]" if before != "[" else "[]")
    else:
        click.echo(LINE.format_map(HEADERS))
        for counter in found:
            click.echo(LINE.format_map(counter.shown()).rstrip())
    return EXIT_DEGRADED if failures else 0


@command(counters_group, "read")
@KIND
@click.argument("name", metavar="NAME")
def read_command(target: Target, kind: str, name: str) -> None:
    """Where one counter stands."""
    with home_of(target, kind, name) as (connection, raw, coordinator):
        counter = read(connection, kind, raw, coordinator)
    write(target, counter.facts(), lines(counter.shown()))


def read(connection: Connection, kind: str, name: bytes, coordinator: int) -> Counter:
    """Raises CounterUnknownError."""
    match request(connection, "counter_read", kind, name):
        case {"next": int(following), "sessions": int(sessions)}:
            return Counter(kind, name, coordinator, following, sessions)
    raise ProtocolViolationError("counter_read was not answered with a counter")


@command(counters_group, "raise")
@KIND
@click.argument("name", metavar="NAME")
@click.argument("value", metavar="NEXT", type=click.IntRange(0, NEXT_MAX))
def raise_command(target: Target, kind: str, name: str, value: int) -> None:
    """Let the next request of a counter get NEXT.

    A counter is never lowered. For root and the daemon's user.
    """
    with home_of(target, kind, name) as (connection, raw, coordinator):
        request(connection, "counter_raise", kind, raw, value)
    facts = {"kind": kind, **json_of_key("name", raw), "coordinator": coordinator, "next": value}
    write(target, facts, str(value))


@contextlib.contextmanager
def home_of(target: Target, kind: str, name: str) -> Iterator[tuple[Connection, bytes, int]]:
    """A connection that leads to the counter, the counter's name on the wire, and its coordinator."""
    if kind != "schema":
        with connected(target.socket_path()) as (connection, hello):
            raw = checked_key(read_key(name), hello)
            yield connection, raw, coordinator_for(raw, hello.modulus)
    elif not is_number(name) or len(name) > 4:
        raise InvalidArgumentError(f"the counter of schemas is named by its coordinator's number, not {name!r}")
    else:
        for number, path in endpoints_of(target, [int(name)]).items():
            with connected(path) as (connection, _):
                yield connection, b"", number


# ---- to a file and back ----


@command(counters_group, "export")
@click.argument("file", metavar="[FILE|-]", default="-")
def export_command(target: Target, file: str) -> None:
    """Write all counters of this host, a line of JSON each.

    For `counters import`. FILE is replaced once all are in it, and left alone when a coordinator does not answer.
    """
    failures: list[PharaohError] = []
    endpoints = endpoints_of(target, ())
    with contextlib.nullcontext(sys.stdout) if file == "-" else replacing(file) as out:
        for counter in every_counter(endpoints, failures):
            out.write(json.dumps(counter.facts()) + "\n")
        if failures:
            raise click.exceptions.Exit(EXIT_DEGRADED)


@contextlib.contextmanager
def replacing(path: str) -> Iterator[IO[str]]:
    """A new file that takes the place of `path` at the end, durable; or does not when an exception comes before."""
    draft = f"{path}.{os.getpid()}"
    try:
        with open(draft, "x", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
        click.echo(f"pharaohctl: {path} was not written", err=True)
        raise


@command(counters_group, "import")
@click.argument("file", metavar="FILE|-")
@click.option("--add", type=click.IntRange(0, NEXT_MAX // 2), default=0, metavar="N", help="Raise each N further.")
def import_command(target: Target, file: str, add: int) -> None:
    """Raise counters to where an export has them.

    None is lowered; may be repeated. For root and the daemon's user. An export knows nothing of what was handed out
    after it: --add N leaves room for that.
    """
    done = raised = 0
    with click.open_file(file, "rb") as text, contextlib.ExitStack() as stack:
        links = [stack.enter_context(connected(target.socket_path())) for _ in range(IN_FLIGHT)]
        pool = stack.enter_context(ThreadPoolExecutor(IN_FLIGHT))
        numbered = enumerate(text, 1)
        while batch := list(islice(numbered, IN_FLIGHT)):
            raised += sum(pool.map(import_line, links, batch, repeat(add)))
            done += len(batch)
    write_facts(target, {"counters": done, "raised": raised, "left": done - raised})


def import_line(link: tuple[Connection, Hello], numbered: tuple[int, bytes], add: int) -> bool:
    """Whether the counter of this line of an export was raised. An error names the line."""
    connection, hello = link
    number, text = numbered
    try:
        counter = counter_of_line(text)
        if counter.kind != "schema":
            checked_key(counter.name, hello)
            return raised_to(connection, counter, counter.next + add)
        if counter.coordinator not in hello.coordinators:
            raise InvalidArgumentError(f"this host owns no coordinator {counter.coordinator}")
        with connected(hello.endpoint(counter.coordinator)) as (its_own, _):
            return raised_to(its_own, counter, counter.next + add)
    except PharaohError as error:
        error.detail = f"line {number}" + (f": {error.detail}" if error.detail else "")
        raise


def counter_of_line(text: bytes) -> Counter:
    """The counter of a line of an export. Raises InvalidArgumentError."""
    try:
        facts = json.loads(text)
        name = bytes.fromhex(facts["name_hex"]) if "name_hex" in facts else facts["name"].encode()
        counter = Counter(facts["kind"], name, facts["coordinator"], facts["next"], 0)
        if counter.kind not in KINDS or type(counter.coordinator) is not int or type(counter.next) is not int:
            raise ValueError
        if not 0 <= counter.next <= NEXT_MAX:
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InvalidArgumentError("not a line of `pharaohctl counters export`") from None
    return counter


def raised_to(connection: Connection, counter: Counter, value: int) -> bool:
    """Raises a counter; False when it stands there already, or higher."""
    try:
        if read(connection, counter.kind, counter.name, counter.coordinator).next >= value:
            return False
    except CounterUnknownError:
        pass
    try:
        request(connection, "counter_raise", counter.kind, counter.name, value)
    except CounterLowerError:  # it was used, or raised by another line, a moment ago
        return False
    return True
