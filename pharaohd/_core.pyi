"""What csrc/stats.h, obelisk.h and worker_api.h export through cffi (see _build.py)."""

from typing import Any

ffi: Any
lib: Any
