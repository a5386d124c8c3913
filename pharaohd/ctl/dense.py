"""Dense values: generations of groups, offsets of partitions."""

from __future__ import annotations

from typing import Any

import click

from libpharaoh import Token
from pharaohd.ctl.common import Target, command, write
from pharaohd.ctl.reach import client_of
from pharaohd.ctl.texts import json_of_key, read_id, read_key

COUNT_MAX = 2**31 - 1
SEQUENCE_MAX = 2**63 - 1

section = click.Group()


def token_options(function: Any) -> Any:
    """--session and --sequence."""
    sequence = click.option(
        "--sequence", metavar="N", type=click.IntRange(0, SEQUENCE_MAX), help="The request's number in the session."
    )
    session = click.option(
        "--session", metavar="ID", type=read_id, help="A session, so that a repetition counts once (with --sequence)."
    )
    return session(sequence(function))


def token_of(session: int | None, sequence: int | None, client_id: str | bytes | None = None) -> Token | None:
    """The token that the options make. Raises click.UsageError when one lacks another."""
    if session is None and sequence is None and client_id is None:
        return None
    if session is None or sequence is None:
        raise click.UsageError("--session and --sequence go together")
    return (session, sequence) if client_id is None else (session, sequence, client_id)


@command(section, "join-group")
@click.argument("group", metavar="GROUP", type=read_key)
@click.argument("member", metavar="MEMBER", type=read_key)
@token_options
def join_group_command(
    target: Target, group: str | bytes, member: str | bytes, session: int | None, sequence: int | None
) -> None:
    """Take the next generation of a group.

    GROUP, MEMBER: text, or hex:… for bytes. The member is the session's client id.
    """
    token = token_of(session, sequence)
    with client_of(target) as client:
        generation = client.join_group(group, member, token=token)
    write(target, {**json_of_key("group", group), "generation": generation}, str(generation))


@command(section, "assign-offset")
@click.argument("partition", metavar="PARTITION", type=read_key)
@click.option("-n", "count", type=click.IntRange(1, COUNT_MAX), default=1, show_default=True, help="How many.")
@token_options
@click.option("--client-id", metavar="TEXT", type=read_key, help="Whose session it is: a newer one fences it.")
def assign_offset_command(
    target: Target,
    partition: str | bytes,
    count: int,
    session: int | None,
    sequence: int | None,
    client_id: str | bytes | None,
) -> None:
    """Take the next offsets of a partition.

    Writes the first of them. PARTITION: text, or hex:… for bytes.
    """
    token = token_of(session, sequence, client_id)
    with client_of(target) as client:
        offset = client.assign_offset(partition, count, token=token)
    write(target, {**json_of_key("partition", partition), "offset": offset, "count": count}, str(offset))
