"""What pyproject.toml cannot say: the C modules."""

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent))  # the builders share tools/headers.py
from tools.headers import COMPILE_ARGS, LINK_ARGS


class BuildPy(build_py):
    """Leaves the builders of the C modules out of the wheel."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)  # type: ignore[no-untyped-call]
        return [module for module in found if module[1] != "_build"]


setup(
    cmdclass={"build_py": BuildPy},
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
            extra_link_args=LINK_ARGS,
            py_limited_api=True,
        )
    ],
    cffi_modules=["pharaohd/_build.py:ffi"],
    options={
        # Without this a changed header leaves the old module in place.
        "build_ext": {"force": "1"},
        # One wheel for every CPython from 3.11 on: native.c says so too, and cffi's modules need no more than 3.2 has.
        "bdist_wheel": {"py_limited_api": "cp311"},
    },
)
