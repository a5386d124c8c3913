"""HTTP load on the order service: threads that post orders one after the other and keep every answer."""

from __future__ import annotations

import http.client
import json
import threading
import time

REQUEST_DEADLINE_S = 20.0
FAILURES_KEPT_MAX = 20
BACK_OFF_S = 0.05


def post(connection: http.client.HTTPConnection, path: str, body: dict[str, object]) -> dict[str, object]:
    """Posts `body` as JSON and returns the answer. Raises RuntimeError unless it says 201."""
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    payload = response.read()
    if response.status != 201:
        raise RuntimeError(f"HTTP {response.status}: {payload.decode(errors='replace')[:200]}")
    answer = json.loads(payload)
    assert isinstance(answer, dict)
    return answer


class _Customer(threading.Thread):
    """One customer: a connection of its own, one order at a time."""

    def __init__(self, name: str, port: int, stopping: threading.Event) -> None:
        super().__init__(name=name, daemon=True)
        self.acknowledged: list[int] = []
        self.failures: list[str] = []
        self.failure_count = 0
        self._port = port
        self._stopping = stopping

    def run(self) -> None:
        # The connection is kept as long as the server keeps it; http.client opens a new one after `Connection: close`.
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=REQUEST_DEADLINE_S)
        number = 0
        while not self._stopping.is_set():
            number += 1
            order: dict[str, object] = {"customer": self.name, "item": f"obelisk {number}", "quantity": number % 9 + 1}
            try:
                self.acknowledged.append(int(str(post(connection, "/orders", order)["id"])))
            except (OSError, http.client.HTTPException, RuntimeError, ValueError, KeyError) as error:
                self._fail(f"{time.strftime('%H:%M:%S')} {self.name}, order {number}: {error!r}")
                connection.close()
                self._stopping.wait(BACK_OFF_S)
        connection.close()

    def _fail(self, text: str) -> None:
        self.failure_count += 1
        if len(self.failures) < FAILURES_KEPT_MAX:
            self.failures.append(text)


class Load:
    """`thread_count` customers; count and ids of the orders that were acknowledged, and every failure."""

    def __init__(self, port: int, thread_count: int) -> None:
        self._stopping = threading.Event()
        self._customers = [_Customer(f"customer {n}", port, self._stopping) for n in range(thread_count)]
        self._started_s = 0.0
        self.elapsed_s = 0.0

    def start(self) -> None:
        """Starts every customer."""
        self._started_s = time.monotonic()
        for customer in self._customers:
            customer.start()

    def stop(self) -> None:
        """Ends every customer after the order that it is at."""
        self._stopping.set()
        for customer in self._customers:
            if customer.is_alive():
                customer.join(2 * REQUEST_DEADLINE_S)
        self.elapsed_s = time.monotonic() - self._started_s

    @property
    def count(self) -> int:
        """Orders acknowledged so far."""
        return sum(len(customer.acknowledged) for customer in self._customers)

    @property
    def acknowledged(self) -> list[int]:
        """The ids of all acknowledged orders."""
        return [order_id for customer in self._customers for order_id in customer.acknowledged]

    @property
    def failure_count(self) -> int:
        """Requests that were not answered with 201."""
        return sum(customer.failure_count for customer in self._customers)

    @property
    def failures(self) -> list[str]:
        """What the first of them said."""
        return [text for customer in self._customers for text in customer.failures][:FAILURES_KEPT_MAX]
