"""C and Python agree with spec/vectors, and so with each other."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path
from typing import Any

import libpharaoh
from libpharaoh.scarab import Layout, coordinator_for
from tests.support import csrc

VECTORS: dict[str, list[dict[str, Any]]] = tomllib.loads((csrc.ROOT / "spec/vectors/scarab.toml").read_text())


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
    return ids + routes


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
