"""Reads C headers for cffi, so that a header is the only declaration of what a module exports."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sysconfig
from pathlib import Path


def across_files() -> list[str]:
    """What lets the compiler see over the ends of files: the layers of the core cost no calls then.

    gcc alone: clang's needs a linker that not every system has.
    """
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    return ["-flto=auto"] if "Free Software Foundation" in version else []


# -UNDEBUG: Python's own flags would switch the assertions off.
COMPILE_ARGS = ["-std=gnu11", "-UNDEBUG", "-O3", "-g", "-fvisibility=hidden", "-pthread", "-Wall", "-Wextra", "-Werror"]
LINK_ARGS = across_files()
COMPILE_ARGS += LINK_ARGS


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
