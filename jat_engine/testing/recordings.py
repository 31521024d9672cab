"""Recorded observations of real environments, shipped with the package; reading them needs no simulator.

`python -m jat_engine.testing.record_observations` makes the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config import FRAME_SHAPE
from ..envs import TASKS, Task
from .spaces import Box, Discrete

FILE = Path(__file__).with_name("recordings.npz")


@dataclass(frozen=True)
class Recording:
    """Consecutive steps of one episode, as an agent is given them.

    Attributes:
        task: what was played.
        action_space: of the environment.
        observations: [L] keyword arguments of `get_next_action`.
        rewards: [L], of the action before; None at the first step.
    """

    task: Task
    action_space: Box | Discrete
    observations: list[dict[str, Any]]
    rewards: list[float | None]

    @property
    def missions(self) -> list[str]:
        """Return the different missions, in order."""
        texts = (observation.get("text_observation") for observation in self.observations)
        return list(dict.fromkeys(text for text in texts if text is not None))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the fields as arrays without Python objects. Of stacked frames each frame is kept once."""
        arrays: dict[str, np.ndarray] = {"rewards": np.array([reward or 0.0 for reward in self.rewards], np.float32)}
        if isinstance(self.action_space, Box):
            arrays["num_values"] = np.array(self.action_space.shape[0])
        else:
            arrays["num_choices"] = np.array(self.action_space.n)

        columns = {key: [o[key] for o in self.observations] for key in self.observations[0]}
        if "continuous_observation" in columns:
            arrays["continuous"] = np.array(columns["continuous_observation"], np.float32)
        elif "image_observation" in columns:
            stacks = np.array(columns["image_observation"])
            frames = [*np.moveaxis(stacks[0], -1, 0), *stacks[1:, ..., -1]]
            arrays["frames"] = np.array(frames)
            assert np.array_equal(_stack(arrays["frames"]), stacks), "every step shifts the frames by one"
        else:
            arrays["discrete"] = np.array(columns["discrete_observation"], np.uint8)
            arrays["missions"] = np.array(columns["text_observation"])
        return arrays

    @classmethod
    def from_arrays(cls, task: str, arrays: dict[str, np.ndarray]) -> Recording:
        """Invert `to_arrays`."""
        observations: list[dict[str, Any]]
        if "continuous" in arrays:
            observations = [{"continuous_observation": values} for values in arrays["continuous"]]
        elif "frames" in arrays:
            observations = [{"image_observation": stack} for stack in _stack(arrays["frames"])]
        else:
            observations = [
                {"discrete_observation": values.astype(np.int64), "text_observation": str(mission)}
                for values, mission in zip(arrays["discrete"], arrays["missions"], strict=True)
            ]
        space: Box | Discrete
        if "num_values" in arrays:
            space = Box(-1, 1, (int(arrays["num_values"]),))
        else:
            space = Discrete(int(arrays["num_choices"]))
        return cls(TASKS[task], space, observations, [None, *map(float, arrays["rewards"][1:])])


def load_recordings(file: Path = FILE) -> list[Recording]:
    """Read all recordings of a file, in the order they were saved."""
    fields: dict[str, dict[str, np.ndarray]] = {}
    with np.load(file, allow_pickle=False) as archive:
        for key in archive.files:
            task, _, name = key.partition("/")
            fields.setdefault(task, {})[name] = archive[key]
    return [Recording.from_arrays(task, arrays) for task, arrays in fields.items()]


def save_recordings(recordings: list[Recording], file: Path = FILE) -> None:
    """Write recordings of different tasks as one compressed `.npz`; the same arrays give the same bytes."""
    arrays = {f"{r.task.name}/{name}": array for r in recordings for name, array in r.to_arrays().items()}
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # its keywords are typed as allow_pickle


def _stack(frames: np.ndarray) -> np.ndarray:
    """Stack each frame with the three before it: uint8 [L + 3, 84, 84] -> [L, 84, 84, 4]."""
    count = FRAME_SHAPE[-1]
    windows = np.lib.stride_tricks.sliding_window_view(frames, count, axis=0)
    return np.ascontiguousarray(windows)
