"""The coordinators' files: looked at, judged, repaired."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import time
from collections.abc import Sequence
from typing import Any

import click

from libpharaoh.errors import (
    InvalidArgumentError,
    ObeliskChangedError,
    ObeliskCorruptError,
    ObeliskForeignError,
    ObeliskMissingError,
    ObeliskTooNewError,
    StateDirError,
)
from pharaohd import manifest, obelisk, repair
from pharaohd._core import lib
from pharaohd.ctl.common import EXIT_PROBLEMS, Row, Target, cell, command, common_options, table, write, write_rows
from pharaohd.ctl.texts import is_number, read_id, read_time, text_of_ms
from pharaohd.obelisk import Identity, ObeliskReport, Record
from pharaohd.settings import Settings

section = click.Group()

VERIFY_HEADERS = {
    "coordinator": "coord", "verdict": "verdict", "ceiling": "ceiling", "clean": "clean", "counters": "counters",
    "path": "path",
}  # fmt: skip
DROP_COUNTERS = click.option(
    "--drop-counters", is_flag=True, help="Put the journal of its dense counters out of the way: they start anew."
)
CLOCK_OK = click.option(
    "--clock-ok", is_flag=True,
    help="Since the newest surviving record the wall clock has not been set back, running or stopped, and no repair "
    "was made whose record is not here.",
)  # fmt: skip
ABOVE = click.option(
    "--above", metavar="ID|TIME", help="Nobody has an id of this host above this one, or of a time after this."
)
FUTURE = click.option(
    "--even-in-the-future", is_flag=True, help="Believe --above although it is far ahead of all clocks. Ids go there."
)
TORN_RECORD_REMEDY = "none needed: a start goes by the other record, and the next one is written over this"
REREAD_S = 0.01


def answer_options(function: Any) -> Any:
    """What an operator says when no file can tell how far ids have come."""
    return CLOCK_OK(ABOVE(FUTURE(function)))


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
        facts |= {"counters_id": newest.counters_id or None, "counters_batch": newest.counters_batch}
    return facts


@section.group("obelisk")
@common_options
def obelisk_group() -> None:
    """The crash-safe files: inspect, verify, adopt, bump."""


@command(obelisk_group, "inspect")
@click.argument("which", metavar="PATH|N")
def inspect_command(target: Target, which: str) -> None:
    """What a file holds, sound or not; judges nothing. Also while its worker serves."""
    loaded = target.files() if is_number(which) else target.settings()
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
    by_itself = which and not any(is_number(text) for text in which)
    loaded = target.settings() if by_itself else target.files()
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
        return verdict(number, path, None, None, [error.message], [], error.hint)
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
    counted = report.counters.counters if report.counters else None
    return verdict(number, report.path, report.newest, counted, list(report.problems), list(report.warnings), hint)


def verdict(
    number: int | None,
    path: str,
    newest: Record | None,
    counters: int | None,
    problems: list[str],
    warnings: list[str],
    hint: str,
) -> dict[str, Any]:
    return {
        "coordinator": number,
        "verdict": "PROBLEM" if problems else "warning" if warnings else "ok",
        "ceiling": text_of_ms(newest.ceiling_ms) if newest else None,
        "clean": newest.clean if newest else None,
        "counters": counters,
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
        return report.counters_error.hint if report.counters_error else TORN_RECORD_REMEDY
    own = dataclasses.replace(expected, layout=identity.layout, epoch_ms=identity.epoch_ms, modulus=identity.modulus)
    return ObeliskForeignError.hint if list(obelisk.differences(identity, own)) else ObeliskChangedError.hint


@command(obelisk_group, "adopt")
@click.argument("numbers", nargs=-1, metavar="[N…]")
@click.option("--all", "everything", is_flag=True, help="Every file there is, and rebuild the manifest from them.")
@answer_options
@DROP_COUNTERS
def adopt_command(
    target: Target,
    numbers: tuple[str, ...],
    everything: bool,
    clock_ok: bool,
    above: str | None,
    even_in_the_future: bool,
    drop_counters: bool,
) -> None:
    """Make copied or restored files this host's and this cluster's own.

    Only when the originals are out of use for good: two daemons with one coordinator issue the same ids.
    """
    loaded, answer = repair_arguments(target, numbers, everything, clock_ok, above, even_in_the_future)
    chosen = coordinators_present(loaded) if everything else [coordinator_of(text, loaded) for text in numbers]
    rows = []
    for number in chosen:
        repaired = repair.adopt(loaded, number, answer, drop_counters=drop_counters)
        rows.append(row_of_repair(loaded, number, repaired))
    register(loaded, chosen, anew=everything)
    write_rows(target, rows)
    for number in sorted(set(loaded.host.owns) - set(chosen)) if everything else []:
        command_line = f"`pharaohctl obelisk bump {number} --create`"
        click.echo(f"warning: coordinator {number} has no Obelisk; if it ever had one: {command_line}", err=True)


def repair_arguments(
    target: Target,
    numbers: tuple[str, ...],
    everything: bool,
    clock_ok: bool,
    above: str | None,
    even_in_the_future: bool,
) -> tuple[Settings, repair.Answer]:
    """The settings and the operator's word. Raises UsageError, InvalidArgumentError."""
    if bool(numbers) == everything:
        raise click.UsageError("name coordinators, or --all")
    if clock_ok and above is not None:
        raise click.UsageError("--clock-ok and --above are two answers to one question: give one")
    loaded = target.files()
    if above is not None:
        return loaded, repair.Above(read_above(above, loaded), even_in_the_future)
    return loaded, repair.ClockOk() if clock_ok else None


