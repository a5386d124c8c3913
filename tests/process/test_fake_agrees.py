"""The fake client does what a real daemon does: the same random requests to both, the same answers and refusals.

A daemon that is killed and started again between two requests goes on as if nothing had been.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from typing import Any

import pytest

import libpharaoh
from libpharaoh import Client
from libpharaoh._memory import SESSIONS_MAX
from libpharaoh.errors import BadRequestError, FencedError, PharaohError, SessionForgottenError
from libpharaoh.testing import FakeClient
from tests.support.daemon import Daemon, short_directory

NAMES = ("a", "b", "Ω", b"\xff", "")
CLIENTS = ("c", "d", "e")


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with short_directory() as directory, Daemon(directory, coordinators=4) as daemon:
        yield daemon


@pytest.fixture
def real(daemon: Daemon) -> Iterator[Client]:
    with libpharaoh.connect(daemon.socket, timeout=30) as client:
        yield client


def kill(daemon: Daemon, rng: random.Random) -> None:
    """A worker, or everything, which is started again."""
    if rng.random() < 0.5:
        os.kill(rng.choice(list(daemon.worker_pids().values())), signal.SIGKILL)
    else:
        daemon.kill()
        daemon.start()


def outcome(client: Client | FakeClient, method: str, *arguments: Any, **named: Any) -> object:
    """What a call returns, or the class of its error."""
    try:
        return getattr(client, method)(*arguments, **named)
    except PharaohError as error:
        return type(error)


def dense_call(rng: random.Random, sessions: int, named: float, step: int) -> tuple[str, tuple[Any, ...], Any]:
    """`named` is the share of requests that name a client."""
    sequence = step // (20 * sessions) + rng.randint(0, 1)
    token: Any = None if rng.random() < 0.1 else (rng.randint(1, sessions), sequence)
    if rng.random() < named:
        return "join_group", (rng.choice(NAMES), rng.choice(CLIENTS)), token
    if token is not None and rng.random() < named:
        token = (*token, rng.choice(CLIENTS))
    return "assign_offset", (rng.choice(NAMES[:2]), rng.choice((1, 1, 2))), token


@pytest.mark.parametrize(("sessions", "named"), [(6, 0.2), (100, 0.01)], ids=["few sessions", "many sessions"])
def test_dense_values_and_tokens(
    daemon: Daemon, real: Client, rng: random.Random, effort: float, sessions: int, named: float
) -> None:
    """F1, F35: few sessions meet often; of many some are forgotten."""
    fake = FakeClient()
    seen: set[object] = set()
    for step in range(max(1000, round(3000 * effort))):
        method, arguments, token = dense_call(rng, sessions, named, step)
        if step % 500 == 499:
            kill(daemon, rng)
        expected = outcome(fake, method, *arguments, token=token)
        assert outcome(real, method, *arguments, token=token) == expected, (method, arguments, token)
        seen.add(expected if isinstance(expected, type) else int)
    assert seen == {int, BadRequestError, FencedError, *([SessionForgottenError] if sessions > SESSIONS_MAX else [])}
