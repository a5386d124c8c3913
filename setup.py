"""What pyproject.toml cannot say: the two C modules."""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).parent))  # the builders share tools/headers.py

setup(
    cffi_modules=["libpharaoh/_build.py:ffi", "pharaohd/_build.py:ffi"],
    # Without this a changed header leaves the old module in place.
    options={"build_ext": {"force": "1"}},
)
