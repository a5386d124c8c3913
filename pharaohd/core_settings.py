"""The settings as the C core has them: struct ph_settings, made from the same declarations (tools/gen.py)."""

from __future__ import annotations

from typing import Any

from pharaohd._core import ffi
from pharaohd.settings import SETTINGS, Settings


def core_settings(settings: Settings) -> Any:
    """A `struct ph_settings *`.

    Made before a fork: to look at a setting writes to the pages of Python's objects, which a child then has to copy.
    """
    core = ffi.new("struct ph_settings *")
    for one in SETTINGS:
        if one.core:
            setattr(core, one.core_name, settings.value(one))
    return core
