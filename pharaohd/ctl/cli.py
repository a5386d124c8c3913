"""The command `pharaohctl`: asks a running daemon, reads its statistics page, takes ids apart, cares for Obelisks.

Errors are PharaohErrors: name, message and remedy go to standard error, and EXIT_STATUSES tells how it ends.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

import click

from libpharaoh.errors import PharaohError
from pharaohd.ctl import counters, daemon, dense, ids, obelisks, schemas
from pharaohd.ctl.common import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_STATUSES, common_options, explain

SECTIONS: dict[str, Mapping[str, click.Command]] = {
    "Ids": ids.section.commands,
    "Dense values": {**dense.section.commands, **counters.section.commands},
    "Schemas": schemas.section.commands,
    "Daemon": daemon.section.commands,
    "Files": obelisks.section.commands,
}


class Purposes(click.Group):
    """A group whose help lists the commands of SECTIONS by purpose."""

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        """As click's own, but by section and in the order of declaration; one column for all."""
        width = max(map(len, self.commands))
        for heading, section in SECTIONS.items():
            with formatter.section(heading):
                limit = formatter.width - width - 6
                helps = {name: command.get_short_help_str(limit) for name, command in section.items()}
                formatter.write_dl([(name.ljust(width), text) for name, text in helps.items()])


@click.group(
    cls=Purposes,
    commands=[command for section in SECTIONS.values() for command in section.values()],
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_STATUSES,
)
@click.version_option(package_name="pharaoh", prog_name="pharaohctl")
@common_options
def cli() -> None:
    """Asks and cares for a Pharaoh daemon.

    Keys and names are text, or bytes as hex:0aff; a text that itself begins with hex: is given as bytes. An ID is
    decimal, 0x… or base32.
    """


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
