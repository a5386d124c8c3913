"""The pre-fork arbiter: one thread that holds the resources, forks a worker per coordinator and the router, watches and
replaces them.

Invariants
- A place (a coordinator's, the router's) has at most one process at a time: the next is forked only after the last was
  reaped.
- Signal handlers, pidfds and the children's streams only wake the loop; it acts on one thing at a time.
- While anything fails before all children have once been ready, the daemon has not started: everything stops, and the
  error is raised. Afterwards an error stops its own process alone, until no worker is left.
- The router is told to stop when the last worker has ended: what they ask of it is answered.
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
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from libpharaoh.errors import InternalError, RuntimeDirError, SettingsError, StartError, StateDirError, by_code
from pharaohd import hosttime, log, manifest, policy, process, sole
from pharaohd import settings as settings_module
from pharaohd.children import ROUTER, ChildProcess, ChildSlot
from pharaohd.contract import RouterEntry, RouterSpec, WorkerEntry, WorkerSpec
from pharaohd.core_settings import core_settings
from pharaohd.resources import HostResources, converted
from pharaohd.settings import Settings
from pharaohd.stats import NO_COORDINATOR, Page, WorkerState, new_slot

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
MESSAGE_BYTES_MAX = 65_536
ABORT_PATIENCE_S = 1.0
FORK_RETRY_S = 1.0
AHEAD_MS = 1000


class Supervisor:
    """Runs the daemon.

    work, route: what a forked worker does, and the router. create: makes the Obelisk of a coordinator at a path,
    durably. load: reads the settings again, for a reload; raises SettingsError. may_be_new: a state directory without a
    manifest is made rather than refused.
    """

    def __init__(
        self,
        settings: Settings,
        work: WorkerEntry,
        route: RouterEntry,
        create: Callable[[int, str], None],
        load: Callable[[], Settings],
        *,
        may_be_new: bool,
    ) -> None:
        self._settings = settings
        self._work = work
        self._route = route
        self._create = create
        self._load = load
        self._may_be_new = may_be_new
        self._log = log.logger("supervisor")
        self._children: list[ChildSlot] = []
        self._running: dict[int, ChildSlot] = {}
        self._live: set[int] = set()
        self._failed: set[int] = set()
        self._serving = False
        self._stopping = False
        self._error: StartError | None = None
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_numbers = itertools.count()
        self._name: socket.socket | None = None
        self._awake_since_ns = self._hangs_checked_ns = time.monotonic_ns()

    def run(self) -> None:
        """Returns after a stop by signal. Raises the StartError that kept the daemon from serving."""
        process.set_title("supervisor")
        process.raise_descriptor_limit()
        self._notifier = process.Notifier(os.environ)
        with contextlib.ExitStack() as held:
            self._wakeup = process.Wakeup(SIGNALS)
            held.callback(self._wakeup.close)
            self._resources = held.enter_context(HostResources(self._settings, may_be_new=self._may_be_new))
            self._prepare_state()
            held.callback(self._close_host_page)
            self._page = self._make_page()
            held.callback(self._page.remove)
            self._children = [self._worker_place(slot, one) for slot, one in enumerate(self._settings.host.owns)]
            self._children.append(self._router_place())
            self._selector = held.enter_context(selectors.DefaultSelector())
            self._selector.register(self._wakeup.descriptor, selectors.EVENT_READ, self._on_signal)
            held.callback(self._kill_and_reap)
            # What is alive now lives as long as the daemon: a collection in a worker must not touch (and copy) it.
            gc.collect()
            gc.freeze()
            self._start(self._children)
            self._schedule_hang_check()
            while self._running or not self._stopping:
                self._turn()
        if self._error:
            raise self._error
        self._log.info("stopped")

    def _prepare_state(self) -> None:
        state_dir = self._settings.host.state_dir
        with converted(StateDirError, state_dir):
            if self._resources.state_on_memory():
                self._log.warning("the state directory is lost when this machine restarts", state_dir=state_dir)
            self._check_what_is_there(manifest.read(state_dir))
            manifest.ensure(state_dir, self._settings.host.owns, self._create, may_be_new=self._may_be_new)
            self._hold_name(manifest.directory_id(state_dir))
            self._host_page, started = hosttime.start(self._settings, hosttime.Clock(self._settings))
        if started.jump_ms:
            self._log.error(
                "the wall clock is ahead of all evidence and is not followed; `pharaohctl clock accept` if it is right",
                ahead_ms=started.jump_ms,
            )
        if started.ahead_ms > AHEAD_MS:
            self._log.warning("ids are ahead of the wall clock", ahead_ms=started.ahead_ms)
        if started.wait_ms > self._settings.obelisk.window_ms:
            self._log.warning("ids wait until host time reaches what was reserved", wait_ms=started.wait_ms)

    def _check_what_is_there(self, known: manifest.Coordinators) -> None:
        """Before anything is made beside it: files of other settings would stay, and refuse the old ones too."""
        if any(coordinator not in known for coordinator in self._settings.host.owns):
            made = [coordinator for coordinator, state in known.items() if state == "created"]
            with hosttime.locked_records(self._settings, made):
                pass

    def _hold_name(self, id: bytes) -> None:
        try:
            self._name = sole.hold(id, os.geteuid())
        except sole.HeldByOtherUser:
            self._log.warning(
                "another user holds the name of this state directory: a daemon on a copy of it may go unnoticed"
            )

    def _make_page(self) -> Page:
        settings = self._settings
        try:
            return Page(
                settings.host.runtime_dir, settings.cluster.coordinators, settings.host.owns, settings.rpc.mode,
                self._resources.gid,
            )  # fmt: skip
        except OSError as error:
            raise RuntimeDirError(f"the statistics page in /dev/shm: {error}") from error

    def _worker_place(self, slot: int, coordinator: int) -> ChildSlot:
        resources = self._resources
        return ChildSlot(
            number=coordinator,
            title=f"worker {coordinator:04d}",
            slot=self._page.slots[slot],
            own_fds=(resources.own_fd(coordinator), resources.private_fd(coordinator)),
            keep=(resources.listen_fd, resources.children_lock_fd, *self._lasting_fds()),
            life=partial(self._worker_life, coordinator, slot),
            log=log.logger("supervisor", coordinator),
        )

    def _router_place(self) -> ChildSlot:
        return ChildSlot(
            number=ROUTER,
            title="router",
            slot=new_slot(),
            own_fds=(self._resources.router_fd,),
            keep=(self._resources.children_lock_fd, *self._lasting_fds()),
            life=self._router_life,
            log=self._log,
        )

    def _close_host_page(self) -> None:
        """After a clean stop of every worker the files tell all that the page does."""
        clean = all(child.started and child.slot.exit_code == 0 for child in self._children)
        self._host_page.close(self._settings.host.state_dir, remove=self._error is None and clean)
        if self._name is not None:
            self._name.close()

    def _lasting_fds(self) -> list[int]:
        """What holds the page's lock and the directory's name as long as any process of this daemon lives."""
        name = self._name.fileno() if self._name is not None else -1
        return [descriptor for descriptor in (self._host_page.descriptor, name) if descriptor >= 0]

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
                    self._kill(self._children)

    # One child

    def _start(self, children: Sequence[ChildSlot]) -> None:
        if self._stopping:
            return
        streams = []
        specs: list[process.SpawnSpec] = []
        with contextlib.ExitStack() as held:
            try:
                for child in children:
                    ours, theirs = socket.socketpair()
                    streams.append(ours)
                    end = held.enter_context(theirs).fileno()
                    specs.append((partial(run_child, child.title, child.life(end)), (end, *child.own_fds, *child.keep)))
            except OSError as error:
                forked: list[process.Child | OSError] = [error] * len(children)
            else:
                forked = process.fork(specs)
        for child, handle, ours in itertools.zip_longest(children, forked, streams):
            if isinstance(handle, OSError):
                self._start_later(child, handle, ours)
            else:
                self._started(child, ChildProcess(handle, ours, time.monotonic_ns()))

    def _start_later(self, child: ChildSlot, error: OSError, stream: socket.socket | None) -> None:
        if stream is not None:
            stream.close()
        child.log.error(f"no process for a {child.kind}", error=str(error))
        self._after(FORK_RETRY_S, partial(self._start, [child]))

    def _started(self, child: ChildSlot, run: ChildProcess) -> None:
        run.stream.setblocking(False)
        child.run = run
        self._running[child.number] = child
        self._selector.register(run.handle.pidfd, selectors.EVENT_READ, partial(self._on_exit, child, run))
        self._selector.register(run.stream, selectors.EVENT_READ, partial(self._on_stream, child, run))
        slot = child.slot
        slot.state, slot.pid, slot.started_ns = WorkerState.STARTING, run.handle.pid, time.time_ns()
        slot.restart_count += int(child.started)
        child.started = True

    def _worker_life(self, coordinator: int, slot: int, control_fd: int) -> Callable[[], int]:
        host = self._settings.host
        spec = WorkerSpec(
            coordinator=coordinator,
            slot=slot,
            obelisk_path=manifest.obelisk_path(host.state_dir, coordinator),
            counters_path=manifest.counters_path(host.state_dir, coordinator),
            socket_path=host.socket_path,
            listen_fd=self._resources.listen_fd,
            own_fd=self._resources.own_fd(coordinator),
            private_fd=self._resources.private_fd(coordinator),
            control_fd=control_fd,
            stats_address=self._page.address,
            host_page_address=self._host_page.address,
            core_settings=core_settings(self._settings),
            settings=self._settings,
        )
        return partial(self._work, spec)

    def _router_life(self, control_fd: int) -> Callable[[], int]:
        child = self._children[-1]
        return partial(self._route, RouterSpec(self._resources.router_fd, control_fd, child.slot, self._settings))

    def _on_stream(self, child: ChildSlot, run: ChildProcess) -> None:
        # In one turn a child may be reaped first, and its stream come afterwards.
        if child.run is run and not self._read(child, run):
            self._selector.unregister(run.stream)  # the child's end, or its hanging, is seen elsewhere

    def _read(self, child: ChildSlot, run: ChildProcess) -> bool:
        """Takes what the child says. False: there was nothing."""
        try:
            data = run.stream.recv(MESSAGE_BYTES_MAX)
        except OSError:
            return False
        *lines, rest = (run.inbox + data).split(b"\n")
        run.inbox = rest[:MESSAGE_BYTES_MAX]
        for line in lines:
            self._on_event(child, run, line)
        return bool(data)

    def _on_event(self, child: ChildSlot, run: ChildProcess, line: bytes) -> None:
        try:
            event = json.loads(line)
            if event["event"] == "ready":
                self._on_ready(child)
            elif event["event"] == "failed":
                run.error = child_error(child.whose, event["code"], event["message"])
        except (ValueError, KeyError, TypeError) as error:
            child.log.error(f"a {child.kind} talks nonsense", error=str(error))

    def _on_ready(self, child: ChildSlot) -> None:
        child.history = policy.became_ready(child.history, time.monotonic())
        if self._stopping:
            return
        child.slot.state = WorkerState.LIVE
        self._live.add(child.number)
        self._page.header.first_live = min(self._page.header.first_live, child.number)
        child.log.debug(f"{child.kind} ready")
        if not self._serving and len(self._live) == len(self._children):
            self._serving = True
            host = self._settings.host
            self._log.info("serving", socket=host.socket_path, coordinators=len(host.owns))
            self._notifier.ready()

    def _on_exit(self, child: ChildSlot, run: ChildProcess) -> None:
        while self._read(child, run):  # its last words
            pass
        if run.stream in self._selector.get_map():
            self._selector.unregister(run.stream)
        self._selector.unregister(run.handle.pidfd)
        run.stream.close()
        status = run.handle.reap()
        child.run = None
        del self._running[child.number]
        self._mark_down(child, WorkerState.DOWN, status)
        if self._stopping:
            if self._running.keys() == {ROUTER}:
                self._stop_next()
            return
        child.history, decision = policy.exited(child.history, status, time.monotonic())
        if isinstance(decision, policy.Fail):
            self._fail(child, run.error or decision.error(child.whose), status)
            return
        child.log.warning(
            f"{child.kind} ended",
            status=status,
            error=str(run.error) if run.error else None,
            restart_in_s=decision.delay_s,
        )
        if decision.delay_s:
            self._after(decision.delay_s, partial(self._start, [child]))
        else:
            self._start([child])

    def _mark_down(self, child: ChildSlot, state: WorkerState, status: int) -> None:
        slot = child.slot
        slot.state, slot.pid, slot.exit_code = state, 0, status
        if child.number in self._live:
            self._live.remove(child.number)
            self._page.header.first_live = min(self._live, default=NO_COORDINATOR)

    def _fail(self, child: ChildSlot, error: StartError, status: int) -> None:
        """This place will have no process any more."""
        self._mark_down(child, WorkerState.FAILED, status)
        self._failed.add(child.number)
        for listener in child.own_fds:
            self._resources.release(listener)
        child.log.error(f"{child.kind} failed", error=str(error))
        if not self._serving or self._failed.issuperset(self._settings.host.owns):
            self._stop(error)

    # Hanging children

    def _schedule_hang_check(self) -> None:
        self._after(max(1.0, self._settings.worker.hang_ms_max / 4000), self._check_hangs)

    def _check_hangs(self) -> None:
        if self._name is not None:
            sole.drain(self._name)
        now_ns = time.monotonic_ns()
        hang_ns = self._settings.worker.hang_ms_max * 1_000_000
        if now_ns - self._hangs_checked_ns > hang_ns // 2 + 1_000_000_000:
            self._awake_since_ns = now_ns  # this process did not run either: a frozen or starved host, not a hang
        self._hangs_checked_ns = now_ns
        for child in self._running.values():
            run = child.run
            assert run is not None
            silent_ns = now_ns - max(child.slot.heartbeat_ns, run.forked_ns, self._awake_since_ns)
            if silent_ns > hang_ns and not run.aborted:
                run.aborted = True
                child.log.error(f"{child.kind} hangs", silent_ms=silent_ns // 1_000_000)
                run.handle.send(signal.SIGABRT)
                self._after(ABORT_PATIENCE_S, partial(self._kill_run, child, run))
        self._schedule_hang_check()

    def _kill_run(self, child: ChildSlot, run: ChildProcess) -> None:
        if child.run is run:
            run.handle.send(signal.SIGKILL)

    # All children

    def _tell(self, children: Iterable[ChildSlot], message: dict[str, Any]) -> None:
        line = json.dumps(message).encode() + b"\n"
        for child in children:
            assert child.run is not None
            with contextlib.suppress(OSError):  # a child that does not read is hanging, and is dealt with as such
                child.run.stream.send(line, socket.MSG_NOSIGNAL)

    def _stop(self, error: StartError | None) -> None:
        if self._stopping:
            return
        self._stopping = True
        self._error = error
        self._notifier.stopping()
        self._live.clear()
        self._page.header.first_live = NO_COORDINATOR
        for child in self._running.values():
            child.slot.state = WorkerState.STOPPING
        self._stop_next()

    def _stop_next(self) -> None:
        """The workers; when none is left, the router."""
        children = [child for number, child in self._running.items() if number != ROUTER] or [*self._running.values()]
        self._tell(children, {"do": "stop"})
        self._after(self._settings.worker.stop_ms_max / 1000, partial(self._kill, children))

    def _kill(self, children: Iterable[ChildSlot]) -> None:
        left = [child for child in children if child.run is not None]
        for child in left:
            assert child.run is not None
            child.run.handle.send(signal.SIGKILL)
        if left:
            self._log.warning("killed", children=[child.whose for child in left])

    def _kill_and_reap(self) -> None:
        """Leaves no child behind when a bug ends the loop."""
        for child in self._running.values():
            assert child.run is not None
            child.run.handle.send(signal.SIGKILL)
            child.slot.exit_code = child.run.handle.reap()

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
        self._tell(
            self._running.values(), {"do": "reload", "settings": settings_module.reloadable_values(self._settings)}
        )
        self._log.info("reloaded", changed=[one.name for one in taken])
        if later:
            self._log.warning("these settings need a restart", keys=[one.name for one in later])


def run_child(title: str, life: Callable[[], int]) -> int:
    process.set_title(title)
    return life()


def child_error(whose: str, code: int, message: str) -> StartError:
    """What a child said before it ended. A code that no start can have is a bug of the child's."""
    error_class = by_code.get(code, InternalError)
    if not issubclass(error_class, StartError):
        error_class = InternalError
    return error_class(f"{whose}: {message}")
