"""The manifest: what it refuses, and that a crash at any step leaves a directory that can be started (F3)."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from libpharaoh.errors import ManifestError, ObeliskMissingError, ObeliskTooNewError
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


def obelisks(state: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (state / "obelisks").glob("*.obelisk")}


def test_creates_once(tmp_path: Path) -> None:
    asked: list[int] = []

    def counting(coordinator: int, path: str) -> None:
        assert manifest.read(str(tmp_path))[coordinator] == "creating"
        asked.append(coordinator)
        create(coordinator, path)

    manifest.ensure(str(tmp_path), (0, 2), counting)
    manifest.ensure(str(tmp_path), (0, 2), counting)
    manifest.ensure(str(tmp_path), (0, 1), counting)
    assert asked == [0, 2, 1]
    assert manifest.read(str(tmp_path)) == {0: "created", 1: "created", 2: "created"}
    assert obelisks(tmp_path) == {"0000.obelisk": "Obelisk 0", "0001.obelisk": "Obelisk 1", "0002.obelisk": "Obelisk 2"}


def test_missing_obelisk_is_refused(tmp_path: Path) -> None:
    manifest.ensure(str(tmp_path), (0, 1), create)
    (tmp_path / "obelisks/0001.obelisk").unlink()
    with pytest.raises(ObeliskMissingError, match=r"0001\.obelisk"):
        manifest.ensure(str(tmp_path), (0, 1), create)
    assert "0001.obelisk" not in obelisks(tmp_path)
    manifest.ensure(str(tmp_path), (0,), create)  # what another host owns now is not looked for


def test_missing_manifest_is_refused(tmp_path: Path) -> None:
    manifest.ensure(str(tmp_path), (0,), create)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ManifestError, match="is missing"):
        manifest.ensure(str(tmp_path), (0,), create)


def test_unlisted_obelisk_is_refused(tmp_path: Path) -> None:
    manifest.ensure(str(tmp_path), (0,), create)
    shutil.copy(tmp_path / "obelisks/0000.obelisk", tmp_path / "obelisks/0001.obelisk")
    with pytest.raises(ManifestError, match=r"0001\.obelisk is not in"):
        manifest.ensure(str(tmp_path), (0, 1), create)


def test_newer_manifest_is_refused(tmp_path: Path) -> None:
    manifest.ensure(str(tmp_path), (0,), create)
    path = tmp_path / "manifest.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "format": 2, "novelty": True}))
    with pytest.raises(ObeliskTooNewError):
        manifest.ensure(str(tmp_path), (0,), create)


def test_every_flipped_bit_and_every_truncation_is_noticed(tmp_path: Path) -> None:
    manifest.ensure(str(tmp_path), (0, 3), create)
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
            manifest.ensure(str(state), (0, 1), create_new)
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
            manifest.ensure(str(left), (0, 1), create)
            assert obelisks(left) == {"0000.obelisk": "Obelisk 0", "0001.obelisk": "Obelisk 1"}
        else:
            assert complete or run_until_crash(state, disk, monkeypatch)
            must_be_durable(disk, state, end)
    assert crash_at > 20  # it did crash at many places
