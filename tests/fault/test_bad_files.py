"""What a start refuses: each cause with its stable exit status, its name and its remedy on stderr. F2, F3, F25, F27.

Where the remedy is a command it is run, and afterwards the daemon serves above everything that was issued before.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import libpharaoh
from libpharaoh.errors import (
    AlreadyRunningError,
    GroupUnknownError,
    ManifestError,
    ObeliskChangedError,
    ObeliskCorruptError,
    ObeliskForeignError,
    ObeliskMissingError,
    ObeliskTooNewError,
    ObeliskTruncatedError,
    RepairUnsureError,
    RuntimeDirError,
    SocketPathError,
    SocketTakenError,
    StartError,
    StateDirEmptyError,
    StateDirError,
)
from pharaohd import manifest, obelisk, repair
from tests.support.daemon import ROOT, Daemon, Settings, check_refused, short_directory
from tests.support.loopfs import MISSING, loop_fs

PAGE = 4096
SECTOR = 512
NOBODY = 65534
BUMP = ("obelisk", "bump", "1", "--create")
ADOPT = ("obelisk", "adopt", "0", "1")
ADOPT_ALL = ("obelisk", "adopt", "--all")


@dataclass(frozen=True)
class Used:
    """A state directory that was served from, and the last id of each coordinator."""

    state_dir: Path
    last_ids: dict[int, int]

    def copy_to(self, daemon: Daemon) -> None:
        shutil.copytree(self.state_dir, daemon.state_dir)


@pytest.fixture(scope="module")
def used() -> Iterator[Used]:
    with short_directory() as directory, Daemon(directory) as daemon:
        last_ids = draw(daemon)
        assert daemon.stop() == 0
        yield Used(daemon.state_dir, last_ids)


def draw(daemon: Daemon) -> dict[int, int]:
    last_ids = {}
    for coordinator in range(daemon.coordinators):
        path = daemon.runtime_dir / "coordinators" / f"{coordinator:04d}.sock"
        with libpharaoh.connect(path, rings=False) as client:
            last_ids[coordinator] = client.next_ids(1000)[-1]
    return last_ids


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


# ---- harms to the file of coordinator 1 ----


def patch(daemon: Daemon, offset: int, data: bytes) -> None:
    with open(daemon.obelisk(1), "r+b") as file:
        file.seek(offset)
        file.write(data)


def truncate(daemon: Daemon) -> None:
    os.truncate(daemon.obelisk(1), 3 * PAGE)


def empty(daemon: Daemon) -> None:
    os.truncate(daemon.obelisk(1), 0)


def lose(daemon: Daemon) -> None:
    daemon.obelisk(1).unlink()


def damage_identity(daemon: Daemon) -> None:
    patch(daemon, 300, b"\xff")


def damage_both_records(daemon: Daemon) -> None:
    for slot in (0, 1):
        patch(daemon, (1 + slot) * PAGE + 40, b"\xff" * 8)


def swap_records(daemon: Daemon) -> None:
    content = daemon.obelisk(1).read_bytes()
    patch(daemon, PAGE, content[2 * PAGE : 3 * PAGE] + content[PAGE : 2 * PAGE])


def take_the_sibling_s(daemon: Daemon) -> None:
    shutil.copy(daemon.obelisk(0), daemon.obelisk(1))


def come_from_another_host(daemon: Daemon) -> None:
    report = obelisk.inspect(daemon.obelisk(1))
    assert report.identity is not None
    assert report.newest is not None
    foreign = replace(report.identity, host_id=b"another host's!!")
    obelisk.create(str(daemon.obelisk(1)), foreign, repair.raw_record(report.newest))


def become_newer(daemon: Daemon) -> None:
    sector = bytearray(daemon.obelisk(1).read_bytes()[: SECTOR - 4])
    sector[8] = 2
    patch(daemon, 0, bytes(sector) + crc32c(bytes(sector)).to_bytes(4, "little"))


def become_a_directory(daemon: Daemon) -> None:
    daemon.obelisk(1).unlink()
    daemon.obelisk(1).mkdir()


def damage_manifest(daemon: Daemon) -> None:
    path = Path(manifest.manifest_path(str(daemon.state_dir)))
    path.write_text(path.read_text().replace("created", "creaded", 1))


def lose_manifest(daemon: Daemon) -> None:
    Path(manifest.manifest_path(str(daemon.state_dir))).unlink()


def renew_manifest(daemon: Daemon) -> None:
    path = Path(manifest.manifest_path(str(daemon.state_dir)))
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))


def mend(daemon: Daemon, remedy: tuple[str, ...]) -> None:
    """Carries a remedy out; without the operator's answer it changes nothing."""
    command = (*remedy, "--config", str(daemon.config))
    before = daemon.obelisk(0).read_bytes()
    asked = daemon.ctl(*command)
    assert asked.returncode == RepairUnsureError.exit_status, asked.stderr
    assert "--clock-ok says" in asked.stderr
    assert daemon.obelisk(0).read_bytes() == before
    done = daemon.ctl(*command, "--clock-ok")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("harm", "error", "remedy"),
    [
        (truncate, ObeliskTruncatedError, BUMP),
        (empty, ObeliskTruncatedError, BUMP),
        (lose, ObeliskMissingError, BUMP),
        (damage_identity, ObeliskCorruptError, BUMP),
        (damage_both_records, ObeliskCorruptError, BUMP),
        (swap_records, ObeliskCorruptError, BUMP),
        (take_the_sibling_s, ObeliskForeignError, BUMP),
        (come_from_another_host, ObeliskForeignError, ADOPT),
        (become_newer, ObeliskTooNewError, None),
        (become_a_directory, StateDirError, None),
        (damage_manifest, ManifestError, ADOPT_ALL),
        (lose_manifest, ManifestError, ADOPT_ALL),
        (renew_manifest, ObeliskTooNewError, None),
    ],
)
def test_a_bad_file(
    directory: Path,
    used: Used,
    harm: Callable[[Daemon], None],
    error: type[StartError],
    remedy: tuple[str, ...] | None,
) -> None:
    daemon = Daemon(directory)
    used.copy_to(daemon)
    harm(daemon)
    check_refused(daemon, error)
    check_refused(daemon, error)  # a refusal changes nothing
    if remedy is None:
        return
    assert " ".join(remedy[:2]) in error.hint
    mend(daemon, remedy)
    with daemon:
        for coordinator, id in draw(daemon).items():
            assert id > used.last_ids[coordinator]


