"""Where both commands begin. Where only the client is installed they end with a sentence that says what to do.

So nothing here, nor in pharaohd/__init__.py and pharaohd/ctl/__init__.py, imports more than the standard library
before the packages are known to be there.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

# All of them, and first: fastavro is imported by the router alone, which would only fail again and again.
PACKAGES = ("cffi", "click", "fastavro", "posix_ipc", "setproctitle", "structlog")


def require_packages(command: str) -> None:
    """Ends the process with status 1 when a package of the extra `daemon` is missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        names = ", ".join(missing)
        sys.exit(f"{command}: packages that it needs are not installed ({names}): pip install 'pharaoh[daemon]'")


def daemon() -> None:
    """The command `pharaohd`."""
    require_packages("pharaohd")
    from pharaohd import cli

    cli.main(prog_name="pharaohd")


def control() -> int:
    """The command `pharaohctl`; its exit status."""
    require_packages("pharaohctl")
    from pharaohd.ctl import cli

    return cli.main()
