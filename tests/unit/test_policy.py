"""The restart policy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libpharaoh.errors import ObeliskCorruptError, StartError, by_code
from pharaohd.policy import (
    DELAY_FIRST_S,
    DELAY_MAX_S,
    READY_LONG_ENOUGH_S,
    STATUS_ERRORS,
    Fail,
    History,
    Restart,
    became_ready,
    exited,
)

KILLED = 128 + 9
RETRYABLE = sorted(status for status, error in STATUS_ERRORS.items() if error.retryable)
FATAL = sorted(status for status, error in STATUS_ERRORS.items() if not error.retryable)


def delays(deaths: int, status: int = KILLED) -> list[float]:
    history, found = History(), []
    for number in range(deaths):
        history, decision = exited(history, status, float(number))
        assert isinstance(decision, Restart)
        found.append(decision.delay_s)
    return found


def test_first_death_is_answered_at_once_then_ever_later() -> None:
    assert delays(10) == [0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5]
    assert delays(5000)[-1] == DELAY_MAX_S


def test_a_long_life_forgives() -> None:
    history = History()
    for now_s in range(6):
        history, _ = exited(history, KILLED, float(now_s))
    history = became_ready(history, 100.0)
    _, soon = exited(history, KILLED, 100.0 + READY_LONG_ENOUGH_S - 0.001)
    assert isinstance(soon, Restart)
    assert soon.delay_s > DELAY_FIRST_S
    after, late = exited(history, KILLED, 100.0 + READY_LONG_ENOUGH_S)
    assert late == Restart(0.0)
    assert exited(after, KILLED, 111.0)[1] == Restart(DELAY_FIRST_S)  # it has not been ready since


@pytest.mark.parametrize("status", FATAL)
def test_fatal_errors_are_never_retried(status: int) -> None:
    _, decision = exited(History(), status, 0.0)
    assert isinstance(decision, Fail)
    assert decision.error.exit_status == status


def test_both_kinds_of_errors_are_known() -> None:
    starts = [error for error in by_code.values() if issubclass(error, StartError)]
    assert len(STATUS_ERRORS) == len(starts)  # no two share an exit status
    assert ObeliskCorruptError.exit_status in FATAL
    assert RETRYABLE == [70, 71, 72]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ready", "exit"]),
            st.sampled_from([0, 1, KILLED, *RETRYABLE]),
            st.floats(0, 60, allow_nan=False),
        ),
        max_size=80,
    )
)
def test_any_story(events: list[tuple[str, int, float]]) -> None:
    """Delays stay in bounds; 0 only for a first death or after a long life; a streak never shortens them."""
    history, now_s, ready_since_s = History(), 0.0, None
    previous_s: float | None = None
    for kind, status, passed_s in events:
        now_s += passed_s
        if kind == "ready":
            history, ready_since_s = became_ready(history, now_s), now_s
            continue
        long_life = ready_since_s is not None and now_s - ready_since_s >= READY_LONG_ENOUGH_S
        history, decision = exited(history, status, now_s)
        assert isinstance(decision, Restart)
        if previous_s is None or long_life:
            assert decision.delay_s == 0
        else:
            assert max(DELAY_FIRST_S, previous_s) <= decision.delay_s <= DELAY_MAX_S
        previous_s, ready_since_s = decision.delay_s, None
