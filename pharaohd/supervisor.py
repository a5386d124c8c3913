"""The pre-fork arbiter: one thread that holds the premises, forks a worker per coordinator, watches and replaces them.

Invariants
- A coordinator has at most one worker at a time: the next is forked only after the last was reaped.
- Signal handlers, pidfds and the workers' streams only wake the loop; it acts on one thing at a time.
- While anything fails before all workers have once been ready, the daemon has not started: everything stops, and the
  error is raised. Afterwards an error stops its own worker alone, until none is left.
"""

from __future__ import annotations

import contextlib
import gc
import heapq
import itertools
import json
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from libpharaoh.errors import InternalError, RuntimeDirError, SettingsError, StartError, StateDirError, by_code
from pharaohd import log, manifest, policy, process
from pharaohd import settings as settings_module
from pharaohd.contract import WorkerEntry, WorkerSpec
from pharaohd.premises import Premises, converted
from pharaohd.settings import Settings
from pharaohd.stats import NO_COORDINATOR, Page, WorkerState

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
MESSAGE_BYTES_MAX = 65_536
ABORT_PATIENCE_S = 1.0
FORK_RETRY_S = 1.0


@dataclass(eq=False, slots=True)
class Run:
    """One process of a worker, from fork until it is reaped."""

    child: process.Child
    stream: socket.socket
    forked_ns: int
    inbox: bytes = b""
    error: StartError | None = None
    aborted: bool = False


@dataclass(eq=False, slots=True)
class Worker:
    """One coordinator's place: its processes come and go."""

    coordinator: int
    slot: int
    history: policy.History = field(default_factory=policy.History)
    run: Run | None = None
    started: bool = False
    """Whether it was ever forked."""


