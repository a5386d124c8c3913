"""One daemon for each state directory's id, whatever became of files: a copy of the directory has the same id.

Invariants
- The id is held as the name of an abstract socket, by every process of a daemon: nobody can unlink it, and the kernel
  lets it go with the last of them. The page's lock (hosttime.py) says the same, and is gone with its file's name.
- Any user may take the name first. One who is neither root nor the directory's owner is no daemon of it, and keeps none
  from starting.
- Daemons in two network namespaces do not see each other's names: docs/internals/hosttime.md says so.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time

from libpharaoh.errors import AlreadyRunningError

PATIENCE_S = 2.0
"""For a process of a killed daemon that is just ending."""
CREDENTIALS = struct.Struct("3i")
BACKLOG = 128


class HeldByOtherUser(Exception):
    """The name is held by a user who cannot be a daemon of this directory, or by one who hides."""


def hold(id: bytes, owner: int) -> socket.socket:
    """The name, until it is closed here and in every child that keeps it. owner: the user whose daemon it may be.

    Raises AlreadyRunningError, HeldByOtherUser, and OSError.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        holder = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            holder.bind(name_of(id))
            holder.listen(BACKLOG)  # from now on the kernel tells who holds it
            return holder
        except OSError as error:
            holder.close()
            if error.errno != errno.EADDRINUSE:
                raise
        if time.monotonic() >= deadline:
            break
        time.sleep(0.005)
    if user_of(id) in (0, owner):
        raise AlreadyRunningError(
            "another daemon serves from a copy of this state directory, or a worker has outlived its supervisor"
        )
    raise HeldByOtherUser


def drain(holder: socket.socket) -> None:
    """Now and then: whoever asked for its user is in its queue."""
    with contextlib.suppress(OSError):
        for _ in range(BACKLOG):
            holder.accept()[0].close()


def name_of(id: bytes) -> bytes:
    return b"\0pharaohd-" + id.hex().encode()


def user_of(id: bytes) -> int | None:
    """Whose the name is; None when nobody tells: it does not listen, or its queue is full."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(name_of(id))
        except OSError:
            return None
        _, user, _ = CREDENTIALS.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
        return int(user)
