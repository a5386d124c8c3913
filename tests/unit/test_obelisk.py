"""Obelisks as the operator's commands see them: looked at, judged, repaired. A repair never lowers a ceiling."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from libpharaoh.errors import (
    AlreadyRunningError,
    ObeliskChangedError,
    ObeliskCorruptError,
    ObeliskForeignError,
    ObeliskMissingError,
    ObeliskTooNewError,
    StartError,
    StateDirError,
)
from pharaohd import obelisk, settings
from pharaohd._core import ffi, lib
from pharaohd.obelisk import BUMP_MARGIN_MS, Identity
from pharaohd.settings import Layout

PAGE = 4096
IDENTITY = Identity(5, 16, Layout(41, 10, 13), 1_735_689_600_000, bytes(range(16)), bytes(range(16, 32)))
FAR_MS = 3_000_000_000_000
"""Far above the clock: what a ceiling is after the clock was set back by decades."""


def tick(unix_ms: int) -> int:
    return (unix_ms - IDENTITY.epoch_ms) << 13


def now() -> int:
    return tick(time.time_ns() // 1_000_000)


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 * (crc & 1))
    return crc ^ 0xFFFFFFFF


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "0005.obelisk"


def make(path: Path, *ceilings: int) -> None:
    """A file whose records hold these ceilings, the last one newest."""
    obelisk.create(str(path), IDENTITY, ceilings[0])
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
    obelisk.create(str(path), IDENTITY)
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


@pytest.mark.parametrize("newest_ms", [IDENTITY.epoch_ms + 2, FAR_MS])
def test_bump_is_above_the_clock_and_every_record(path: Path, newest_ms: int) -> None:
    before = now()
    make(path, 8192, tick(newest_ms), tick(newest_ms) + 5)
    old = ceiling_of(path)
    ceiling = obelisk.bump(path, IDENTITY)
    assert ceiling_of(path) == ceiling >= max(old, before) + (BUMP_MARGIN_MS << 13)
    assert obelisk.bump(path, IDENTITY) > ceiling
    assert start_code(path, IDENTITY) == 0


def test_bump_create_starts_above_the_siblings(path: Path) -> None:
    """A lost file's virtual time may have been an hour ahead after a backward step: its siblings' was too (F2, F18)."""
    far = now() + (3_600_000 << 13)
    obelisk.create(str(path.with_name("0006.obelisk")), replace(IDENTITY, coordinator=6), far)
    assert obelisk.bump(path, IDENTITY, create_missing=True) > far


@pytest.mark.parametrize("pages", [(1,), (2,), (0,), (0, 1), (0, 2)])
def test_bump_never_lowers_while_one_record_is_whole(path: Path, pages: tuple[int, ...]) -> None:
    """F2: also when only the identity page is damaged, and when the clock is far below the ceiling."""
    far = tick(FAR_MS)
    make(path, 8192, far, far)
    damage(path, *pages)
    with pytest.raises(ObeliskCorruptError):
        obelisk.bump(path, IDENTITY)
    assert obelisk.bump(path, IDENTITY, create_missing=True) > far
    assert ceiling_of(path) > far


def test_bump_takes_no_record_of_another_coordinator_for_its_own(path: Path) -> None:
    obelisk.create(str(path), replace(IDENTITY, coordinator=6), tick(FAR_MS))
    damage(path, 0)
    assert obelisk.bump(path, IDENTITY, create_missing=True) < tick(FAR_MS)


def lose(path: Path) -> None:
    path.unlink()


def cut_short(path: Path) -> None:
    os.truncate(path, 3 * PAGE - 1)


def zero(path: Path) -> None:
    path.write_bytes(bytes(4 * PAGE))


@pytest.mark.parametrize("harm", [lose, cut_short, zero])
def test_only_bump_create_makes_a_lost_file_anew(path: Path, harm: Callable[[Path], None]) -> None:
    make(path, 8192)
    harm(path)
    with pytest.raises((ObeliskMissingError, ObeliskCorruptError)):
        obelisk.bump(path, IDENTITY)
    before = now()
    assert obelisk.bump(path, IDENTITY, create_missing=True) >= before + (BUMP_MARGIN_MS << 13)
    assert obelisk.verify(path, IDENTITY).problems == ()


def test_bump_leaves_ceilings_of_other_units_alone(path: Path) -> None:
    """A ceiling counts in ticks of its file's layout and epoch: in another it may be lower."""
    make(path, 8192)
    content = path.read_bytes()
    for other in (replace(IDENTITY, layout=Layout(40, 10, 14)), replace(IDENTITY, epoch_ms=0)):
        with pytest.raises(ObeliskChangedError):
            obelisk.bump(path, other, create_missing=True)
    assert path.read_bytes() == content


