"""Entry point of `python -m lorafit`, which does the same as `lorafit`."""

import sys

from lorafit.cli.app import main

sys.exit(main())
