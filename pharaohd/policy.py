"""When a dead worker is started again: a pure function of what happened to it and when.

The first death is answered at once. A worker that keeps dying is started ever later, until it has been ready for a
while. A worker that ended with an error that no retry can mend is not started again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from libpharaoh.errors import StartError, by_code

DELAY_FIRST_S = 0.05
DELAY_MAX_S = 5.0
READY_LONG_ENOUGH_S = 10.0

STATUS_ERRORS: dict[int, type[StartError]] = {
    cls.exit_status: cls for cls in by_code.values() if issubclass(cls, StartError) and cls.exit_status is not None
}
"""The error that a worker's exit status stands for."""


@dataclass(frozen=True, slots=True)
class History:
    """What the policy remembers of one coordinator's workers."""

    deaths: int = 0
    """In a row, each before its worker had been ready long enough."""
    ready_since_s: float | None = None


@dataclass(frozen=True, slots=True)
class Restart:
    delay_s: float


@dataclass(frozen=True, slots=True)
class Fail:
    error: type[StartError]


Decision = Restart | Fail


def became_ready(history: History, now_s: float) -> History:
    return replace(history, ready_since_s=now_s)


def exited(history: History, status: int, now_s: float) -> tuple[History, Decision]:
    """`status`: the exit status, or 128 + the number of the signal that killed the worker. Times are monotonic."""
    error = STATUS_ERRORS.get(status)
    if error is not None and not error.retryable:
        return History(), Fail(error)
    long_enough = history.ready_since_s is not None and now_s - history.ready_since_s >= READY_LONG_ENOUGH_S
    deaths = 0 if long_enough else history.deaths
    # The exponent is bounded: a float overflows after a thousand deaths.
    delay_s = min(DELAY_FIRST_S * 2.0 ** min(deaths - 1, 10), DELAY_MAX_S) if deaths else 0.0
    return History(deaths + 1), Restart(delay_s)
