"""The command `pharaohd`: settings in, exit status out."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from libpharaoh.errors import StartError, StateDirError
from pharaohd import log
from pharaohd import settings as settings_module
from pharaohd.contract import RouterSpec
from pharaohd.settings import Settings


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config", metavar="FILE", type=click.Path(path_type=Path), envvar="PHARAOHD_CONFIG", help="The settings, in TOML."
)
@click.option(
    "--dir", "directory", metavar="DIR", type=click.Path(path_type=Path),
    help="Keep everything under DIR, for this user alone: a throw-away or single-user daemon.",
)  # fmt: skip
@click.option("--validate", is_flag=True, help="Check the settings and exit.")
@click.option(
    "--init", "make_new", is_flag=True,
    help="Make a new state directory and exit. Without it one that has no manifest is refused: its volume may not be "
    "mounted. --dir makes its own.",
)  # fmt: skip
@click.version_option(package_name="pharaoh", prog_name="pharaohd")
def main(config: Path | None, directory: Path | None, validate: bool, make_new: bool) -> None:
    """Hands out unique, time-ordered 64-bit ids to the processes of this host.

    SIGTERM and SIGINT stop it, SIGQUIT stops it without waiting, SIGHUP reads the settings again. The exit status
    tells why it could not serve: docs/reference/errors.md.
    """
    load = partial(settings_module.load, config, directory, dict(os.environ))
    try:
        settings = load()
        if validate:
            check_host(settings)
            click.echo("pharaohd: the settings are valid")
            return
        if make_new:
            click.echo(f"pharaohd: {init(settings)}")
            return
        serve(settings, load, may_be_new=directory is not None)
    except StartError as error:
        sys.exit(report(error))


def check_host(settings: Settings) -> None:
    """What the settings name on this host: the group, and the file of an injected clock. Raises StartError."""
    from pharaohd.resources import group_id

    group_id(settings.rpc.group)
    if settings.clock.offset_file:
        from pharaohd import hosttime

        hosttime.Clock(settings)


def init(settings: Settings) -> str:
    """Makes the state directory, unless it has been made; what there is to say. Raises StartError."""
    from pharaohd import manifest
    from pharaohd.resources import check_state_dir, converted, locked

    state_dir = settings.host.state_dir
    create = creator(settings)
    with converted(StateDirError, state_dir):
        if manifest.exists(state_dir):
            return f"{state_dir} has been made before; nothing is changed"
        os.makedirs(state_dir, mode=0o700, exist_ok=True)
        check_state_dir(state_dir)
        with locked(state_dir):
            manifest.ensure(state_dir, settings.host.owns, create, may_be_new=True)
    return f"{state_dir} is made, with {len(settings.host.owns)} coordinators"


def creator(settings: Settings) -> Callable[[int, str], None]:
    """Makes a coordinator's first file at a path. Raises SettingsError when the clock cannot be had."""
    from pharaohd import hosttime, obelisk

    clock = hosttime.Clock(settings)

    def create(coordinator: int, path: str) -> None:
        obelisk.create(path, obelisk.identity_for(settings, coordinator), hosttime.first_record(clock))

    return create


def serve(settings: Settings, load: partial[Settings], *, may_be_new: bool) -> None:
    # Here and not above: --help and most of --validate need no core. Before the first fork, so that workers share it.
    from pharaohd import obelisk, worker
    from pharaohd.supervisor import Supervisor

    def route(spec: RouterSpec) -> int:
        from pharaohd import router  # in the router's process alone: workers do without what it needs

        return router.run(spec)

    log.configure(settings.log.level, settings.log.format)
    obelisk.identity_for(settings, 0)  # digests what all workers need, so that none of them has to
    Supervisor(settings, worker.run, route, creator(settings), load, may_be_new=may_be_new).run()


def report(error: StartError) -> int:
    """Says what is wrong and what mends it; the exit status."""
    detail = f": {error.detail}" if error.detail else ""
    click.echo(f"pharaohd: {error.name}: {error.message}{detail}\n  remedy: {error.hint}", err=True)
    return error.exit_status or 1
