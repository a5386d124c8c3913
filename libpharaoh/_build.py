"""Builds `libpharaoh._core` from csrc/ (cffi, API mode). The headers are the only declaration of what it exports."""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

from tools.headers import COMPILE_ARGS, declarations

SOURCES = Path(__file__).parent / "csrc"

ffi = FFI()
ffi.cdef(declarations(SOURCES / "ph_ring_layout.h"))
ffi.cdef(declarations(SOURCES / "ph_ring.h"))
ffi.set_source(
    "libpharaoh._core",
    '#include "ph_ring.h"\n#include "ph_ring_layout.h"\n',
    sources=["libpharaoh/csrc/ph_ring.c"],
    include_dirs=[str(SOURCES)],
    extra_compile_args=COMPILE_ARGS,
)
