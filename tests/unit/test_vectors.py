"""C and Python agree with spec/vectors, and so with each other; so does a daemon, for keys."""

from __future__ import annotations

import subprocess
import time
import tomllib
import zlib
from pathlib import Path
from typing import Any

import pytest

import libpharaoh
from libpharaoh._socket import Connection
from libpharaoh.errors import ConnectionLostError, KeyTooLongError
from libpharaoh.scarab import Layout, coordinator_for, key_bytes
from libpharaoh.testing import FakeClient
from tests.support import csrc
from tests.support.daemon import WATCHDOG_S, Daemon, short_directory

VECTORS: dict[str, list[dict[str, Any]]] = tomllib.loads((csrc.ROOT / "spec/vectors/scarab.toml").read_text())
KEYS: dict[str, Any] = tomllib.loads((csrc.ROOT / "spec/vectors/keys.toml").read_text())
FRAME_BYTES_MAX = 65536


def raw(entry: dict[str, Any]) -> bytes:
    """The bytes of a key."""
    return bytes.fromhex(entry["hex"]) * int(entry.get("repeat", 1))


def deadline() -> float:
    return time.monotonic() + WATCHDOG_S


def lines_for_c() -> list[str]:
    ids = [
        f"id {entry['layout'].replace('-', ' ')} {entry['id']} {entry['milliseconds']} {entry['coordinator']} "
        f"{entry['sequence']}"
        for entry in VECTORS["id"]
    ]
    routes = [
        f"route {entry['crc32']} {entry['modulus']} {entry['coordinator']} {entry['utf8']}"
        for entry in VECTORS["route"]
    ]
    keys = [
        f"route {entry['crc32']} {modulus} {coordinator} {raw(entry).hex()}"
        for entry in KEYS["key"]
        for modulus, coordinator in zip(KEYS["moduli"], entry["coordinators"], strict=True)
    ]
    return ids + routes + keys


def test_c(tmp_path: Path) -> None:
    lines = tmp_path / "vectors"
    lines.write_text("".join(f"{line}\n" for line in lines_for_c()))
    result = subprocess.run([csrc.build("test_scarab"), lines], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert f"{len(lines_for_c())} vectors" in result.stdout


def test_python() -> None:
    for entry in VECTORS["id"]:
        scarab = libpharaoh.parse(int(entry["id"]), Layout.from_text(entry["layout"]))
        parts = (scarab.milliseconds, scarab.coordinator, scarab.sequence)
        assert parts == (entry["milliseconds"], entry["coordinator"], entry["sequence"])
        assert scarab.to_int() == int(entry["id"])
    for entry in VECTORS["route"]:
        assert coordinator_for(entry["key"], entry["modulus"]) == entry["coordinator"]
        assert coordinator_for(bytes.fromhex(entry["utf8"]), entry["modulus"]) == entry["coordinator"]


def test_keys_in_python() -> None:
    for entry in KEYS["key"]:
        assert zlib.crc32(raw(entry)) == entry["crc32"], entry["name"]
        forms: list[str | bytes] = [raw(entry)]
        if "text" in entry:
            assert key_bytes(entry["text"]) == raw(entry), entry["name"]
            forms.append(entry["text"])
        for form in forms:
            found = [coordinator_for(form, modulus) for modulus in KEYS["moduli"]]
            assert found == entry["coordinators"], entry["name"]
    assert len({raw(entry) for entry in KEYS["key"]}) == len(KEYS["key"])


def test_keys_that_are_too_long() -> None:
    client = FakeClient()
    for entry in KEYS["refused"]:
        with pytest.raises(KeyTooLongError):
            client.get_timestamp(raw(entry))


def test_keys_in_a_daemon() -> None:
    """As text and as bytes, to the coordinator that the vector names; too long a key is refused without a loss."""
    modulus = KEYS["moduli"][1]
    with short_directory() as directory, Daemon(directory, coordinators=modulus) as daemon:
        connection = Connection.connect(daemon.socket, deadline())
        for entry in KEYS["key"]:
            for form in (raw(entry), entry.get("text", raw(entry))):
                id = connection.request("get_timestamp", [form], deadline())
                assert libpharaoh.parse(id).coordinator == entry["coordinators"][1], entry["name"]
        for entry in KEYS["refused"]:
            too_long = KeyTooLongError if len(raw(entry)) < FRAME_BYTES_MAX else ConnectionLostError
            with pytest.raises(too_long):
                connection.request("get_timestamp", [raw(entry)], deadline())
            if connection.closed:
                connection = Connection.connect(daemon.socket, deadline())
        connection.close()
