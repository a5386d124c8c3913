"""Power cuts (injection A) on a real ext4 under a real daemon: F1, F2, F3.

After each cut: C, every id that any client received lies below the ceiling found on the medium, and everything that
is issued afterwards lies at or above it; U over all cuts together. The page in memory goes with the power; where only
the disk's power went, it stays, and what is issued afterwards goes on after the last id.
"""

from __future__ import annotations

import contextlib
import random
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import libpharaoh
from libpharaoh.errors import StateDirEmptyError
from libpharaoh.scarab import Layout
from pharaohd import obelisk
from tests.support import ledger
from tests.support.daemon import ROOT, SERVING, Daemon, Settings, wait_until
from tests.support.load_client import LoadClient
from tests.support.loopfs import MISSING, LoopFs, Shim, loop_fs

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(600),
    pytest.mark.skipif(MISSING is not None, reason=f"needs {MISSING}"),
]

COORDINATORS = 2
LAYOUT = Layout()


@pytest.fixture
def file_system(directory: Path) -> Iterator[LoopFs]:
    with loop_fs(directory) as mounted:
        yield mounted


def new_daemon(directory: Path, file_system: LoopFs, prefix: tuple[str, ...] = ()) -> Daemon:
    """Its state on the faulty disk; its sockets, log and settings beside it."""
    state_dir = file_system.mount_point / "state"
    # A small window, for many renewals per second: a cut shall meet as many of them as possible.
    offsets = directory / "offsets"
    settings: Settings = {"obelisk": {"window_ms": 50}, "clock": {"offset_file": str(offsets)}}
    set_back(directory, 0)
    return Daemon(directory, coordinators=COORDINATORS, state_dir=state_dir, settings=settings, prefix=prefix)


def set_back(directory: Path, seconds: int) -> None:
    """The wall clock of a daemon in `directory`: what is unique then is so by the ceilings alone (F18)."""
    with open(directory / "offsets", "r+b" if (directory / "offsets").exists() else "wb") as file:
        file.write(struct.pack("<q", -seconds * 1_000_000_000))


def start_drawers(daemon: Daemon, directory: Path) -> list[LoadClient]:
    own = [daemon.own_socket(number) for number in range(COORDINATORS)]
    wanted = [(own[0], "ring"), (own[1], "ring"), *((daemon.socket, kind) for kind in ("socket", "strict", "keyed"))]
    return [
        LoadClient(socket, directory / f"ledger-{number}-{kind}", kind) for number, (socket, kind) in enumerate(wanted)
    ]


def ceilings_on_medium(daemon: Daemon) -> dict[int, int]:
    """Read after the remount and before the daemon runs again: what its successor will know."""
    found = {}
    for coordinator in range(COORDINATORS):
        report = obelisk.inspect(daemon.obelisk(coordinator))
        assert report.newest is not None, report.problems
        found[coordinator] = report.newest.ceiling
    return found


def check_below(runs: list[list[ledger.Run]], ceilings: dict[int, int]) -> None:
    highest = ledger.highest_ticks(runs, LAYOUT)
    for coordinator, tick in highest.items():
        assert tick < ceilings[coordinator], f"coordinator {coordinator} issued {tick}, at or above its ceiling"


def check_above(daemon: Daemon, runs: list[list[ledger.Run]], since_ns: int, bounds: dict[int, int]) -> None:
    """What was asked for after the cut, by anybody, lies at or above these ticks."""
    for coordinator, bound in bounds.items():
        with libpharaoh.connect(daemon.runtime_dir / "coordinators" / f"{coordinator:04d}.sock", rings=False) as client:
            [first] = client.next_ids(1)
        assert first >> LAYOUT.sequence_bits & 1023 == coordinator
        assert ledger.tick_of(first, LAYOUT) >= bound
    later = [run for client_runs in runs for run in client_runs if run.called_ns > since_ns]
    assert later
    for run in later:
        for coordinator, first, _ in ledger.pieces(run, LAYOUT):
            assert first >= bounds[coordinator]


