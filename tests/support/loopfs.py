"""An ext4 of its own in an image file: its power can be cut, it can hang, and its disk can fail. Needs root.

`cut` is EXT4_IOC_SHUTDOWN without a log flush: what was synced stands, what was not is gone once it is mounted again.
It does not model the device's own write cache.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

EXT4_IOC_SHUTDOWN = 0x8004587D
SHUTDOWN_NOLOGFLUSH = 2
FIFREEZE = 0xC0045877
FITHAW = 0xC0045878
FIBMAP = 1
BLOCK = 4096

MISSING = next((tool for tool in ("mkfs.ext4", "mount", "umount", "fallocate") if shutil.which(tool) is None), None)


class LoopFs:
    """A mounted image. Made by `loop_fs`."""

    def __init__(self, image: Path, mount_point: Path) -> None:
        self.image = image
        self.mount_point = mount_point
        self._frozen = False

    def make(self, megabytes: int = 16, options: tuple[str, ...] = ()) -> None:
        """A new, empty file system in a sparse image."""
        self.image.unlink(missing_ok=True)
        with open(self.image, "wb") as file:
            file.truncate(megabytes << 20)
        features = ("-b", str(BLOCK), "-E", "lazy_itable_init=0,lazy_journal_init=0", "-m", "0", *options)
        run("mkfs.ext4", "-q", *features, str(self.image))

    def mount(self) -> None:
        self.mount_point.mkdir(exist_ok=True)
        run("mount", "-o", "loop", str(self.image), str(self.mount_point))

    def unmount(self) -> None:
        run("umount", str(self.mount_point))

    def remount(self) -> None:
        self.unmount()
        self.mount()

    def cut(self) -> None:
        """The power goes: from now on nothing reaches the image."""
        self._ioctl(EXT4_IOC_SHUTDOWN, struct.pack("I", SHUTDOWN_NOLOGFLUSH))

    def freeze(self) -> None:
        """Whoever writes or syncs hangs in the kernel until `thaw`."""
        self._ioctl(FIFREEZE, bytes(4))
        self._frozen = True

    def thaw(self) -> None:
        if self._frozen:
            self._ioctl(FITHAW, bytes(4))
            self._frozen = False

    def _ioctl(self, request: int, argument: bytes) -> None:
        descriptor = os.open(self.mount_point, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, request, argument)
        finally:
            os.close(descriptor)

    def fill_image(self) -> None:
        """Gives the whole image room on the disk that it lies on, but for what `punch` takes away again."""
        with open(self.image, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)

    def punch(self, path: Path, block: int) -> None:
        """The disk loses one block of a file, and needs room of its own to write it again."""
        with open(path, "rb") as file:
            [physical] = struct.unpack("i", fcntl.ioctl(file, FIBMAP, struct.pack("i", block)))
        run("fallocate", "--punch-hole", "-o", str(physical * BLOCK), "-l", str(BLOCK), str(self.image))

    def remove(self) -> None:
        """Whatever state a test left it in."""
        self.thaw()
        while os.path.ismount(self.mount_point):
            if subprocess.run(["umount", str(self.mount_point)], capture_output=True, check=False).returncode:
                run("umount", "--lazy", str(self.mount_point))
        self.image.unlink(missing_ok=True)


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


@contextlib.contextmanager
def loop_fs(directory: Path, megabytes: int = 16, options: tuple[str, ...] = ()) -> Iterator[LoopFs]:
    """An image in `directory`, mounted at `directory`/mnt; unmounted at the end, come what may."""
    file_system = LoopFs(directory / "image", directory / "mnt")
    file_system.make(megabytes, options)
    try:
        file_system.mount()
        yield file_system
    finally:
        file_system.remove()


@contextlib.contextmanager
def small_memory_disk(mount_point: Path, megabytes: int) -> Iterator[Path]:
    """A tmpfs: an image on it has a disk that can be filled behind its back."""
    mount_point.mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(mount_point))
    try:
        yield mount_point
    finally:
        run("umount", "--lazy", str(mount_point))


class Shim:
    """Cuts the power just before a chosen write, sync or rename of a daemon: see cut_at.c."""

    def __init__(self, directory: Path) -> None:
        self.library = directory / "cut_at.so"
        self.count_file = directory / "count"
        source = Path(__file__).with_name("cut_at.c")
        run("cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(self.library), str(source), "-ldl")

    def prefix(self, file_system: LoopFs, cut_at: int) -> tuple[str, ...]:
        """The command before a daemon's, for a cut before its `cut_at`th step from now; 0: it only counts."""
        self.count_file.write_bytes(bytes(16))
        values = {"LD_PRELOAD": self.library, "CUT_AT": cut_at, "CUT_MOUNT": file_system.mount_point}
        return ("env", *(f"{name}={value}" for name, value in values.items()), f"CUT_COUNT={self.count_file}")

    def steps(self) -> int:
        return int(struct.unpack("<QQ", self.count_file.read_bytes())[0])

    def has_cut(self) -> bool:
        return bool(struct.unpack("<QQ", self.count_file.read_bytes())[1])


def read_medium(path: Path, length: int) -> bytes:
    """What the disk holds, not what the page cache shows: O_DIRECT into aligned memory."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, -(-length // BLOCK) * BLOCK) as aligned:
            got = os.preadv(descriptor, [aligned], 0)
            return aligned[: min(got, length)]
    finally:
        os.close(descriptor)


def state_of(pid: int) -> str:
    """The letter of /proc/PID/stat for the process's worst thread: D when one sleeps in the kernel for a disk."""
    letters = []
    with contextlib.suppress(FileNotFoundError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                letters.append((thread / "stat").read_text().rpartition(")")[2].split()[0])
    return "D" if "D" in letters else (letters or ["X"])[0]
