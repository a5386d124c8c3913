"""A worker process: Python around the C loop, which it starts, stops and logs for. See contract.py."""

from __future__ import annotations

import json
import os
import signal
import socket
from functools import cached_property
from typing import Any

from libpharaoh.errors import InternalError, StartError
from pharaohd import __version__, hosttime, log, obelisk
from pharaohd._core import ffi, lib
from pharaohd.contract import WorkerSpec
from pharaohd.core_settings import core_settings
from pharaohd.settings import with_values

LEVELS = {lib.PH_LOG_INFO: "info", lib.PH_LOG_WARNING: "warning", lib.PH_LOG_ERROR: "error"}
READY = json.dumps({"event": "ready"}).encode() + b"\n"


def run(spec: WorkerSpec) -> int:
    """Serves until told to stop; returns the exit status."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # the C loop reads it; Ctrl-C is the supervisor's affair
    with socket.socket(fileno=spec.control_fd) as control:
        worker = Worker(spec, control)
        try:
            worker.open()
            worker.serve()
        except StartError as error:
            worker.say({"event": "failed", "code": error.code, "message": error.detail})
            return error.exit_status or 1
        except Exception:
            worker.log.exception("a bug")
            worker.say({"event": "failed", "code": InternalError.code, "message": "a bug: see the log"})
            return InternalError.exit_status or 1
    return 0


class Worker:
    """One coordinator's worker: the C handle and the stream to the supervisor."""

    def __init__(self, spec: WorkerSpec, control: socket.socket) -> None:
        self._spec = spec
        self._settings = spec.settings
        self._control = control
        self._inbox = b""
        self._handle: Any = ffi.NULL

    @cached_property
    def log(self) -> log.Logger:
        return log.logger("worker", self._spec.coordinator)

    def open(self) -> None:
        """Takes the Obelisk and reserves. Raises StartError."""
        config, self._kept = make_config(self._spec)
        fault = ffi.new("struct ph_fault *")
        self._handle = lib.ph_worker_open(config, fault)
        if self._handle == ffi.NULL:
            raise obelisk.fault_error(fault)

    def serve(self) -> None:
        """Raises StartError when the exact position cannot be written at the end."""
        event = ffi.new("struct ph_event *")
        self._send(READY)
        while True:
            lib.ph_worker_run(self._handle, event)
            if event.kind == lib.PH_EVENT_LOG:
                getattr(self.log, LEVELS[event.level])(ffi.string(event.text).decode(errors="replace"))
            elif event.kind == lib.PH_EVENT_STOP or self._told_to_stop():
                break
        fault = ffi.new("struct ph_fault *")
        if lib.ph_worker_close(self._handle, fault):
            raise obelisk.fault_error(fault)

    def say(self, message: dict[str, object]) -> None:
        self._send(json.dumps(message).encode() + b"\n")

    def _send(self, line: bytes) -> None:
        try:
            self._control.sendall(line, socket.MSG_NOSIGNAL)
        except OSError:
            self.log.warning("the supervisor is gone")

    def _told_to_stop(self) -> bool:
        try:
            data = self._control.recv(65_536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:  # the supervisor died and left unread what this worker had said
            return True
        *lines, self._inbox = (self._inbox + data).split(b"\n")
        orders = [json.loads(line) for line in lines]
        for order in orders:
            if order["do"] == "reload":
                self._reload(order["settings"])
        # An empty read: the supervisor died, and its worker must not go on without it.
        return not data or any(order["do"] == "stop" for order in orders)

    def _reload(self, values: dict[str, dict[str, Any]]) -> None:
        self._settings = with_values(self._settings, values)
        log.configure(self._settings.log.level, self._settings.log.format)
        lib.ph_worker_reload(self._handle, core_settings(self._settings))


def make_config(spec: WorkerSpec) -> tuple[Any, list[Any]]:
    """The C core's settings, and the Python objects that must live as long as it does."""
    settings = spec.settings
    config = ffi.new("struct ph_worker_config *")
    endpoints = os.path.join(os.path.dirname(spec.socket_path), "coordinators")
    strings = (
        spec.obelisk_path, spec.counters_path, endpoints, __version__, settings.host.name, settings.cluster.name,
        settings.host.private_dir,
        "".join(f"{pattern}\0" for pattern in settings.counters.reserve),
    )  # fmt: skip
    texts = [ffi.new("char[]", os.fsencode(text)) for text in strings]
    config.obelisk_path, config.counters_path, config.endpoints, config.version = texts[:4]
    config.host, config.cluster, config.private_endpoints, config.reserve = texts[4:]
    obelisk.fill_identity(config.identity, obelisk.identity_for(settings, spec.coordinator))
    config.listen_fd, config.own_fd = spec.listen_fd, spec.own_fd
    config.private_fd, config.control_fd = spec.private_fd, spec.control_fd
    config.stats = ffi.cast("struct ph_stats_header *", spec.stats_address)
    config.slot = spec.slot
    config.settings = spec.core_settings[0]
    clock = hosttime.Clock(settings)
    config.clock_offset_ns = clock.offset
    config.host_page = ffi.cast("struct ph_host_page *", spec.host_page_address)
    return config, [config, clock, *texts]
