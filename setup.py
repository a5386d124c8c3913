"""What pyproject.toml cannot say: the two C modules."""

from pathlib import Path

from setuptools import setup

BUILDERS = ["libpharaoh/_build.py", "pharaohd/_build.py"]

setup(
    cffi_modules=[f"{builder}:ffi" for builder in BUILDERS if Path(builder).exists()],
    # Without this a changed header leaves the old module in place.
    options={"build_ext": {"force": "1"}},
)
