"""Write a checkpoint of jat-mini's architecture with random weights, whose sizes fit all 157 published tasks.

`python -m benchmarks.random_agent FOLDER` writes it; `jat-engine eval` plays it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from jat_engine import JatConfig, JatModel, JatProcessor
from jat_engine.checkpoint_files import JAT_MINI_FOLDER

MAX_CONTINUOUS_SIZE = 377
"""Numbers of an observation, with the reward: mujoco-humanoid's are the most."""


def write_random_agent(folder: Path) -> Path:
    """Write the checkpoint; the weights are the same each time."""
    config = JatConfig.from_pretrained(JAT_MINI_FOLDER)
    config.max_continuous_size = MAX_CONTINUOUS_SIZE
    torch.manual_seed(0)
    JatModel(config).save_pretrained(folder)
    JatProcessor.from_pretrained(JAT_MINI_FOLDER).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    write_random_agent(Path(sys.argv[1]))
