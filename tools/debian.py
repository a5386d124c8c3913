"""Programs from Debian's archive, unpacked below build/ and not installed, so that no service starts."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class NotHere(Exception):
    """A program that cannot be had on this machine, and why."""


def unpacked(name: str, packages: Sequence[str]) -> Path:
    """The tree of these packages, kept for the next time. `name` stands in the messages. Raises NotHere."""
    tree = ROOT / "build" / "debian" / name
    tree.parent.mkdir(parents=True, exist_ok=True)
    with open(tree.with_name(f"{name}.lock"), "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tree.exists():
            _fetch(name, packages, tree)
    return tree


def _fetch(name: str, packages: Sequence[str], tree: Path) -> None:
    """Makes the whole tree or nothing: one that is there is complete."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise NotHere(f"{name}: not on this machine, which has no apt-get to fetch it with; install it")
    partial = tree.with_name(f"{name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    archives = partial / "archives"
    archives.mkdir(parents=True)
    fetch = ["apt-get", "-q", "download", *packages]
    if os.geteuid() == 0:
        fetch[1:1] = ["-o", "APT::Sandbox::User=root"]  # apt's own user may not write here
    result = subprocess.run(fetch, cwd=archives, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise NotHere(f"{name}: not on this machine, nor to be fetched: {result.stderr.strip().splitlines()[-1:]}")
    for archive in archives.glob("*.deb"):
        subprocess.run(["dpkg", "-x", archive, partial / "tree"], check=True)
    (partial / "tree").rename(tree)
    shutil.rmtree(partial)


def environment(tree: Path) -> dict[str, str]:
    """In which programs of an unpacked tree find their libraries."""
    libraries = {str(file.parent) for file in tree.rglob("*.so.*")}
    return dict(os.environ) | {"LD_LIBRARY_PATH": ":".join(sorted(libraries))}
