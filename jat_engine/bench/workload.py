"""Make what is measured: observations of the three kinds, checkpoints of the published sizes. Needs no gymnasium."""

from __future__ import annotations

import contextlib
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint_files import JAT_MINI, resolve
from ..config import PRESETS, JatConfig
from ..testing.spaces import Box, Discrete

SPACES: dict[str, Any] = {"continuous": Box(-1, 1, (8,)), "babyai": Discrete(7), "atari": Discrete(18)}
"""Modality -> action space: of an Ant, of BabyAI, and of Atari with all its actions."""

REWARD = 0.1
"""Reward of every step but an episode's first, where agents differ: a session ignores it, a drop-in agent does not."""

# ---- observations ----------------------------------------------------------------------------------------------------


def observation(kind: str, step: int, seed: int = 0) -> dict[str, Any]:
    """Return 27 numbers, 148 integers with a mission, or four frames: random, the same for the same arguments."""
    rng = np.random.default_rng([seed, step])
    if kind == "continuous":
        return {"continuous_observation": rng.standard_normal(27).astype(np.float32)}
    if kind == "babyai":
        return {"discrete_observation": rng.integers(0, 8, 148), "text_observation": "go to the red ball"}
    return {"image_observation": rng.integers(0, 256, (84, 84, 4), dtype=np.uint8)}


def step_arguments(kind: str, step: int, seed: int = 0) -> dict[str, Any]:
    """Return keyword arguments of `get_next_action`."""
    reward = REWARD if step else None
    return {**observation(kind, step, seed), "action_space": SPACES[kind], "reward": reward, "deterministic": True}


def batch_arguments(num_agents: int, step: int) -> dict[str, Any]:
    """Return keyword arguments of `AgentBatch.get_next_actions`, for agents with continuous observations."""
    shape = observation("continuous", step)["continuous_observation"].shape
    return {
        "continuous_observations": np.random.default_rng([1, step]).standard_normal((num_agents, *shape), np.float32),
        "rewards": np.full(num_agents, REWARD, np.float32) if step else None,
        "action_space": SPACES["continuous"],
    }


# ---- windows ---------------------------------------------------------------------------------------------------------

THE_WINDOW = 256
"""Tokens that the published evaluation lets agents of most tasks look back on: taken where one window is measured."""

OTHER_WINDOWS = (64,)
"""Windows of models other than the first: they take long to fill."""


def longest_window(config: JatConfig) -> int:
    """Return the most tokens that an agent of this size can look back on; an even number, a step being two tokens."""
    limit = config.max_context_tokens
    return limit - limit % 2


def fitting_windows(wanted: Iterable[int], config: JatConfig) -> list[int]:
    """Return the windows, as far as the model's positions allow; in order, each once."""
    return sorted({min(window, longest_window(config)) for window in wanted})


def main_window(windows: Iterable[int]) -> int:
    """Return `THE_WINDOW` where it is among the windows, else the longest."""
    found = list(windows)
    return THE_WINDOW if THE_WINDOW in found else max(found)


# ---- checkpoints -----------------------------------------------------------------------------------------------------


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
    """Give a folder with a checkpoint: that folder, jat-mini's, or for a preset one with random weights.

    The small one is kept for the next run; larger ones, which take gigabytes, are not.
    """
    found = check_model(model)
    if found is not None:
        yield found
    elif model == "small":
        yield random_checkpoint(model, Path(tempfile.gettempdir()) / "jat-engine-benchmark-small-2")
    else:
        with tempfile.TemporaryDirectory(prefix="jat-engine-benchmark-") as folder:
            yield random_checkpoint(model, Path(folder) / model)


def random_checkpoint(preset: str, folder: Path) -> Path:
    """Write a model of a published size with random weights, unless it is there; return its folder.

    Weights follow the recipe of the recorded answers' model, which keeps activations and attention scores of order one
    at any size. Else scores would grow with the size, until the largest key alone counted and rounding decided which.
    """
    if (folder / "complete").exists():
        return folder
    import torch
    from safetensors.torch import save_file

    from .. import JatProcessor
    from ..checkpoint.weights import checkpoint_shapes
    from ..testing.golden import scaled

    config = JatConfig.from_preset(preset)
    dtype = torch.float32 if preset == "small" else torch.bfloat16
    config.dtype = dtype
    config.architectures = ["JatModel"]
    head_dim = config.hidden_size // config.num_heads
    tensors = {}
    for name, shape in checkpoint_shapes(config).items():
        x = np.random.default_rng([0, zlib.crc32(name.encode())]).standard_normal(shape, np.float32)
        tensors[name] = torch.from_numpy(scaled(name, x, head_dim)).to(dtype)

    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config.save_pretrained(folder)
    JatProcessor.byte_level(config).save_pretrained(folder)
    (folder / "complete").touch()
    return folder
