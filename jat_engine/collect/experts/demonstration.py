"""One episode played by an expert, in the published columns."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import gymnasium

    from ...envs import Task

Columns = dict[str, "np.ndarray | list[str]"]

_COLUMN_OF = {
    "continuous_observation": "continuous_observations",
    "discrete_observation": "discrete_observations",
    "text_observation": "text_observations",
    "image_observation": "image_observations",
}


class ExpertLostError(RuntimeError):
    """The expert does not know how to go on; the episode counts as a failure."""


class Expert(Protocol):
    """What knows the right action. It may read the simulator's state, which an agent cannot."""

    def reset(self) -> None:
        """The environment was reset."""

    def act(self, observation: dict[str, Any]) -> Any:
        """The action for the environment's current state: an int, or float32 [A]. Called once a step.

        Raises:
            ExpertLostError: it has none.
        """

    def executed(self, action: Any) -> None:
        """What was really executed after the last `act`; it differs from the expert's action if noise was added."""


@dataclass(frozen=True)
class Demonstration:
    """One finished episode.

    Attributes:
        columns: published column name -> one entry a step. `continuous_observations` float32 [L, X],
            `discrete_observations` int64 [L, 148], `text_observations` L strings, `image_observations` uint8
            [L, 84, 84, 4], `continuous_actions` float32 [L, A], `discrete_actions` int64 [L], `rewards` float32 [L].
            Actions are the expert's, also where something else was executed.
        return_: sum of the environment's rewards.
        success: whether the task was solved; None for tasks without a notion of it. False too if the expert was lost;
            the episode, which can be empty, then ends there.
        seed: of the environment and of the noise.
        noise: as given to `demonstrate`.
    """

    columns: Columns
    return_: float
    length: int
    success: bool | None
    seed: int
    noise: float


def demonstrate(
    env: gymnasium.Env[Any, Any],
    expert: Expert,
    *,
    task: Task,
    seed: int,
    noise: float = 0.0,
    on_step: Callable[[int, float], None] | None = None,
) -> Demonstration:
    """Let an expert play one whole episode.

    Noise leads the expert into states that an agent's own mistakes lead to, and records what to do there (DART,
    arXiv 1703.09327).

    Args:
        env: of the task; for Atari with `clip_reward=False`.
        seed: the episode depends on it, on `noise` and on nothing that ran before.
        noise: continuous actions: standard deviation of a Gaussian added to what is executed. Discrete actions: the
            probability, at each step, of executing a random one instead. Every second episode (odd seeds) is played
            with noise, so that what the expert does undisturbed is there too.
        on_step: called with the number of steps and the return so far.
    """
    check_noise(task, noise)
    rng = np.random.default_rng(seed)
    disturbed = noise > 0 and seed % 2 == 1
    observation, _ = env.reset(seed=seed)
    expert.reset()
    steps: dict[str, list[Any]] = {_COLUMN_OF[key]: [] for key in observation}
    actions: list[Any] = []
    rewards: list[float] = []
    total, done, solved, lost = 0.0, False, False, False
    while not done:
        try:
            action = expert.act(observation)
        except ExpertLostError:
            lost = True
            break
        for key, value in observation.items():
            steps[_COLUMN_OF[key]].append(value)
        executed = _disturb(action, env.action_space, noise, rng) if disturbed else action
        expert.executed(executed)
        observation, reward, terminated, truncated, info = env.step(executed)
        actions.append(action)
        rewards.append(float(reward))
        total += float(reward)
        solved = solved or bool(info.get("success", False))
        done = terminated or truncated
        if done and task.domain == "atari" and "episode" not in info:
            observation, _ = env.reset()  # a life was lost; the game goes on
            done = False
        if on_step is not None:
            on_step(len(rewards), total)
    columns: Columns = {key: _column(key, values) for key, values in steps.items()}
    if _is_discrete(task):
        columns["discrete_actions"] = np.asarray(actions, np.int64)
    else:
        columns["continuous_actions"] = np.asarray(actions, np.float32)
    columns["rewards"] = np.asarray(rewards, np.float32)
    success = False if lost else _success(task, total, solved)
    return Demonstration(columns, total, len(rewards), success, seed, noise if disturbed else 0.0)


def check_noise(task: Task, noise: float) -> None:
    """Raises `ValueError` unless `noise` is what `demonstrate` takes."""
    if _is_discrete(task) and not 0 <= noise <= 1:
        raise ValueError(f"noise: expected a probability for {task.name}, got {noise}")
    if not (math.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise: expected a finite number of at least 0, got {noise}")


def _is_discrete(task: Task) -> bool:
    return task.observation != "continuous"


def _disturb(action: Any, space: Any, noise: float, rng: np.random.Generator) -> Any:
    if np.ndim(action) == 0:
        return int(rng.integers(space.n)) if rng.random() < noise else action
    moved = action + rng.normal(0.0, noise, np.shape(action))
    return np.clip(moved, space.low, space.high).astype(np.float32)


def _column(name: str, values: list[Any]) -> np.ndarray | list[str]:
    if name == "text_observations":
        return list(values)
    dtype = {"continuous_observations": np.float32, "discrete_observations": np.int64, "image_observations": np.uint8}
    return np.asarray(values, dtype[name])


def _success(task: Task, total: float, solved: bool) -> bool | None:
    if task.domain == "metaworld":
        return solved
    return total > 0 if task.domain == "babyai" else None
