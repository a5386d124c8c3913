"""Obelisks as the operator's commands see them: looked at and judged."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from libpharaoh.errors import ObeliskMissingError, StateDirError
from pharaohd import obelisk
from pharaohd._core import ffi, lib
from pharaohd.obelisk import Identity
from pharaohd.settings import Layout
from tests.support.records import first_record

PAGE = 4096
IDENTITY = Identity(5, 16, Layout(41, 10, 13), 1_735_689_600_000, bytes(range(16)), bytes(range(16, 32)))
FAR_MS = 3_000_000_000_000
"""Far above the clock: what a ceiling is after the clock was set back by decades."""


def tick(unix_ms: int) -> int:
    return (unix_ms - IDENTITY.epoch_ms) << 13


def now() -> int:
    return tick(time.time_ns() // 1_000_000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "0005.obelisk"


def make(path: Path, *ceilings: int) -> None:
    """A file whose records hold these ceilings, the last one newest."""
    obelisk.create(str(path), IDENTITY, first_record(ceilings[0]))
    handle, fault = ffi.new("struct ph_obelisk *"), ffi.new("struct ph_fault *")
    assert lib.ph_obelisk_open(handle, os.fsencode(path), lib.PH_OBELISK_OWN, fault) == 0
    for ceiling in ceilings[1:]:
        assert lib.ph_obelisk_write(handle, ceiling, ffi.new("struct ph_clock_sample *"), 0, fault) == 0
    lib.ph_obelisk_close(handle)


def start_code(path: Path, expected: Identity) -> int:
    """What a start under `expected` would say: 0 or an error's code."""
    handle, fault = ffi.new("struct ph_obelisk *"), ffi.new("struct ph_fault *")
    if code := lib.ph_obelisk_open(handle, os.fsencode(path), lib.PH_OBELISK_READ, fault):
        return int(code)
    wanted = ffi.new("struct ph_identity *")
    obelisk.fill_identity(wanted, expected)
    code = lib.ph_obelisk_check(handle, wanted, fault)
    lib.ph_obelisk_close(handle)
    return int(code)


def damage(path: Path, *pages: int) -> None:
    content = bytearray(path.read_bytes())
    for page in pages:
        content[page * PAGE + 40] ^= 1
    path.write_bytes(content)


def ceiling_of(path: Path) -> int:
    newest = obelisk.inspect(path).newest
    assert newest is not None
    return newest.ceiling


def test_inspect_shows_what_was_written(path: Path) -> None:
    make(path, 8192, 16384, 24576)
    report = obelisk.inspect(path)
    assert report.identity == IDENTITY
    assert report.version == 1
    assert report.problems == ()
    assert [(record.slot, record.valid, record.number, record.ceiling) for record in report.records] == [
        (0, True, 3, 24576),
        (1, True, 2, 16384),
    ]
    assert report.newest == report.records[0]
    assert report.records[0].ceiling_ms == IDENTITY.epoch_ms + 3


def test_a_file_that_was_never_served_is_sound(path: Path) -> None:
    obelisk.create(str(path), IDENTITY, first_record())
    assert obelisk.verify(path, IDENTITY).problems == ()


def test_inspect_goes_by_what_is_left(path: Path) -> None:
    """F2."""
    make(path, 8192, 16384, 24576)
    damage(path, 1)
    assert ceiling_of(path) == 16384
    assert "record 0 is not valid" in obelisk.inspect(path).problems[0]
    damage(path, 2)
    assert obelisk.inspect(path).newest is None
    damage(path, 0)
    assert obelisk.inspect(path).identity is None
    os.truncate(path, 10)
    assert "truncated: 10 bytes" in obelisk.inspect(path).problems[0]
    path.unlink()
    with pytest.raises(ObeliskMissingError):
        obelisk.inspect(path)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"coordinator": 6}, "coordinator 5, not 6"),
        ({"modulus": 8}, "cluster.coordinators is 8"),
        ({"layout": Layout(40, 10, 14)}, "40-10-14"),
        ({"epoch_ms": 0}, "0 ms"),
        ({"cluster_id": bytes(range(1, 17))}, "cluster.name"),
        ({"host_id": bytes(range(17, 33))}, "machine-id"),
    ],
)
def test_verify_judges_as_a_start_does(path: Path, changed: dict[str, object], told: str) -> None:
    make(path, 8192)
    expected = replace(IDENTITY, **changed)  # type: ignore[arg-type]
    assert told in "; ".join(obelisk.verify(path, expected).problems)
    assert start_code(path, expected) != 0
    assert obelisk.verify(path, IDENTITY).problems == ()
    assert start_code(path, IDENTITY) == 0


def test_a_host_without_an_identity_is_not_compared(path: Path) -> None:
    """F28: the machine-id is a hint."""
    make(path, 8192)
    nowhere = replace(IDENTITY, host_id=obelisk.NO_HOST)
    assert obelisk.verify(path, nowhere).problems == ()
    assert start_code(path, nowhere) == 0


def test_verify_warns_of_a_ceiling_far_ahead_and_of_the_end(path: Path) -> None:
    """F19."""
    make(path, tick(FAR_MS))
    assert "ahead of this host's clock" in obelisk.verify(path, IDENTITY).warnings[0]
    make(path, now())
    assert obelisk.verify(path, IDENTITY).warnings == ()
    assert "milliseconds end" in obelisk.verify(path, IDENTITY, end_warning_days=36500).warnings[0]


def test_a_file_has_its_name_only_when_it_is_whole(path: Path) -> None:
    """F3."""
    with pytest.raises(StateDirError, match="No such file"):
        obelisk.create(str(path.parent / "missing" / "0005.obelisk"), IDENTITY, first_record())
    path.with_suffix(".obelisk.new").mkdir()
    with pytest.raises(StateDirError):
        obelisk.create(str(path), IDENTITY, first_record())
    assert not path.exists()
