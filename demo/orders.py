"""The order service of the demo: plain WSGI, every order stamped by Pharaoh and stored in SQLite.

It connects at import, so gunicorn's --preload forks a client that is connected and whose ring already holds grants:
a library that kept identifiers in plain memory would now hand the same ones to every worker (F23).

The column `id` has no UNIQUE constraint on purpose: a duplicate must be storable, or nobody could count it.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable
from typing import Any

import libpharaoh
from libpharaoh.errors import PharaohError

DATABASE = os.environ["DEMO_DATABASE"]
IMPORT_ORDERS_MAX = 1000

client = libpharaoh.connect(timeout=10)
FIRST_ID = client.next_id()

Environ = dict[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], object]
Reply = tuple[str, dict[str, Any]]

_database: sqlite3.Connection | None = None


def open_database(path: str) -> sqlite3.Connection:
    """A connection that waits for other writers and commits each statement by itself."""
    database = sqlite3.connect(path, timeout=20, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA busy_timeout=20000")
    database.execute("PRAGMA synchronous=NORMAL")
    return database


def store_order(order: Environ) -> int:
    """Stamps and stores one order; returns its id."""
    global _database
    if _database is None:
        _database = open_database(DATABASE)
    order_id = client.next_id()
    values = (order_id, str(order["customer"]), str(order["item"]), int(order["quantity"]), os.getpid())
    _database.execute("INSERT INTO orders (id, customer, item, quantity, process) VALUES (?, ?, ?, ?, ?)", values)
    return order_id


def import_orders(count: int) -> int:
    """Forks a child that stamps and stores `count` orders by itself; returns the child's pid.

    SQLite forbids a connection to live through a fork, so it is closed first. The Pharaoh client is not: it is made
    for this.
    """
    global _database
    if _database is not None:
        _database.close()
        _database = None
    client.next_id()  # this process has taken from its ring just before the child appears
    pid = os.fork()
    if pid == 0:
        _import_in_child(count)
    _, status = os.waitpid(pid, 0)
    if status != 0:
        raise RuntimeError(f"the import process {pid} ended with status {status}")
    return pid


def _import_in_child(count: int) -> None:
    status = 1
    try:
        for number in range(count):
            store_order({"customer": "import", "item": f"line {number}", "quantity": 1})
        status = 0
    except Exception as error:  # noqa: BLE001 - whatever it is, it must be said before the child vanishes
        os.write(2, f"import process {os.getpid()}: {error!r}\n".encode())
    finally:
        os._exit(status)


def _body(environ: Environ) -> Environ:
    length = int(environ.get("CONTENT_LENGTH") or 0)
    body = json.loads(environ["wsgi.input"].read(length))
    if not isinstance(body, dict):
        raise ValueError("the body must be a JSON object")
    return body


def _post_order(environ: Environ) -> Reply:
    return "201 Created", {"id": str(store_order(_body(environ))), "process": os.getpid()}


def _post_import(environ: Environ) -> Reply:
    count = int(_body(environ)["orders"])
    if not 1 <= count <= IMPORT_ORDERS_MAX:
        raise ValueError(f"orders must be within 1 and {IMPORT_ORDERS_MAX}")
    return "201 Created", {"process": import_orders(count), "orders": count}


def _get_health(_: Environ) -> Reply:
    client.ping()
    return "200 OK", {"process": os.getpid()}


ROUTES: dict[tuple[str, str], Callable[[Environ], Reply]] = {
    ("POST", "/orders"): _post_order,
    ("POST", "/imports"): _post_import,
    ("GET", "/healthz"): _get_health,
}


def _reply(environ: Environ) -> Reply:
    handler = ROUTES.get((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
    if handler is None:
        return "404 Not Found", {"error": "no such page"}
    try:
        return handler(environ)
    except PharaohError as error:
        return "503 Service Unavailable", {"error": f"{type(error).__name__}: {error}"}
    except (ValueError, KeyError, TypeError) as error:
        return "400 Bad Request", {"error": repr(error)}
    except Exception as error:  # noqa: BLE001 - the customer learns of every failure, and the demo counts it
        return "500 Internal Server Error", {"error": repr(error)}


def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """The WSGI entry: POST /orders, POST /imports, GET /healthz."""
    status, body = _reply(environ)
    payload = json.dumps(body).encode()
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(payload)))])
    return [payload]
