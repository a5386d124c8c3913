"""Every setting, declared once: a field of a section's dataclass carries its default, unit, check and prose.

`SETTINGS` lists them all (the reference page is made from it); `load` fills a frozen `Settings` from, in rising
order of precedence: defaults, the TOML file, the environment (PHARAOHD_SECTION_KEY), the `--dir` command-line option.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import socket
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from libpharaoh.errors import SettingsError

COORDINATORS_MAX = 1024
ENVIRONMENT_PREFIX = "PHARAOHD_"


@dataclass(frozen=True, slots=True)
class Check:
    """Turns a value as written in TOML into the setting's own type, or raises ValueError."""

    type: str
    permitted: str
    parse: Callable[[object], object]


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. `default` is as an operator would write it; `unit` is "" for what has none."""

    section: str
    key: str
    type: str
    default: str | int
    unit: str
    permitted: str
    parse: Callable[[object], object]
    prose: str
    reloadable: bool
    core: bool

    @property
    def core_name(self) -> str:
        """In the C core's struct ph_settings."""
        return f"{self.section}_{self.key}"

    @property
    def name(self) -> str:
        return f"{self.section}.{self.key}"

    @property
    def environment(self) -> str:
        return f"{ENVIRONMENT_PREFIX}{self.section}_{self.key}".upper()


@dataclass(frozen=True, slots=True)
class Layout:
    """How an id's 64 bits are split."""

    ms_bits: int
    coordinator_bits: int
    sequence_bits: int

    def __str__(self) -> str:
        return f"{self.ms_bits}-{self.coordinator_bits}-{self.sequence_bits}"


def integer(low: int, high: int) -> Check:
    def parse(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError
        return value

    return Check("integer", f"{low} to {high}", parse)


def text(pattern: str, permitted: str) -> Check:
    def parse(value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError
        return value

    return Check("string", permitted, parse)


def choice(*names: str) -> Check:
    return text("|".join(names), " or ".join(f'"{name}"' for name in names))


def parse_layout(value: object) -> Layout:
    if not isinstance(value, str) or not re.fullmatch(r"\d\d-\d{1,2}-\d{1,2}", value):
        raise ValueError
    layout = Layout(*map(int, value.split("-")))
    if layout.ms_bits + layout.coordinator_bits + layout.sequence_bits != 64:
        raise ValueError
    if not (38 <= layout.ms_bits <= 44 and layout.coordinator_bits <= 10 and 8 <= layout.sequence_bits <= 16):
        raise ValueError
    return layout


def parse_epoch(value: object) -> datetime:
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if not isinstance(value, datetime) or value.utcoffset() != timedelta(0):
        raise ValueError
    if value.year < 1970 or value.microsecond % 1000:
        raise ValueError
    return value.astimezone(UTC)


def parse_owns(value: object) -> tuple[int, ...]:
    """`"0-3,8"` or `[0, 1, 8]` → the numbers in rising order. `""` → (), which stands for all."""
    if value == "":
        return ()
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list):
        raise ValueError
    numbers: list[int] = []
    for part in parts:
        if isinstance(part, int) and not isinstance(part, bool):
            numbers.append(part)
        elif isinstance(part, str) and (match := re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part)):
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                raise ValueError
            numbers.extend(range(first, last + 1))
        else:
            raise ValueError
    if not numbers or len(set(numbers)) != len(numbers) or not 0 <= min(numbers) <= max(numbers) < COORDINATORS_MAX:
        raise ValueError
    return tuple(sorted(numbers))


def parse_reserve(value: object) -> tuple[str, ...]:
    """`"offset, group:batch-*"` or a list of such → ("offset", "group:batch-*"). `""` → ()."""
    parts = [part for part in value.split(",") if value.strip()] if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise ValueError
    patterns = tuple(part.strip() for part in parts)
    if not all(re.fullmatch(r"(group|offset)(:[^\0\n]{1,255})?", pattern) for pattern in patterns):
        raise ValueError
    return patterns


def parse_mode(value: object) -> int:
    if not isinstance(value, str) or not re.fullmatch(r"0[0-7]{3}", value) or int(value, 8) & 0o600 != 0o600:
        raise ValueError
    return int(value, 8)