def cut_and_check(
    daemon: Daemon,
    file_system: LoopFs,
    clients: list[LoadClient],
    seen: list[int],
    pause_s: float,
    memory_too: bool,
) -> None:
    """One cut. seen: how many rows of each ledger are known to be below a ceiling; brought up to date."""
    page = daemon.host_page()
    file_system.cut()
    time.sleep(pause_s)  # what clients still get now counts as well
    daemon.kill()
    killed_ns = time.monotonic_ns()
    if memory_too:
        page.unlink()
    file_system.remount()
    bounds = ceilings = ceilings_on_medium(daemon)
    # A ledger's last row may have grown since it was looked at.
    new_runs = [client.runs(max(0, rows - 1)) for client, rows in zip(clients, seen, strict=True)]
    check_below(new_runs, ceilings)
    if not memory_too:
        bounds = {coordinator: tick + 1 for coordinator, tick in ledger.highest_ticks(new_runs, LAYOUT).items()}
    seen[:] = [client.rows() for client in clients]
    daemon.start()
    for client, rows in zip(clients, seen, strict=True):
        wait_until(lambda one=client, had=rows: one.rows() > had, "each client served")  # type: ignore[misc]
    # The first of those may have been asked for before the cut.
    for client, rows in zip(clients, seen, strict=True):
        if client.timed:
            wait_until(lambda one=client, had=rows: one.runs(had)[-1].called_ns > killed_ns, "each client asked anew")  # type: ignore[misc]
    check_above(
        daemon,
        [client.runs(rows) for client, rows in zip(clients, seen, strict=True)],
        killed_ns,
        bounds,
    )


def test_no_id_survives_a_cut_above_its_ceiling(
    directory: Path, file_system: LoopFs, rng: random.Random, effort: float
) -> None:
    """F1, F2: many cuts in a row, at random moments, every kind of client at full tilt, and a clock that goes back."""
    daemon = new_daemon(directory, file_system)
    clients: list[LoadClient] = []
    try:
        daemon.start()
        clients = start_drawers(daemon, directory)
        for client in clients:
            client.wait_drawing()
        rounds = max(2, round(15 * effort))
        seen = [0] * len(clients)
        for number in range(rounds):
            time.sleep(rng.uniform(0, 0.3))
            set_back(directory, 10 * number)
            pause_s = rng.choice((0, 0, rng.uniform(0, 0.1)))
            cut_and_check(daemon, file_system, clients, seen, pause_s, memory_too=rng.random() < 0.7)
    finally:
        daemon.kill()
        for client in clients:
            client.kill()
    runs = [client.runs() for client in clients]
    ledger.check_unique(runs, at_least=10_000 * rounds)
    for client_runs in runs:
        ledger.check_rising(client_runs)
    assert ledger.check_real_time_order([runs[3]]) > 100


def test_a_clean_restart_goes_on_at_the_exact_position(directory: Path, file_system: LoopFs) -> None:
    """Nothing is lost and nothing repeated, although clients draw until the end and the clock goes back meanwhile."""
    daemon = new_daemon(directory, file_system)
    clients: list[LoadClient] = []
    try:
        daemon.start()
        clients = start_drawers(daemon, directory)
        for client in clients:
            client.wait_drawing()
        for number in range(1, 4):
            time.sleep(0.2)
            assert daemon.stop() == 0
            set_back(directory, 10 * number)
            reports = [obelisk.inspect(daemon.obelisk(coordinator)) for coordinator in range(COORDINATORS)]
            assert all(report.newest is not None and report.newest.clean for report in reports)
            check_below([client.runs() for client in clients], ceilings_on_medium(daemon))
            rows = [client.rows() for client in clients]
            daemon.start()
            for client, had in zip(clients, rows, strict=True):
                wait_until(lambda one=client, had=had: one.rows() > had, "each client served")  # type: ignore[misc]
    finally:
        daemon.kill()
        for client in clients:
            client.kill()
    ledger.check_unique([client.runs() for client in clients], at_least=100_000)


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Shim:
    return Shim(tmp_path_factory.mktemp("shim"))


def run_until_cut(daemon: Daemon, shim: Shim) -> tuple[list[int], Path | None]:
    """`--init` and a first start that meet their cut; the ids that a client got, and the page in memory, if any."""

    def met() -> bool:
        return shim.has_cut() or not daemon.alive()

    made = daemon.init()
    if shim.has_cut():
        return [], None
    assert made.returncode == 0, made.stderr
    page = daemon.host_page()
    daemon.spawn()
    received: list[int] = []
    while not met():
        with contextlib.suppress(libpharaoh.PharaohError), libpharaoh.connect(daemon.socket, timeout=0.05) as client:
            while not met():
                received += client.next_ids(10)
    daemon.kill()
    return received, page


