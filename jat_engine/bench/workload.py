"""What is measured: observations of the three kinds, and checkpoints of the published sizes. Needs no gymnasium."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint_files import JAT_MINI, resolve
from ..config import PRESETS
from ..testing.spaces import Box, Discrete

SPACES: dict[str, Any] = {"continuous": Box(-1, 1, (8,)), "babyai": Discrete(7), "atari": Discrete(18)}
"""Modality -> action space: of an Ant, of BabyAI, and of Atari with all its actions."""

REWARD = 0.1


def observation(kind: str, step: int, seed: int = 0) -> dict[str, Any]:
    """27 numbers, 148 integers with a mission, or four frames: random, the same for the same arguments."""
    rng = np.random.default_rng([seed, step])
    if kind == "continuous":
        return {"continuous_observation": rng.standard_normal(27).astype(np.float32)}
    if kind == "babyai":
        return {"discrete_observation": rng.integers(0, 8, 148), "text_observation": "go to the red ball"}
    return {"image_observation": rng.integers(0, 256, (84, 84, 4), dtype=np.uint8)}


def step_arguments(kind: str, step: int, seed: int = 0) -> dict[str, Any]:
    """Keyword arguments of `get_next_action`."""
    return {**observation(kind, step, seed), "action_space": SPACES[kind], "reward": REWARD, "deterministic": True}


OTHER_WINDOWS = (64,)
"""Windows of models other than the first: they take long to fill."""


def check_model(model: str) -> Path | None:
    """Return a checkpoint's folder; None for a preset. Raises `ValueError` if it is neither."""
    if model in PRESETS:
        return None
    folder = Path(resolve(model))
    if not folder.is_dir():
        raise ValueError(f"--models: expected a folder or one of {', '.join((*PRESETS, JAT_MINI))}, got {model}")
    return folder


@contextlib.contextmanager
def open_checkpoint(model: str) -> Iterator[Path]:
    """A folder with a checkpoint: that folder, jat-mini's, or for a preset one with random weights.

    The small one is kept for the next run; larger ones, which take gigabytes, are not.
    """
    found = check_model(model)
    if found is not None:
        yield found
    elif model == "small":
        yield random_checkpoint(model, Path(tempfile.gettempdir()) / "jat-engine-benchmark-small")
    else:
        with tempfile.TemporaryDirectory(prefix="jat-engine-benchmark-") as folder:
            yield random_checkpoint(model, Path(folder) / model)


def random_checkpoint(preset: str, folder: Path) -> Path:
    """A model of a published size with random weights, as `save_pretrained` writes it; made unless it is there."""
    import torch

    from .. import JatConfig, JatModel, JatProcessor

    if not (folder / "complete").exists():
        config = JatConfig.from_preset(preset)
        torch.manual_seed(0)
        model: Any = JatModel(config)
        _spread_scores_alike(model)
        model.to(torch.float32 if preset == "small" else torch.bfloat16).save_pretrained(folder)
        JatProcessor.byte_level(config).save_pretrained(folder)
        (folder / "complete").touch()
    return folder


def _spread_scores_alike(model: Any) -> None:
    """Scale keys so that attention scores of random weights spread as in the small model, whatever the size.

    They grow with hidden_size * sqrt(head_dim) else, until the largest key alone counts and rounding decides which.
    """
    config = model.config
    scale = 768 * 64**0.5 / (config.hidden_size * (config.hidden_size // config.num_heads) ** 0.5)
    for block in model.transformer.h:
        block.attn.attention.k_proj.weight.data.mul_(scale)
