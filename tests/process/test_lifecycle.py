"""Start, stop, restart, reload, replace: what the daemon's processes hold and keep on the way."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

import libpharaoh
from libpharaoh import Layout
from libpharaoh._socket import Connection
from libpharaoh.errors import AlreadyRunningError
from pharaohd import manifest, obelisk, sole
from pharaohd.stats import Reader, WorkerState
from tests.support.daemon import Daemon, wait_until
from tests.support.ledger import tick_of


def newest(daemon: Daemon) -> obelisk.Record:
    """The record that the next start of coordinator 0 will go by."""
    record = obelisk.inspect(daemon.obelisk(0)).newest
    assert record is not None
    return record


def test_clean_restart_loses_nothing(directory: Path) -> None:
    """The clean record's ceiling is the exact position; the next start issues from there on."""
    with Daemon(directory, coordinators=1) as daemon:
        with libpharaoh.connect(daemon.socket, rings=False) as client:
            client.next_ids(100)
            last = client.next_id()
        assert daemon.stop() == 0
        record = newest(daemon)
        assert record.clean
        assert record.ceiling == tick_of(last, Layout()) + 1
        daemon.start()
        with libpharaoh.connect(daemon.socket, rings=False) as client:
            assert client.next_id() > last
        daemon.kill()
        assert not newest(daemon).clean


def test_ids_of_a_ring_outlive_a_clean_stop(directory: Path) -> None:
    """What a ring holds when its worker stops is below the position that is written."""
    with Daemon(directory, coordinators=1) as daemon, libpharaoh.connect(daemon.socket, max_age_ms=10_000) as client:
        client.next_ids(5000)
        assert daemon.stop() == 0
        position = newest(daemon).ceiling
        pop = client._session.pop
        left = [id for id in (pop() for _ in range(100_000)) if id]
        assert left
        assert tick_of(left[-1], Layout()) < position


def test_worker_is_replaced(directory: Path) -> None:
    with Daemon(directory, coordinators=2) as daemon, libpharaoh.connect(daemon.socket) as client:
        last = client.get_timestamp()
        pids = daemon.worker_pids()
        os.kill(pids[0], signal.SIGKILL)
        wait_until(lambda: daemon.worker(0).pid not in (0, pids[0]), "another process")
        daemon.wait_live()
        assert daemon.worker(0).restart_count == 1
        assert daemon.worker(1).pid == pids[1]
        assert client.get_timestamp() > last


def test_reload_takes_max_age(directory: Path) -> None:
    """SIGHUP: ring.max_age_ms holds for the next ring; settings that are not valid change nothing."""

    def serial() -> tuple[int, int]:
        with Reader(str(daemon.runtime_dir)) as page:
            return page.daemon().settings_serial, page.daemon().reload_failures

    def attached_age() -> int:
        deadline = time.monotonic() + 30
        connection = Connection.connect(daemon.socket, deadline)
        result, descriptors = connection.request_descriptors("attach", ["x", None], 3, deadline)
        descriptors.close()
        connection.close()
        return int(result["max_age_ms"])

    with Daemon(directory, coordinators=1) as daemon:
        assert daemon.process is not None
        assert attached_age() == 10
        daemon.configure({"ring": {"max_age_ms": 25}})
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: serial() == (1, 0), "reloaded")
        wait_until(lambda: attached_age() == 25, "the worker has taken it")
        daemon.configure({"ring": {"max_age_ms": -1}})
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: serial() == (1, 1), "refused")
        assert attached_age() == 25
        assert "reload refused" in daemon.log()
        assert "ring.max_age_ms" in daemon.log()


def context_switches(pid: int) -> int:
    """Voluntary ones of all threads: each is a sleep that ended."""
    total = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        text = Path(f"/proc/{pid}/task/{thread}/status").read_text()
        total += int(next(line.split()[1] for line in text.splitlines() if line.startswith("voluntary_ctxt_switches")))
    return total


def test_idle_daemon_sleeps(directory: Path) -> None:
    """Nobody asks for anything: a worker wakes once a second for its heartbeat, the supervisor no more often."""
    with Daemon(directory, coordinators=2) as daemon:
        assert daemon.process is not None
        with libpharaoh.connect(daemon.socket) as client:
            client.next_ids(1000)
            client.get_timestamp()
        time.sleep(3.5)  # what was asked for has been seen to, a ceiling in reserve too, and the page tells
        pids = [daemon.process.pid, *daemon.worker_pids().values()]
        began = time.monotonic()
        switches = [context_switches(pid) for pid in pids]
        wakeups = [worker.wakeups for worker in daemon.workers()]
        syncs = [worker.syncs for worker in daemon.workers()]
        time.sleep(8)
        after = [context_switches(pid) for pid in pids]
        woken = [worker.wakeups - before for worker, before in zip(daemon.workers(), wakeups, strict=True)]
        bound = time.monotonic() - began + 2
        assert all(count <= bound for count in woken), woken
        assert all(count >= 1 for count in woken), "no heartbeat at all"
        assert all(count - before <= bound for count, before in zip(after, switches, strict=True))
        assert [worker.syncs for worker in daemon.workers()] == syncs


