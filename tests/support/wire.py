"""A raw connection with many requests under way: what a client sees that hides nothing and retries nothing."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from libpharaoh._framing import Reply, ReplyDecoder, encode_request

PATIENCE_S = 20.0
Request = tuple[str, list[Any]]


class Wire:
    """Asserts that each request gets one reply, and that nothing comes unasked."""

    def __init__(self, path: str | Path) -> None:
        self.arrived: list[int] = []
        """Numbers of replies, in the order in which they came."""
        self._replies: dict[int, Reply] = {}
        self._numbers = itertools.count(1)
        self._asked: set[int] = set()
        self._decoder = ReplyDecoder()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE_S)
        self._socket.connect(str(path))

    def post(self, *requests: Request) -> list[int]:
        """Sends requests in one piece; their numbers."""
        numbers = [next(self._numbers) for _ in requests]
        self._asked.update(numbers)
        frames = [
            encode_request(number, method, params) for number, (method, params) in zip(numbers, requests, strict=True)
        ]
        self._socket.sendall(b"".join(frames))
        return numbers

    def wait(self, numbers: Iterable[int]) -> list[Reply]:
        """Their replies, in the order of `numbers`."""
        wanted = list(numbers)
        while not self._replies.keys() >= set(wanted):
            data = self._socket.recv(65536)
            assert data, "hung up"
            for reply in self._decoder.feed(data):
                assert reply.msgid in self._asked, f"an answer that nobody asked for: {reply}"
                self._asked.remove(reply.msgid)
                self._replies[reply.msgid] = reply
                self.arrived.append(reply.msgid)
        return [self._replies[number] for number in wanted]

    def ask(self, method: str, *params: Any) -> Any:
        """One exchange: the result, or the reply's error raised."""
        [reply] = self.wait(self.post((method, list(params))))
        if reply.error is not None:
            raise reply.error
        return reply.result

    def hung_up(self) -> bool:
        """Waits for the other end to close, whatever comes before."""
        try:
            while self._socket.recv(65536):
                pass
        except (ConnectionResetError, BrokenPipeError):
            pass
        return True  # otherwise: TimeoutError

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
