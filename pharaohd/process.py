"""What the supervisor needs of the kernel: titles, forks, descriptors, signals. The only import of setproctitle.

Invariants
- A child is known by its pidfd from spec until it is reaped through it; its process id is for people to read.
- From before the fork until the child has dropped the supervisor's handlers all signals are blocked: the wake-up pipe
  is shared by fork, and a signal handled in the child would be taken for one sent to the supervisor.
- A child keeps the descriptors it was given and no other, so a dead supervisor's end of a stream is closed for good.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from setproctitle import setproctitle

from libpharaoh.errors import InternalError

STDERR = 2
DESCRIPTOR_MAX = (1 << 31) - 1
SYSTEMD_VARIABLES = ("NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID", "WATCHDOG_USEC")

# A terminal sends these to the whole foreground group; the supervisor alone decides what they mean for its workers.
IGNORED_BY_CHILDREN = (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE)


def set_title(role: str) -> None:
    """role: "supervisor", "router" or "worker 0042"."""
    setproctitle(f"pharaohd: {role}")


@dataclass(frozen=True, slots=True)
class Child:
    """A forked process that was not reaped yet."""

    pid: int
    pidfd: int

    def send(self, number: signal.Signals) -> None:
        """Does nothing when the child has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def reap(self) -> int:
        """Waits for the end and closes the pidfd. The exit status, or 128 + the number of the killing signal."""
        result = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        os.close(self.pidfd)
        assert result is not None
        return result.si_status if result.si_code == os.CLD_EXITED else 128 + result.si_status


SpawnSpec = tuple[Callable[[], int], Iterable[int]]
"""What a child does, whose end status it returns; the descriptors that it keeps besides 0, 1 and 2."""


def fork(specs: Sequence[SpawnSpec]) -> list[Child | OSError]:
    """Starts children one right after the other: each, or why it could not be.

    In one go, for what the parent writes to between two forks is copied: the older child is left alone with the old
    pages, a megabyte of them where forks and other work take turns.
    """
    pids: list[int | OSError] = [0] * len(specs)
    handled = [number for number in signal.valid_signals() if callable(signal.getsignal(number))]
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        for index, (run, keep) in enumerate(specs):
            try:
                pid = os.fork()
            except OSError as error:
                pids[index] = error
                continue
            if pid == 0:
                _be_child(run, keep, handled)
            pids[index] = pid
        return [pid if isinstance(pid, OSError) else _watched(pid) for pid in pids]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _watched(pid: int) -> Child | OSError:
    try:
        return Child(pid, os.pidfd_open(pid))
    except OSError as error:  # EMFILE: a child that cannot be watched must not live
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return error


def _be_child(run: Callable[[], int], keep: Iterable[int], handled: Iterable[int]) -> NoReturn:
    status = InternalError.exit_status or 1
    try:
        _drop_handlers(handled)
        close_descriptors(keep)
        status = run()
    except BaseException:  # noqa: BLE001 - nothing may return into the supervisor's frames
        with contextlib.suppress(OSError):
            os.write(STDERR, traceback.format_exc().encode())
    finally:
        os._exit(status)


def _drop_handlers(handled: Iterable[int]) -> None:
    """Those of the parent. To go through all signals would make a quarter of a megabyte this child's alone."""
    signal.set_wakeup_fd(-1)
    for number in handled:
        signal.signal(number, signal.SIG_DFL)
    for number in IGNORED_BY_CHILDREN:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def close_descriptors(keep: Iterable[int]) -> None:
    """Closes every descriptor but 0, 1, 2 and `keep`. Python objects that own the others must not be used again."""
    edges = [STDERR, *sorted(set(keep) - {0, 1, STDERR}), DESCRIPTOR_MAX]
    for low, high in itertools.pairwise(edges):
        os.closerange(low + 1, high)


def raise_descriptor_limit() -> None:
    """The soft limit of 1024 is meant for select(); nothing here uses it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Wakeup:
    """Signals as bytes on a pipe: the handlers only enqueue, the loop acts."""

    def __init__(self, numbers: Iterable[signal.Signals]) -> None:
        self.descriptor, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._previous = {number: signal.signal(number, lambda *_: None) for number in numbers}
        self._previous_fd = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)

    def received(self) -> list[signal.Signals]:
        try:
            numbers = os.read(self.descriptor, 4096)
        except BlockingIOError:
            return []
        return [signal.Signals(number) for number in numbers]

    def close(self) -> None:
        signal.set_wakeup_fd(self._previous_fd)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        os.close(self.descriptor)
        os.close(self._write_end)


class Notifier:
    """systemd's notification protocol (sd_notify), for Type=notify. Without NOTIFY_SOCKET it says nothing."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        """Takes systemd's variables out of `environ`, so that no child speaks to systemd in the daemon's name."""
        taken = {name: environ.pop(name, "") for name in SYSTEMD_VARIABLES}
        address = taken["NOTIFY_SOCKET"]
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def send(self, *lines: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
            datagrams.setblocking(False)
            datagrams.sendto("\n".join(lines).encode(), self._address)

    def ready(self) -> None:
        self.send("READY=1")

    def reloading(self) -> None:
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self.send("STOPPING=1")


def file_system_type(path: str) -> str:
    """The type of the file system that holds `path`, as /proc/self/mountinfo has it: "ext4", "nfs4", "fuse.sshfs".

    By name and not by statfs's number: the number is the same for every FUSE file system. "" where there is no /proc.
    Raises OSError when `path` cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with open(f"/proc/self/fdinfo/{descriptor}", encoding="utf-8") as file:
            mount_id = next((line.split()[1] for line in file if line.startswith("mnt_id:")), "")
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                if line.split(" ", 1)[0] == mount_id:
                    return line.rpartition(" - ")[2].split()[0]
    except FileNotFoundError:
        return ""
    finally:
        os.close(descriptor)
    return ""
