"""The router: the process for requests that workers pass on because they take long or span coordinators.

It listens on `private/router.sock`, for the daemon's own user, and issues no ids. See contract.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from libpharaoh._framing import ReplyDecoder, Request, RequestDecoder, encode_error, encode_request, encode_result
from libpharaoh.errors import (
    BadRequestError,
    InternalError,
    PharaohError,
    ProtocolViolationError,
    SchemasUnusableError,
    SyncFailedError,
    UnavailableError,
    UnknownMethodError,
)
from pharaohd import log
from pharaohd.contract import RouterSpec
from pharaohd.schemas import BrokenError, Schemas

READ_BYTES = 65_536
IN_FLIGHT_MAX = 64
"""Of one worker: with frames of 64 KiB it costs 8 MiB at most. What else it asks for waits in its socket."""
HEARTBEAT_S = 1.0
PAUSE_S = 1.0
DEAF_S = 1.0
"""How much longer than a worker waits for its disk the router waits for the worker."""

Method = Callable[..., Awaitable[Any]]


def run(spec: RouterSpec) -> int:
    """Serves until told to stop; returns the exit status."""
    router = Router(spec)
    try:
        asyncio.run(router.serve())
    except Exception:
        router.log.exception("a bug")
        return InternalError.exit_status or 1
    return 0


class Router:
    """One process's server and what it serves."""

    def __init__(self, spec: RouterSpec) -> None:
        self.log = log.logger("router")
        self._spec = spec
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()
        self._bug: BaseException | None = None
        self._schemas = Schemas(spec.settings, self.ask)
        self._methods: Mapping[str, Method] = {
            "@register_schema": self._schemas.register,
            "@get_schema": self._schemas.get,
            "@list_schemas": self._schemas.list,
        }

    async def serve(self) -> None:
        spec = self._spec
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stop.set)
        orders, ours = await asyncio.open_unix_connection(sock=socket.socket(fileno=spec.control_fd))
        for work in (self._beat(), self._obey(orders), self._accept()):
            self._start(work)
        ours.write(b'{"event": "ready"}\n')
        await self._stop.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        await self._schemas.close()
        ours.close()
        if self._bug is not None:
            raise self._bug

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_end)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._bug = task.exception()
            self._stop.set()

    async def _beat(self) -> None:
        while True:
            self._spec.slot.heartbeat_ns = time.monotonic_ns()
            await asyncio.sleep(HEARTBEAT_S)

    async def _obey(self, orders: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):  # it died and left unread what the router had said
            while line := await orders.readline():
                order = json.loads(line)
                if order["do"] == "stop":
                    break
                log.configure(order["settings"]["log"]["level"], self._spec.settings.log.format)
        self._stop.set()  # told to, or the supervisor died

    # Requests of workers

    async def _accept(self) -> None:
        with socket.socket(fileno=self._spec.listen_fd) as listener:
            while True:
                try:
                    connection, _ = await asyncio.get_running_loop().sock_accept(listener)
                except OSError as error:
                    self.log.error("no connection accepted", error=str(error))
                    await asyncio.sleep(PAUSE_S)  # out of descriptors: no spin
                else:
                    self._start(self._serve_worker(connection))

    async def _serve_worker(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        decoder, room = RequestDecoder(), asyncio.Semaphore(IN_FLIGHT_MAX)
        try:
            while data := await reader.read(READ_BYTES):
                for request in decoder.feed(data):
                    await room.acquire()
                    self._start(self._reply(request, writer, room))
        except (ProtocolViolationError, OSError) as error:
            self.log.warning("connection closed", error=str(error))
        finally:
            writer.close()

    async def _reply(self, request: Request, writer: asyncio.StreamWriter, room: asyncio.Semaphore) -> None:
        try:
            frame = encode_result(request.msgid, await self._call(request))
        except PharaohError as error:
            if isinstance(error, SchemasUnusableError):
                self.log.error("schemas unusable", error=error.detail)
            frame = encode_error(request.msgid, error)
            if isinstance(error, BrokenError):
                writer.write(frame)
                os._exit(SyncFailedError.exit_status or 1)
        except Exception:
            self.log.exception("a bug", method=request.method)
            frame = encode_error(request.msgid, InternalError("see the daemon's log"))
        if not writer.is_closing():
            writer.write(frame)
            try:
                await writer.drain()
            except OSError:
                pass  # the worker died: nobody is left to be told
        room.release()

    async def _call(self, request: Request) -> Any:
        method = self._methods.get(request.method)
        if method is None:
            raise UnknownMethodError(f"{request.method:.100}")
        if request.params is None:
            raise BadRequestError("params are an array")
        try:
            inspect.signature(method).bind(*request.params)
        except TypeError as error:
            raise BadRequestError(f"{request.method}: {error}") from None
        return await method(*request.params)

    # Questions to workers

    async def ask(self, coordinator: int, method: str, params: list[Any]) -> Any:
        """One exchange over the coordinator's own socket. Raises the reply's error; UnavailableError for none."""
        config = self._spec.settings
        try:
            async with asyncio.timeout(config.rpc.stall_ms_max / 1000 + DEAF_S):
                return await exchange(config.host.private_socket_path(coordinator), method, params)
        except (OSError, ProtocolViolationError) as error:  # TimeoutError among them
            raise UnavailableError(f"coordinator {coordinator}: {str(error) or 'no answer in time'}") from None


async def exchange(path: str, method: str, params: list[Any]) -> Any:
    """Raises the reply's error, OSError, ProtocolViolationError."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(encode_request(1, method, params))
        decoder = ReplyDecoder()
        while data := await reader.read(READ_BYTES):
            for reply in decoder.feed(data):
                if reply.error is not None:
                    raise reply.error
                return reply.result
        raise ConnectionResetError("hung up")
    finally:
        writer.close()
