"""What the command `pharaohctl` does. Imports nothing: it is loaded even where the packages of the command are not."""

from __future__ import annotations


def main() -> None:
    """The command, by sys.argv. Raises SystemExit."""
    from pharaohd.entry import control

    raise SystemExit(control())
