"""pharaohctl without a daemon: ids on the command line, the form of the output, and exit statuses."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libpharaoh import scarab
from libpharaoh.errors import PharaohError, UnavailableError
from libpharaoh.scarab import key_bytes
from pharaohd import manifest, obelisk, settings
from pharaohd.ctl import cli, common, counters, texts
from tests.support.records import first_record
from tests.unit.fake_daemon import FakeDaemon

ID = 408559031853465647
BASE32 = "0BAVY8SDPEG1F"
HEX = hex(ID)


@pytest.fixture(autouse=True)
def _no_daemon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PHARAOH_SOCKET", str(tmp_path / "rpc.sock"))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = cli.main(arguments)
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
        manifest.ensure(str(directory), [0, 1], self._create, may_be_new=True)

    def _create(self, number: int, path: str) -> None:
        now_ns = time.time_ns()
        record = first_record((number + 1) << 40, host_ns=now_ns, realtime_ns=now_ns)
        obelisk.create(path, self.identity(number), record)

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
        assert run(capsys, "obelisk", "bump", "1", "--clock-ok", *state.options())[0] in (86, 87)
    before = datetime.now(UTC)
    status, out, warning = run(capsys, "obelisk", "bump", "1", "--create", "--clock-ok", *state.options(), "-o", "json")
    assert status == 0
    assert "no dense counters" in warning
    [row] = json.loads(out)
    assert before - timedelta(milliseconds=1) < datetime.fromisoformat(row["ceiling"])
    assert row["by"] == "clock"
    assert verify(capsys, state)[0] == 0
    assert state.ceiling(0) == 1 << 40


@pytest.mark.parametrize("arguments", [("bump", "1"), ("bump", "--all"), ("adopt", "1"), ("adopt", "--all")])
def test_a_repair_asks_what_no_file_tells(
    capsys: pytest.CaptureFixture[str], state: State, arguments: tuple[str, ...]
) -> None:
    content = state.path(1).read_bytes()
    status, out, err = run(capsys, "obelisk", *arguments, *state.options())
    assert (status, out) == (99, "")
    assert "REPAIR_UNSURE" in err
    assert "The newest record that is left is of coordinator" in err
    assert "remedy: repeat the command with --clock-ok or with --above" in err
    assert state.path(1).read_bytes() == content
    assert run(capsys, "obelisk", *arguments, "--clock-ok", "--above", "now", *state.options())[0] == 2
    assert run_json(capsys, "obelisk", *arguments, "--clock-ok", *state.options())[-1]["by"] == "clock"


ABOVE = "2031-05-06T07:08:09.123Z"
ABOVE_TICK = (1_935_817_689_123 - 1_735_689_600_000) << 13
FUTURE = ("--even-in-the-future",)


@pytest.mark.parametrize(
    ("text", "ceiling"),
    [
        (ABOVE, ABOVE_TICK + 8192),
        ("2031-05-06T07:08:09.1234Z", ABOVE_TICK + 2 * 8192),
        (str((ABOVE_TICK >> 13 << 23) + 5), ABOVE_TICK + 8192),
        (scarab.to_base32((ABOVE_TICK >> 13 << 23) + (1 << 23) - 1), ABOVE_TICK + 8192),
    ],
    ids=["a time", "a part of a millisecond", "an id", "base32"],
)
def test_above_is_an_id_or_a_time(capsys: pytest.CaptureFixture[str], state: State, text: str, ceiling: int) -> None:
    """What was named and all of its millisecond lies below."""
    [row] = run_json(capsys, "obelisk", "bump", "1", *FUTURE, "--above", text, *state.options())
    assert row["by"] == "operator"
    assert state.ceiling(1) == ceiling


@pytest.mark.parametrize("text", ["nonsense", "", str(1 << 64), "2024-12-31T00:00:00Z"])
def test_above_is_nothing_else(capsys: pytest.CaptureFixture[str], state: State, text: str) -> None:
    content = state.path(1).read_bytes()
    status, _, err = run(capsys, "obelisk", "bump", "1", "--above", text, *state.options())
    assert status in (1, 99)
    assert "Traceback" not in err
    assert state.path(1).read_bytes() == content


def test_a_wrong_year_is_asked_about(capsys: pytest.CaptureFixture[str], state: State) -> None:
    """Nothing brings ids back from there."""
    content = state.path(1).read_bytes()
    status, _, err = run(capsys, "obelisk", "bump", "1", "--above", ABOVE, *state.options())
    assert status == 99
    assert "--even-in-the-future" in err
    assert state.path(1).read_bytes() == content


def test_all_are_those_that_the_manifest_names(capsys: pytest.CaptureFixture[str], state: State) -> None:
    for number in (0, 1):
        state.path(number).unlink()
    status, out, _ = run(
        capsys, "obelisk", "bump", "--all", "--create", "--above", "now", "-o", "json", *state.options()
    )
    assert (status, [row["coordinator"] for row in json.loads(out)]) == (0, [0, 1])


def test_files_are_not_named_by_a_socket(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever named a daemon by its socket does not mean the files of the default settings."""
    monkeypatch.delenv("PHARAOH_SOCKET", raising=False)
    for arguments in (["--socket", "/tmp/rpc.sock"], []):
        status, _, err = run(capsys, "obelisk", "verify", *arguments)
        assert status == 2
        assert "--state-dir" in err
        assert "/tmp/rpc.sock" in err
        monkeypatch.setenv("PHARAOH_SOCKET", "/tmp/rpc.sock")


