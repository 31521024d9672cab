"""Play whole golden episodes through the engine and a `_cuda_emulator` module: cuda_golden_run.py FOLDER EPISODE ...

Run in a separate process, since ThreadSanitizer must be loaded from its start.
"""

from __future__ import annotations

import os
import sys
import tempfile
from functools import partial
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"

from helpers import cuda_emulator
from jat_engine import JatEngine
from jat_engine.backends.cuda import persistent
from jat_engine.testing import golden


def main(folder: Path, names: list[str]) -> None:
    module = cuda_emulator.load(folder)
    # Few threads: each is many times slower under the sanitizer.
    module.Step = partial(module.Step, num_blocks=4, cluster_size=2, num_threads=96, max_slots=4)  # type: ignore[attr-defined]
    sys.modules["jat_engine._cuda"] = module
    persistent.TIMEOUT_US = 600_000_000  # under the sanitizer everything is slow
    with tempfile.TemporaryDirectory() as checkpoint:
        options = {"device": "cpu", "backend": "cuda", "dtype": "float32", "persistent": True, "max_cached_tokens": 128}
        engine = JatEngine.from_pretrained(golden.write_checkpoint(Path(checkpoint)), **options)
    for episode in golden.EPISODES:
        if episode.name in names:
            golden.check_episode(engine, None, episode, 1e-5)
            assert engine.memory["persistent"] > 0, "the step was given up"
            print("played", episode.name, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
