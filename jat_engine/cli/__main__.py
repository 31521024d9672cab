"""Entry point of `python -m jat_engine.cli`."""

import sys

from . import main

sys.exit(main())
