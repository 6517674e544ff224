"""``python -m dynosim``."""

import sys

from dynosim.cli import main

sys.exit(main())
