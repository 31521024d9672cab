"""Episodes of one agent in one environment, by the published protocol."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from ..envs.actions import checked_seed, continuous_action, discrete_action
from ..errors import InputError
from .environment import render_frame

if TYPE_CHECKING:
    import gymnasium

    from ..envs import Task


class Agent(Protocol):
    """Interface of an agent, which `JatEngine` and `JatModel` implement."""

    def reset_rl(self) -> None:
        """Start a new episode."""
        ...

    def get_next_action(self, *args: Any, **kwargs: Any) -> Any:
        """Return the action for one observation. Arguments: see `ModelSession.get_next_action`."""
        ...


@dataclass(frozen=True)
class EpisodeResult:
    """Result of one episode.

    Attributes:
        return_: sum of the environment's rewards.
        length: number of steps.
        seconds: wall time, including the environment.
        latencies_us: float64 [length], duration of each `get_next_action` in microseconds.
        seed: seed of the environment and of the sampling; None if unseeded.
        capped: the episode was stopped at `max_steps`, before the environment ended it.
    """

    return_: float
    length: int
    seconds: float
    latencies_us: np.ndarray
    seed: int | None
    capped: bool = False


def run_episode(
    agent: Agent,
    processor: Any,
    env: gymnasium.Env[Any, Any],
    *,
    task: Task,
    seed: int | None = None,
    deterministic: bool = False,
    context_window: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    action_clip: str | None = None,
    use_action_mask: bool = False,
    max_steps: int | None = None,
    on_frame: Callable[[np.ndarray], None] | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> EpisodeResult:
    """Play one episode by the published protocol.

    The agent is reset (`reset_rl`) and gets no reward before its first action. Actions are passed to the environment
    as the agent returns them, discrete ones as int, continuous ones as float32 arrays of the action space's shape.

    Args:
        agent: a `JatEngine`, a `JatModel`, or another object with the methods of `Agent`.
        processor: passed to the agent; None for a `JatEngine`.
        env: environment from `jat_engine.envs.make(task.name)` or `gymnasium.make`, with wrappers as needed, such as
            `TimeLimit`. Make Atari with `clip_reward=False`, otherwise returns are not comparable with the published
            ones.
        task: the task of `env`.
        seed: seed of the environment and of torch's global generator, from which actions are sampled, below 2^64. The
            episode then depends on nothing that ran before. With None neither is seeded.
        deterministic: choose the most likely discrete action instead of sampling one.
        context_window: number of past tokens that the agent sees; None for the task's own number.
        temperature: of sampling discrete actions, see `JatEngine.get_next_action`; not used for continuous ones.
            This and the next three are passed to the agent only if they are set, since agents of the published package
            do not know them.
        top_k: sample from this many most likely discrete actions; not used for continuous ones.
        action_clip: "box" to clip continuous actions to the action space; not used for discrete ones.
        use_action_mask: pass on the masks that the environment gives as `info["action_mask"]`, Gymnasium's convention.
        max_steps: stop after this number of steps.
        on_frame: function that is called with `env.render()` of every state, the first one too. The environment needs
            `render_mode="rgb_array"`.
        on_step: function that is called with the number of steps and the return so far, after each step.

    Raises:
        InputError: the seed is not None or an integer in [0, 2^64), or the agent's action does not fit the environment.
        ValueError: `max_steps` is less than 1, or the environment renders no frames for `on_frame` (`RenderingError`).

    Example:
        >>> task = get_task("babyai-go-to-obj")
        >>> engine, env = JatEngine.from_pretrained("jat-mini"), make(task.name)
        >>> episode = run_episode(engine, None, env, task=task, seed=0, deterministic=True)
        >>> episode.length == len(episode.latencies_us)
        True
    """
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps: expected None or at least 1, got {max_steps}")
    window = task.context_window if context_window is None else context_window

    seed = checked_seed(seed)
    if seed is not None and seed >= 2**64:  # torch takes no more
        raise InputError(f"seed: expected None or an integer in [0, 2^64), got {seed!r:.80}")

    began = time.perf_counter()
    if seed is not None:
        torch.manual_seed(seed)
    agent.reset_rl()
    observation, info = env.reset(seed=seed)
    if on_frame is not None:
        on_frame(render_frame(env))
    reward: float | None = None
    latencies_us: list[float] = []
    total, done = 0.0, False
    given = {"temperature": temperature, "top_k": top_k} if _is_discrete(env) else {"action_clip": action_clip}
    options = {name: value for name, value in given.items() if value is not None}

    while not done and len(latencies_us) != max_steps:
        mask = {"action_mask": info["action_mask"]} if use_action_mask and "action_mask" in info else {}
        start = time.perf_counter_ns()
        action = agent.get_next_action(
            processor,
            **observation,
            reward=reward,
            action_space=env.action_space,
            deterministic=deterministic,
            context_window=window,
            **options,
            **mask,
        )
        latencies_us.append((time.perf_counter_ns() - start) / 1e3)

        observation, step_reward, terminated, truncated, info = env.step(_executed(action, env.action_space))
        reward = float(step_reward)
        total += reward
        done = bool(terminated or truncated)
        if on_frame is not None:
            on_frame(render_frame(env))
        if on_step is not None:
            on_step(len(latencies_us), total)

    return EpisodeResult(
        return_=total,
        length=len(latencies_us),
        seconds=time.perf_counter() - began,
        latencies_us=np.array(latencies_us),
        seed=seed,
        capped=not done,
    )


def run_episodes(
    agent: Agent,
    processor: Any,
    env: gymnasium.Env[Any, Any],
    num_episodes: int,
    *,
    task: Task,
    seed: int | None = None,
    **options: Any,
) -> Iterator[EpisodeResult]:
    """Play episodes one after another, episode i with seed `seed + i`.

    Args:
        agent: as in `run_episode`.
        processor: as in `run_episode`.
        env: as in `run_episode`.
        num_episodes: number of episodes, at least 1.
        task: the task of `env`.
        seed: seed of the first episode; None for no seeds.
        **options: further options of `run_episode`.

    Yields:
        The result of each episode when it ends.

    Raises:
        ValueError: `num_episodes` is less than 1.

    Example:
        >>> task = get_task("babyai-go-to-obj")
        >>> engine, env = JatEngine.from_pretrained("jat-mini"), make(task.name)
        >>> [episode.seed for episode in run_episodes(engine, None, env, 3, task=task, seed=5)]
        [5, 6, 7]
    """
    if num_episodes < 1:
        raise ValueError(f"num_episodes: expected at least 1, got {num_episodes}")
    for i in range(num_episodes):
        episode_seed = None if seed is None else seed + i
        yield run_episode(agent, processor, env, task=task, seed=episode_seed, **options)


def _is_discrete(env: gymnasium.Env[Any, Any]) -> bool:
    return hasattr(env.action_space, "n")


def _executed(action: Any, space: Any) -> Any:
    if hasattr(space, "n"):
        return discrete_action(action, int(space.n))
    return continuous_action(action, space.shape).astype(np.float32)
