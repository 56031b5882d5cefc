"""What does `python -m lorafit` do? The same as `lorafit`."""

import sys

from lorafit.cli.app import main

sys.exit(main())
