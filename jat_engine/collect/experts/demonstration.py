"""Record one episode of an expert in the published columns."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ...datasets.episode_columns import Columns, EpisodeColumns
from ...evaluation.checked_env import CheckedEnv

if TYPE_CHECKING:
    import gymnasium

    from ...envs import Task


class ExpertLostError(RuntimeError):
    """The expert has no action for the current state; the episode ends and counts as a failure."""


class ExpertError(ValueError):
    """Expert that cannot be made or loaded, or that has no proper action; the message has the address and the step."""


class Expert(Protocol):
    """Interface of experts. Unlike an agent, an expert may read the simulator's state.

    The first line of an implementation's docstring describes the expert in the data card. An expert that draws random
    numbers has a method `seed(seed)`, which is called with the episode's seed before `reset`.
    """

    def reset(self) -> None:
        """Prepare for a new episode. Called after the environment was reset."""

    def act(self, observation: dict[str, Any]) -> Any:
        """Return the action for the environment's current state. Called once per step.

        Args:
            observation: the environment's observation, as an agent gets it.

        Returns:
            An int for discrete actions, float32 [A] for continuous ones.

        Raises:
            ExpertLostError: the expert has no action for this state.
        """

    def executed(self, action: Any) -> None:
        """Note the action that was executed after the last `act`.

        Args:
            action: the expert's own, or another if noise was added.
        """


@dataclass(frozen=True)
class Demonstration:
    """One finished episode.

    Attributes:
        columns: published column name -> one entry a step. `continuous_observations` float32 [L, X],
            `discrete_observations` int64 [L, 148], `text_observations` L strings, `image_observations` uint8
            [L, 84, 84, 4], `continuous_actions` float32 [L, A], `discrete_actions` int64 [L], `rewards` float32 [L].
            Actions are the expert's, even where another was executed.
        return_: sum of the environment's rewards.
        length: steps, L; 0 if the expert was lost at once.
        success: True if the task was solved; None if the task does not define success. False if the expert was lost,
            which ends the episode.
        seed: seed of the environment and of the noise.
        noise: as given to `demonstrate`; 0 if this episode was not disturbed.
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

    Noise leads the expert to states that an agent reaches by its own mistakes, and the actions recorded there correct
    them (DART, arXiv 1703.09327).

    Args:
        env: environment of the task; for Atari made with `clip_reward=False`.
        expert: made by `make_expert` or `open_expert` for this environment.
        task: the task.
        seed: the episode depends on it and on `noise`, and on nothing that ran before.
        noise: for continuous actions, the standard deviation of Gaussian noise added to the executed action; for
            discrete ones, the probability of executing a random action at each step. Only episodes with odd seeds are
            disturbed, so that undisturbed ones are recorded too.
        on_step: called after each step with the number of steps and the return so far.

    Returns:
        The finished episode.

    Raises:
        ValueError: see `check_noise`.
        DataError: the environment returns a NaN or infinity, or its episode does not end.

    Example:
        >>> from jat_engine.collect.experts import demonstrate, make_expert
        >>> from jat_engine.envs import get_task, make
        >>> task = get_task("babyai-go-to-local")
        >>> env = make(task.name)
        >>> demonstration = demonstrate(env, make_expert(task, env), task=task, seed=0)
        >>> demonstration.columns["discrete_observations"].shape == (demonstration.length, 148)
        True
    """
    check_noise(task, noise)
    rng = np.random.default_rng(seed)
    disturbed = is_disturbed(seed, noise)
    episode = CheckedEnv(task, env)
    observation = episode.reset(seed)
    if hasattr(expert, "seed"):
        expert.seed(seed)
    expert.reset()

    steps = EpisodeColumns(task)
    total, length, done, solved, lost = 0.0, 0, False, False, False
    while not done:
        try:
            action = expert.act(observation)
        except ExpertLostError:
            lost = True
            break

        steps.observe(observation)
        executed = _disturb(action, env.action_space, noise, rng) if disturbed else action
        expert.executed(executed)
        observation, reward, done, info = episode.step(executed)

        steps.act(action, reward)
        total += reward
        length += 1
        solved = solved or bool(info.get("success", False))
        if on_step is not None:
            on_step(length, total)

    success = False if lost else _success(task, total, solved)
    return Demonstration(steps.columns(), total, length, success, seed, noise if disturbed else 0.0)


def is_disturbed(seed: int, noise: float) -> bool:
    """Return True if the episode of this seed is disturbed when episodes have this noise."""
    return noise > 0 and seed % 2 == 1


def check_noise(task: Task, noise: float) -> None:
    """Check that `demonstrate` takes this noise for this task.

    Raises:
        ValueError: not a probability for a task with discrete actions, or not a finite number of at least 0.
    """
    if _is_discrete(task) and not 0 <= noise <= 1:
        raise ValueError(f"noise: expected a probability for {task.name}, got {noise}")
    if not (math.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise: expected a finite number of at least 0, got {noise}")


def _is_discrete(task: Task) -> bool:
    return task.action == "discrete"


def _disturb(action: Any, space: Any, noise: float, rng: np.random.Generator) -> Any:
    if np.ndim(action) == 0:
        return int(rng.integers(space.n)) if rng.random() < noise else action
    moved = action + rng.normal(0.0, noise, np.shape(action))
    return np.clip(moved, space.low, space.high).astype(np.float32)


def _success(task: Task, total: float, solved: bool) -> bool | None:
    if task.success == "info":
        return solved
    return total > 0 if task.success == "positive_return" else None
