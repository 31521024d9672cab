"""`make`, which builds the Gymnasium environment of a published task."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from ..errors import MissingSimulatorError
from .rendering import check_rendering
from .tasks import TASKS, unknown_task

if TYPE_CHECKING:
    import gymnasium


def make(task: str, *, seed: int | None = None, **kwargs: Any) -> gymnasium.Env[dict[str, Any], Any]:
    """Build the environment of a task. Its observations are keyword arguments of `get_next_action`.

    Args:
        task: a name in `TASKS`.
        seed: seed of the first `reset()` and of `action_space.sample()`; later resets continue from it.
            `reset(seed=...)` starts an episode that depends on that seed alone. The same seed and the same actions
            give the same episode.
        **kwargs: `render_mode` ("human", "rgb_array" or None). Atari: `clip_reward=True` replaces rewards by their
            sign; `episodic_life=True` ends the episode when a life is lost, without "episode" in `info`, and the next
            `reset()` without a seed continues the game. Meta-World and MuJoCo: `width` and `height` of frames, in
            pixels.

    Returns:
        An environment whose observations are dicts: `image_observation` uint8 [84, 84, 4]; or `discrete_observation`
        int64 [148] and `text_observation`; or `continuous_observation` [X], X up to 376.

    Raises:
        UnknownTaskError: there is no such task.
        MissingSimulatorError: the simulator is not installed.
        TypeError: the domain has no such option.
        RenderingError: frames or windows cannot be rendered here: no display, or no OpenGL.
        ValueError: the render mode is unknown.

    Example:
        >>> env = make("babyai-go-to-obj", seed=0)
        >>> observation, info = env.reset()
        >>> sorted(observation)
        ['discrete_observation', 'text_observation']
    """
    if not isinstance(task, str) or task not in TASKS:
        raise unknown_task(task)
    row = TASKS[task]
    check_rendering(task, kwargs.get("render_mode"))

    try:
        maker = importlib.import_module(f"jat_engine.envs.{row.domain}").make
        accepted = [name for name in inspect.signature(maker).parameters if name != "task"]
        for name in kwargs:
            if name not in accepted:
                raise TypeError(f"make({task!r}): unexpected option {name!r}; {row.domain} takes {', '.join(accepted)}")
        env: gymnasium.Env[dict[str, Any], Any] = maker(row, **kwargs)
    except ImportError as error:
        raise MissingSimulatorError(
            f"{task}: the {row.domain} simulator is not installed ({error}); pip install 'jat-engine[{row.domain}]'"
        ) from error

    from .wrappers import FirstSeed

    return FirstSeed(env, seed) if seed is not None else env
