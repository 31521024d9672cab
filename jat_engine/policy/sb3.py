"""Environments of Stable-Baselines3 for `JatPolicy`, which needs rewards that `predict` is not given."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

try:
    from stable_baselines3.common import env_util
    from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, unwrap_vec_wrapper
except ModuleNotFoundError as error:
    message = f"jat_engine.policy.sb3: {error}; pip install 'jat-engine[sb3]'"
    raise ModuleNotFoundError(message, name=error.name) from None

from ..envs import Task, get_task, make
from ..errors import InputError
from .missions import EncodeMission


class LastStep(NamedTuple):
    """Last step, or reset, of a vector environment.

    Attributes:
        num_resets: resets of all environments so far.
        num_steps: steps since the last of them.
        rewards: [N], of the step; zeros after a reset.
        dones: bool [N], environments whose episode the step has ended.
        infos: of the step, one mapping for each environment.
    """

    num_resets: int
    num_steps: int
    rewards: np.ndarray
    dones: np.ndarray
    infos: list[dict[str, Any]]


class RecordRewards(VecEnvWrapper):
    """Wrapper that keeps the rewards of the last step for `JatPolicy.predict`.

    Stable-Baselines3 gives a policy observations and no rewards, which the agent was trained with.

    Attributes:
        last_step: the last step or reset; None before the first reset.

    Args:
        venv: vector environment of Stable-Baselines3, with or without other wrappers.

    Example:
        >>> from stable_baselines3.common.env_util import make_vec_env
        >>> vec_env = RecordRewards(make_vec_env("jat/mujoco-reacher-v0", n_envs=2, seed=0))
        >>> policy = JatPolicy(engine, vec_env)
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.last_step: LastStep | None = None

    def reset(self) -> Any:
        """Reset all environments. See `VecEnv.reset`."""
        observations = self.venv.reset()
        num_resets = 0 if self.last_step is None else self.last_step.num_resets
        count = self.num_envs
        self.last_step = LastStep(num_resets + 1, 0, np.zeros(count), np.zeros(count, bool), [{}] * count)
        return observations

    def step_wait(self) -> Any:
        """Wait for the step to end. See `VecEnv.step_wait`."""
        observations, rewards, dones, infos = self.venv.step_wait()
        last = self.last_step
        if last is not None:  # else the environment itself was reset, and `predict` says so
            self.last_step = LastStep(last.num_resets, last.num_steps + 1, np.array(rewards), np.array(dones), infos)
        return observations, rewards, dones, infos


def make_vec_env(
    task: str | Task,
    n_envs: int = 1,
    seed: int | None = None,
    *,
    env_kwargs: dict[str, Any] | None = None,
    vec_env_cls: Any = None,
) -> RecordRewards:
    """Make N environments of a task as a vector environment of Stable-Baselines3 for `JatPolicy`.

    Its environments have a `Monitor`, missions as integers (`EncodeMission`), and the rewards of the last step
    (`RecordRewards`).

    Args:
        task: name of a task, a published one, a registered one, or "gym:<id>"; or the task itself.
        n_envs: N.
        seed: environment i has the seed `seed + i` in the first `reset()`; None for no seeds.
        env_kwargs: options of `jat_engine.envs.make`; in Atari `{"clip_reward": False}` for the game's own returns.
        vec_env_cls: `SubprocVecEnv` for a process for each environment; None for `DummyVecEnv`.

    Raises:
        UnknownTaskError, MissingSimulatorError: see `jat_engine.envs.make`.

    Example:
        >>> from stable_baselines3.common.evaluation import evaluate_policy
        >>> vec_env = make_vec_env("babyai-go-to-obj", n_envs=2, seed=0)
        >>> with JatPolicy(engine, vec_env) as policy:
        ...     mean, std = evaluate_policy(policy, vec_env, n_eval_episodes=4)
        >>> print(mean > 0.5)
        True
    """
    vec_env = env_util.make_vec_env(
        functools.partial(make, get_task(task)),
        n_envs,
        seed,
        wrapper_class=EncodeMission,
        env_kwargs=env_kwargs,
        vec_env_cls=vec_env_cls,
    )
    return RecordRewards(vec_env)


def find_recorder(vec_env: VecEnv) -> RecordRewards:
    """Return the `RecordRewards` among an environment's wrappers.

    Raises:
        InputError: there is none.
    """
    recorder = unwrap_vec_wrapper(vec_env, RecordRewards)
    if recorder is None:
        raise InputError(
            f"vector_env: expected a RecordRewards, got {type(vec_env).__name__} without: Stable-Baselines3 gives a "
            "policy no rewards, which the agent was trained with; use jat_engine.policy.sb3.make_vec_env, or pass "
            "jat_engine.policy.sb3.RecordRewards(vec_env) to the policy and to evaluate_policy"
        )
    return recorder
