"""A worker's Python side: what it hears of its supervisor."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pharaohd.worker import Worker


@pytest.mark.parametrize("unread", [b"", b'{"event": "ready"}\n'])
def test_a_supervisor_that_died_means_stop(unread: bytes) -> None:
    """F13: also when it left unread what the worker had said, which the kernel tells as an error."""
    ours, theirs = socket.socketpair()
    with theirs:
        worker = Worker(cast(Any, SimpleNamespace(settings=None)), theirs)
        assert not worker._told_to_stop()
        theirs.sendall(unread)
        ours.close()
        assert worker._told_to_stop()
