"""Read recorded answers of the published implementation on a tiny model; make its weights and inputs.

`golden_data` holds outputs only (transformers 4.36.2, torch 2.13, float32); weights and inputs are made here from
seeds, and the checkpoint that is written is an ordinary folder: config, tokenizer, safetensors.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from . import spaces

FOLDER = Path(__file__).parent / "golden_data"
INDEX: dict[str, Any] = json.loads((FOLDER / "index.json").read_text())
OUTPUTS = np.load(FOLDER / "outputs.npz")
SEED: int = INDEX["seed"]
CONFIG: dict[str, Any] = INDEX["config"]

MISSIONS = (
    "go to the red ball",
    "pick up a blue key",
    "open the door",
    "put the green box next to the purple ball",
)


def relative_error(actual: Any, expected: Any) -> float:
    """Return the norm of the difference over the norm of what was expected."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


# ---- weights -------------------------------------------------------------------------------------------------------


def weight(name: str, shape: list[int]) -> np.ndarray:
    """Return a parameter, float32, made from its name."""
    x = np.random.default_rng([SEED, zlib.crc32(name.encode())]).standard_normal(shape).astype(np.float32)
    return scaled(name, x)


def scaled(name: str, x: np.ndarray, head_dim: int = 16) -> np.ndarray:
    """Turn standard normal numbers into a parameter.

    Args:
        name: of the parameter.
        x: float32, of its shape.
        head_dim: of the model; queries and keys are scaled so that scores spread as the recorded model's, of 16.
    """
    if x.ndim == 1:
        return 1 + np.float32(0.1) * x if name.endswith(".weight") else np.float32(0.05) * x
    if name in ("transformer.wte.weight", "transformer.wpe.weight"):
        return np.float32(0.5) * x
    gain = 1.0
    if ".q_proj." in name or ".k_proj." in name:
        gain = 0.7 * (16 / head_dim) ** 0.25
    elif name.startswith("single_discrete_decoder"):
        gain = 2.0
    return x * np.float32(gain / np.sqrt(np.prod(x.shape[1:])))


def weights() -> dict[str, np.ndarray]:
    """Return all parameters by name."""
    shapes = json.loads((FOLDER / "keys.json").read_text())
    return {name: np.ascontiguousarray(weight(name, shape)) for name, shape in shapes.items()}


def write_checkpoint(folder: Path, tensors: dict[str, np.ndarray] | None = None) -> Path:
    """Write a checkpoint folder as the published code does; return it."""
    shutil.copytree(FOLDER / "checkpoint", folder, dirs_exist_ok=True)
    save_file(tensors if tensors is not None else weights(), folder / "model.safetensors", {"format": "pt"})
    return folder


# ---- episodes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Episode:
    """Recorded steps of one agent.

    Attributes:
        name: unique.
        kind: of the observations: "continuous", "discrete", "image" or "babyai", integers with a mission.
        dim: values of a continuous observation.
        action_space: ("box" or "discrete", size).
        context_window: tokens the agent looked back on; None for as many as there can be.
        steps: how many.
        deterministic: whether discrete actions were the most likely ones.
        seed: of observations, rewards and sampling.
        reset: whether the recording was made after `reset_rl`.
        actions: chosen, of a discrete action space.
    """

    name: str
    kind: str
    dim: int | None
    action_space: tuple[str, int]
    context_window: int | None
    steps: int
    deterministic: bool
    seed: int
    reset: bool
    actions: list[int] | None

    @property
    def space(self) -> spaces.Box | spaces.Discrete:
        """The action space, as gymnasium has it."""
        kind, size = self.action_space
        return spaces.Box(-1, 1, (size,)) if kind == "box" else spaces.Discrete(size)

    @property
    def predictions(self) -> list[np.ndarray]:
        """float32 [A] or [n] of each step."""
        return list(OUTPUTS[f"{self.name}.out"][: self.steps])

    def beginning(self, steps: int) -> Episode:
        """Return its first steps as an episode."""
        return replace(self, steps=min(steps, self.steps), actions=self.actions and self.actions[:steps])

    def observation(self, t: int) -> dict[str, Any]:
        """Return the fields of step t."""
        rng = np.random.default_rng([self.seed, t])
        size = 212
        if self.kind == "continuous":
            return {"continuous_observation": rng.standard_normal(self.dim).astype(np.float32)}
        if self.kind == "discrete":
            return {"discrete_observation": rng.integers(0, 8, size)}
        if self.kind == "image":
            return {"image_observation": rng.integers(0, 256, (84, 84, 4), dtype=np.uint8)}
        text = MISSIONS[rng.integers(4)] if t % 3 == 0 else MISSIONS[0]
        return {"text_observation": text, "discrete_observation": rng.integers(0, 8, size - 64)}

    def reward(self, t: int) -> float | None:
        """Return the reward of step t; None in the first."""
        return None if t == 0 else float(np.random.default_rng([self.seed, t - 1, 1]).standard_normal())


