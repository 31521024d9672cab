"""Make small datasets in the published layout from seeds, and a tiny model for them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import jat_engine

CONFIG = {
    "hidden_size": 52,
    "num_layers": 2,
    "num_heads": 2,
    "max_position_embeddings": 24,
    "window_size": 8,
    "max_continuous_size": 40,
    "vocab_size": 257,
    "image_size": 32,
    "bos_token_id": 256,
    "eos_token_id": 256,
}
MISSIONS = ("go to the red ball", "open the door", "pick up a blue key")


def tiny_config() -> jat_engine.JatConfig:
    return jat_engine.JatConfig(**CONFIG)


def episode(kind: str, length: int, seed: int) -> dict[str, Any]:
    """Return the columns of one episode that an agent can learn: actions follow from observations."""
    rng = np.random.default_rng(seed)
    if kind == "continuous":
        observations = rng.standard_normal((length, 11)).astype(np.float32)
        columns: dict[str, Any] = {
            "continuous_observations": observations,
            "continuous_actions": np.tanh(observations[:, :3]),
        }
    elif kind == "discrete":
        observations = rng.integers(0, 8, (length, 148))
        columns = {
            "text_observations": [MISSIONS[int(rng.integers(3))]] * length,
            "discrete_observations": observations,
            "discrete_actions": observations[:, 0] % 7,
        }
    else:
        pictures = rng.integers(0, 256, (length, 84, 84), dtype=np.uint8)
        stacks = [np.stack([pictures[max(0, t - k)] for k in (3, 2, 1, 0)], axis=-1) for t in range(length)]
        columns = {"image_observations": stacks, "discrete_actions": rng.integers(0, 6, length)}
    return {**columns, "rewards": rng.standard_normal(length).astype(np.float32)}


def png(frame: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(frame, "RGBA").save(buffer, "PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


def table(episodes: list[dict[str, Any]]) -> pa.Table:
    columns = {}
    for name in episodes[0]:
        values = [e[name] for e in episodes]
        if name == "image_observations":
            columns[name] = pa.array([[png(frame) for frame in value] for value in values])
        elif name == "text_observations":
            columns[name] = pa.array(values, pa.list_(pa.string()))
        else:
            kind = pa.float32() if np.asarray(values[0]).dtype.kind == "f" else pa.int64()
            nested = np.asarray(values[0]).ndim > 1
            columns[name] = pa.array(
                [[list(step) for step in value] if nested else list(value) for value in values],
                pa.list_(pa.list_(kind)) if nested else pa.list_(kind),
            )
    return pa.table(columns)


def write_split(folder: Path, task: str, split: str, episodes: list[dict[str, Any]]) -> Path:
    path = folder / task / f"{split}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(episodes), path, row_group_size=2)
    return path


KINDS = {"mujoco-hopper": "continuous", "babyai-go-to-local": "discrete", "atari-pong": "image"}
LENGTHS = {"mujoco-hopper": (30, 12, 25, 7), "babyai-go-to-local": (5, 9, 3, 14), "atari-pong": (14, 5)}


def write_dataset(folder: Path, tasks: Any = tuple(KINDS)) -> Path:
    """Write train and test splits of some tasks."""
    for number, task in enumerate(tasks):
        episodes = [episode(KINDS[task], n, 100 * number + i) for i, n in enumerate(LENGTHS[task])]
        write_split(folder, task, "train", episodes)
        write_split(folder, task, "test", [episode(KINDS[task], 6, 100 * number + 99)])
    return folder
