"""Builds `pharaohd._core` from csrc/ (cffi, API mode). The headers are the only declaration of what it exports."""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

from tools.headers import COMPILE_ARGS, declarations, struct

HERE = Path(__file__).parent
SOURCES = HERE / "csrc"
CLIENT_SOURCES = HERE.parent / "libpharaoh" / "csrc"
FILES = [
    "clock", "committer", "connection", "counters", "counting", "dense", "evidence", "frame", "hosttime", "issuing",
    "journal", "link", "methods", "mint", "obelisk", "producer", "recovery", "ring", "strict", "supply", "syncer",
    "worker",
]  # fmt: skip

ffi = FFI()
ffi.cdef("typedef int... off_t;")
ffi.cdef(struct(CLIENT_SOURCES / "ph_scarab.h", "ph_layout"))
ffi.cdef(declarations(SOURCES / "clock.h"))
ffi.cdef(declarations(SOURCES / "hosttime.h"))
ffi.cdef(declarations(SOURCES / "stats.h"))
ffi.cdef(declarations(SOURCES / "obelisk.h"))
ffi.cdef(declarations(SOURCES / "evidence.h"))
ffi.cdef(declarations(SOURCES / "worker_api.h"))
ffi.set_source(
    "pharaohd._core",
    '#include "evidence.h"\n#include "obelisk.h"\n#include "stats.h"\n#include "worker_api.h"\n',
    sources=[f"pharaohd/csrc/{name}.c" for name in FILES],
    include_dirs=[str(SOURCES), str(CLIENT_SOURCES)],
    extra_compile_args=COMPILE_ARGS,
    extra_link_args=["-pthread"],
)
