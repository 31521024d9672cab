"""What `torchrun` starts in the test of several processes: trainings that leave their weights behind."""

from __future__ import annotations

import json
import sys

from jat_engine.cli import main

if __name__ == "__main__":
    for flags in json.loads(sys.argv[1]):
        code = main(flags)
        if code:
            sys.exit(code)
