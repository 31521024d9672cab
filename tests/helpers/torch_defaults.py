"""Program: play steps of recorded episodes with other defaults of torch, and compare predictions.

python -m helpers.torch_defaults CHECKPOINT BACKEND
"""

from __future__ import annotations

import sys

import torch

from helpers.batches import observations
from helpers.engines import EPISODE, TOLERANCE, play
from jat_engine import JatEngine
from jat_engine.testing.golden import relative_error

STEPS = {"continuous_cw9": 2, "babyai_sampled": 1, "atari_greedy_full": 1}


def main() -> None:
    folder, backend = sys.argv[1:]
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")

    with torch.autocast("cpu", dtype=torch.bfloat16):
        check(folder, backend)


def check(folder: str, backend: str) -> None:
    on_gpu = backend == "cuda" and torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    engine = JatEngine.from_pretrained(folder, device=device, backend=backend, dtype="float32", max_cached_tokens=640)
    for name, steps in STEPS.items():
        episode = EPISODE[name]
        with engine.open_session(episode.context_window, seed=0) as session:
            predictions = [play(session, episode, t)[1] for t in range(steps)]
        assert relative_error(predictions, episode.predictions[: len(predictions)]) <= TOLERANCE, name

    episode = EPISODE["continuous_cw9"]
    with engine.open_batch(2, seed=0) as batch:
        step = observations(episode, [0, 0])
        _, predictions = batch.get_next_actions(**step, action_space=episode.space, return_predictions=True)
    assert relative_error(predictions, [episode.predictions[0]] * 2) <= TOLERANCE


if __name__ == "__main__":
    main()