NAME = text(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "1 to 64 letters, digits, dots, hyphens and underscores")
HOST_NAME = text(r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,63})?", 'a name like cluster.name, or ""')
DIRECTORY = text(r"/[^\0]*", "an absolute path")
OPTIONAL_FILE = text(r"(?:/[^\0]+)?", 'an absolute path, or ""')
GROUP = text(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]{0,31})?", 'a group\'s name, or ""')
LAYOUT = Check("string", "MS-COORDINATOR-SEQUENCE bits: 38 to 44, 0 to 10, 8 to 16, together 64", parse_layout)
EPOCH = Check("string", "an RFC 3339 time in UTC, whole milliseconds, from 1970 on", parse_epoch)
OWNS = Check("string or list", 'numbers and ranges, each number once: "0-3,8" or [0, 1, 8]; "" for all', parse_owns)
RESERVE = Check("string or list", 'kinds ("group", "offset") or kind:pattern, as in "offset:log-*"', parse_reserve)
MODE = Check("string", 'four octal digits, readable and writable by the owner: "0600" or "0660" or "0666"', parse_mode)


def setting(
    default: str | int, check: Check, prose: str, *, unit: str = "", reloadable: bool = False, core: bool = False
) -> Any:
    """A dataclass field that is a setting. core: a whole number that the C core is told, before and after a reload."""
    metadata = {"default": default, "check": check, "prose": prose, "unit": unit}
    metadata |= {"reloadable": reloadable, "core": core}
    return field(default_factory=lambda: check.parse(default), metadata=metadata)