class Supervisor:
    """Runs the daemon.

    entry: what a forked worker does. create: makes the Obelisk of a coordinator at a path, durably. load: reads the
    settings again, for a reload; raises SettingsError.
    """

    def __init__(
        self,
        settings: Settings,
        entry: WorkerEntry,
        create: Callable[[int, str], None],
        load: Callable[[], Settings],
    ) -> None:
        self._settings = settings
        self._entry = entry
        self._create = create
        self._load = load
        self._log = log.logger("supervisor")
        self._workers = [Worker(coordinator, slot) for slot, coordinator in enumerate(settings.host.owns)]
        self._running: dict[int, Worker] = {}
        self._live: set[int] = set()
        self._failed: set[int] = set()
        self._serving = False
        self._stopping = False
        self._error: StartError | None = None
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_numbers = itertools.count()
        self._awake_since_ns = self._hangs_checked_ns = time.monotonic_ns()

    def run(self) -> None:
        """Returns after a stop by signal. Raises the StartError that kept the daemon from serving."""
        process.set_title("supervisor")
        process.raise_descriptor_limit()
        self._notifier = process.Notifier(os.environ)
        with contextlib.ExitStack() as held:
            self._wakeup = process.Wakeup(SIGNALS)
            held.callback(self._wakeup.close)
            self._premises = held.enter_context(Premises(self._settings))
            self._prepare_state()
            self._page = self._make_page()
            held.callback(self._page.remove)
            self._selector = held.enter_context(selectors.DefaultSelector())
            self._selector.register(self._wakeup.descriptor, selectors.EVENT_READ, self._on_signal)
            held.callback(self._kill_and_reap)
            # What is alive now lives as long as the daemon: a collection in a worker must not touch (and copy) it.
            gc.collect()
            gc.freeze()
            for worker in self._workers:
                self._start(worker)
            self._schedule_hang_check()
            while self._running or not self._stopping:
                self._turn()
        if self._error:
            raise self._error
        self._log.info("stopped")

    def _prepare_state(self) -> None:
        state_dir = self._settings.host.state_dir
        with converted(StateDirError, state_dir):
            if self._premises.state_on_memory():
                self._log.warning("the state directory is lost when this machine restarts", state_dir=state_dir)
            manifest.ensure(state_dir, self._settings.host.owns, self._create)

    def _make_page(self) -> Page:
        settings = self._settings
        try:
            return Page(
                settings.host.runtime_dir, settings.cluster.coordinators, settings.host.owns, settings.rpc.mode,
                self._premises.gid,
            )  # fmt: skip
        except OSError as error:
            raise RuntimeDirError(f"the statistics page in /dev/shm: {error}") from error

    # The loop

    def _turn(self) -> None:
        timeout_s = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
        for key, _ in self._selector.select(timeout_s):
            key.data()
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()

    def _after(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._timer_numbers), action))

    def _on_signal(self) -> None:
        for number in self._wakeup.received():
            if number == signal.SIGHUP:
                self._reload()
            else:
                self._log.info("stopping", signal=number.name)
                self._stop(None)
                if number == signal.SIGQUIT:
                    self._kill()

    # One worker

    def _start(self, worker: Worker) -> None:
        if self._stopping:
            return
        slot = self._page.slots[worker.slot]
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                spec = self._spec(worker, theirs.fileno())
                keep = (spec.listen_fd, spec.own_fd, spec.control_fd, self._premises.workers_lock_fd)
                child = process.fork(partial(run_child, self._entry, spec), keep)
        except OSError as error:
            self._log.error("no process for a worker", coordinator=worker.coordinator, error=str(error))
            self._after(FORK_RETRY_S, partial(self._start, worker))
            return
        ours.setblocking(False)
        worker.run = run = Run(child, ours, time.monotonic_ns())
        self._running[worker.coordinator] = worker
        self._selector.register(child.pidfd, selectors.EVENT_READ, partial(self._on_exit, worker, run))
        self._selector.register(ours, selectors.EVENT_READ, partial(self._on_stream, worker, run))
        slot.state, slot.pid, slot.started_ns = WorkerState.STARTING, child.pid, time.time_ns()
        slot.restart_count += int(worker.started)
        worker.started = True

    def _spec(self, worker: Worker, control_fd: int) -> WorkerSpec:
        host = self._settings.host
        return WorkerSpec(
            coordinator=worker.coordinator,
            slot=worker.slot,
            obelisk_path=manifest.obelisk_path(host.state_dir, worker.coordinator),
            counters_path=manifest.counters_path(host.state_dir, worker.coordinator),
            socket_path=host.socket_path,
            listen_fd=self._premises.listen_fd,
            own_fd=self._premises.own_fd(worker.coordinator),
            control_fd=control_fd,
            stats_address=self._page.address,
            settings=self._settings,
        )

    def _on_stream(self, worker: Worker, run: Run) -> None:
        # In one turn a worker may be reaped first, and its stream come afterwards.
        if worker.run is run and not self._read(worker, run):
            self._selector.unregister(run.stream)  # the worker's end, or its hanging, is seen elsewhere

    def _read(self, worker: Worker, run: Run) -> bool:
        """Takes what the worker says. False: there was nothing."""
        try:
            data = run.stream.recv(MESSAGE_BYTES_MAX)
        except OSError:
            return False
        *lines, rest = (run.inbox + data).split(b"\n")
        run.inbox = rest[:MESSAGE_BYTES_MAX]
        for line in lines:
            self._on_event(worker, run, line)
        return bool(data)

    def _on_event(self, worker: Worker, run: Run, line: bytes) -> None:
        try:
            event = json.loads(line)
            if event["event"] == "ready":
                self._on_ready(worker)
            elif event["event"] == "failed":
                run.error = worker_error(worker.coordinator, event["code"], event["message"])
        except (ValueError, KeyError, TypeError) as error:
            self._log.error("a worker talks nonsense", coordinator=worker.coordinator, error=str(error))

    def _on_ready(self, worker: Worker) -> None:
        worker.history = policy.became_ready(worker.history, time.monotonic())
        if self._stopping:
            return
        self._page.slots[worker.slot].state = WorkerState.LIVE
        self._live.add(worker.coordinator)
        self._page.header.first_live = min(self._page.header.first_live, worker.coordinator)
        self._log.debug("worker ready", coordinator=worker.coordinator)
        if not self._serving and len(self._live) == len(self._workers):
            self._serving = True
            self._log.info("serving", socket=self._settings.host.socket_path, coordinators=len(self._workers))
            self._notifier.ready()

    def _on_exit(self, worker: Worker, run: Run) -> None:
        while self._read(worker, run):  # its last words
            pass
        if run.stream in self._selector.get_map():
            self._selector.unregister(run.stream)
        self._selector.unregister(run.child.pidfd)
        run.stream.close()
        status = run.child.reap()
        worker.run = None
        del self._running[worker.coordinator]
        self._mark_down(worker, WorkerState.DOWN, status)
        if self._stopping:
            return
        worker.history, decision = policy.exited(worker.history, status, time.monotonic())
        if isinstance(decision, policy.Fail):
            self._fail(worker, run.error or decision.error(f"coordinator {worker.coordinator}"), status)
            return
        self._log.warning(
            "worker ended",
            coordinator=worker.coordinator,
            status=status,
            error=str(run.error) if run.error else None,
            restart_in_s=decision.delay_s,
        )
        if decision.delay_s:
            self._after(decision.delay_s, partial(self._start, worker))
        else:
            self._start(worker)

    def _mark_down(self, worker: Worker, state: WorkerState, status: int) -> None:
        slot = self._page.slots[worker.slot]
        slot.state, slot.pid, slot.exit_code = state, 0, status
        if worker.coordinator in self._live:
            self._live.remove(worker.coordinator)
            self._page.header.first_live = min(self._live, default=NO_COORDINATOR)

    def _fail(self, worker: Worker, error: StartError, status: int) -> None:
        """This worker will not be started again."""
        self._mark_down(worker, WorkerState.FAILED, status)
        self._failed.add(worker.coordinator)
        self._premises.release_coordinator(worker.coordinator)
        self._log.error("worker failed", coordinator=worker.coordinator, error=str(error))
        if not self._serving or len(self._failed) == len(self._workers):
            self._stop(error)

    # Hanging workers

    def _schedule_hang_check(self) -> None:
        self._after(max(1.0, self._settings.worker.hang_ms_max / 4000), self._check_hangs)

    def _check_hangs(self) -> None:
        now_ns = time.monotonic_ns()
        hang_ns = self._settings.worker.hang_ms_max * 1_000_000
        if now_ns - self._hangs_checked_ns > hang_ns // 2 + 1_000_000_000:
            self._awake_since_ns = now_ns  # this process did not run either: a frozen or starved host, not a hang
        self._hangs_checked_ns = now_ns
        for worker in self._running.values():
            run = worker.run
            assert run is not None
            heartbeat_ns = self._page.slots[worker.slot].heartbeat_ns
            silent_ns = now_ns - max(heartbeat_ns, run.forked_ns, self._awake_since_ns)
            if silent_ns > hang_ns and not run.aborted:
                run.aborted = True
                self._log.error("worker hangs", coordinator=worker.coordinator, silent_ms=silent_ns // 1_000_000)
                run.child.send(signal.SIGABRT)
                self._after(ABORT_PATIENCE_S, partial(self._kill_run, worker, run))
        self._schedule_hang_check()

    def _kill_run(self, worker: Worker, run: Run) -> None:
        if worker.run is run:
            run.child.send(signal.SIGKILL)

    # All workers

    def _tell(self, message: dict[str, Any]) -> None:
        line = json.dumps(message).encode() + b"\n"
        for worker in self._running.values():
            assert worker.run is not None
            with contextlib.suppress(OSError):  # a worker that does not read is hanging, and is dealt with as such
                worker.run.stream.send(line, socket.MSG_NOSIGNAL)

    def _stop(self, error: StartError | None) -> None:
        if self._stopping:
            return
        self._stopping = True
        self._error = error
        self._notifier.stopping()
        self._live.clear()
        self._page.header.first_live = NO_COORDINATOR
        for worker in self._running.values():
            self._page.slots[worker.slot].state = WorkerState.STOPPING
        self._tell({"do": "stop"})
        self._after(self._settings.worker.stop_ms_max / 1000, self._kill)

    def _kill(self) -> None:
        for worker in self._running.values():
            assert worker.run is not None
            worker.run.child.send(signal.SIGKILL)
        if self._running:
            self._log.warning("workers killed", coordinators=sorted(self._running))

    def _kill_and_reap(self) -> None:
        """Leaves no worker behind when a bug ends the loop."""
        for worker in self._running.values():
            assert worker.run is not None
            worker.run.child.send(signal.SIGKILL)
            worker.run.child.reap()

    def _reload(self) -> None:
        if self._serving:
            self._notifier.reloading()
        try:
            new = self._load()
        except SettingsError as error:
            self._page.header.reload_failures += 1
            self._log.error("reload refused; the old settings stay", error=str(error))
        else:
            self._adopt(new)
        if self._serving:
            self._notifier.ready()

    def _adopt(self, new: Settings) -> None:
        taken, later = settings_module.changed(self._settings, new)
        self._settings = settings_module.reloaded(self._settings, new)
        self._page.header.settings_serial += 1
        log.configure(self._settings.log.level, self._settings.log.format)
        self._tell({"do": "reload", "settings": settings_module.reloadable_values(self._settings)})
        self._log.info("reloaded", changed=[one.name for one in taken])
        if later:
            self._log.warning("these settings need a restart", keys=[one.name for one in later])


def run_child(entry: WorkerEntry, spec: WorkerSpec) -> int:
    process.set_title(f"worker {spec.coordinator:04d}")
    return entry(spec)


def worker_error(coordinator: int, code: int, message: str) -> StartError:
    """What a worker said before it ended. A code that no start can have is a bug of the worker's."""
    error_class = by_code.get(code, InternalError)
    if not issubclass(error_class, StartError):
        error_class = InternalError
    return error_class(f"coordinator {coordinator}: {message}")