def ticks_of(ids: list[int]) -> dict[int, int]:
    return ledger.highest_ticks([[ledger.Run(id, 1, 0, 0) for id in ids]], LAYOUT)


def test_a_cut_at_each_step_of_the_first_start(directory: Path, file_system: LoopFs, shim: Shim) -> None:
    """F3, F1: before each write, sync and rename from the empty directory to the first renewals, the power goes.

    Whatever stands then, the next start serves, above all that was issued; after `--init`, where that had not come to
    its manifest.
    """
    daemon = new_daemon(directory, file_system, shim.prefix(file_system, 0))
    assert daemon.init().returncode == 0
    with daemon:
        steps = shim.steps()
    daemon.host_page().unlink()
    assert steps > 20, "the steps of a first start are not seen"
    served = 0
    for cut_at in range(1, steps + 8):
        file_system.unmount()
        file_system.make()
        file_system.mount()
        daemon.prefix = shim.prefix(file_system, cut_at)
        try:
            received, page = run_until_cut(daemon, shim)
            if page is not None:
                page.unlink(missing_ok=True)
            file_system.remount()
            if received:
                for coordinator, tick in ticks_of(received).items():
                    assert tick < ceilings_on_medium(daemon)[coordinator], f"issued unreserved at step {cut_at}"
                served += 1
            daemon.prefix = ()
            assert daemon.init().returncode == 0
            daemon.start()
            page = daemon.host_page()
            with libpharaoh.connect(daemon.socket) as client:
                again = list(client.next_ids(10_000))
        finally:
            daemon.kill()
        page.unlink()
        assert not set(received) & set(again), f"repeated after a cut at step {cut_at}"
        assert len(again) == 10_000
    assert served > 3, "no cut came after the first ids"


def test_a_cut_at_a_random_moment_of_the_first_start(
    directory: Path, file_system: LoopFs, rng: random.Random, effort: float
) -> None:
    """F3: as above, but wherever the processes happen to be. It starts again, or says with a known error why not.

    The only one that there is to be said: nothing had been made yet, and `--init` is repeated.
    """
    started = 0
    for number in range(max(2, round(6 * effort))):
        file_system.unmount()
        file_system.make()
        file_system.mount()
        daemon = new_daemon(directory, file_system)
        page = None
        try:
            if number % 2:
                cut_init(daemon, file_system, rng)
            else:
                assert daemon.init().returncode == 0
                page = daemon.host_page()
                cut_start(daemon, file_system, rng)
                page.unlink(missing_ok=True)
            file_system.remount()
            if not served(daemon):
                assert daemon.wait() == StateDirEmptyError.exit_status, daemon.log()
                assert "remedy:" in daemon.log()
                assert number % 2, "what --init had made is lost"
                assert daemon.init().returncode == 0
                daemon.start()
            page = daemon.host_page()
            started += 1
        finally:
            daemon.kill()
            if page is not None:
                page.unlink(missing_ok=True)
    assert started, "it never started again"


def served(daemon: Daemon) -> bool:
    """Starts it; whether it serves, or else has ended."""
    before = daemon.log().count(SERVING)
    daemon.spawn()
    wait_until(lambda: daemon.log().count(SERVING) > before or not daemon.alive(), "serving or refusing")
    return daemon.alive()


def cut_init(daemon: Daemon, file_system: LoopFs, rng: random.Random) -> None:
    daemon.may_init = False
    command = [sys.executable, "-m", "pharaohd", "--config", str(daemon.config), "--init"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as making:
        wait_until(lambda: daemon.state_dir.exists() or making.poll() is not None, "the state directory")
        time.sleep(rng.uniform(0, 0.03))
        file_system.cut()


def cut_start(daemon: Daemon, file_system: LoopFs, rng: random.Random) -> None:
    daemon.spawn()
    wait_until(lambda: Path(daemon.socket).exists() or not daemon.alive(), "its socket")
    assert daemon.alive(), daemon.log()
    time.sleep(rng.uniform(0, 0.05))
    file_system.cut()
    daemon.kill()