def read_above(text: str, loaded: Settings) -> int:
    """An id, or a time as `compose` takes it; in milliseconds since 1970. Raises InvalidArgumentError.

    Digits alone are an id, whatever date they would be.
    """
    if text == "now" or any(mark in text for mark in "@-:"):
        return math.ceil(read_time(text).timestamp() * 1000)
    id = read_id(text)
    if id >> 64:
        raise InvalidArgumentError(f"{text!r} is no id: it has more than 64 bits")
    layout = loaded.cluster.layout
    return (id >> (layout.coordinator_bits + layout.sequence_bits)) + loaded.cluster.epoch_ms


def coordinators_present(loaded: Settings) -> list[int]:
    """Those whose file lies in the state directory, by the files' names alone. Raises StateDirError."""
    try:
        names = os.listdir(manifest.obelisks_dir(loaded.host.state_dir))
    except OSError as error:
        raise StateDirError(f"{error.filename}: {error.strerror}") from error
    found = [re.fullmatch(r"([0-9]{4})\.obelisk", name) for name in names]
    return sorted(int(match[1]) for match in found if match)


@command(obelisk_group, "bump")
@click.argument("numbers", nargs=-1, metavar="[N…]")
@click.option("--all", "everything", is_flag=True, help="Every coordinator that the manifest names.")
@click.option("--create", is_flag=True, help="Also when the file is lost or damaged: make it anew.")
@answer_options
@DROP_COUNTERS
def bump_command(
    target: Target,
    numbers: tuple[str, ...],
    everything: bool,
    create: bool,
    clock_ok: bool,
    above: str | None,
    even_in_the_future: bool,
    drop_counters: bool,
) -> None:
    """Raise coordinators' ceilings above everything that can have been issued by now.

    A coordinator that serves cannot be repaired. While its daemon runs and its worker has failed, the daemon knows how
    far it came. Otherwise the operator has to say --clock-ok or --above; without either the command tells what it has
    to know. Dense counters are not raised: `pharaohctl counters raise`, `import`.
    """
    loaded, answer = repair_arguments(target, numbers, everything, clock_ok, above, even_in_the_future)
    chosen = coordinators_of(loaded) if everything else [coordinator_of(text, loaded) for text in numbers]
    if not chosen:
        raise InvalidArgumentError(f"{loaded.host.state_dir} names no coordinators: give their numbers", hint="")
    rows = []
    for number in chosen:
        repaired = repair.bump(loaded, number, answer, create_missing=create, drop_counters=drop_counters)
        rows.append(row_of_repair(loaded, number, repaired))
    register(loaded, chosen, anew=False)
    write_rows(target, rows)
    for number in chosen if create or drop_counters else []:
        if not obelisk.counters_beside(obelisk_path(loaded, number)).exists():
            click.echo(
                f"warning: coordinator {number} has no dense counters; if it ever had some, raise them before their "
                "use: `pharaohctl counters import` or `raise`",
                err=True,
            )


def row_of_repair(loaded: Settings, number: int, repaired: repair.Repaired) -> Row:
    unix_ms = (repaired.ceiling >> loaded.cluster.layout.sequence_bits) + loaded.cluster.epoch_ms
    path = obelisk_path(loaded, number)
    give_to_owner(path, loaded.host.state_dir)
    return {"coordinator": number, "ceiling": text_of_ms(unix_ms), "by": repaired.by, "path": path}


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
