"""`make`, which builds the Gymnasium environment of a task."""

from __future__ import annotations

import functools
import importlib
import inspect
from numbers import Integral
from typing import TYPE_CHECKING, Any

from ..errors import MissingSimulatorError, TaskError
from .domains import get_domain
from .registry import get_task, resolve
from .rendering import RENDER_MODES, check_rendering
from .task import Task
from .tasks import TASKS

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
    row = task_name if isinstance(task_name, Task) else get_task(task_name)
    check_rendering(row, kwargs.get("render_mode"))
    env = build(row, **kwargs)

    from .registration import spec_of
    from .task_env import TaskEnv

    if row.adapter is not None:
        from .adapters import AdaptedEnv

        env = AdaptedEnv(env, row.adapter)
    if row.name in TASKS:
        # Gymnasium recommends to check the unwrapped environment, and takes its id and render modes.
        env.unwrapped.spec = spec_of(row, kwargs if seed is None else {**kwargs, "seed": seed})
        env.unwrapped.metadata = {**env.unwrapped.metadata, "render_modes": list(RENDER_MODES)}
    again = row.name if row.name in TASKS else row
    return TaskEnv(env, row.name, seed, functools.partial(make, again, seed=seed, **kwargs))


def build(task: Task, **options: Any) -> gymnasium.Env[Any, Any]:
    """Build a task's environment as its maker returns it, before observations are converted.

    Args:
        task: the task.
        **options: of the maker; `max_episode_steps` also if it does not take it.

    Raises:
        See `make`.
    """
    maker = _maker(task)
    parameters = inspect.signature(maker).parameters
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    accepted = [name for name in parameters if name != "task"]
    check_step_limit(options.get("max_episode_steps"))
    limit = None
    if task.name not in TASKS and "max_episode_steps" not in parameters:
        limit = options.pop("max_episode_steps", None)
    if task.name not in TASKS and options.get("render_mode", "") is None and "render_mode" not in parameters:
        del options["render_mode"]
    for name in options:
        if name not in accepted and not takes_all:
            takes = ", ".join(accepted) or "none"
            raise TypeError(f"make({task.name!r}): unexpected option {name!r}; {task.domain} takes {takes}")

    try:
        env: gymnasium.Env[Any, Any] = maker(**({"task": task} if "task" in parameters else {}), **options)
    except (MissingSimulatorError, ValueError):
        raise
    except ImportError as error:
        extra = get_domain(task.domain).extra
        remedy = f"pip install 'jat-engine[{extra}]'" if extra else "install it"
        raise MissingSimulatorError(
            f"{task.name}: the {task.domain} simulator is not installed ({error}); {remedy}"
        ) from error
    if not hasattr(env, "observation_space") or not hasattr(env, "reset"):
        raise TaskError(f"{task.name}: maker: expected it to return a gymnasium.Env, got {type(env).__name__}")
    if limit is not None and limit > 0:
        from gymnasium.wrappers import TimeLimit

        env = TimeLimit(env, int(limit))
    return env


def _maker(task: Task) -> Any:
    """Return the function that makes a task's environment, after importing the module that registered it."""
    if task.maker is None:
        raise TaskError(
            f"{task.name}: expected a task with an environment, got one that is known by its demonstrations alone; "
            "register it with register_task, in a module that --task_module names"
        )
    if task.module is not None:
        importlib.import_module(task.module)  # in a worker process it has not been
    if not isinstance(task.maker, str):
        return task.maker
    if task.name in TASKS:
        try:
            return resolve(task.maker, task.name)
        except ImportError as error:
            raise MissingSimulatorError(
                f"{task.name}: the {task.domain} simulator is not installed ({error.__cause__ or error}); "
                f"pip install 'jat-engine[{task.domain}]'"
            ) from error
    return resolve(task.maker, task.name)


def check_step_limit(value: Any) -> None:
    """Check the option `max_episode_steps`.

    Raises:
        ValueError: it is not None, a number of at least 1, or -1, which stands for no limit.
    """
    if value is not None and not (isinstance(value, Integral) and (int(value) >= 1 or int(value) == -1)):
        raise ValueError(f"max_episode_steps: expected at least 1, or -1 for no limit, got {value!r}")
