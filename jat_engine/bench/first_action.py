"""`python -m jat_engine.bench.first_action NAME DTYPE FOLDER`: from nothing to the first action.

Imports what the named agent needs and nothing else; prints when it was imported, loaded and had acted (time.time()).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from .workload import step_arguments


def main() -> None:
    name, dtype, folder = sys.argv[1:4]
    agent: Any
    if name == "JatEngine":
        from .. import JatEngine

        imported = time.time()
        agent = JatEngine.from_pretrained(folder, device="cpu", dtype=dtype)
    elif name == "JatModel":
        from .own import ModelPeer

        imported = time.time()
        agent = ModelPeer.load(Path(folder), dtype, "cpu").open(256)
    else:
        from .peers import exported

        imported = time.time()
        agent = exported(name, Path(folder), dtype, "cpu").open(256)
    loaded = time.time()
    agent.get_next_action(**step_arguments("continuous", 0))
    print(json.dumps({"imported": imported, "loaded": loaded, "acted": time.time()}))


if __name__ == "__main__":
    main()
