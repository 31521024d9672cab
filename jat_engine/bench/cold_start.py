"""Act once in a new process: `python -m jat_engine.bench.cold_start NAME DTYPE FOLDER`.

NAME is JatEngine, of which nothing else is imported, or JatModel. Prints when it was imported, loaded and had acted
(time.time()), and the action.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from .workload import THE_WINDOW, step_arguments


def main() -> None:
    name, dtype, folder = sys.argv[1:4]
    agent: Any
    if name == "JatEngine":
        from .. import JatEngine

        imported = time.time()
        agent = JatEngine.from_pretrained(folder, device="cpu", dtype=dtype)
    else:
        from .peers.jat import ModelPeer

        imported = time.time()
        agent = ModelPeer.load(Path(folder), dtype, "cpu").open(THE_WINDOW)
    loaded = time.time()
    action = agent.get_next_action(**step_arguments("continuous", 0))
    print(json.dumps({"imported": imported, "loaded": loaded, "acted": time.time(), "action": action}))


if __name__ == "__main__":
    main()
