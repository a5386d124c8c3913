"""`python -m pharaohd` is the command `pharaohd`."""

from pharaohd.cli import main

main(prog_name="pharaohd")