def test_several_or_all_are_bumped_at_once(capsys: pytest.CaptureFixture[str], state: State) -> None:
    for which in (("0", "1"), ("--all",)):
        rows = run_json(capsys, "obelisk", "bump", *which, *FUTURE, "--above", ABOVE, *state.options())
        assert [(row["coordinator"], row["by"]) for row in rows] == [(0, "operator"), (1, "operator")]
    assert state.ceiling(0) == state.ceiling(1) == ABOVE_TICK + 8192


def test_a_file_of_another_host_is_adopted_above_its_ceiling(
    capsys: pytest.CaptureFixture[str], state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F27."""
    monkeypatch.setattr(obelisk, "host_id", lambda: HOST_IDS[1])
    status, rows = verify(capsys, state)
    assert status == common.EXIT_PROBLEMS
    assert "obelisk adopt 0" in rows[0]["remedy"]
    run_json(capsys, "obelisk", "adopt", "0", "1", *FUTURE, "--above", ABOVE, *state.options())
    assert verify(capsys, state)[0] == 0
    assert state.ceiling(1) == ABOVE_TICK + 8192


def test_adopt_all_rebuilds_the_manifest(capsys: pytest.CaptureFixture[str], state: State) -> None:
    Path(manifest.manifest_path(str(state.directory))).write_text("{}")
    assert run(capsys, "obelisk", "verify", *state.options())[0] == 95
    run_json(capsys, "obelisk", "adopt", "--all", "--clock-ok", *state.options())
    assert manifest.read(str(state.directory)) == {0: "created", 1: "created"}
    assert verify(capsys, state)[0] == 0
    assert state.ceiling(0) > 1 << 40
    assert state.ceiling(1) >= state.ceiling(0)


def test_adopt_all_names_what_may_be_lost(capsys: pytest.CaptureFixture[str], state: State) -> None:
    lose(state)
    Path(manifest.manifest_path(str(state.directory))).unlink()
    status, _, err = run(capsys, "obelisk", "adopt", "--all", "--clock-ok", *state.options())
    assert status == 0
    assert "pharaohctl obelisk bump 1 --create" in err


def test_a_file_in_use_is_left_alone(capsys: pytest.CaptureFixture[str], state: State) -> None:
    """F25."""
    with open(state.path(1), "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for arguments in (("adopt", "1"), ("adopt", "--all"), ("bump", "1", "--create"), ("bump", "--all")):
            status, _, err = run(capsys, "obelisk", *arguments, "--clock-ok", *state.options())
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
    run_json(capsys, "obelisk", "bump", "1", "--clock-ok", *state.options())
    assert state.path(1).stat().st_uid == 12345


@pytest.mark.parametrize("command", ["adopt", "bump"])
def test_a_repair_wants_to_know_of_what(capsys: pytest.CaptureFixture[str], state: State, command: str) -> None:
    assert run(capsys, "obelisk", command, *state.options())[0] == 2
    assert run(capsys, "obelisk", command, "1", "--all", *state.options())[0] == 2


# ---- keys and names ----


@pytest.mark.parametrize(
    ("text", "raw", "written"),
    [
        ("orders", b"orders", "orders"),
        ("", b"", ""),
        ("Ω mega", "Ω mega".encode(), "Ω mega"),
        ("hex:6f72FF", b"or\xff", "hex:6f72ff"),
        ("hex:", b"", ""),
        ("hex:6865783a61", b"hex:a", "hex:6865783a61"),
        ("\udcff", b"\xff", "hex:ff"),
        ("a\x1b[2J", b"a\x1b[2J", "hex:611b5b324a"),
    ],
)
def test_keys_are_text_or_bytes(text: str, raw: bytes, written: str) -> None:
    assert key_bytes(texts.read_key(text)) == raw
    assert texts.text_of_key(raw) == written
    assert key_bytes(texts.read_key(written)) == raw


@given(st.binary(max_size=8) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8))
def test_every_key_is_written_as_it_is_read(key: str | bytes) -> None:
    written = texts.text_of_key(key)
    assert key_bytes(texts.read_key(written)) == key_bytes(key)
    assert written.isprintable()
    facts = texts.json_of_key("name", key)
    assert (bytes.fromhex(facts["name_hex"]) if "name_hex" in facts else facts["name"].encode()) == key_bytes(key)


@pytest.mark.parametrize("text", ["hex:0", "hex:zz", "hex:0 0", "hex:0x00"])
def test_a_key_that_is_no_hexadecimal_is_refused(capsys: pytest.CaptureFixture[str], text: str) -> None:
    status, _, err = run(capsys, "route", text)
    assert status == 1
    assert "INVALID_ARGUMENT" in err


def test_coordinators_are_written_as_the_settings_have_them() -> None:
    for text in ("", "7", "0-3", "0-1,5,7-8"):
        assert texts.text_of_numbers(settings.parse_owns(text)) == text


def test_help_lists_every_command_by_purpose(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "--help")
    assert status == 0
    headings = [line for line in out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Options:", "Ids:", "Dense values:", "Schemas:", "Daemon:", "Files:"]
    assert {line.split()[0] for line in out.splitlines() if line.startswith("  ")} >= set(cli.cli.commands)
    assert "hex:" in out
    assert "..." not in out.partition("Ids:")[2]


# ---- a daemon that says what the test wants ----


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path) as daemon:
        yield daemon


def test_ids_by_key(capsys: pytest.CaptureFixture[str], fake: FakeDaemon) -> None:
    last = int(run(capsys, "timestamp")[1])
    for arguments in (("timestamp", "a"), ("begin-transaction", "a"), ("create-session", "a"), ("next-event-id", "a")):
        facts = run_json(capsys, *arguments, "--after", scarab.to_base32(last))
        assert fake.requests[-1][1:] == (arguments[0].replace("-", "_").replace("time", "get_time"), [b"a", last])
        assert int(facts["id"]) > last
        assert facts["coordinator"] == scarab.coordinator_for("a", 4)
        last = int(facts["id"])


def test_dense_values_with_and_without_a_token(capsys: pytest.CaptureFixture[str], fake: FakeDaemon) -> None:
    assert run(capsys, "join-group", "readers", "r1") == (0, "1\n", "")
    assert run_json(capsys, "assign-offset", "hex:ff", "-n", "5") == {
        "partition": "\ufffd",
        "partition_hex": "ff",
        "offset": 0,
        "count": 5,
    }
    token = ("--session", HEX, "--sequence", "3", "--client-id", "c")
    assert run(capsys, "assign-offset", "hex:ff", *token)[1] == "5\n"
    assert fake.requests[-1][1:] == ("assign_offset", [b"\xff", 1, [ID, 3, b"c"]])
    assert run(capsys, "assign-offset", "hex:ff", *token)[1] == "5\n"
    assert run(capsys, "assign-offset", "hex:ff")[1] == "6\n"
    assert run(capsys, "join-group", "readers", "r1", *token[:4])[1] == "2\n"
    assert run(capsys, "join-group", "readers", "r1", *token[:4])[1] == "2\n"


@pytest.mark.parametrize(
    "options", [("--session", "1"), ("--sequence", "1"), ("--client-id", "c"), ("-n", "0"), ("--sequence", "-1")]
)
def test_half_a_token_is_wrong_usage(
    capsys: pytest.CaptureFixture[str], fake: FakeDaemon, options: tuple[str, ...]
) -> None:
    assert run(capsys, "assign-offset", "p", *options)[0] == 2
    assert fake.requests == []


def test_schemas(capsysbinary: pytest.CaptureFixture[bytes], fake: FakeDaemon, tmp_path: Path) -> None:
    def ctl_output(*arguments: str) -> bytes:
        assert cli.main(arguments) == 0
        return capsysbinary.readouterr().out

    text = '{ "type":"string", "doc":"Ω" }\n'.encode()
    (tmp_path / "text").write_bytes(text)
    (tmp_path / "bytes").write_bytes(b"\xff\0\n")
    first = int(ctl_output("schema", "register", "s", str(tmp_path / "text"), "--type", "json"))
    second = int(ctl_output("schema", "register", "hex:fe", str(tmp_path / "bytes")))
    assert ctl_output("schema", "get", str(first)) == text
    assert ctl_output("schema", "get", str(second)) == b"\xff\0\n"
    facts = json.loads(ctl_output("schema", "get", str(first), "-o", "json"))
    assert facts == {"id": first, "subject": "s", "version": 1, "schema": text.decode(), "type": "json"}
    rows = json.loads(ctl_output("schema", "list", "-o", "json"))
    assert [(row["id"], row.get("subject_hex")) for row in rows] == [(first, None), (second, "fe")]
    lines = ctl_output("schema", "list", "s").decode().splitlines()
    assert [line.split() for line in lines] == [["subject", "version", "id", "type"], ["s", "1", str(first), "json"]]
    assert cli.main(["schema", "get", "2000000000"]) == 1
    assert b"SCHEMA_UNKNOWN" in capsysbinary.readouterr().err


def test_route_and_cluster(capsys: pytest.CaptureFixture[str], fake: FakeDaemon) -> None:
    assert run_json(capsys, "route", "orders")["coordinator"] == scarab.coordinator_for("orders", 4)
    assert run_json(capsys, "cluster")["owners"] == {"fake": [0, 1]}
    lines = [line.split() for line in run(capsys, "cluster")[1].splitlines()]
    assert ["owners", "fake:", "0-1"] in lines
    assert ["peers", "-"] in lines


Row = list[object]


def pages_of(fake: FakeDaemon, *answers: list[Row] | PharaohError | dict[str, object]) -> None:
    """The fake's next answers to counter_list: pages of one list, errors, or nonsense."""

    def always(answer: object) -> Callable[[list[Any]], object]:
        return lambda _: answer

    cursor = 0
    for answer, following in zip(answers, [*answers[1:], None], strict=True):
        if isinstance(answer, PharaohError):
            fake.behaviours["counter_list"].append(answer)
        elif isinstance(answer, dict):
            fake.behaviours["counter_list"].append(always(answer))
        else:
            cursor += len(answer)
            page = {"counters": answer, "next": cursor if isinstance(following, list) else None}
            fake.behaviours["counter_list"].append(always(page))


ORDERS: Row = ["offset", b"orders", 7, 2]
ORGANS: Row = ["group", b"organs", 3, 0]
BYTES: Row = ["offset", b"\xff", 2**63, 64]


def test_an_export_holds_no_more_than_a_page(fake: FakeDaemon) -> None:
    pages_of(fake, [ORDERS], [ORGANS], [BYTES])
    found = counters.every_counter({0: fake.path}, [])
    for asked, name in enumerate((b"orders", b"organs", b"\xff"), 1):
        assert next(found).name == name
        assert [params for _, method, params in fake.requests if method == "counter_list"] == [
            [cursor] for cursor in range(asked)
        ]
    assert list(found) == []


def test_counters_are_chosen_by_kind_and_prefix(capsys: pytest.CaptureFixture[str], fake: FakeDaemon) -> None:
    for options, expected in (
        (("--kind", "group"), ["organs"]),
        (("--prefix", "or"), ["orders", "organs"]),
        (("--prefix", "hex:ff"), ["\ufffd"]),
        (("--prefix", "or", "--kind", "schema"), []),
    ):
        pages_of(fake, [ORDERS, ORGANS], [BYTES])
        assert [row["name"] for row in run_json(capsys, "counters", "list", "0", *options)] == expected
    pages_of(fake, [ORDERS, BYTES])
    header, *lines = run(capsys, "counters", "list", "1")[1].splitlines()
    assert header.split() == ["kind", "coord", "next", "sessions", "name"]
    assert [line.split() for line in lines] == [
        ["offset", "1", "7", "2", "orders"],
        ["offset", "1", str(2**63), "64", "hex:ff"],
    ]


def test_an_export_is_whole_or_none(capsys: pytest.CaptureFixture[str], fake: FakeDaemon, tmp_path: Path) -> None:
    file = tmp_path / "export"
    file.write_text("the last one")
    pages_of(fake, UnavailableError(), [BYTES])
    status, out, err = run(capsys, "counters", "export", str(file))
    assert (status, out) == (common.EXIT_DEGRADED, "")
    assert "UNAVAILABLE" in err
    assert "was not written" in err
    assert file.read_text() == "the last one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coordinators", "export", "rpc.sock"]
    pages_of(fake, UnavailableError(), [BYTES])
    status, out, _ = run(capsys, "counters", "list", "-o", "json")
    assert status == common.EXIT_DEGRADED
    assert [row["name_hex"] for row in json.loads(out)] == ["ff"]
    pages_of(fake, [ORDERS])
    pages_of(fake, [BYTES])
    assert run(capsys, "counters", "export", str(file)) == (0, "", "")
    expected = [
        {"kind": "offset", "name": "orders", "coordinator": 0, "next": 7, "sessions": 2},
        {"kind": "offset", "name": "\ufffd", "name_hex": "ff", "coordinator": 1, "next": 2**63, "sessions": 64},
    ]
    assert [json.loads(line) for line in file.read_text().splitlines()] == expected


