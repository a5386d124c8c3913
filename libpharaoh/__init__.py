"""Unique, time-ordered 64-bit ids, dense counters and schema ids from the host's Pharaoh daemon.

>>> import libpharaoh
>>> client = libpharaoh.connect()                   # doctest: +SKIP
>>> id = client.next_id()                           # doctest: +SKIP
>>> libpharaoh.parse(id).datetime                   # doctest: +SKIP

`libpharaoh.aio` is the same for asyncio, `libpharaoh.testing` a fake for tests, `libpharaoh.errors` has every error.
"""

from libpharaoh._calls import Route, Schema, SchemaVersion, Token
from libpharaoh._socket import Hello
from libpharaoh.client import Client, connect
from libpharaoh.errors import PharaohError
from libpharaoh.scarab import (
    DEFAULT_LAYOUT,
    Layout,
    Scarab,
    compose,
    coordinator_for,
    from_base32,
    parse,
    range_for,
    shard,
    to_base32,
)

__all__ = [
    "DEFAULT_LAYOUT",
    "Client",
    "Hello",
    "Layout",
    "PharaohError",
    "Route",
    "Scarab",
    "Schema",
    "SchemaVersion",
    "Token",
    "compose",
    "connect",
    "coordinator_for",
    "from_base32",
    "parse",
    "range_for",
    "shard",
    "to_base32",
]
