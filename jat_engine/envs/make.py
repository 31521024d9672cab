"""`make`, which builds the Gymnasium environment of a published task."""

from __future__ import annotations

import functools
import importlib
import inspect
from numbers import Integral
from typing import TYPE_CHECKING, Any

from ..errors import MissingSimulatorError
from .rendering import RENDER_MODES, check_rendering
from .tasks import TASKS, unknown_task

if TYPE_CHECKING:
    import gymnasium


def make(task_name: str, *, seed: int | None = None, **kwargs: Any) -> gymnasium.Env[dict[str, Any], Any]:
    """Build the environment of a task. Its observations are keyword arguments of `get_next_action`.

    Args:
        task_name: a name in `TASKS`.
        seed: seed of the first `reset()` and of `action_space.sample()`; later resets continue from it.
            `reset(seed=...)` starts an episode that depends on that seed alone. The same seed and the same actions
            give the same episode.
        **kwargs: `render_mode` ("human", "rgb_array" or None) and `max_episode_steps` (in Atari, as published, in
            frames of the emulator). Meta-World and MuJoCo: `width` and `height` of frames, in pixels, `camera_name` or
            `camera_id`. Atari: see `jat_engine.envs.atari.make`.

    Returns:
        An environment whose observations are dicts: `image_observation` uint8 [84, 84, 4]; or `discrete_observation`
        int64 [148] and `text_observation`; or `continuous_observation` [X], X up to 376. It pickles as this call, so
        without its state; it cannot be copied.

    Raises:
        UnknownTaskError: there is no such task.
        MissingSimulatorError: the simulator is not installed.
        RenderingError: frames or windows cannot be rendered here: no display, or no OpenGL.
        InputError: the seed is not an integer of at least 0.
        TypeError: the domain has no such option.
        ValueError: an option has a value that it cannot have.

    Example:
        >>> env = make("babyai-go-to-obj", seed=0)
        >>> observation, info = env.reset()
        >>> sorted(observation)
        ['discrete_observation', 'text_observation']
    """
    if not isinstance(task_name, str) or task_name not in TASKS:
        raise unknown_task(task_name)
    task = TASKS[task_name]
    check_rendering(task_name, kwargs.get("render_mode"))

    try:
        maker = importlib.import_module(f"jat_engine.envs.{task.domain}").make
        accepted = [name for name in inspect.signature(maker).parameters if name != "task"]
        for name in kwargs:
            if name not in accepted:
                raise TypeError(
                    f"make({task_name!r}): unexpected option {name!r}; {task.domain} takes {', '.join(accepted)}"
                )
        check_step_limit(kwargs.get("max_episode_steps"))
        env: gymnasium.Env[dict[str, Any], Any] = maker(task, **kwargs)
    except ImportError as error:
        raise MissingSimulatorError(
            f"{task_name}: the {task.domain} simulator is not installed ({error}); "
            f"pip install 'jat-engine[{task.domain}]'"
        ) from error

    from .registration import spec_of
    from .task_env import TaskEnv

    # Gymnasium recommends to check the unwrapped environment, and takes its id and render modes.
    env.unwrapped.spec = spec_of(task, kwargs if seed is None else {**kwargs, "seed": seed})
    env.unwrapped.metadata = {**env.unwrapped.metadata, "render_modes": list(RENDER_MODES)}
    return TaskEnv(env, task_name, seed, functools.partial(make, task_name, seed=seed, **kwargs))


def check_step_limit(value: Any) -> None:
    """Check the option `max_episode_steps`.

    Raises:
        ValueError: it is not None, a number of at least 1, or -1, which stands for no limit.
    """
    if value is not None and not (isinstance(value, Integral) and (int(value) >= 1 or int(value) == -1)):
        raise ValueError(f"max_episode_steps: expected at least 1, or -1 for no limit, got {value!r}")
