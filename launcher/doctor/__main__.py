"""`python -m launcher.doctor`."""

import sys

from launcher.doctor import main

sys.exit(main())
