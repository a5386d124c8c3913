"""pharaohctl without a daemon: ids on the command line, the form of the output, and exit statuses."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from libpharaoh import scarab
from pharaohd import ctl, manifest, obelisk, settings
from pharaohd.ctl import common, texts

ID = 408559031853465647
BASE32 = "0BAVY8SDPEG1F"
HEX = hex(ID)


@pytest.fixture(autouse=True)
def _no_daemon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PHARAOH_SOCKET", str(tmp_path / "rpc.sock"))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = ctl.main(arguments)
    out, err = capsys.readouterr()
    return status, out, err


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    status, out, err = run(capsys, *arguments, "-o", "json")
    assert (status, err) == (0, "")
    return json.loads(out)


@pytest.mark.parametrize("text", [str(ID), BASE32, BASE32.lower(), HEX])
def test_decode_reads_every_form_of_an_id(capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert run_json(capsys, "decode", text) == [
        {
            "id": str(ID),
            "base32": BASE32,
            "time": "2026-07-18T16:53:51.926Z",
            "coordinator": 826,
            "sequence": 47,
            "layout": "41-10-13",
        }
    ]


def test_decode_by_another_layout(capsys: pytest.CaptureFixture[str]) -> None:
    layout = scarab.Layout.from_text("41-9-14", 1_700_000_000_000)
    value = scarab.compose(5, 3, 16000, layout)
    [facts] = run_json(capsys, "decode", str(value), "--layout", "41-9-14", "--epoch", "2023-11-14T22:13:20Z")
    assert facts["coordinator"] == 3
    assert facts["sequence"] == 16000
    assert facts["time"] == "2023-11-14T22:13:20.005Z"


def test_decode_takes_the_layout_of_the_settings_when_there_is_no_daemon(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "pharaohd.toml"
    config.write_text('[cluster]\nlayout = "40-10-14"\n')
    [facts] = run_json(capsys, "--config", str(config), "decode", str(ID))
    assert facts["layout"] == "40-10-14"


def test_a_table_has_a_header_and_aligned_columns(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "decode", str(ID), "1")
    header, first, second = out.splitlines()
    assert status == 0
    assert header.split() == ["id", "base32", "time", "coordinator", "sequence", "layout"]
    assert first.split()[0] == str(ID)
    assert first.index("826") + 3 == second.index(" 0 ", second.index("Z ")) + 2 == header.index("coordinator") + 11


@pytest.mark.parametrize("text", ["", "12x", "0xZZ", "0UUUUUUUUUUUU", str(2**64), "-1", "1_0"])
def test_decode_refuses_what_is_no_id(capsys: pytest.CaptureFixture[str], text: str) -> None:
    status, out, err = run(capsys, "decode", "--", text)
    assert (status, out) == (1, "")
    assert "INVALID_ARGUMENT" in err
    assert "remedy:" in err


def test_compose_and_range_agree_with_decode(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("compose", "2026-07-18T16:53:51.926Z", "--coordinator", "826", "--sequence", "47")
    assert run(capsys, *arguments) == (0, f"{ID}\n", "")
    bounds = run_json(capsys, "range", "2026-07-18", "2026-07-19T00:00:00Z")
    assert int(bounds["first"]) <= ID <= int(bounds["last"])
    assert int(bounds["first"]) == int(run_json(capsys, "compose", "2026-07-18")["id"])
    assert int(bounds["last"]) == int(run_json(capsys, "compose", "2026-07-19")["id"]) - 1


def test_times_are_read_in_several_forms() -> None:
    moment = scarab.parse(ID).datetime
    assert texts.read_time("2026-07-18T16:53:51.926") == moment
    assert texts.read_time("2026-07-18T18:53:51.926+02:00") == moment
    assert texts.read_time("@1784393631.926") == moment


@pytest.mark.parametrize("text", ["yesterday", "@", "@1e400", "2026-13-01"])
def test_compose_refuses_what_is_no_time(capsys: pytest.CaptureFixture[str], text: str) -> None:
    status, _, err = run(capsys, "compose", text)
    assert status == 1
    assert "INVALID_ARGUMENT" in err


def test_compose_refuses_parts_that_the_layout_cannot_hold(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "compose", "now", "--coordinator", "1024")[0] == 1
    assert run(capsys, "compose", "2024-12-31")[0] == 1


@pytest.mark.parametrize("arguments", [("status",), ("next",), ("ping",), ("stats",), ("clock", "accept")])
def test_without_a_daemon_the_exit_status_is_3(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (common.EXIT_NO_DAEMON, "")
    assert "CONNECT_FAILED" in err
    assert "remedy: is pharaohd running" in err


def test_wrong_usage_is_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "decode")[0] == 2
    assert run(capsys, "nonsense")[0] == 2
    assert run(capsys, "status", "-o", "yaml")[0] == 2


def test_invalid_settings_have_the_daemon_s_exit_status(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "pharaohd.toml"
    config.write_text("[cluster]\nlayuot = 1\n")
    status, _, err = run(capsys, "--config", str(config), "obelisk", "verify")
    assert status == 80
    assert "cluster.layout" in err


# ---- Obelisks: the files alone, no daemon ----

HOST_IDS = (bytes(range(16)), bytes(range(16, 32)))


class State:
    """The state directory of a cluster of two coordinators, both with an Obelisk."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "pharaohd.toml"
        self.config.write_text("[cluster]\ncoordinators = 2\n")
        manifest.ensure(str(directory), [0, 1], self._create)

    def _create(self, number: int, path: str) -> None:
        obelisk.create(path, self.identity(number), ceiling=(number + 1) << 40)

    def identity(self, number: int) -> obelisk.Identity:
        return obelisk.identity_for(self.settings(), number)

    def settings(self) -> settings.Settings:
        return settings.load(self.config, None, {})

    def path(self, number: int) -> Path:
        return Path(manifest.obelisk_path(str(self.directory), number))

    def ceiling(self, number: int) -> int:
        newest = obelisk.inspect(self.path(number)).newest
        assert newest is not None
        return newest.ceiling

    def options(self) -> tuple[str, ...]:
        return "--config", str(self.config), "--state-dir", str(self.directory)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> State:
    monkeypatch.setattr(obelisk, "host_id", lambda: HOST_IDS[0])
    return State(tmp_path)


