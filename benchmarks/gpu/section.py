"""One section, in this process: `python -m benchmarks.gpu.section NAME CONTEXT.json`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from .context import Context, describe


def main() -> int:
    name, path = sys.argv[1:]
    context = Context.read(Path(path))
    try:
        importlib.import_module(f"{__package__}.{name}").run(context)
    except Exception as error:
        print(describe(error, 30), file=sys.stderr)
        context.record("error", describe(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