@pytest.mark.parametrize(
    ("settings", "error", "remedy"),
    [
        ({"cluster": {"name": "other"}}, ObeliskForeignError, ADOPT),
        ({"cluster": {"layout": "40-10-14"}}, ObeliskChangedError, None),
        ({"cluster": {"epoch": "2024-01-01T00:00:00Z"}}, ObeliskChangedError, None),
        ({"cluster": {"coordinators": 3}, "host": {"owns": "0-1"}}, ObeliskChangedError, None),
        ({"cluster": {"coordinators": 4}}, ObeliskChangedError, None),  # two more, which must not be made
        ({"rpc": {"group": "no-such-group"}}, GroupUnknownError, None),
    ],
)
def test_settings_that_do_not_fit(
    directory: Path, used: Used, settings: Settings, error: type[StartError], remedy: tuple[str, ...] | None
) -> None:
    """Put back as they were, all is well; or the files are adopted."""
    daemon = Daemon(directory, settings=settings)
    used.copy_to(daemon)
    check_refused(daemon, error)
    if remedy is None:
        daemon.configure({})
    else:
        mend(daemon, remedy)
    with daemon:
        for coordinator, id in draw(daemon).items():
            assert id > used.last_ids[coordinator]


@pytest.mark.parametrize("there", [False, True], ids=["missing", "empty"])
def test_a_state_directory_without_a_manifest(directory: Path, there: bool) -> None:
    """It may be a volume that is not mounted. Refused, and nothing is made in it, until the operator says --init."""
    daemon = Daemon(directory)
    daemon.may_init = False
    if there:
        daemon.state_dir.mkdir()
    check_refused(daemon, StateDirEmptyError)
    assert daemon.state_dir.exists() == there
    assert not there or list(daemon.state_dir.iterdir()) == []
    assert "is made, with 2 coordinators" in daemon.init().stdout
    made = {path.name: path.read_bytes() for path in daemon.state_dir.rglob("*") if path.is_file()}
    assert {"manifest.json", "0000.obelisk", "0001.obelisk"} == made.keys()
    with daemon:
        last_ids = draw(daemon)
        assert daemon.stop() == 0
    assert "has been made before" in daemon.init().stdout
    with daemon:
        for coordinator, id in draw(daemon).items():
            assert id > last_ids[coordinator]


def test_a_volume_that_is_not_mounted(directory: Path, used: Used) -> None:
    """Its ids would be issued anew; mounted again they go on."""
    daemon = Daemon(directory)
    used.copy_to(daemon)
    elsewhere = directory / "elsewhere"
    daemon.state_dir.rename(elsewhere)
    daemon.state_dir.mkdir()
    check_refused(daemon, StateDirEmptyError)
    daemon.state_dir.rmdir()
    elsewhere.rename(daemon.state_dir)
    with daemon:
        for coordinator, id in draw(daemon).items():
            assert id > used.last_ids[coordinator]