@pytest.mark.parametrize(
    "answer",
    [
        {"counters": [], "next": 0},
        {"counters": [["offset", "text", 1, 0]], "next": None},
        {"counters": [["offset", b"x", 1]], "next": None},
        {"counters": 3, "next": None},
    ],
)
def test_nonsense_instead_of_counters_is_an_error(
    capsys: pytest.CaptureFixture[str], fake: FakeDaemon, answer: dict[str, object]
) -> None:
    pages_of(fake, answer)
    status, _, err = run(capsys, "counters", "list", "0")
    assert status == common.EXIT_DEGRADED
    assert "PROTOCOL_VIOLATION" in err


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "7",
        "[]",
        '{"kind": "offset", "name": "p", "coordinator": 0}',
        '{"kind": "offset", "name": "p", "coordinator": 0, "next": -1}',
        '{"kind": "offset", "name": "p", "coordinator": 0, "next": 1.0}',
        '{"kind": "offset", "name": "p", "coordinator": 0, "next": true}',
        '{"kind": "offset", "name": 5, "coordinator": 0, "next": 1}',
        '{"kind": "offset", "name": "p", "coordinator": [0], "next": 1}',
        '{"kind": "offset", "name": "p", "name_hex": "0", "coordinator": 0, "next": 1}',
        '{"kind": "queue", "name": "p", "coordinator": 0, "next": 1}',
        '{"kind": "schema", "name": "", "coordinator": 3, "next": 1}',
        '{"kind": "offset", "name": "p", "coordinator": 0, "next": 9223372036854775809}',
    ],
)
def test_a_line_that_is_no_counter_is_named(
    capsys: pytest.CaptureFixture[str], fake: FakeDaemon, tmp_path: Path, line: str
) -> None:
    good = '{"kind": "offset", "name": "p", "coordinator": 0, "next": 5}'
    fake.behaviours["counter_read"].append(lambda _: {"next": 5, "sessions": 0})
    (tmp_path / "export").write_text(f"{good}\n{line}\n")
    status, _, err = run(capsys, "counters", "import", str(tmp_path / "export"))
    assert status == 1
    assert "INVALID_ARGUMENT" in err
    assert "line 2" in err
    assert not [method for _, method, _ in fake.requests if method == "counter_raise"]


def test_the_counter_of_schemas_is_named_by_its_coordinator(
    capsys: pytest.CaptureFixture[str], fake: FakeDaemon
) -> None:
    for name in ("x", "", "-1", "²", "9" * 5000, "2"):
        status, _, err = run(capsys, "counters", "read", "schema", "--", name)
        assert (status, "INVALID_ARGUMENT" in err) == (1, True), name
    fake.behaviours["counter_read"].append(lambda _: {"next": 9, "sessions": 0})
    assert run_json(capsys, "counters", "read", "schema", "1")["next"] == 9
    assert fake.requests[-1] == (1, "counter_read", ["schema", b""])
