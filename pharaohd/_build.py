"""Builds `pharaohd._core` from csrc/ (cffi, API mode). The headers are the only declaration of what it exports."""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

from tools.headers import COMPILE_ARGS, LINK_ARGS, declarations, struct

HERE = Path(__file__).parent
SOURCES = HERE / "csrc"
CLIENT_SOURCES = HERE.parent / "libpharaoh" / "csrc"

ffi = FFI()
ffi.cdef("typedef int... off_t;")
ffi.cdef(struct(CLIENT_SOURCES / "ph_scarab.h", "ph_layout"))
for header in (
    "base/clock.h", "base/host_page.h", "engine/hosttime.h", "base/stats_slot.h", "base/stats.h", "base/events.h",
    "durable/obelisk.h", "engine/evidence.h", "engine/inspect.h", "service/settings.h", "service/config.h",
    "worker_api.h",
):  # fmt: skip
    ffi.cdef(declarations(SOURCES / header))
ffi.set_source(
    "pharaohd._core",
    '#include "engine/evidence.h"\n#include "durable/obelisk.h"\n#include "base/stats.h"\n#include "worker_api.h"\n',
    sources=sorted(f"pharaohd/{file.relative_to(HERE)}" for file in SOURCES.rglob("*.c")),
    include_dirs=[str(SOURCES), str(CLIENT_SOURCES)],
    extra_compile_args=COMPILE_ARGS,
    extra_link_args=["-pthread", *LINK_ARGS],
)
