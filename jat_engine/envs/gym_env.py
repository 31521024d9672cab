"""Environments of Gymnasium, by their ids."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from ..errors import MissingSimulatorError, UnknownTaskError
from .own_context import OwnContext
from .rendering import import_mujoco, needs_opengl
from .task import Task


def make(
    task: Task, *, render_mode: str | None = None, max_episode_steps: int | None = None, **options: Any
) -> gym.Env[Any, Any]:
    """Build an environment of Gymnasium.

    Args:
        task: its `env_id` is the id.
        render_mode: "human", "rgb_array" or None.
        max_episode_steps: end an episode after this number of steps; None for the environment's own limit.
        **options: arguments of the environment.

    Raises:
        UnknownTaskError: Gymnasium has no such id.
        MissingSimulatorError: the environment needs a package that is not installed.
    """
    if render_mode is not None:  # an environment need not have this argument
        options["render_mode"] = render_mode
    is_mujoco = needs_opengl(task)
    if is_mujoco:
        import_mujoco()
    try:
        env = gym.make(
            task.env_id,
            max_episode_steps=max_episode_steps,
            disable_env_checker=True,
            **options,
        )
    except gym.error.DependencyNotInstalled as error:
        raise MissingSimulatorError(f"{task.name}: {error}") from error
    except gym.error.Error as error:
        raise UnknownTaskError(
            f"task: {task.name}: {str(error).rstrip('.')}; --task_module imports a module that registers an id"
        ) from None
    except ModuleNotFoundError as error:
        raise UnknownTaskError(f"task: {task.name}: {error}") from None
    return OwnContext(env) if is_mujoco else env
