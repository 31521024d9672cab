"""`make`, which builds the Gymnasium environment of a task."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from .build import build
from .registry import get_task
from .rendering import RENDER_MODES, check_rendering
from .task import Task

if TYPE_CHECKING:
    import gymnasium


def make(task_name: str | Task, *, seed: int | None = None, **kwargs: Any) -> gymnasium.Env[dict[str, Any], Any]:
    """Build the environment of a task. Its observations are keyword arguments of `get_next_action`.

    Args:
        task_name: name of a task, a published one, a registered one, or "gym:<id>"; or the `Task` itself.
        seed: seed of the first `reset()` and of `action_space.sample()`; later resets continue from it.
            `reset(seed=...)` starts an episode that depends on that seed alone. The same seed and the same actions
            give the same episode.
        **kwargs: `render_mode` ("human", "rgb_array" or None) and `max_episode_steps` (in Atari, as published, in
            frames of the emulator). Meta-World and MuJoCo: `width` and `height` of frames, in pixels, `camera_name` or
            `camera_id`. Atari: see `jat_engine.envs.atari.make`. Other tasks: what their maker takes.

    Returns:
        An environment whose observations are dicts: `image_observation` uint8 [84, 84, 4]; or `discrete_observation`
        int64 [n], with or without `text_observation`; or `continuous_observation` [X]. It pickles as this call, so
        without its state; it cannot be copied.

    Raises:
        UnknownTaskError: there is no such task.
        MissingSimulatorError: the simulator is not installed.
        RenderingError: frames or windows cannot be rendered here: no display, or no OpenGL.
        InputError: the seed is not an integer of at least 0.
        TaskError: the environment cannot be made, or an agent has no such observations or actions.
        TypeError: the task has no such option.
        ValueError: an option has a value that it cannot have.

    Example:
        >>> env = make("babyai-go-to-obj", seed=0)
        >>> observation, info = env.reset()
        >>> sorted(observation)
        ['discrete_observation', 'text_observation']
    """
    row = get_task(task_name)
    check_rendering(row, kwargs.get("render_mode"))
    env = build(row, **kwargs)

    from .registration import spec_of
    from .task_env import TaskEnv

    if not row.is_published:
        from .guarded import GuardedEnv

        env = GuardedEnv(env, row.name)
    if row.adapter is not None:
        from .adapters import AdaptedEnv

        env = AdaptedEnv(env, row.adapter)
    if row.is_published:
        # Gymnasium recommends to check the unwrapped environment, and takes its id and render modes.
        env.unwrapped.spec = spec_of(row, kwargs if seed is None else {**kwargs, "seed": seed})
        env.unwrapped.metadata = {**env.unwrapped.metadata, "render_modes": list(RENDER_MODES)}
    return TaskEnv(env, row, seed, functools.partial(make, row, seed=seed, **kwargs))
