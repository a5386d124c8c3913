"""Ids: taken, taken apart, put together."""

from __future__ import annotations

from typing import Any

import click

from libpharaoh import scarab
from pharaohd.ctl.common import Row, Target, command, write, write_rows
from pharaohd.ctl.reach import client_of, layout_of
from pharaohd.ctl.texts import read_id, read_key, read_time, text_of_ms

section = click.Group()


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


def layout_options(function: Any) -> Any:
    """--layout and --epoch, for what also works without a daemon."""
    epoch = click.option("--epoch", metavar="TIME", help="Time 0 of the ids. Default: the daemon's, or the settings'.")
    layout = click.option("--layout", metavar="41-10-13", help="The bits. Default: the daemon's, or the settings'.")
    return layout(epoch(function))


@command(section, "next")
@click.option("-n", "count", type=click.IntRange(1, 1_000_000), default=1, show_default=True, help="How many.")
@click.option("--base32", is_flag=True, help="As 13 letters and digits.")
def next_command(target: Target, count: int, base32: bool) -> None:
    """Take ids from the daemon."""
    with client_of(target, rings=True) as client:
        ids = [client.next_id()] if count == 1 else list(client.next_ids(count))
    texts = [scarab.to_base32(value) if base32 else str(value) for value in ids]
    write(target, texts, "\n".join(texts))


def write_id(target: Target, value: int, layout: scarab.Layout) -> None:
    """One id, in JSON with what it says."""
    write(target, facts_of_id(value, layout), str(value))


after_option = click.option("--after", metavar="ID", type=read_id, help="An id that the answer must exceed.")


@command(section, "timestamp")
@click.argument("key", metavar="[KEY]", required=False, type=read_key)
@after_option
def timestamp_command(target: Target, key: str | bytes | None, after: int | None) -> None:
    """Take an id that is issued now.

    It exceeds every id that was had so before: by anyone of the host, and with KEY by all who name it. KEY: text, or
    hex:… for bytes.
    """
    with client_of(target) as client:
        write_id(target, client.get_timestamp(key, after=after), client.layout)


@command(section, "begin-transaction")
@click.argument("key", metavar="KEY", type=read_key)
@after_option
def begin_transaction_command(target: Target, key: str | bytes, after: int | None) -> None:
    """Take the id of a new transaction. KEY: text, or hex:… for bytes."""
    with client_of(target) as client:
        write_id(target, client.begin_transaction(key, after=after), client.layout)


@command(section, "create-session")
@click.argument("client_id", metavar="CLIENT_ID", type=read_key)
@after_option
def create_session_command(target: Target, client_id: str | bytes, after: int | None) -> None:
    """Take the id of a new session.

    `join-group` and `assign-offset` take it as --session. CLIENT_ID: text, or hex:… for bytes.
    """
    with client_of(target) as client:
        write_id(target, client.create_session(client_id, after=after), client.layout)


@command(section, "next-event-id")
@click.argument("table", metavar="TABLE", type=read_key)
@after_option
def next_event_id_command(target: Target, table: str | bytes, after: int | None) -> None:
    """Take an id for a change to a table. TABLE: text, or hex:… for bytes."""
    with client_of(target) as client:
        write_id(target, client.next_event_id(table, after=after), client.layout)


@command(section, "decode")
@click.argument("ids", nargs=-1, required=True, metavar="ID…")
@layout_options
def decode_command(target: Target, ids: tuple[str, ...], layout: str | None, epoch: str | None) -> None:
    """Take ids apart. ID: decimal, 0x… or base32."""
    chosen = layout_of(target, layout, epoch)
    write_rows(target, [facts_of_id(read_id(text), chosen) for text in ids])


@command(section, "compose")
@click.argument("time", metavar="TIME")
@click.option("--coordinator", type=int, default=0, show_default=True)
@click.option("--sequence", type=int, default=0, show_default=True)
@layout_options
def compose_command(
    target: Target, time: str, coordinator: int, sequence: int, layout: str | None, epoch: str | None
) -> None:
    """Put an id together, for a query.

    Only the daemon's ids are unique.

    TIME: ISO 8601 (UTC unless it names a zone), @SECONDS since 1970, or now.
    """
    chosen = layout_of(target, layout, epoch)
    facts = facts_of_id(scarab.compose(read_time(time), coordinator, sequence, chosen), chosen)
    write(target, facts, str(facts["id"]))


@command(section, "range")
@click.argument("start", metavar="START")
@click.argument("end", metavar="END")
@layout_options
def range_command(target: Target, start: str, end: str, layout: str | None, epoch: str | None) -> None:
    """The lowest and highest id of a time span.

    For SQL's BETWEEN: START is included and END is not.
    """
    chosen = layout_of(target, layout, epoch)
    first, last = scarab.range_for(read_time(start), read_time(end), chosen)
    write(target, {"first": str(first), "last": str(last)}, f"{first} {last}")
