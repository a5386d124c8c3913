"""Settings: defaults, file, environment, --dir, and what each mistake is answered with."""

from __future__ import annotations

import dataclasses
import json
import socket
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from libpharaoh.errors import GroupUnknownError, SettingsError, StartError
from pharaohd import cli
from pharaohd.settings import (
    BY_NAME,
    SETTINGS,
    Layout,
    Settings,
    changed,
    load,
    parse_owns,
    parsed,
    reloadable_values,
    reloaded,
)


def of(text: str, tmp_path: Path) -> Settings:
    path = tmp_path / "pharaohd.toml"
    path.write_text(text)
    return load(path, None, {})


def test_defaults() -> None:
    settings = load(None, None, {})
    assert settings.cluster.layout == Layout(41, 10, 13)
    assert settings.cluster.epoch == datetime(2025, 1, 1, tzinfo=UTC)
    assert settings.cluster.epoch_ms == 1_735_689_600_000
    assert settings.host.owns == (0, 1, 2, 3)
    assert settings.host.name == socket.gethostname()
    assert settings.host.socket_path == "/run/pharaohd/rpc.sock"
    assert settings.host.coordinator_socket_path(7) == "/run/pharaohd/coordinators/0007.sock"
    assert settings.rpc.mode == 0o660


def test_every_setting_is_described() -> None:
    for one in SETTINGS:
        assert one.prose.endswith("."), one.name
        assert one.permitted, one.name
        assert one.type in ("integer", "string", "string or list"), one.name
        assert one.unit or one.type != "integer", one.name
        one.parse(one.default)  # the default is itself permitted
    assert {one.name for one in SETTINGS if one.reloadable} == {
        "ring.max_age_ms",
        "ring.strict_spin_us",
        "rpc.stall_ms_max",
        "rpc.frame_deadline_ms",
        "log.level",
    }


def test_file(tmp_path: Path) -> None:
    settings = of(
        '[cluster]\nname = "x"\ncoordinators = 8\nlayout = "40-10-14"\nepoch = 2026-01-01T00:00:00Z\n'
        '[host]\nname = "a"\nowns = [4, 2]\n[rpc]\nmode = "0600"\ngroup = ""\n',
        tmp_path,
    )
    assert settings.cluster.layout == Layout(40, 10, 14)
    assert settings.cluster.epoch == datetime(2026, 1, 1, tzinfo=UTC)
    assert settings.host.owns == (2, 4)
    assert (settings.rpc.mode, settings.rpc.group) == (0o600, "")


MISTAKES = [
    ("[clutser]\n", ["unknown section [clutser]", "did you mean cluster?"]),
    ("[ring]\nmax_age = 1\n", ["unknown key ring.max_age", "did you mean ring.max_age_ms?"]),
    ("[ring]\nzzz = 1\n", ["unknown key ring.zzz"]),
    ("ring = 1\n", ["ring must be a section"]),
    ("[ring\n", ["is not TOML"]),
    ("[cluster]\ncoordinators = 0\n", ["cluster.coordinators = 0: permitted is 1 to 1024"]),
    ("[cluster]\ncoordinators = 1025\n", ["cluster.coordinators = 1025: permitted is 1 to 1024"]),
    ('[cluster]\ncoordinators = "4"\n', ["cluster.coordinators = '4': permitted is 1 to 1024 (integer)"]),
    ("[cluster]\ncoordinators = true\n", ["cluster.coordinators = True"]),
    ("[cluster]\ncoordinators = 4.0\n", ["cluster.coordinators = 4.0"]),
    ("[cluster]\nname = 5\n", ["cluster.name = 5"]),
    ('[cluster]\nname = ""\n', ["cluster.name = ''"]),
    ('[cluster]\nlayout = "41-10-12"\n', ["cluster.layout = '41-10-12'", "together 64"]),
    ('[cluster]\nlayout = "37-10-17"\n', ["cluster.layout"]),
    ('[cluster]\nlayout = "45-9-10"\n', ["cluster.layout"]),
    ('[cluster]\nlayout = "40-11-13"\n', ["cluster.layout"]),
    ('[cluster]\nlayout = "44-1-19"\n', ["cluster.layout"]),
    (
        '[cluster]\ncoordinators = 17\nlayout = "44-4-16"\n',
        ["cluster.layout = '44-4-16': its 4 coordinator bits do not hold cluster.coordinators = 17"],
    ),
    ('[cluster]\nepoch = "2025-01-01T00:00:00"\n', ["cluster.epoch", "RFC 3339"]),
    ('[cluster]\nepoch = "2025-01-01T00:00:00+01:00"\n', ["cluster.epoch"]),
    ('[cluster]\nepoch = "2025-01-01T00:00:00.0001Z"\n', ["cluster.epoch"]),
    ('[cluster]\nepoch = "1969-12-31T00:00:00Z"\n', ["cluster.epoch"]),
    ("[cluster]\nepoch = 2025-01-01\n", ["cluster.epoch"]),
    ('[host]\nowns = "0-4"\n', ["host.owns names coordinator 4: permitted is 0 to 3"]),
    ('[host]\nowns = "0,1-2,2"\n', ["host.owns = '0,1-2,2'", "each number once"]),
    ('[host]\nowns = "3-1"\n', ["host.owns = '3-1'"]),
    ("[host]\nowns = []\n", ["host.owns = []"]),
    ("[host]\nowns = [-1]\n", ["host.owns = [-1]"]),
    ("[host]\nowns = [true]\n", ["host.owns = [True]"]),
    ("[host]\nowns = 3\n", ["host.owns = 3"]),
    ('[host]\nstate_dir = "relative"\n', ["host.state_dir = 'relative': permitted is an absolute path"]),
    ('[rpc]\nmode = "660"\n', ["rpc.mode = '660'", "octal"]),
    ('[rpc]\nmode = "0060"\n', ["rpc.mode = '0060'"]),
    ("[rpc]\nmode = 660\n", ["rpc.mode = 660"]),
    ('[log]\nlevel = "verbose"\n', ["log.level = 'verbose'", '"debug" or "info"']),
]