def verify(capsys: pytest.CaptureFixture[str], state: State, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    status, out, err = run(capsys, "obelisk", "verify", *arguments, *state.options(), "-o", "json")
    assert err == ""
    return status, json.loads(out)


def test_sound_obelisks_verify(capsys: pytest.CaptureFixture[str], state: State) -> None:
    status, rows = verify(capsys, state)
    assert status == 0
    assert [(row["coordinator"], row["verdict"]) for row in rows] == [(0, "ok"), (1, "ok")]
    assert verify(capsys, state, "1")[0] == 0
    assert verify(capsys, state, str(state.path(1)))[1][0]["coordinator"] == 1
    assert run(capsys, "obelisk", "verify", "2", *state.options())[0] == 1


def test_inspect_shows_whatever_is_left_of_a_file(capsys: pytest.CaptureFixture[str], state: State) -> None:
    facts = run_json(capsys, "obelisk", "inspect", "1", *state.options())
    assert (facts["coordinator"], facts["ceiling"], facts["problems"]) == (1, 2 << 40, [])
    assert facts["made_on_this_host"]
    state.path(1).write_bytes(b"\0" * 100)
    facts = run_json(capsys, "obelisk", "inspect", str(state.path(1)))
    assert "ceiling" not in facts
    assert facts["problems"]
    assert run(capsys, "obelisk", "inspect", "1", *state.options())[0] == 0


def damage_identity(state: State) -> None:
    content = bytearray(state.path(1).read_bytes())
    content[20] ^= 1
    state.path(1).write_bytes(content)


def cut_short(state: State) -> None:
    os.truncate(state.path(1), 5000)


def lose(state: State) -> None:
    state.path(1).unlink()


def swap(state: State) -> None:
    state.path(1).write_bytes(state.path(0).read_bytes())


def change_layout(state: State) -> None:
    state.config.write_text('[cluster]\ncoordinators = 2\nlayout = "40-10-14"\n')


@pytest.mark.parametrize(
    ("harm", "remedy"),
    [
        (damage_identity, "obelisk bump 1 --create"),
        (cut_short, "obelisk bump 1 --create"),
        (lose, "obelisk bump 1 --create"),
        (swap, "obelisk bump 1 --create"),
        (change_layout, "cluster.layout"),
    ],
)
def test_a_problem_has_a_remedy(
    capsys: pytest.CaptureFixture[str], state: State, harm: Callable[[State], None], remedy: str
) -> None:
    """F2, F3, F8, F27."""
    harm(state)
    status, rows = verify(capsys, state)
    assert status == common.EXIT_PROBLEMS
    assert rows[1]["verdict"] == "PROBLEM"
    assert remedy in rows[1]["remedy"]
    status, out, _ = run(capsys, "obelisk", "verify", *state.options())
    assert status == common.EXIT_PROBLEMS
    assert f"remedy: {rows[1]['remedy']}" in out


@pytest.mark.parametrize("harm", [damage_identity, cut_short, lose, swap])
def test_bump_create_replaces_a_lost_file_above_the_clock(
    capsys: pytest.CaptureFixture[str], state: State, harm: Callable[[State], None]
) -> None:
    harm(state)
    if harm is not swap:  # whose file is whole
        assert run(capsys, "obelisk", "bump", "1", *state.options())[0] in (86, 87)
    [row] = run_json(capsys, "obelisk", "bump", "1", "--create", *state.options())
    assert datetime.fromisoformat(row["ceiling"]) > datetime.now(UTC)
    assert verify(capsys, state)[0] == 0
    assert state.ceiling(0) == 1 << 40


def test_a_file_of_another_host_is_adopted_above_its_ceiling(
    capsys: pytest.CaptureFixture[str], state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F27."""
    monkeypatch.setattr(obelisk, "host_id", lambda: HOST_IDS[1])
    status, rows = verify(capsys, state)
    assert status == common.EXIT_PROBLEMS
    assert "obelisk adopt 0 --bump" in rows[0]["remedy"]
    run_json(capsys, "obelisk", "adopt", "0", "1", "--bump", *state.options())
    assert verify(capsys, state)[0] == 0
    assert state.ceiling(1) > 2 << 40


def test_adopt_all_rebuilds_the_manifest(capsys: pytest.CaptureFixture[str], state: State) -> None:
    Path(manifest.manifest_path(str(state.directory))).write_text("{}")
    assert run(capsys, "obelisk", "verify", *state.options())[0] == 95
    run_json(capsys, "obelisk", "adopt", "--all", *state.options())
    assert manifest.read(str(state.directory)) == {0: "created", 1: "created"}
    assert verify(capsys, state)[0] == 0
    assert (state.ceiling(0), state.ceiling(1)) == (1 << 40, 2 << 40)


def test_adopt_all_names_what_may_be_lost(capsys: pytest.CaptureFixture[str], state: State) -> None:
    lose(state)
    Path(manifest.manifest_path(str(state.directory))).unlink()
    status, _, err = run(capsys, "obelisk", "adopt", "--all", *state.options())
    assert status == 0
    assert "pharaohctl obelisk bump 1 --create" in err


def test_a_file_in_use_is_left_alone(capsys: pytest.CaptureFixture[str], state: State) -> None:
    """F25."""
    with open(state.path(1), "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for arguments in (("adopt", "1"), ("adopt", "--all"), ("bump", "1", "--create")):
            status, _, err = run(capsys, "obelisk", *arguments, *state.options())
            assert status == 85
            assert "ALREADY_RUNNING" in err
    assert state.ceiling(1) == 2 << 40


def test_the_end_of_the_layout_is_told_years_ahead(capsys: pytest.CaptureFixture[str], state: State) -> None:
    """F19."""
    state.config.write_text("[cluster]\ncoordinators = 2\n[clock]\nend_warning_days = 36500\n")
    status, rows = verify(capsys, state)
    assert status == 0
    assert [row["verdict"] for row in rows] == ["warning", "warning"]
    assert "end in" in rows[0]["warnings"][0]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_root_repairs_stays_the_daemon_s(capsys: pytest.CaptureFixture[str], state: State) -> None:
    os.chown(state.directory, 12345, 12345)
    run_json(capsys, "obelisk", "bump", "1", *state.options())
    assert state.path(1).stat().st_uid == 12345


def test_adopt_wants_to_know_what(capsys: pytest.CaptureFixture[str], state: State) -> None:
    assert run(capsys, "obelisk", "adopt", *state.options())[0] == 2
    assert run(capsys, "obelisk", "adopt", "1", "--all", *state.options())[0] == 2
