"""`python -m fapn_zoo.cli`."""

import sys

from fapn_zoo.cli.main import main

sys.exit(main())