@pytest.mark.parametrize(("text", "said"), MISTAKES, ids=[text.strip().replace("\n", " ") for text, _ in MISTAKES])
def test_mistakes(text: str, said: list[str], tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        of(text, tmp_path)
    for part in said:
        assert part in caught.value.detail


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        load(tmp_path / "none.toml", None, {})
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="is not TOML"):
        load(tmp_path / "binary.toml", None, {})


def test_integer_bounds_are_the_permitted_ones() -> None:
    for one in SETTINGS:
        if one.type != "integer":
            continue
        low, high = map(int, one.permitted.split(" to "))
        assert (one.parse(low), one.parse(high)) == (low, high)
        for outside in (low - 1, high + 1):
            with pytest.raises(SettingsError, match=one.permitted):
                parsed(one, outside)


def test_environment_wins_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "pharaohd.toml"
    path.write_text('[cluster]\nname = "file"\ncoordinators = 8\n')
    environ = {
        "PHARAOHD_CLUSTER_NAME": "environment",
        "PHARAOHD_HOST_OWNS": "0-1,7",
        "PHARAOHD_RING_MAX_AGE_MS": "25",
        "PHARAOHD_SERVICE_HOST": "10.0.0.1",  # Kubernetes sets such for a service of this name
        "HOME": "/root",
    }
    settings = load(path, None, environ)
    assert settings.cluster.name == "environment"
    assert settings.host.owns == (0, 1, 7)
    assert settings.ring.max_age_ms == 25


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("PHARAOHD_RING_MAX_AGE", "1", "did you mean PHARAOHD_RING_MAX_AGE_MS?"),
        ("PHARAOHD_RING_MAX_AGE_MS", "ten", "ring.max_age_ms = 'ten'"),
        ("PHARAOHD_RING_MAX_AGE_MS", "0", "ring.max_age_ms = 0"),
    ],
)
def test_environment_mistakes(variable: str, value: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(None, None, {variable: value})
    assert said in caught.value.detail


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('[rpc]\ngroup = "nobody-of-this-name"', GroupUnknownError),
        ('[rpc]\ngroup = ""\n[clock]\noffset_file = "/no/such/file"', SettingsError),
        ('[rpc]\ngroup = ""', None),
    ],
)
def test_validate_looks_at_what_they_name(text: str, error: type[StartError] | None, tmp_path: Path) -> None:
    path = tmp_path / "pharaohd.toml"
    path.write_text(text)
    result = CliRunner().invoke(cli.main, ["--config", str(path), "--validate"])
    assert result.exit_code == (error.exit_status if error else 0)
    assert (error.name if error else "the settings are valid") in result.output


def test_directory_mode(tmp_path: Path) -> None:
    path = tmp_path / "pharaohd.toml"
    path.write_text('[host]\nstate_dir = "/elsewhere"\nruntime_dir = "/elsewhere"\n[cluster]\ncoordinators = 1\n')
    settings = load(path, tmp_path, {"PHARAOHD_HOST_STATE_DIR": "/elsewhere"})
    assert settings.host.runtime_dir == str(tmp_path)
    assert settings.host.state_dir == str(tmp_path / "state")
    assert (settings.rpc.mode, settings.rpc.group) == (0o600, "")
    assert settings.host.owns == (0,)


@given(st.sets(st.integers(0, 1023), min_size=1))
def test_owns_reads_what_it_means(numbers: set[int]) -> None:
    assert parse_owns(",".join(map(str, numbers))) == tuple(sorted(numbers))
    assert parse_owns(list(numbers)) == tuple(sorted(numbers))


def test_reload_takes_only_what_it_may() -> None:
    old = load(None, None, {})
    new = load(None, None, {"PHARAOHD_RING_MAX_AGE_MS": "20", "PHARAOHD_OBELISK_WINDOW_MS": "500"})
    assert changed(old, new) == ([BY_NAME["ring.max_age_ms"]], [BY_NAME["obelisk.window_ms"]])
    taken = reloaded(old, new)
    assert taken.ring.max_age_ms == 20
    assert taken.obelisk == old.obelisk
    assert json.loads(json.dumps(reloadable_values(taken))) == {
        "ring": {"max_age_ms": 20, "strict_spin_us": 50},
        "rpc": {"frame_deadline_ms": 10_000, "stall_ms_max": 1000},
        "log": {"level": "info"},
    }


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load(None, None, {}).ring.max_age_ms = 5  # type: ignore[misc]
