"""What the daemon says, on standard error: one line per event, never one per id. The only import of structlog."""

from __future__ import annotations

import contextlib
import logging
import os
import sys

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

STDERR = 2
Logger = FilteringBoundLogger
PRIORITIES = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}


class Sink:
    """Writes each line by one system call, so that processes do not mix theirs. A reader that is gone stops no one."""

    def msg(self, line: str) -> None:
        with contextlib.suppress(OSError):
            os.write(STDERR, f"{line}\n".encode(errors="backslashreplace"))

    debug = info = warning = error = critical = msg


def under_journald() -> bool:
    """Whether standard error is the journal's stream (and not a pipe or file that only inherited the variable)."""
    status = os.fstat(STDERR)
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class Priority:
    """The last processor under journald: `<N>` before the line."""

    def __init__(self, renderer: structlog.typing.Processor) -> None:
        self._renderer = renderer

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> str:
        priority = PRIORITIES[event["level"]]
        return f"<{priority}>{self._renderer(logger, method, event)!s}"


def configure(level: str, style: str) -> None:
    """level, style: log.level and log.format of the settings. May be called again, e.g. by a reload."""
    terminal = sys.stderr.isatty()
    renderer: structlog.typing.Processor
    if style == "console" or (style == "auto" and terminal):
        renderer = structlog.dev.ConsoleRenderer(colors=terminal)
        exceptions: list[structlog.typing.Processor] = []
    else:
        renderer = structlog.processors.JSONRenderer(default=str)
        exceptions = [structlog.processors.format_exc_info]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *exceptions,
            Priority(renderer) if under_journald() else renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_: Sink(),
        cache_logger_on_first_use=False,  # so that a reload's level reaches every logger
    )


def logger(process: str, coordinator: int | None = None) -> Logger:
    """A logger whose lines name the process, e.g. "supervisor", and the coordinator if there is one."""
    bound = {"process": process} if coordinator is None else {"process": process, "coordinator": coordinator}
    log: Logger = structlog.get_logger(**bound)
    return log
