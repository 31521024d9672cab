"""Measure all that is to be known of the engine on a GPU, by one command.

    python benchmarks/gpu_report.py --out DIR

From a checkout, without installing it. See benchmarks/gpu/report.py.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.gpu.report import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
