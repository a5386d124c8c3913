"""`python -m pharaohd` is the command `pharaohd`."""

from pharaohd.entry import daemon

daemon()
