"""Environments for evaluation, and checks that they can be built and rendered here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..envs import MissingSimulatorError, Task, check_rendering, get_domain, make
from ..errors import RenderingError, describe_error

if TYPE_CHECKING:
    import gymnasium


def evaluation_env(task: Task, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """Build a task's environment as for the published returns: rewards of Atari are not clipped.

    Args:
        task: the task.
        render_mode: "human", "rgb_array" or None.

    Raises:
        MissingSimulatorError: the simulator is not installed.
        RenderingError: the environment of a task that is not published cannot be built with that render mode.
    """
    options = dict(get_domain(task.domain).evaluation_options)
    if render_mode is not None:
        options["render_mode"] = render_mode
    try:
        return make(task, **options)
    except (MissingSimulatorError, RenderingError):
        raise
    except Exception as error:  # of the environment: one without a render mode may raise any class
        if render_mode is None or task.is_published:
            raise
        raise RenderingError(
            f"{task.name}: expected an environment that can be made with render_mode={render_mode!r}, got "
            f"{describe_error(error if error.__cause__ is None else error.__cause__)}{_REMEDY}"
        ) from error


_REMEDY = "; let it render, or leave out --save_video, --video or --render"


def render_frame(env: gymnasium.Env[Any, Any]) -> np.ndarray:
    """Return an environment's frame, uint8 [height, width, 3].

    Raises:
        RenderingError: `render()` returns something else.
    """
    frame: Any = env.render()
    if not isinstance(frame, np.ndarray):
        got = f"{frame!r:.80}"
    elif frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
        got = f"{frame.dtype} {list(frame.shape)}"
    else:
        return frame
    raise RenderingError(
        f"expected a frame from render(), uint8 [height, width, 3], got {got}; environments render frames if they are "
        'made with render_mode="rgb_array"'
    )


def check_frame(task: Task) -> None:
    """Render the first frame of a task.

    Raises:
        RenderingError: the environment renders none.
    """
    with contextlib.closing(evaluation_env(task, "rgb_array")) as env:
        try:
            env.reset(seed=0)
            render_frame(env)
        except RenderingError as error:
            raise RenderingError(f"{task.name}: {error}{_REMEDY}") from error
        except Exception as error:  # of the environment: any class
            raise RenderingError(
                f"{task.name}: expected a frame from render(), got {describe_error(error)}{_REMEDY}"
            ) from error


def missing_simulators(tasks: Iterable[Task], render: bool = False) -> dict[str, str]:
    """Build one task of each published domain and all others, and return the tasks whose simulator is missing.

    Args:
        tasks: the tasks.
        render: also check that frames can be rendered.

    Returns:
        Name of the task -> message with the command that installs the simulator.

    Raises:
        RenderingError: frames cannot be rendered here.
    """
    groups: dict[str, list[Task]] = {}
    for task in tasks:
        groups.setdefault(task.domain if task.is_published else task.name, []).append(task)

    missing: dict[str, str] = {}
    for first, *others in groups.values():
        try:
            if render and not first.is_published:
                check_frame(first)
            else:
                evaluation_env(first, "rgb_array" if render else None).close()
        except MissingSimulatorError as error:
            missing.update((task.name, str(error)) for task in (first, *others))
    return missing


def require_simulators(tasks: Iterable[Task], render: bool = False) -> None:
    """Check that the simulators of all tasks are installed.

    Args:
        tasks: the tasks.
        render: also check that frames can be rendered.

    Raises:
        MissingSimulatorError: simulators are missing; the message says how to install all of them.
        RenderingError: frames cannot be rendered here.
    """
    missing = missing_simulators(tasks, render)
    if missing:
        raise MissingSimulatorError("; ".join(dict.fromkeys(missing.values())))


def require_display(task: Task) -> None:
    """Check that a window can be opened for a task.

    Raises:
        RenderingError: there is no display, or it has no OpenGL.
    """
    check_rendering(task, "human")
