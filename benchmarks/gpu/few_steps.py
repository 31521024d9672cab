"""Take a few steps of one path, for tools that watch: `python -m benchmarks.gpu.few_steps FOLDER PATH STEPS WARM`.

After WARM steps the profiler's range begins (cudaProfilerStart), then come STEPS more.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from jat_engine.backends.cuda import persistent
from jat_engine.bench.workload import step_arguments
from jat_engine.testing import golden

from .paths import fallen_back, open_path


def main() -> None:
    folder, name, steps, warm = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    is_tiny = folder.name == "tiny"
    persistent.TIMEOUT_US = 20_000_000  # tools that watch make everything slow
    peer = open_path(name, folder, device)

    kinds = ("continuous_cw9", "babyai_sampled", "atari_sampled_cw8") if is_tiny else ("continuous",)
    for kind in kinds:
        agent = peer.open(8 if is_tiny else 64)
        for step in range(warm + steps):
            if step == warm and device == "cuda":
                torch.cuda.synchronize()
                torch.cuda.profiler.start()
            if is_tiny:
                episode = next(e for e in golden.EPISODES if e.name == kind)
                arguments = {**episode.observation(step), "action_space": episode.space, "deterministic": True}
            else:
                arguments = step_arguments(kind, step)
            _, prediction = agent.get_next_action(**arguments, return_prediction=True)
            assert np.isfinite(prediction).all(), "the prediction is not finite"

    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()
    reason = fallen_back(name, peer)
    assert not reason, f"the persistent kernel was given up: {reason}"
    print(f"{name}: {len(kinds)} x {warm + steps} steps")


if __name__ == "__main__":
    main()
