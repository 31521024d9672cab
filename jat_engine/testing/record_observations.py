"""Record the observations that `jat-engine check` feeds: `python -m jat_engine.testing.record_observations`.

Needs all simulators. The task's expert acts where there is one, so that a trained agent meets what it knows, else the
random policy. Seeds are fixed; the same versions of the simulators give the same file.
"""

from __future__ import annotations

import contextlib
from typing import Any

from ..collect.experts import EXPERT_TASKS, make_expert
from ..envs import TASKS
from ..evaluation.environment import evaluation_env
from ..evaluation.progress import simulator_output
from .recordings import FILE, Recording, save_recordings
from .spaces import Box, Discrete

STEPS = {
    "metaworld-drawer-open": range(30),
    "mujoco-reacher": range(20),
    "mujoco-humanoid": range(20),  # 376 values, the widest observation
    "babyai-go-to": range(20),
    "babyai-boss-level": range(20),  # a long mission
    "atari-pong": range(60, 84),  # 48 tokens: the window of 32 slides; the first frames hardly change
    "atari-seaquest": range(60, 84),  # all 18 actions
}
"""Recorded task -> which steps of its episode are kept, as far as it lasts."""

_SEED = 0


def record(name: str, steps: range) -> Recording:
    """Play a task's episode and keep some of its steps.

    Raises:
        MissingSimulatorError: the task's simulator is not installed.
    """
    task = TASKS[name]
    with simulator_output(), contextlib.closing(evaluation_env(task)) as env:
        expert = make_expert(task, env) if name in EXPERT_TASKS else None
        env.action_space.seed(_SEED)
        observation, _ = env.reset(seed=_SEED)
        if expert is not None:
            expert.reset()

        observations: list[dict[str, Any]] = [dict(observation)]
        rewards: list[float | None] = [None]
        while len(observations) < steps.stop:
            action = env.action_space.sample() if expert is None else expert.act(observation)
            if expert is not None:
                expert.executed(action)
            observation, reward, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                break
            observations.append({key: _copy(value) for key, value in observation.items()})
            rewards.append(float(reward))
        space: Any = env.action_space
        spec = Discrete(int(space.n)) if hasattr(space, "n") else Box(-1, 1, tuple(space.shape))
    return Recording(task, spec, observations[steps.start :], [None, *rewards[steps.start + 1 :]])


def _copy(value: Any) -> Any:
    """Copy an array, since environments may reuse theirs."""
    return value if isinstance(value, str) else value.copy()


def main() -> None:
    """Record every task of `STEPS` into the package's file."""
    recordings = [record(name, steps) for name, steps in STEPS.items()]
    save_recordings(recordings)
    for recording in recordings:
        print(f"{recording.task.name}: {len(recording.observations)} steps")
    print(f"wrote {FILE}: {FILE.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
