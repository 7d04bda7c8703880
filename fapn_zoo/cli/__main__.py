"""`python -m fapn_zoo.cli`."""

import sys

from fapn_zoo.cli import main

sys.exit(main())
