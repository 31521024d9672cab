"""`make`: a published task as a Gymnasium environment."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from .errors import MissingSimulatorError
from .tasks import TASKS, unknown_task

if TYPE_CHECKING:
    import gymnasium


def make(task: str, *, seed: int | None = None, **kwargs: Any) -> gymnasium.Env[dict[str, Any], Any]:
    """Build the environment of a task; its observations are the keyword arguments of `get_next_action`.

    Args:
        task: a name in `TASKS`.
        seed: of the first `reset()` and of `action_space.sample()`; later resets continue from it. `reset(seed=)`
            starts an episode that depends on that seed alone. The same seed and actions give the same episode.
        kwargs: `render_mode` ("human", "rgb_array" or None); for Atari also `clip_reward=True` (reward's sign) and
            `episodic_life=True` (a lost life ends the episode, without "episode" in `info`; the next `reset()` without
            a seed goes on with the game); for Meta-World and MuJoCo `width` and `height` of frames, in pixels.

    Returns:
        Observations: `image_observation` uint8 [84, 84, 4]; or `discrete_observation` int64 [148] and
        `text_observation`; or `continuous_observation` [X], X up to 376.

    Raises:
        UnknownTaskError: no such task.
        MissingSimulatorError: the simulator is not installed.
        TypeError, ValueError: an option that the domain does not have, or a render mode it does not know.
    """
    if not isinstance(task, str) or task not in TASKS:
        raise unknown_task(task)
    row = TASKS[task]
    render_mode = kwargs.get("render_mode")
    if render_mode not in (None, "human", "rgb_array"):
        raise ValueError(f"render_mode: expected None, 'human' or 'rgb_array', got {render_mode!r}")
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
    from .seeding import FirstSeed

    return FirstSeed(env, seed) if seed is not None else env
