"""Ways to a running daemon: its own socket, its coordinators' sockets, the Python client."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import libpharaoh
from libpharaoh import Client, scarab
from libpharaoh._socket import Connection, Hello
from libpharaoh.errors import ConnectFailedError, InvalidArgumentError, PharaohError
from pharaohd.ctl.common import EXIT_DEGRADED, EXIT_ERROR, Target, explain
from pharaohd.ctl.texts import MILLISECOND, UNIX_EPOCH, read_time

PATIENCE_S = 2.0
CONNECT_S = 0.5
PROBE_S = 0.02  # where an absent daemon is no error


@contextmanager
def connected(path: str, connect_s: float = CONNECT_S) -> Iterator[tuple[Connection, Hello]]:
    """A connection to a socket of the daemon, introduced. Raises ConnectFailedError when there is no daemon."""
    connection = Connection.connect(path, time.monotonic() + connect_s)
    try:
        yield connection, connection.hello("pharaohctl", time.monotonic() + PATIENCE_S)
    finally:
        connection.close()


def client_of(target: Target, *, rings: bool = False) -> Client:
    """The Python client, which tries again what failed for a moment."""
    return libpharaoh.connect(target.socket_path(), name="pharaohctl", timeout=PATIENCE_S, rings=rings)


def request(connection: Connection, method: str, *params: Any) -> Any:
    """One exchange. Raises the daemon's error, or one of the connection's."""
    return connection.request(method, list(params), time.monotonic() + PATIENCE_S)


def endpoints_of(target: Target, numbers: Sequence[int]) -> dict[int, str]:
    """Paths of the coordinators' own sockets: of these, or of all that the host owns. Raises InvalidArgumentError."""
    with connected(target.socket_path()) as (_, hello):
        pass
    if unknown := sorted(set(numbers) - set(hello.coordinators)):
        raise InvalidArgumentError(f"this host owns no coordinator {unknown[0]}: `pharaohctl workers` lists them")
    return {number: hello.endpoint(number) for number in numbers or hello.coordinators}


def ask_each(target: Target, numbers: Sequence[int], method: str) -> tuple[dict[int, Any], int]:
    """What coordinators, by default all that the host owns, answer to a method; and the exit status.

    One that does not answer is told on standard error and does not stop the others from being asked.
    """
    answers, status = {}, 0
    for number, path in endpoints_of(target, numbers).items():
        try:
            with connected(path) as (connection, _):
                answers[number] = request(connection, method)
        except PharaohError as error:
            status = told(error)
    return answers, status


def told(error: PharaohError) -> int:
    """Tells of one coordinator's error; returns the exit status of a command that goes on with the others."""
    explain(error)
    return EXIT_DEGRADED if error.retryable else EXIT_ERROR


def layout_of(target: Target, layout: str | None, epoch: str | None) -> scarab.Layout:
    """The layout asked for, else the running daemon's, else that of the settings."""
    if layout is None and epoch is None:
        try:
            with connected(target.socket_path(), PROBE_S) as (_, hello):
                return hello.layout
        except ConnectFailedError:
            pass
    cluster = target.settings().cluster
    epoch_ms = cluster.epoch_ms if epoch is None else (read_time(epoch) - UNIX_EPOCH) // MILLISECOND
    return scarab.Layout.from_text(layout or str(cluster.layout), epoch_ms)
