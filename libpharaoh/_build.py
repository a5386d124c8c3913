"""Builds `libpharaoh._core` from csrc/ (cffi, API mode). The headers are the only declaration of what it exports."""

from __future__ import annotations

import re
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
SOURCES = HERE / "csrc"
COMPILE_ARGS = ["-std=gnu11", "-UNDEBUG", "-O3", "-g", "-pthread", "-Wall", "-Wextra", "-Werror", "-fno-strict-aliasing"]


def declarations(header: Path) -> str:
    """The part of a header that cffi's parser takes: no preprocessor lines but plain constants, no assertions."""
    text = re.sub(r"static_assert\(.*?\);", "", header.read_text(), flags=re.DOTALL)
    constants = re.findall(r"^#define (PH_\w+) (?:UINT64_C\()?(?:0x)?[0-9a-fA-F]+\)?", text, flags=re.MULTILINE)
    body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    values = "\n".join(f"#define {name} ..." for name in constants)
    array_sizes = re.sub(r"\[(PH_\w+)\]", "[...]", body)
    return f"{values}\n{array_sizes}\n"


ffi = FFI()
ffi.cdef(declarations(SOURCES / "ph_ring_layout.h"))
ffi.cdef(declarations(SOURCES / "ph_ring.h"))
ffi.set_source(
    "libpharaoh._core",
    '#include "ph_ring.h"\n#include "ph_ring_layout.h"\n',
    sources=[str(SOURCES.relative_to(HERE.parent) / "ph_ring.c")],
    include_dirs=[str(SOURCES)],
    extra_compile_args=COMPILE_ARGS,
)

if __name__ == "__main__":
    ffi.compile(tmpdir=str(HERE.parent), verbose=True)
