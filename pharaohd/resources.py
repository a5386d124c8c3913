"""The directories, locks and listening sockets that one daemon holds on its host.

Invariants
- One supervisor per runtime directory and per state directory: it holds flock() on their own descriptors, which no
  cleaner can unlink.
- `coordinators/` is locked too, on a descriptor that every child keeps: flock() lives on in children, so the lock is
  free only when the last child of a killed supervisor has gone. Until then its sockets and files are in use.
- A socket is made under a mask that shuts everyone out, and opened to its group only when it belongs to it. Those
  in `private/` stay shut, and so does their directory: over them the daemon's own processes ask each other.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from libpharaoh.errors import (
    AlreadyRunningError,
    GroupUnknownError,
    NetworkFileSystemError,
    RuntimeDirError,
    SocketPathError,
    SocketTakenError,
    StartError,
    StateDirEmptyError,
    StateDirError,
)
from pharaohd import process
from pharaohd.settings import Settings

SOCKET_PATH_BYTES_MAX = 107
BACKLOG = 4096
READER_PATIENCE_S = 0.1
"""How long a reader of the statistics page can hold the runtime directory's lock, generously."""

NETWORK_FILE_SYSTEMS = {"9p", "afs", "beegfs", "ceph", "cifs", "coda", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs"}
NETWORK_FILE_SYSTEMS |= {"nfs4", "orangefs", "pvfs2", "smb3", "smbfs"}
NETWORK_FILE_SYSTEMS |= {
    f"fuse.{name}"
    for name in ("ceph", "ceph-fuse", "davfs", "gcsfuse", "glusterfs", "juicefs", "mfs", "rclone", "s3fs", "sshfs")
}


class HostResources:
    """Taken on entry, given back on exit: a context manager. Entering raises StartError subclasses."""

    def __init__(self, settings: Settings, *, may_be_new: bool) -> None:
        """may_be_new: a state directory that is missing is made rather than refused."""
        self._settings = settings
        self._may_be_new = may_be_new
        self._gid = -1
        self._locks: list[int] = []
        self._paths: dict[int, str] = {}
        self._own_fds: dict[int, int] = {}
        self._private_fds: dict[int, int] = {}
        self.listen_fd = -1
        self.router_fd = -1
        self.children_lock_fd = -1

    @property
    def gid(self) -> int:
        """The sockets' group, or -1 for the daemon's own."""
        return self._gid

    def own_fd(self, coordinator: int) -> int:
        return self._own_fds[coordinator]

    def private_fd(self, coordinator: int) -> int:
        return self._private_fds[coordinator]

    def state_on_memory(self) -> bool:
        """Whether the state is lost when the machine restarts."""
        return process.file_system_type(self._settings.host.state_dir) in ("tmpfs", "ramfs")

    def __enter__(self) -> Self:
        try:
            self._enter()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._release()

    def _enter(self) -> None:
        host, rpc = self._settings.host, self._settings.rpc
        check_lengths([host.socket_path, host.router_socket_path, *map(host.coordinator_socket_path, host.owns)])
        self._gid = group_id(rpc.group)
        with converted(RuntimeDirError, host.runtime_dir):
            self._make_directory(host.runtime_dir, keep_existing=True)
            self._lock(host.runtime_dir, READER_PATIENCE_S, "another supervisor")
            self._make_directory(host.coordinators_dir, keep_existing=False)
            self._make_private_directory(host.private_dir)
            self.children_lock_fd = self._lock(
                host.coordinators_dir, self._settings.worker.stop_ms_max / 1000, "a process of a killed daemon"
            )
        with converted(StateDirError, host.state_dir):
            if self._may_be_new:
                os.makedirs(host.state_dir, mode=0o700, exist_ok=True)
            elif not os.path.isdir(host.state_dir):
                raise StateDirEmptyError(host.state_dir)
            check_state_dir(host.state_dir)
            self._lock(host.state_dir, READER_PATIENCE_S, "another supervisor")
        with converted(RuntimeDirError, host.runtime_dir):
            self.router_fd = self._listen(host.router_socket_path)
            self.listen_fd = self._listen(host.socket_path)
            self._open(host.socket_path)
            for coordinator in host.owns:
                self._own_fds[coordinator] = self._listen(host.coordinator_socket_path(coordinator))
                self._open(host.coordinator_socket_path(coordinator))
                self._private_fds[coordinator] = self._listen(host.private_socket_path(coordinator))

    def _make_directory(self, path: str, *, keep_existing: bool) -> None:
        """Open to whoever may use the sockets. keep_existing: what an administrator made stays as it is."""
        existed = os.path.isdir(path)
        os.makedirs(path, mode=0o700, exist_ok=True)
        if not (existed and keep_existing):
            self._give(path, directory_mode(self._settings.rpc.mode))
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise RuntimeDirError(f"{path}: not readable and writable for this user")

    def _make_private_directory(self, path: str) -> None:
        """Of this user alone: nobody else's request may come that way."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, mode=0o700)
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise RuntimeDirError(f"{path} is not a directory of this user's")
        os.chmod(path, 0o700)

    def _give(self, path: str, mode: int) -> None:
        try:
            if self._gid != -1:
                os.chown(path, -1, self._gid)
        except PermissionError as error:
            raise GroupUnknownError(f"{path} cannot be given to group {self._settings.rpc.group}") from error
        os.chmod(path, mode)

    def _lock(self, directory: str, patience_s: float, holder: str) -> int:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        self._locks.append(descriptor)
        deadline = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise AlreadyRunningError(f"{holder} holds {directory}") from None
                time.sleep(0.005)
            else:
                return descriptor

    def _listen(self, path: str) -> int:
        clear(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listener:
            mask = os.umask(0o177)
            try:
                listener.bind(path)
            finally:
                os.umask(mask)
            listener.listen(BACKLOG)
            descriptor = listener.detach()
        self._paths[descriptor] = path
        return descriptor

    def _open(self, path: str) -> None:
        self._give(path, self._settings.rpc.mode)

    def release(self, listener: int) -> None:
        """Nobody will accept there any more: clients shall be told so at once."""
        with contextlib.suppress(OSError):
            os.unlink(self._paths.pop(listener))
        os.close(listener)

    def _release(self) -> None:
        for listener in list(self._paths):
            self.release(listener)
        for lock in reversed(self._locks):
            os.close(lock)
        self._locks.clear()


@contextlib.contextmanager
def converted(error_class: Callable[[str], StartError], directory: str) -> Iterator[None]:
    """What the kernel refuses becomes an error of the directory."""
    try:
        yield
    except OSError as error:
        raise error_class(f"{error.filename or directory}: {error.strerror}") from error


@contextlib.contextmanager
def locked(directory: str) -> Iterator[None]:
    """Nobody else changes the directory meanwhile. Raises AlreadyRunningError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise AlreadyRunningError(f"another process holds {directory}") from None
    finally:
        os.close(descriptor)


def check_lengths(paths: list[str]) -> None:
    longest = max(paths, key=lambda path: len(os.fsencode(path)))
    length = len(os.fsencode(longest))
    if length > SOCKET_PATH_BYTES_MAX:
        raise SocketPathError(f"{longest} has {length} bytes")


def group_id(name: str) -> int:
    if not name:
        return -1
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise GroupUnknownError(f"there is no group {name}") from None


def directory_mode(socket_mode: int) -> int:
    """Whoever may use the sockets may look into their directory."""
    return 0o700 | (0o050 if socket_mode & 0o060 else 0) | (0o005 if socket_mode & 0o006 else 0)


def check_state_dir(path: str) -> None:
    file_system = process.file_system_type(path)
    if file_system in NETWORK_FILE_SYSTEMS:
        raise NetworkFileSystemError(f"{path} lies on {file_system}")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise StateDirError(f"{path}: not readable and writable for this user")


def clear(path: str) -> None:
    """Removes a socket on which nobody listens any more."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise SocketTakenError(f"{path} is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as error:  # a full backlog, another type of socket, no permission: in use
            raise SocketTakenError(f"{path}: {error.strerror}") from error
    raise SocketTakenError(f"another program listens on {path}")
