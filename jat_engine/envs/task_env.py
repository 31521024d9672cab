"""`TaskEnv`, the outermost wrapper of every task: seeds, actions, pickling and the registered id."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import gymnasium as gym

from .actions import checked_seed, continuous_action, discrete_action
from .rendering import RENDER_MODES
from .task import Task


class TaskEnv(gym.Wrapper[Any, Any, Any, Any]):
    """Wrapper that seeds the first reset, checks seeds and actions, and pickles as the call of `make`.

    Args:
        env: the task's environment.
        task: the task. Its window is the entry "context_window" of the metadata, which vector environments pass on.
        seed: of the action space, and of the first `reset()` without a seed; None for neither.
        again: call that builds this environment, for pickling.

    Raises:
        InputError: the seed is not an integer of at least 0.
    """

    def __init__(
        self, env: gym.Env[Any, Any], task: Task, seed: int | None, again: Callable[[], gym.Env[Any, Any]]
    ) -> None:
        super().__init__(env)
        self._task_name = task.name
        self._again = again
        self._seed = checked_seed(seed)
        self.metadata = {
            **env.metadata,
            "render_modes": list(RENDER_MODES),
            "context_window": task.context_window,
        }
        if self._seed is not None:
            self.action_space.seed(self._seed)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        seed = checked_seed(seed)
        if seed is None:
            seed = self._seed
        result = self.env.reset(seed=seed, options=options)
        self._seed = None
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        space: Any = self.action_space
        if isinstance(space, gym.spaces.Discrete):
            return self.env.step(discrete_action(action, int(space.n)))
        return self.env.step(continuous_action(action, space.shape))

    def render(self) -> Any:
        if self.render_mode is None:
            raise ValueError(f"{self._task_name}: render() needs a render mode; pass render_mode='rgb_array' to make")
        return self.env.render()

    @property
    def spec(self) -> Any:  # type: ignore[override]
        """The id that `gymnasium.make` knows, with the arguments; the wrappers below are part of it."""
        return self.unwrapped.spec

    def __reduce__(self) -> tuple[Any, ...]:
        return self._again, ()

    def __copy__(self) -> NoReturn:
        raise TypeError(f"{self._task_name}: an environment cannot be copied with its state; make another")

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        self.__copy__()
