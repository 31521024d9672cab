"""Play steps of a small model through a `_cuda_emulator` module: cuda_step_sequence.py FOLDER.

Run in a separate process, since ThreadSanitizer must be loaded from its start.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from helpers import cuda_emulator


def main(folder: Path) -> None:
    module = cuda_emulator.load(folder)
    for num_blocks in (4, 10):  # the last cluster of five has no head
        model = cuda_emulator.Model(cuda_emulator.Sizes(), "float32", 0)
        random = np.random.default_rng(1)
        options = {"num_blocks": num_blocks, "cluster_size": 2, "num_threads": 96, "max_slots": 3}
        driver = cuda_emulator.Driver(module, model, timeout_us=300_000_000, **options)
        for context, count in ((0, 1), (0, 3), (29, 3), (45, 3)):
            driver.step.seed = context
            plan = cuda_emulator.random_plan(model, random, context, count, 3)
            cuda_emulator.fill_context(model, random, plan)
            driver.run(plan)
    print("played")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
