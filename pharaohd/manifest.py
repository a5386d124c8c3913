"""Which coordinators this state directory has ever had: what tells a lost Obelisk from one that never was.

Invariants
- A coordinator stands in the durable manifest as "creating" before its Obelisk's file exists, and as "created" before
  its first worker runs. So a missing file of a "created" one is a loss, and a file without a manifest is one too.
- The directory's id is drawn at random when the manifest is first written. Copies of the directory share it.
- The manifest is replaced whole: temporary file, fsync, rename, fsync of the directory.
- Whatever cannot be told apart from a loss is refused; nothing ever starts anew by itself. A directory without a
  manifest may be a volume that is not mounted: it is filled only where the caller says that it may be new.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from libpharaoh.errors import ManifestError, ObeliskMissingError, ObeliskTooNewError, StateDirEmptyError

FORMAT = 1
BYTES_MAX = 1 << 20
ID_BYTES = 16

State = Literal["creating", "created"]
Coordinators = dict[int, State]


def obelisks_dir(state_dir: str) -> str:
    return os.path.join(state_dir, "obelisks")


def obelisk_path(state_dir: str, coordinator: int) -> str:
    return os.path.join(obelisks_dir(state_dir), f"{coordinator:04d}.obelisk")


def counters_path(state_dir: str, coordinator: int) -> str:
    return os.path.join(obelisks_dir(state_dir), f"{coordinator:04d}.counters")


def schemas_path(state_dir: str, coordinator: int) -> str:
    return os.path.join(obelisks_dir(state_dir), f"{coordinator:04d}.schemas")


def manifest_path(state_dir: str) -> str:
    return os.path.join(state_dir, "manifest.json")


def exists(state_dir: str) -> bool:
    return os.path.lexists(manifest_path(state_dir))


def ensure(state_dir: str, owned: Iterable[int], create: Callable[[int, str], None], *, may_be_new: bool) -> None:
    """Makes sure that every owned coordinator has its Obelisk, and creates only what has never been.

    create: makes the Obelisk of a coordinator at a path, durable when it returns. may_be_new: a directory without a
    manifest and without Obelisks is taken for a new one.
    Raises StateDirEmptyError, ManifestError, ObeliskMissingError, ObeliskTooNewError, OSError, what `create` raises.
    """
    if not may_be_new and not exists(state_dir) and not orphans(state_dir):
        raise StateDirEmptyError(state_dir)
    os.makedirs(obelisks_dir(state_dir), mode=0o700, exist_ok=True)
    sync_directory(state_dir)  # a killed predecessor may have renamed the manifest and not synced that
    known = read(state_dir)
    for coordinator in sorted(owned):
        present = os.path.lexists(obelisk_path(state_dir, coordinator))
        if known.get(coordinator) == "created":
            if not present:
                raise ObeliskMissingError(f"coordinator {coordinator}: {obelisk_path(state_dir, coordinator)}")
        elif coordinator not in known:
            if present:
                raise ManifestError(f"{obelisk_path(state_dir, coordinator)} is not in {manifest_path(state_dir)}")
            known[coordinator] = "creating"
    unfinished = [coordinator for coordinator in sorted(owned) if known[coordinator] == "creating"]
    if not unfinished and directory_id(state_dir):
        return
    sync_with_parents(state_dir)
    write(state_dir, known)
    for coordinator in unfinished:
        path = obelisk_path(state_dir, coordinator)
        if not os.path.lexists(path):  # else a crash came after its rename, and before "created": it is whole
            create(coordinator, path)
        known[coordinator] = "created"
    sync_directory(obelisks_dir(state_dir))
    write(state_dir, known)


def orphans(state_dir: str) -> list[str]:
    """The names of the Obelisks that lie there, manifest or not."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(name for name in os.listdir(obelisks_dir(state_dir)) if name.endswith(".obelisk"))
    return []


def read(state_dir: str) -> Coordinators:
    """{} for a fresh directory. Raises ManifestError, ObeliskTooNewError, OSError."""
    path = manifest_path(state_dir)
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        if left := orphans(state_dir):
            raise ManifestError(f"{path} is missing, but {left[0]} exists") from None
        return {}
    try:
        return decoded(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ManifestError(f"{path}: {error}") from error


def read_bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(BYTES_MAX)


def directory_id(state_dir: str) -> bytes:
    """16 bytes that name this directory; b"": no manifest, or one of a version that drew none.

    Raises OSError.
    """
    try:
        id = bytes.fromhex(json.loads(read_bytes(manifest_path(state_dir)))["id"])
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return b""
    return id if len(id) == ID_BYTES else b""


def decoded(content: bytes) -> Coordinators:
    document = json.loads(content)
    if type(document["format"]) is int and document["format"] > FORMAT:
        raise ObeliskTooNewError(f"the manifest has format {document['format']}; this version reads {FORMAT}")
    states: Mapping[str, State] = document["coordinators"]
    if document["format"] != FORMAT or document["crc32"] != checksum(states):
        raise ValueError("format or checksum do not fit")
    if not all(state in ("creating", "created") for state in states.values()):
        raise ValueError("unknown state")
    return {int(coordinator): state for coordinator, state in states.items()}


def checksum(states: Mapping[str, State]) -> int:
    return zlib.crc32(json.dumps(states, sort_keys=True).encode())


def write(state_dir: str, known: Coordinators) -> None:
    """Replaces the manifest, durably. Raises OSError; then the old one or the new one is in place."""
    states = {f"{coordinator:04d}": state for coordinator, state in sorted(known.items())}
    id = directory_id(state_dir) if exists(state_dir) else b""
    drawn = (id or secrets.token_bytes(ID_BYTES)).hex()
    document = {"format": FORMAT, "id": drawn, "crc32": checksum(states), "coordinators": states}
    path = manifest_path(state_dir)
    temporary = f"{path}.tmp"
    with open(temporary, "w", encoding="ascii") as file:
        json.dump(document, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)
    sync_directory(state_dir)


def sync_with_parents(path: str) -> None:
    """Makes a directory that may be new durable: a power cut must not take it, and its history with it."""
    path = os.path.abspath(path)
    sync_directory(path)
    while path != "/":
        path = os.path.dirname(path)
        with contextlib.suppress(PermissionError):  # where this user may not look, it has not created anything
            sync_directory(path)


def sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
