"""What every command has: the options that name the daemon, the output as a table or JSON, exit statuses."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from libpharaoh.errors import ConnectFailedError, PharaohError
from pharaohd import settings as settings_module
from pharaohd.settings import Settings

EXIT_STATUSES = """Exit status: 0 done; 1 an error; 2 wrong usage; 3 no daemon; 4 degraded; 5 an Obelisk has problems;
70 and above as the daemon's own (docs/reference/errors.md)."""
EXIT_ERROR = 1
EXIT_NO_DAEMON = 3
EXIT_DEGRADED = 4
EXIT_PROBLEMS = 5
EXIT_INTERRUPTED = 130

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

    def files(self) -> Settings:
        """The settings of commands that look at files, which a socket does not name. Raises UsageError.

        Who named a daemon by its socket alone means that one's files, and not those of the default settings.
        """
        loaded = self.settings()
        named = self.socket or os.environ.get("PHARAOH_SOCKET") or loaded.host.socket_path
        at_hand = self.dir or self.config or self.state_dir or os.environ.get("PHARAOHD_CONFIG")
        if not at_hand and os.path.realpath(named) != os.path.realpath(loaded.host.socket_path):
            raise click.UsageError(
                f"this command looks at files, which {named} does not name: say --dir, --config or --state-dir"
            )
        return loaded

    def socket_path(self) -> str:
        """--socket, else that of --dir or --config, else PHARAOH_SOCKET, else the daemon's default."""
        if self.socket is not None:
            return self.socket
        if self.dir is not None:
            return os.path.join(self.dir, "rpc.sock")
        if self.config is None and os.environ.get("PHARAOH_SOCKET"):
            return os.environ["PHARAOH_SOCKET"]
        return self.settings().host.socket_path


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


def lines(facts: Row) -> str:
    """A line per fact."""
    width = max(len(key) for key in facts)
    return "\n".join(f"{key.ljust(width)}  {cell(value)}".rstrip() for key, value in facts.items())


def write_facts(target: Target, facts: Row) -> None:
    """One object, or a line per fact."""
    write(target, facts, lines(facts))


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


def common_options(function: Any) -> Any:
    """Adds the common options, so that they may stand before and after the command's name."""
    for option in reversed(COMMON_OPTIONS):
        function = option(function)
    return function


def command(group: click.Group, name: str) -> Callable[[Callable[..., int | None]], click.Command]:
    """A command of `group` with the common options; its function gets the Target first."""

    def declare(function: Callable[..., int | None]) -> click.Command:
        return group.command(name)(common_options(click.pass_obj(function)))

    return declare


def explain(error: PharaohError) -> int:
    """Tells what went wrong and what helps, on standard error; returns the exit status."""
    text = f"{error.name}: {error.message}" + (f": {error.detail}" if error.detail else "")
    click.echo(f"pharaohctl: {text}", err=True)
    if error.hint:
        click.echo(f"remedy: {error.hint}", err=True)
    if isinstance(error, ConnectFailedError):
        return EXIT_NO_DAEMON
    return error.exit_status or EXIT_ERROR