def test_a_lost_file_that_is_not_owned(directory: Path, used: Used) -> None:
    """Its evidence is missing all the same: what it says of the host's time counts for its siblings."""
    daemon = Daemon(directory, settings={"host": {"owns": "0"}})
    used.copy_to(daemon)
    lose(daemon)
    check_refused(daemon, ObeliskMissingError)
    mend(daemon, BUMP)
    with daemon:
        assert [worker.coordinator for worker in daemon.workers()] == [0]


@pytest.mark.root
@pytest.mark.parametrize(("which", "error"), [("state", StateDirError), ("run", RuntimeDirError)])
def test_a_directory_that_may_not_be_written(directory: Path, which: str, error: type[StartError]) -> None:
    user = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    if subprocess.run([*user, sys.executable, "-c", "import pharaohd.cli"], cwd=ROOT, check=False).returncode:
        pytest.skip("the tree cannot be read by an unprivileged user")
    daemon = Daemon(directory, prefix=user)
    directory.chmod(0o755)
    daemon.config.chmod(0o644)
    for name in ("state", "run"):
        (directory / name).mkdir()
        os.chown(directory / name, NOBODY, NOBODY)
    assert daemon.init().returncode == 0
    os.chown(directory / which, 0, 0)
    check_refused(daemon, error)
    os.chown(directory / which, NOBODY, NOBODY)
    with daemon:
        assert draw(daemon)


def test_a_socket_path_that_is_too_long(directory: Path) -> None:
    long = directory / ("d" * 60) / ("e" * 60)
    long.mkdir(parents=True)
    check_refused(Daemon(long), SocketPathError)


def test_a_socket_path_that_is_taken(directory: Path) -> None:
    daemon = Daemon(directory)
    daemon.runtime_dir.mkdir()
    Path(daemon.socket).write_text("not a socket")
    check_refused(daemon, SocketTakenError)
    assert Path(daemon.socket).read_text() == "not a socket"
    Path(daemon.socket).unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(daemon.socket)
        other.listen()
        check_refused(daemon, SocketTakenError)
    with daemon:  # nobody listens there any more
        assert draw(daemon)


def test_a_second_daemon_on_the_same_directories(directory: Path) -> None:
    """F25."""
    (directory / "2").mkdir()
    with Daemon(directory) as first:
        second = Daemon(directory / "2")
        second.configure({"host": {"state_dir": str(first.state_dir), "runtime_dir": str(first.runtime_dir)}})
        check_refused(second, AlreadyRunningError)
        second.configure({"host": {"state_dir": str(first.state_dir)}})
        check_refused(second, AlreadyRunningError)
        assert draw(first)


def test_a_second_daemon_that_reaches_the_same_obelisks_otherwise(directory: Path) -> None:
    """F25: other directories, but the same files: the lock that counts is the Obelisk's own."""
    (directory / "2").mkdir()
    with Daemon(directory) as first:
        second = Daemon(directory / "2")
        shutil.copytree(first.state_dir, second.state_dir, copy_function=os.link)
        check_refused(second, AlreadyRunningError)
        last_ids = draw(first)
        assert first.stop() == 0
        with second:
            for coordinator, id in draw(second).items():
                assert id > last_ids[coordinator]


def test_an_obelisk_that_a_repair_holds(directory: Path, used: Used) -> None:
    daemon = Daemon(directory)
    used.copy_to(daemon)
    with open(daemon.obelisk(1), "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        check_refused(daemon, AlreadyRunningError)
    with daemon:
        done = daemon.ctl(*BUMP, "--config", str(daemon.config))
        assert done.returncode == AlreadyRunningError.exit_status
        assert AlreadyRunningError.hint in done.stderr


@pytest.mark.root
@pytest.mark.skipif(MISSING is not None, reason=f"needs {MISSING}")
def test_a_disk_that_is_full_when_the_state_is_made(directory: Path) -> None:
    """F3, F7."""
    with loop_fs(directory) as file_system:
        daemon = Daemon(directory, state_dir=file_system.mount_point / "state")
        filler = file_system.mount_point / "filler"
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while file.write(bytes(PAGE)):
                pass
        refused = daemon.init()
        assert (refused.returncode, StateDirError.hint in refused.stderr) == (StateDirError.exit_status, True)
        filler.unlink()
        assert daemon.init().returncode == 0
        with daemon:
            assert draw(daemon)
            assert daemon.stop() == 0
