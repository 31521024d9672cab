"""Measure how long episodes of the published tasks are, played by the random policy.

`python -m benchmarks.expected_lengths` writes `jat_engine/runs/expected_lengths.csv`, by which `jat-engine eval` plays
the longest tasks first.
"""

from __future__ import annotations

import contextlib
import csv
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from jat_engine.envs import TASKS
from jat_engine.evaluation.environment import evaluation_env
from jat_engine.evaluation.progress import simulator_output
from jat_engine.evaluation.random_policy import RANDOM_SEED, play_randomly

EPISODES = 3
FILE = Path(__file__).parents[1] / "jat_engine/runs/expected_lengths.csv"


def main() -> int:
    with FILE.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["task", "steps"])
        for name, task in tqdm(TASKS.items()):
            with simulator_output(), contextlib.closing(evaluation_env(task)) as env:
                lengths = [play_randomly(task, env, RANDOM_SEED + index)[1] for index in range(EPISODES)]
            rows.writerow([name, round(float(np.mean(lengths)))])
    return 0


if __name__ == "__main__":
    sys.exit(main())
