"""`python -m pharaohd.ctl`."""

import sys

from pharaohd.ctl import main

sys.exit(main())