def targets(pid: int) -> set[str]:
    found = set()
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.add(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
        except FileNotFoundError:
            continue
    return found


def listening() -> dict[str, str]:
    """Socket's path, or @ and its name → what /proc/PID/fd shows for it."""
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return {row[7]: f"socket:[{row[6]}]" for row in rows if len(row) > 7}


def test_workers_hold_only_their_own(directory: Path) -> None:
    """F24: no worker holds a sibling's listening socket, Obelisk or stream, nor the supervisor's locks."""
    with Daemon(directory, coordinators=3) as daemon:
        os.kill(daemon.worker_pids()[1], signal.SIGKILL)  # one that was forked when its siblings were there already
        wait_until(lambda: daemon.worker(1).restart_count == 1, "replaced")
        daemon.wait_live()
        wait_until(lambda: all(worker.wakeups for worker in daemon.workers()), "all serve")
        assert daemon.process is not None
        pids = daemon.worker_pids()
        sockets = listening()
        name = sole.name_of(manifest.directory_id(str(daemon.state_dir))).decode().replace("\0", "@")
        own = {number: {sockets[daemon.own_socket(number)], sockets[daemon.private_socket(number)]} for number in pids}
        held = {number: targets(pid) for number, pid in pids.items()}
        supervisor = targets(daemon.process.pid)
        for number in pids:
            assert own[number] <= held[number]
            assert sockets[daemon.socket] in held[number]
            assert str(daemon.obelisk(number)) in held[number]
            for other in set(pids) - {number}:
                assert not own[other] & held[number]
                assert str(daemon.obelisk(other)) not in held[number]
                shared = {target for target in held[number] & held[other] if target.startswith(("socket:", "pipe:"))}
                assert shared == {sockets[daemon.socket], sockets[name]}, "a stream of a sibling"
            assert str(daemon.runtime_dir) not in held[number], "the supervisor's lock"
            assert str(daemon.state_dir) not in held[number], "the supervisor's lock"
            assert str(daemon.obelisk(number)) not in supervisor


def test_obelisk_is_locked(directory: Path) -> None:
    """F24, F25: nobody else takes a coordinator's Obelisk while its worker lives, and it is free afterwards."""
    with Daemon(directory, coordinators=1) as daemon:
        with pytest.raises(AlreadyRunningError), obelisk.exclusively(daemon.obelisk(0)):
            pass
        assert daemon.stop() == 0
        with obelisk.exclusively(daemon.obelisk(0)):
            pass


def test_orphaned_worker(directory: Path) -> None:
    """F25: a worker that outlives its killed supervisor keeps the next daemon out, and stops once it can."""
    settings = {"worker": {"stop_ms_max": 300}}
    with Daemon(directory, coordinators=1, settings=settings) as daemon:
        with libpharaoh.connect(daemon.socket) as client:
            last = client.get_timestamp()
        orphan = daemon.worker(0).pid
        assert daemon.process is not None
        os.kill(orphan, signal.SIGSTOP)
        try:
            daemon.process.kill()
            daemon.process.wait()
            daemon.spawn()
            assert daemon.wait() == AlreadyRunningError.exit_status
            assert "a process of a killed daemon" in daemon.log()
        finally:
            os.kill(orphan, signal.SIGCONT)
        wait_until(lambda: not os.path.exists(f"/proc/{orphan}/exe"), "the orphan has stopped by itself")
        daemon.start()
        with libpharaoh.connect(daemon.socket) as client:
            assert client.get_timestamp() > last


def test_ctl_status(directory: Path) -> None:
    """The exit status of `pharaohctl status`: 0 all is well, 3 no daemon, 4 degraded."""
    daemon = Daemon(directory, coordinators=2)
    absent = daemon.ctl("status")
    assert absent.returncode == 3
    assert "remedy" in absent.stderr
    with daemon:
        assert daemon.ctl("status").returncode == 0
        os.truncate(daemon.obelisk(1), 512)
        os.kill(daemon.worker(1).pid, signal.SIGKILL)
        wait_until(lambda: daemon.worker(1).state == WorkerState.FAILED, "coordinator 1 has failed")
        assert daemon.ctl("status").returncode == 4
        with libpharaoh.connect(daemon.socket) as client:  # its sibling serves on
            assert client.next_id() > 0
        assert daemon.stop() == 0
        assert daemon.ctl("status").returncode == 3
