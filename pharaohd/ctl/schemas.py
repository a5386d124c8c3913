"""Schemas: registered, fetched, listed."""

from __future__ import annotations

import sys

import click

from libpharaoh.scarab import key_bytes
from pharaohd.ctl.common import Target, command, common_options, table, write
from pharaohd.ctl.reach import client_of
from pharaohd.ctl.texts import json_of_key, read_key, text_of_key

ID_MAX = 2**31 - 1
READ_BYTES_MAX = 2**20  # far more than a daemon takes

section = click.Group()


@section.group("schema")
@common_options
def schema_group() -> None:
    """Schemas: register, get, list.

    SUBJECT: text, or hex:… for bytes.
    """


@command(schema_group, "register")
@click.argument("subject", metavar="SUBJECT", type=read_key)
@click.argument("file", metavar="FILE|-")
@click.option("--type", "kind", type=click.Choice(["json", "avro", "bytes"]), help="Default: json if it is JSON.")
def register_command(target: Target, subject: str | bytes, file: str, kind: str | None) -> None:
    """Register a schema and write its id.

    The same schema of a subject has the same id. FILE: the schema; UTF-8 is text, anything else bytes.
    """
    with click.open_file(file, "rb") as source:
        raw = source.read(READ_BYTES_MAX)
    try:
        schema: str | bytes = raw.decode()
    except UnicodeDecodeError:
        schema = raw
    with client_of(target) as client:
        number = client.register_schema(subject, schema, kind)
    write(target, {"id": number, **json_of_key("subject", subject)}, str(number))


@command(schema_group, "get")
@click.argument("number", metavar="ID", type=click.IntRange(1, ID_MAX))
def get_command(target: Target, number: int) -> None:
    """Write the schema that has this id, as it was first registered."""
    with client_of(target) as client:
        found = client.get_schema(number)
    if target.output == "json":
        texts = json_of_key("subject", found["subject"]) | json_of_key("schema", found["schema"])
        write(target, {**found, **texts}, "")
    else:
        click.echo(key_bytes(found["schema"]), nl=sys.stdout.isatty())


@command(schema_group, "list")
@click.argument("subject", metavar="[SUBJECT]", required=False, type=read_key)
def list_command(target: Target, subject: str | bytes | None) -> None:
    """The versions of a subject's schemas.

    Without SUBJECT: those of all subjects of this host.
    """
    with client_of(target) as client:
        found = client.list_schemas(subject)
    facts = [{**row._asdict(), **json_of_key("subject", row.subject)} for row in found]
    shown = [{**row._asdict(), "subject": text_of_key(row.subject)} for row in found]
    write(target, facts, table(shown))