EPISODES = [Episode(**{**e, "action_space": tuple(e["action_space"])}) for e in INDEX["episodes"]]


def check_episode(agent: Any, processor: Any, episode: Episode, tolerance: float) -> None:
    """Play an episode through the published drop-in call: the recorded predictions and, sampled ones too, actions."""
    agent.reset_rl()
    torch.manual_seed(episode.seed)
    predictions, actions = [], []
    for t in range(episode.steps):
        action, prediction = agent.get_next_action(
            processor,
            **episode.observation(t),
            action_space=episode.space,
            reward=episode.reward(t),
            deterministic=episode.deterministic,
            context_window=episode.context_window,
            return_prediction=True,
        )
        assert prediction.dtype == np.float32
        predictions.append(prediction)
        actions.append(action)

    if episode.actions is not None:
        assert actions == episode.actions
        assert all(type(action) is int for action in actions)
    else:
        assert actions == np.asarray(predictions).tolist()
    assert relative_error(predictions, episode.predictions) <= tolerance


# ---- forward and generate ------------------------------------------------------------------------------------------


def _rl_case(name: str, number: int) -> dict[str, Any]:
    _, observation, action, *rest = name.split("_")
    masked = not rest
    rng = np.random.default_rng(SEED * 100 + (50 + number if masked else 60))
    batch, length = (3, 10) if masked else (2, 6)
    inputs: dict[str, Any] = {}
    if observation == "continuous":
        inputs["continuous_observations"] = rng.standard_normal((batch, length, 13)).astype(np.float32)
    elif observation == "discrete":
        inputs["discrete_observations"] = rng.integers(0, 200, (batch, length, 212))
    else:
        frames = rng.integers(0, 256, (batch, length, 4, 84, 84))
        inputs["image_observations"] = ((frames / 255 - 0.5) / 0.5).astype(np.float32)
    if action == "continuous":
        inputs["continuous_actions"] = rng.standard_normal((batch, length, 5)).astype(np.float32)
    else:
        inputs["discrete_actions"] = rng.integers(0, 18, (batch, length))

    inputs["rewards"] = rng.standard_normal((batch, length)).astype(np.float32)
    mask = np.ones((batch, length), dtype=np.int64)
    for row in range(1, batch):
        mask[row, length - row :] = 0
    inputs["attention_mask"] = mask
    if masked:
        inputs["loss_weight"] = rng.uniform(0.5, 10, (batch, length)).astype(np.float32)
    return inputs


def text_ids() -> np.ndarray:
    """Return token numbers, int64 [2, 16]."""
    return np.random.default_rng(SEED * 100 + 70).integers(0, 250, (2, 16))


def pixel_values() -> np.ndarray:
    """Return images, float32 [2, 3, size, size]."""
    size = CONFIG["image_size"]
    rng = np.random.default_rng(SEED * 100 + 71)
    return rng.standard_normal((2, 3, size, size)).astype(np.float32)


def forward_cases() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield pairs of a recorded case and its inputs as arrays."""
    for number, case in enumerate(INDEX["forward"]):
        name = case["name"]
        if name.startswith("forward_"):
            yield case, _rl_case(name, number)
            continue
        inputs: dict[str, Any] = {"input_ids": text_ids()}
        if name == "text_masked":
            mask = np.ones((2, 16), dtype=np.int64)
            mask[1, 10:] = 0
            inputs["attention_mask"] = mask
        elif name == "image_text":
            inputs["pixel_values"] = pixel_values()
        yield case, inputs
