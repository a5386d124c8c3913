"""A disk that is slow for one daemon alone: the block controller of cgroup v1. Needs root."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.daemon import Daemon, children

BLKIO = Path("/sys/fs/cgroup/blkio")
LIMIT = "blkio.throttle.write_iops_device"
MISSING = None if (BLKIO / LIMIT).exists() or (BLKIO / "tasks").exists() else "the block controller of cgroup v1"


@contextlib.contextmanager
def throttled(daemon: Daemon, place: Path, writes_per_second: int) -> Iterator[None]:
    """All processes of the daemon may write so often to the device that `place` lies on, until the end."""
    device = os.stat(place).st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    group = Path(tempfile.mkdtemp(prefix="pharaoh-test-", dir=BLKIO))
    pids = [*children(daemon.pid), daemon.pid]
    try:
        (group / LIMIT).write_text(f"{name} {writes_per_second}")
        for pid in pids:
            (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        (group / LIMIT).write_text(f"{name} 0")
        for left in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                (BLKIO / "cgroup.procs").write_text(left)
        group.rmdir()
