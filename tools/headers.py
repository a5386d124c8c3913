"""Reads C headers for cffi, so that a header is the only declaration of what a module exports."""

from __future__ import annotations

import re
from pathlib import Path

# -UNDEBUG: Python's own flags would switch the assertions off.
COMPILE_ARGS = ["-std=gnu11", "-UNDEBUG", "-O3", "-g", "-fvisibility=hidden", "-pthread", "-Wall", "-Wextra", "-Werror"]


def declarations(header: Path) -> str:
    """The part of a header that cffi's parser takes: no preprocessor lines but plain constants, no assertions."""
    text = header.read_text().replace("\\\n", " ")  # a macro over several lines is one line
    text = re.sub(r"static_assert\(.*?\);|__attribute__\(\(.*?\)\)(?=;)", "", text, flags=re.DOTALL)
    constants = re.findall(r"^#define (PH_\w+) (?:UINT64_C\()?(?:0x)?[0-9a-fA-F]+\)?", text, flags=re.MULTILINE)
    body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    values = "\n".join(f"#define {name} ..." for name in constants)
    array_sizes = re.sub(r"\[(PH_\w+)\]", "[...]", body)
    return f"{values}\n{array_sizes}\n"


def struct(header: Path, name: str) -> str:
    """One struct out of a header whose functions cffi cannot take."""
    found = re.search(rf"struct {name} \{{.*?\n\}};", header.read_text(), flags=re.DOTALL)
    assert found is not None, f"{header} declares no struct {name}"
    return found[0] + "\n"
