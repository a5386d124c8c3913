"""Records of Obelisks, as a test wants them to be."""

from __future__ import annotations

import time
from typing import Any

from pharaohd import hosttime
from pharaohd._core import ffi


def first_record(
    ceiling: int = 0, *, host_ns: int = 0, realtime_ns: int = 0, start_id: int = 1, clean: bool = True
) -> Any:
    """A `struct ph_record *` for `obelisk.create`, of this boot and this moment."""
    record = ffi.new("struct ph_record *")
    record.ceiling, record.start_id, record.clean = ceiling, start_id, clean
    record.sample.host_ns, record.sample.realtime_ns = host_ns, realtime_ns
    record.sample.boottime_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    ffi.memmove(record.sample.boot_id, hosttime.boot_id(), 16)
    return record
