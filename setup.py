"""What pyproject.toml cannot say: the C modules."""

import sys
from pathlib import Path

from setuptools import Extension, setup

sys.path.insert(0, str(Path(__file__).parent))  # the builders share tools/headers.py
from tools.headers import COMPILE_ARGS

setup(
    ext_modules=[
        Extension(
            "libpharaoh._native",
            sources=[
                "libpharaoh/csrc/native.c",
                "libpharaoh/csrc/native_ring.c",
                "libpharaoh/csrc/native_socket.c",
                "libpharaoh/csrc/native_source.c",
                "libpharaoh/csrc/ph_ring.c",
            ],
            define_macros=[("Py_LIMITED_API", "0x030b0000"), ("PY_SSIZE_T_CLEAN", "1")],
            extra_compile_args=COMPILE_ARGS,
            py_limited_api=True,
        )
    ],
    cffi_modules=["pharaohd/_build.py:ffi"],
    # Without this a changed header leaves the old module in place.
    options={"build_ext": {"force": "1"}},
)
