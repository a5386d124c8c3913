"""pharaohctl without a daemon: ids on the command line, the form of the output, and exit statuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from libpharaoh import scarab
from pharaohd import ctl

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
    assert ctl.read_time("2026-07-18T16:53:51.926") == moment
    assert ctl.read_time("2026-07-18T18:53:51.926+02:00") == moment
    assert ctl.read_time("@1784393631.926") == moment


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
    assert (status, out) == (ctl.EXIT_NO_DAEMON, "")
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
