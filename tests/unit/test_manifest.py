"""The manifest: what it refuses, and that a crash at any step leaves a directory that can be started (F3)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from libpharaoh.errors import ManifestError, ObeliskMissingError, ObeliskTooNewError, StateDirEmptyError
from pharaohd import manifest


class Crash(BaseException):
    """The machine stops here. Not an Exception: no handler may go on."""


def create(coordinator: int, path: str) -> None:
    """As the real one: temporary file, fsync, rename, fsync of the directory."""
    with open(f"{path}.tmp", "w") as file:
        file.write(f"Obelisk {coordinator}")
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{path}.tmp", path)
    manifest.sync_directory(os.path.dirname(path))


def ensure(state: Path, owned: tuple[int, ...], create: Callable[[int, str], None], *, may_be_new: bool = True) -> None:
    manifest.ensure(str(state), owned, create, may_be_new=may_be_new)


def obelisks(state: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (state / "obelisks").glob("*.obelisk")}


def test_creates_once(tmp_path: Path) -> None:
    asked: list[int] = []

    def counting(coordinator: int, path: str) -> None:
        assert manifest.read(str(tmp_path))[coordinator] == "creating"
        asked.append(coordinator)
        create(coordinator, path)

    ensure(tmp_path, (0, 2), counting)
    ensure(tmp_path, (0, 2), counting)
    ensure(tmp_path, (0, 1), counting)
    assert asked == [0, 2, 1]
    assert manifest.read(str(tmp_path)) == {0: "created", 1: "created", 2: "created"}
    assert obelisks(tmp_path) == {"0000.obelisk": "Obelisk 0", "0001.obelisk": "Obelisk 1", "0002.obelisk": "Obelisk 2"}


def test_a_directory_without_a_manifest_is_filled_only_when_it_may_be_new(tmp_path: Path) -> None:
    """It may be a volume that is not mounted: whoever issued into that issued all of it twice."""
    with pytest.raises(StateDirEmptyError):
        ensure(tmp_path, (0,), create, may_be_new=False)
    assert list(tmp_path.iterdir()) == []
    ensure(tmp_path, (0,), create)
    ensure(tmp_path, (0, 1), create, may_be_new=False)
    assert manifest.read(str(tmp_path)) == {0: "created", 1: "created"}


def test_a_directory_keeps_the_id_that_was_drawn_for_it(tmp_path: Path) -> None:
    """The page in memory is found by it: a copy shares it, another directory has another."""
    one, other = tmp_path / "one", tmp_path / "other"
    for state in (one, other):
        ensure(state, (0,), create)
    id = manifest.directory_id(str(one))
    assert len(id) == 16
    assert manifest.directory_id(str(other)) != id
    ensure(one, (0, 1), create)
    manifest.write(str(one), {0: "created"})
    assert manifest.directory_id(str(one)) == id


@pytest.mark.parametrize("id", [None, "", "00", "no hex", 7, []])
def test_a_directory_without_an_id_is_given_one(tmp_path: Path, id: object) -> None:
    """Of a version that drew none, or damaged: it is not covered by the checksum."""
    ensure(tmp_path, (0,), create)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "id": id}))
    assert manifest.directory_id(str(tmp_path)) == b""
    ensure(tmp_path, (0,), create, may_be_new=False)
    assert len(manifest.directory_id(str(tmp_path))) == 16
    assert manifest.read(str(tmp_path)) == {0: "created"}


def test_missing_obelisk_is_refused(tmp_path: Path) -> None:
    ensure(tmp_path, (0, 1), create)
    (tmp_path / "obelisks/0001.obelisk").unlink()
    with pytest.raises(ObeliskMissingError, match=r"0001\.obelisk"):
        ensure(tmp_path, (0, 1), create)
    assert "0001.obelisk" not in obelisks(tmp_path)
    ensure(tmp_path, (0,), create)  # what another host owns now is not looked for


def test_missing_manifest_is_refused(tmp_path: Path) -> None:
    ensure(tmp_path, (0,), create)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ManifestError, match="is missing"):
        ensure(tmp_path, (0,), create)


def test_unlisted_obelisk_is_refused(tmp_path: Path) -> None:
    ensure(tmp_path, (0,), create)
    shutil.copy(tmp_path / "obelisks/0000.obelisk", tmp_path / "obelisks/0001.obelisk")
    with pytest.raises(ManifestError, match=r"0001\.obelisk is not in"):
        ensure(tmp_path, (0, 1), create)


def test_newer_manifest_is_refused(tmp_path: Path) -> None:
    ensure(tmp_path, (0,), create)
    path = tmp_path / "manifest.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "format": 2, "novelty": True}))
    with pytest.raises(ObeliskTooNewError):
        ensure(tmp_path, (0,), create)


def test_every_flipped_bit_and_every_truncation_is_noticed(tmp_path: Path) -> None:
    ensure(tmp_path, (0, 3), create)
    path = tmp_path / "manifest.json"
    good = path.read_bytes()
    truth = manifest.read(str(tmp_path))
    damaged = [good[:length] for length in range(len(good) - 1)]
    for at, byte in enumerate(good):
        damaged += [good[:at] + bytes([byte ^ 1 << bit]) + good[at + 1 :] for bit in range(8)]
    for content in [*damaged, b"", b"[]", b"null", b"[" * 100_000, b'{"format": "1"}', b'{"format": true}']:
        path.write_bytes(content)
        try:
            found = manifest.read(str(tmp_path))
        except (ManifestError, ObeliskTooNewError):
            continue
        assert found == truth, content  # white space alone changed


class Disk:
    """Knows what a power cut leaves: a directory's entries and a file's bytes as of the last fsync of each.

    The machine stops at step `crash_at`: before or after one of the system calls that matter.
    """

    def __init__(self, crash_at: int) -> None:
        self.crash_at = crash_at
        self.steps = 0
        self.entries: dict[str, dict[str, int]] = {}
        self.contents: dict[int, bytes] = {}
        self._rename = os.rename

    def step(self) -> None:
        self.steps += 1
        if self.steps == self.crash_at:
            raise Crash

    def fsync(self, descriptor: int) -> None:
        self.step()
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if os.path.isdir(path):
            self.entries[path] = {entry.name: entry.inode() for entry in os.scandir(path)}
        else:
            self.contents[os.fstat(descriptor).st_ino] = Path(path).read_bytes()
        self.step()

    def rename(self, source: str, target: str) -> None:
        self.step()
        self._rename(source, target)
        self.step()

    def after_power_cut(self, state: Path, left: Path) -> None:
        left.mkdir()
        for directory in (state, state / "obelisks"):
            for name, inode in self.entries.get(str(directory), {}).items():
                if (directory / name).is_dir():
                    (left / name).mkdir()
                elif (left / directory.relative_to(state)).is_dir():
                    (left / directory.relative_to(state) / name).write_bytes(self.contents.get(inode, b""))


def run_until_crash(state: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether it came to the end."""

    def create_new(coordinator: int, path: str) -> None:
        assert not os.path.exists(path)  # whatever is there is never replaced
        create(coordinator, path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", disk.fsync)
        patched.setattr(os, "rename", disk.rename)
        try:
            ensure(state, (0, 1), create_new)
        except Crash:
            return False
    return True


def must_be_durable(disk: Disk, state: Path, left: Path) -> None:
    """Ids may be issued now: nothing may be lost any more, the directory itself neither."""
    assert {str(state), *map(str, state.parents)} <= set(disk.entries)
    disk.after_power_cut(state, left)
    assert manifest.read(str(left)) == {0: "created", 1: "created"}
    assert obelisks(left) == {"0000.obelisk": "Obelisk 0", "0001.obelisk": "Obelisk 1"}


@pytest.mark.parametrize("power_cut", [True, False], ids=["power cut", "kill"])
def test_crash_at_every_step(tmp_path: Path, power_cut: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """F3: whatever the crash leaves, the next start completes it, and what it completes is durable."""
    complete, crash_at = False, 0
    while not complete:
        crash_at += 1
        state, left, end = (tmp_path / f"{crash_at}{name}" for name in ("", "-left", "-end"))
        state.mkdir()
        disk = Disk(crash_at)
        complete = run_until_crash(state, disk, monkeypatch)
        if power_cut:
            disk.after_power_cut(state, left)
            ensure(left, (0, 1), create)
            assert obelisks(left) == {"0000.obelisk": "Obelisk 0", "0001.obelisk": "Obelisk 1"}
        else:
            assert complete or run_until_crash(state, disk, monkeypatch)
            must_be_durable(disk, state, end)
    assert crash_at > 20  # it did crash at many places