def test_bump_replaces_a_foreign_file_only_when_told_to(path: Path) -> None:
    make(path, 8192)
    other = replace(IDENTITY, coordinator=6)
    with pytest.raises(ObeliskForeignError):
        obelisk.bump(path, other)
    obelisk.bump(path, other, create_missing=True)
    assert start_code(path, other) == 0


def test_no_repair_touches_the_file_of_a_newer_version(path: Path) -> None:
    make(path, 8192)
    content = bytearray(path.read_bytes())
    content[8] = 2
    content[508:512] = crc32c(bytes(content[:508])).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ObeliskTooNewError):
        obelisk.bump(path, IDENTITY, create_missing=True)
    with pytest.raises(StartError):
        obelisk.adopt(path, IDENTITY, bump=True)
    assert path.read_bytes() == content


@pytest.mark.parametrize("bump", [False, True])
def test_adopt_changes_the_owner_and_never_lowers(path: Path, bump: bool) -> None:
    """F27."""
    make(path, 8192, tick(FAR_MS))
    mine = replace(IDENTITY, host_id=bytes(16), cluster_id=bytes(range(50, 66)))
    assert start_code(path, mine) != 0
    ceiling = obelisk.adopt(path, mine, bump=bump)
    assert ceiling == ceiling_of(path) == tick(FAR_MS) + (BUMP_MARGIN_MS << 13 if bump else 0)
    assert start_code(path, mine) == 0
    assert obelisk.inspect(path).identity == mine


def test_adopt_takes_only_whole_files_of_this_coordinator_and_layout(path: Path) -> None:
    make(path, 8192)
    for other in (replace(IDENTITY, coordinator=6), replace(IDENTITY, layout=Layout(40, 10, 14))):
        with pytest.raises(ObeliskChangedError):
            obelisk.adopt(path, other, bump=True)
    damage(path, 1)
    with pytest.raises(ObeliskCorruptError):
        obelisk.adopt(path, IDENTITY, bump=True)


def test_a_file_in_use_is_refused(path: Path) -> None:
    """F25."""
    make(path, 8192)
    content = path.read_bytes()
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(AlreadyRunningError):
            obelisk.bump(path, IDENTITY, create_missing=True)
        with pytest.raises(AlreadyRunningError):
            obelisk.adopt(path, IDENTITY, bump=False)
    assert path.read_bytes() == content


def test_a_file_has_its_name_only_when_it_is_whole(path: Path) -> None:
    """F3."""
    with pytest.raises(StateDirError, match="No such file"):
        obelisk.create(str(path.parent / "missing" / "0005.obelisk"), IDENTITY)
    path.with_suffix(".obelisk.new").mkdir()
    with pytest.raises(StateDirError):
        obelisk.create(str(path), IDENTITY)
    assert not path.exists()


def test_the_margin_covers_what_the_settings_let_be_issued() -> None:
    plain = settings.load(None, None, {})
    assert obelisk.repair_margin_ms(plain) == BUMP_MARGIN_MS
    wide = settings.load(None, None, {"PHARAOHD_CLOCK_AFTER_MS_MAX": "86400000"})
    assert obelisk.repair_margin_ms(wide) > 86_400_000
