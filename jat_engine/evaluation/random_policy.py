"""Returns of the random policy, the zero of normalised scores."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .checked_env import CheckedEnv
from .environment import evaluation_env

if TYPE_CHECKING:
    import gymnasium

    from ..envs import Task

RANDOM_SEED = 2_000_000
"""Seed of the first measured episode, apart from demonstrations (from 0) and evaluations (from 1,000,000)."""

RANDOM_EPISODES = 20
"""Episodes that are measured if no other number is asked for."""

_STREAM = 7_919
"""Keeps the policy's random numbers apart from those that the environment draws from the same seed."""


class RandomPolicy:
    """Uniform random actions.

    Args:
        space: of the actions. Values of a `Box` without bounds are normally distributed, as Gymnasium samples them.
    """

    def __init__(self, space: gymnasium.Space[Any]) -> None:
        self._space = copy.deepcopy(space)  # the environment's own may be sampled by others

    def seed(self, seed: int) -> None:
        """Begin the actions of an episode, which depend on its seed alone."""
        self._space.seed(action_seed(seed))

    def act(self) -> Any:
        """Return the next action: an int, or float32 [A]."""
        action = self._space.sample()
        return int(action) if np.ndim(action) == 0 else action


def action_seed(seed: int) -> int:
    """Return the seed of an action space for the episode of a seed, apart from what the environment draws from it."""
    return int(np.random.default_rng([seed, _STREAM]).integers(2**32))


def play_randomly(
    task: Task, env: gymnasium.Env[Any, Any], seed: int, on_step: Callable[[], None] | None = None
) -> tuple[float, int]:
    """Play one episode with the random policy, and return the sum of its rewards and its number of steps.

    Args:
        task: the task of `env`.
        env: as `evaluation_env` returns it.
        seed: the episode depends on it alone.
        on_step: called after each step.

    Raises:
        DataError: see `CheckedEnv`.
    """
    episode, policy = CheckedEnv(task, env), RandomPolicy(env.action_space)
    episode.reset(seed)
    policy.seed(seed)

    total, steps, ended = 0.0, 0, False
    while not ended:
        _, reward, ended, _ = episode.step(policy.act())
        total, steps = total + reward, steps + 1
        if on_step is not None:
            on_step()
    return total, steps


def measure_random(task: Task, num_episodes: int = RANDOM_EPISODES, seed: int = RANDOM_SEED) -> dict[str, float]:
    """Play episodes with the random policy in this process, and return their score.

    Args:
        task: the task.
        num_episodes: at least 1.
        seed: of the first episode; each has the next.

    Returns:
        See `score`.

    Raises:
        DataError: see `CheckedEnv`.
        MissingSimulatorError: the simulator is not installed.
        TaskError: the environment cannot be made.

    Example:
        >>> from jat_engine.envs import get_task
        >>> from jat_engine.evaluation.random_policy import measure_random
        >>> measured = measure_random(get_task("gym:CartPole-v1"), num_episodes=5)
        >>> 9 < measured["mean"] < 60
        True
    """
    with contextlib.closing(evaluation_env(task)) as env:
        return score([play_randomly(task, env, seed + i)[0] for i in range(num_episodes)])


def score(returns: Sequence[float]) -> dict[str, float]:
    """Return "mean", "std" and "episodes" of returns, as `collection.json` keeps them."""
    return {"mean": float(np.mean(returns)), "std": float(np.std(returns)), "episodes": len(returns)}
