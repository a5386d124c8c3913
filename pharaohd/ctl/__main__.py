"""`python -m pharaohd.ctl` is the command `pharaohctl`."""

import sys

from pharaohd.entry import control

sys.exit(control())
