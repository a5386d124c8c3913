"""Forks, descriptors, signals, systemd's notifications, file systems."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from libpharaoh.errors import InternalError, NetworkFileSystemError
from pharaohd import process, resources


def child_of(run: Callable[[], int], keep: tuple[int, ...] = ()) -> process.Child:
    [child] = process.fork([(run, keep)])
    assert isinstance(child, process.Child)
    return child


def result_of(run: Callable[[], int], keep: tuple[int, ...] = ()) -> int:
    return child_of(run, keep).reap()


def test_exit_status_and_signal() -> None:
    assert result_of(lambda: 0) == 0
    assert result_of(lambda: 81) == 81

    def die() -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert result_of(die) == 128 + signal.SIGKILL


def test_an_exception_does_not_return_into_the_parent(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise RuntimeError("from the child")

    assert result_of(fail) == InternalError.exit_status
    assert "from the child" in capfd.readouterr().err

    def leave() -> int:
        raise SystemExit(0)

    assert result_of(leave) == InternalError.exit_status


def test_child_keeps_what_it_is_given_and_nothing_else() -> None:
    read_end, write_end = os.pipe()
    other = os.open("/dev/null", os.O_RDONLY)

    def tell() -> int:
        held = [fd for fd in range(other + 100) if Path(f"/proc/self/fd/{fd}").exists()]
        os.write(write_end, repr(held).encode())
        return 0

    assert result_of(tell, (write_end,)) == 0
    assert os.read(read_end, 4096) == repr(sorted({0, 1, 2, write_end})).encode()
    for descriptor in (read_end, write_end, other):
        os.close(descriptor)


def test_a_childs_signals_are_its_own() -> None:
    """F24: the wake-up pipe is shared by fork; a signal to a child must not look like one to its parent."""
    wakeup = process.Wakeup([signal.SIGTERM, signal.SIGHUP])
    try:
        read_end, write_end = os.pipe()

        def wait() -> int:
            masked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
            handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
            sane = handlers == [signal.SIG_DFL, signal.SIG_IGN, signal.SIG_IGN] and not masked
            os.write(write_end, b"y" if sane else b"n")
            time.sleep(60)
            return 0

        child = child_of(wait, (write_end,))
        child.send(signal.SIGHUP)
        assert os.read(read_end, 1) == b"y"
        child.send(signal.SIGTERM)
        assert child.reap() == 128 + signal.SIGTERM
        assert wakeup.received() == []
        os.kill(os.getpid(), signal.SIGHUP)
        assert wakeup.received() == [signal.SIGHUP]
        os.close(read_end)
        os.close(write_end)
    finally:
        wakeup.close()


def test_fork_leaves_the_parents_mask_alone() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    result_of(lambda: 0)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_title() -> None:
    read_end, write_end = os.pipe()

    def tell() -> int:
        process.set_title("worker 0042")
        os.write(write_end, Path("/proc/self/cmdline").read_bytes().rstrip(b"\0"))
        return 0

    assert result_of(tell, (write_end,)) == 0
    assert os.read(read_end, 4096) == b"pharaohd: worker 0042"
    os.close(read_end)
    os.close(write_end)


@pytest.mark.parametrize("abstract", [False, True])
def test_notifier(tmp_path: Path, abstract: bool) -> None:
    name = f"pharaohd-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name if abstract else name)
        systemd.settimeout(10)
        environ = {
            "NOTIFY_SOCKET": ("@" if abstract else "") + name,
            "WATCHDOG_USEC": "1",
            "LISTEN_FDS": "1",
            "HOME": "/",
        }
        notifier = process.Notifier(environ)
        assert environ == {"HOME": "/"}
        notifier.ready()
        assert systemd.recv(100) == b"READY=1"
        notifier.stopping()
        assert systemd.recv(100) == b"STOPPING=1"
    notifier.ready()  # nobody listens any more: no error


def test_notifier_without_systemd() -> None:
    process.Notifier({}).ready()


def test_file_system_type(tmp_path: Path) -> None:
    assert process.file_system_type("/proc") == "proc"
    assert process.file_system_type("/dev/shm") == "tmpfs"
    with pytest.raises(FileNotFoundError):
        process.file_system_type(str(tmp_path / "none"))


@pytest.mark.parametrize("name", ["nfs4", "cifs", "9p", "ceph", "fuse.glusterfs", "fuse.sshfs"])
def test_network_file_systems_are_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """F25: their locks and syncs cannot be relied on."""
    monkeypatch.setattr(process, "file_system_type", lambda _path: name)
    with pytest.raises(NetworkFileSystemError, match=name):
        resources.check_state_dir(str(tmp_path))


def test_local_file_systems_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", ""):
        monkeypatch.setattr(process, "file_system_type", lambda _path, name=name: name)
        resources.check_state_dir(str(tmp_path))