@dataclass(frozen=True, slots=True)
class Cluster:
    name: str = setting("default", NAME, "The cluster's name. An Obelisk of another cluster is refused.")
    coordinators: int = setting(
        4, integer(1, COORDINATORS_MAX), "The routing modulus, fixed when the cluster is made.", unit="coordinators"
    )
    layout: Layout = setting("41-10-13", LAYOUT, "The split of an id, fixed when the cluster is made.", unit="bits")
    epoch: datetime = setting("2025-01-01T00:00:00Z", EPOCH, "Time 0 of the ids, fixed when the cluster is made.")

    @property
    def epoch_ms(self) -> int:
        """Unix time of the ids' millisecond 0."""
        return (self.epoch - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Host:
    name: str = setting("", HOST_NAME, "This host's name among its peers; \"\" stands for the system's host name.")
    owns: tuple[int, ...] = setting("", OWNS, 'The coordinators that this host serves; "" for all of the modulus.')
    state_dir: str = setting("/var/lib/pharaohd", DIRECTORY, "Where the Obelisks and their manifest lie: a local disk.")
    runtime_dir: str = setting("/run/pharaohd", DIRECTORY, "Where rpc.sock and the coordinators' sockets lie.")

    @property
    def socket_path(self) -> str:
        return os.path.join(self.runtime_dir, "rpc.sock")

    @property
    def coordinators_dir(self) -> str:
        return os.path.join(self.runtime_dir, "coordinators")

    def coordinator_socket_path(self, coordinator: int) -> str:
        return os.path.join(self.coordinators_dir, f"{coordinator:04d}.sock")

    @property
    def private_dir(self) -> str:
        """Of the sockets over which the daemon's own processes ask each other."""
        return os.path.join(self.runtime_dir, "private")

    def private_socket_path(self, coordinator: int) -> str:
        return os.path.join(self.private_dir, f"{coordinator:04d}.sock")

    @property
    def router_socket_path(self) -> str:
        return os.path.join(self.private_dir, "router.sock")


@dataclass(frozen=True, slots=True)
class Obelisk:
    window_ms: int = setting(
        250, integer(10, 60_000), "How far ahead of host time a ceiling is reserved. It grows to four times the time "
        "of a slow sync, and by up to 2 s for a coordinator that is asked only now and then. After a power cut that "
        "comes back sooner than that, ids wait for host time to get there.", unit="ms", core=True,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Counters:
    reserve: tuple[str, ...] = setting(
        "", RESERVE, "Dense counters that reserve ahead: far more values per second, at the price of a gap after a "
        "crash. A kind, or a kind and a pattern of names (`*`, `?`, `[…]`).",
    )  # fmt: skip
    reserve_ahead: int = setting(
        1024, integer(1, 1 << 30), "How many values such a counter reserves at once, and may skip after a crash.",
        unit="values", core=True,
    )  # fmt: skip
    commit_spin_us: int = setting(
        200, integer(0, 10_000), "How long a worker goes on looking for the end of a commit before it sleeps.",
        unit="us", core=True,
    )  # fmt: skip
    counters_max: int = setting(
        10_000_000, integer(1, 1 << 31), "Dense counters per coordinator: some 100 bytes of memory each.",
        unit="counters", core=True,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ring:
    max_age_ms: int = setting(
        10, integer(1, 10_000), "An id from a ring is never older than this when it is handed out.",
        unit="ms", core=True, reloadable=True,
    )  # fmt: skip
    rings_max: int = setting(256, integer(0, 65_536), "Rings per coordinator.", unit="rings", core=True)
    strict_spin_us: int = setting(
        50, integer(0, 1000), "How long a worker goes on looking for strict requests before it sleeps.",
        unit="us", core=True, reloadable=True,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rpc:
    mode: int = setting("0660", MODE, "Permissions of the sockets.")
    group: str = setting("pharaoh", GROUP, 'The group of the sockets; "" for the daemon\'s own.')
    connections_max: int = setting(
        8192, integer(1, 1_000_000), "Connections per worker.", unit="connections", core=True
    )
    connections_per_uid_max: int = setting(
        4096, integer(1, 1_000_000), "Connections per worker and user.", unit="connections", core=True
    )
    frame_deadline_ms: int = setting(
        10_000, integer(10, 600_000), "A frame that has begun must be complete within this time.",
        unit="ms", core=True, reloadable=True,
    )  # fmt: skip
    output_bytes_max: int = setting(
        1_048_576, integer(131_072, 1 << 30), "Replies kept for a client that does not read; beyond, it is cut off.",
        unit="bytes", core=True,
    )  # fmt: skip
    spin_us: int = setting(
        50, integer(0, 1000), "How long a worker goes on looking for the next request before it sleeps, while requests "
        "come that fast.", unit="us", core=True,
    )  # fmt: skip
    stall_ms_max: int = setting(
        1000, integer(1, 60_000), "How long a request waits for a ceiling to become durable.",
        unit="ms", core=True, reloadable=True,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Clock:
    forward_jump_ms_max: int = setting(
        300_000, integer(1000, 86_400_000), "A forward jump of the wall clock beyond this is not followed until an "
        "operator accepts it.", unit="ms", core=True,
    )  # fmt: skip
    after_ms_max: int = setting(
        1000, integer(0, 60_000), "How far ahead of host time an `after` may lie: the request waits until host time "
        "gets there. Beyond, it is refused at once.", unit="ms", core=True,
    )  # fmt: skip
    slew_per_mille: int = setting(
        10,
        integer(1, 500),
        "How much slower host time runs while it is ahead of the wall clock.",
        unit="per mille",
        core=True,
    )
    offset_file: str = setting(
        "", OPTIONAL_FILE, "For tests: a file that begins with a signed 64-bit little-endian number: nanoseconds added "
        "to the wall clock of this host.",
    )  # fmt: skip
    end_warning_days: int = setting(
        1825, integer(0, 36_500), "How long before the layout's last millisecond warnings begin.", unit="days"
    )


@dataclass(frozen=True, slots=True)
class Worker:
    hang_ms_max: int = setting(
        10_000, integer(2000, 600_000), "A worker whose heartbeat is older is killed and replaced.", unit="ms"
    )
    stop_ms_max: int = setting(
        5000, integer(100, 600_000), "A worker that has not stopped after this time is killed.", unit="ms"
    )


@dataclass(frozen=True, slots=True)
class Log:
    level: str = setting(
        "info", choice("debug", "info", "warning", "error"), "The least level that is logged.", reloadable=True
    )
    format: str = setting(
        "auto", choice("auto", "json", "console"), 'Lines for people or for machines; "auto": people on a terminal.'
    )


@dataclass(frozen=True, slots=True)
class Settings:
    cluster: Cluster = field(default_factory=Cluster)
    host: Host = field(default_factory=Host)
    obelisk: Obelisk = field(default_factory=Obelisk)
    counters: Counters = field(default_factory=Counters)
    ring: Ring = field(default_factory=Ring)
    rpc: Rpc = field(default_factory=Rpc)
    clock: Clock = field(default_factory=Clock)
    worker: Worker = field(default_factory=Worker)
    log: Log = field(default_factory=Log)

    def value(self, setting: Setting) -> object:
        value: object = getattr(getattr(self, setting.section), setting.key)
        return value


SECTIONS: dict[str, Any] = {
    "cluster": Cluster, "host": Host, "obelisk": Obelisk, "counters": Counters, "ring": Ring, "rpc": Rpc,
    "clock": Clock, "worker": Worker, "log": Log,
}  # fmt: skip


def declared(section: str, declaration: dataclasses.Field[Any]) -> Setting:
    facts = declaration.metadata
    check: Check = facts["check"]
    return Setting(
        section, declaration.name, check.type, facts["default"], facts["unit"], check.permitted, check.parse,
        facts["prose"], facts["reloadable"], facts["core"],
    )  # fmt: skip


SETTINGS: tuple[Setting, ...] = tuple(
    declared(section, declaration) for section, cls in SECTIONS.items() for declaration in dataclasses.fields(cls)
)
BY_NAME = {one.name: one for one in SETTINGS}
BY_ENVIRONMENT = {one.environment: one for one in SETTINGS}


def load(path: Path | None, directory: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings in force.

    path: the TOML file, or None for defaults only. directory: of `--dir` mode, or None: the state and the sockets lie
    in it whatever file and environment say, and the sockets are the own user's unless these open them.
    Raises SettingsError, which names the offending key, the value and what is permitted.
    """
    written: dict[str, object] = {}
    if directory is not None:
        written |= {"rpc.mode": "0600", "rpc.group": ""}
    if path is not None:
        written |= read_file(path)
    written |= read_environment(environ)
    if directory is not None:
        absolute = os.path.abspath(directory)
        written |= {"host.runtime_dir": absolute, "host.state_dir": os.path.join(absolute, "state")}
    values: dict[str, dict[str, object]] = {section: {} for section in SECTIONS}
    for name, value in written.items():
        one = BY_NAME[name]
        values[one.section][one.key] = parsed(one, value)
    settings = Settings(**{section: cls(**values[section]) for section, cls in SECTIONS.items()})
    return checked_together(settings)


def read_file(path: Path) -> dict[str, object]:
    try:
        document = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # both TOML's and UTF-8's
        raise SettingsError(f"{path} is not TOML: {error}") from error
    written: dict[str, object] = {}
    for section, table in document.items():
        if section not in SECTIONS:
            raise SettingsError(f"{path}: unknown section [{section}]{nearest(section, SECTIONS)}")
        if not isinstance(table, dict):
            raise SettingsError(f"{path}: {section} must be a section: [{section}]")
        for key, value in table.items():
            name = f"{section}.{key}"
            if name not in BY_NAME:
                raise SettingsError(f"{path}: unknown key {name}{nearest(name, BY_NAME)}")
            written[name] = value
    return written


def read_environment(environ: Mapping[str, str]) -> dict[str, object]:
    """Variables that name a section of ours; others with the prefix (Kubernetes sets PHARAOHD_SERVICE_HOST) pass."""
    written: dict[str, object] = {}
    for variable, value in environ.items():
        if variable in BY_ENVIRONMENT:
            one = BY_ENVIRONMENT[variable]
            number = one.type == "integer" and re.fullmatch(r"-?\d{1,18}", value)
            written[one.name] = int(value) if number else value
        elif any(variable.startswith(f"{ENVIRONMENT_PREFIX}{section.upper()}_") for section in SECTIONS):
            raise SettingsError(f"unknown environment variable {variable}{nearest(variable, BY_ENVIRONMENT)}")
    return written


def nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def parsed(one: Setting, value: object) -> object:
    try:
        return one.parse(value)
    except ValueError:
        raise SettingsError(f"{one.name} = {value!r}: permitted is {one.permitted} ({one.type})") from None


def checked_together(settings: Settings) -> Settings:
    """Fills what depends on the machine or on another setting, and checks what no setting can check alone."""
    cluster, host = settings.cluster, settings.host
    if cluster.coordinators > 1 << cluster.layout.coordinator_bits:
        raise SettingsError(
            f"cluster.layout = '{cluster.layout}': its {cluster.layout.coordinator_bits} coordinator bits do not hold "
            f"cluster.coordinators = {cluster.coordinators}"
        )
    owns = host.owns or tuple(range(cluster.coordinators))
    if owns[-1] >= cluster.coordinators:
        raise SettingsError(
            f"host.owns names coordinator {owns[-1]}: permitted is 0 to {cluster.coordinators - 1} "
            f"(cluster.coordinators = {cluster.coordinators})"
        )
    name = host.name or str(parsed(BY_NAME["host.name"], socket.gethostname()))
    return dataclasses.replace(settings, host=dataclasses.replace(host, name=name, owns=owns))


def changed(old: Settings, new: Settings) -> tuple[list[Setting], list[Setting]]:
    """What differs: (those that a running daemon can take over, those that need a restart)."""
    different = [one for one in SETTINGS if old.value(one) != new.value(one)]
    return [one for one in different if one.reloadable], [one for one in different if not one.reloadable]


def reloaded(old: Settings, new: Settings) -> Settings:
    """`old` with the reloadable settings of `new`."""
    return with_values(old, reloadable_values(new))


def with_values(old: Settings, values: Mapping[str, Mapping[str, Any]]) -> Settings:
    """`old` with others in the place of some: {section: {key: value}}."""
    return dataclasses.replace(
        old, **{section: dataclasses.replace(getattr(old, section), **keys) for section, keys in values.items()}
    )


def reloadable_values(settings: Settings) -> dict[str, dict[str, Any]]:
    """{section: {key: value}} of all reloadable settings: what a worker is sent. Integers and strings only."""
    values: dict[str, dict[str, Any]] = {}
    for one in SETTINGS:
        if one.reloadable:
            values.setdefault(one.section, {})[one.key] = settings.value(one)
    return values
