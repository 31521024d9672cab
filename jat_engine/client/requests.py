"""Write the requests of an agent: the arguments of `get_next_action` as the server reads them."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np

from ..errors import InputError
from ..serving.codec import MOST_ITEMS

_UNKNOWN = object()


class RequestWriter:
    """Writes an agent's steps, with those settings that the server does not know yet.

    Attributes:
        task: published task of the agent; None to give action spaces.
        begins: the next step begins an episode.
    """

    def __init__(self, task: str | None, seed: int | None) -> None:
        """Begin with the first episode.

        Args:
            task: see `RemoteAgent`.
            seed: of sampling; None for another one in each episode.
        """
        self.task = task
        self.begins, self._goes_on = False, False
        self._seed: int | None = None
        self.reset(seed)

    def reset(self, seed: int | None = None) -> None:
        """Let the next step begin an episode. Its random numbers go on unless it has a seed, or none was ever given."""
        if seed is not None:
            self._seed = seed
        elif not self.begins:  # twice before the first step is as once
            self._seed = None if self._goes_on else secrets.randbits(63)
        self.begins = True
        self._goes_on = self._goes_on or seed is not None
        self.forget()

    @property
    def is_fresh(self) -> bool:
        """True if the next step begins an episode with a seed, which needs nothing from before."""
        return self.begins and self._seed is not None

    def forget(self) -> None:
        """Give all settings with the next step: the server may have taken some of one that it has refused."""
        self._space: Any = _UNKNOWN
        self._clips: Any = None
        self._deterministic: Any = _UNKNOWN
        self._window: Any = _UNKNOWN

    def write(
        self,
        observation: dict[str, Any],
        action_space: Any,
        reward: Any,
        deterministic: Any,
        context_window: int | None,
        longest_window: int | None,
        options: dict[str, Any],
    ) -> dict[str, Any]:
        """Return the fields of a step; `taken` notes that it was taken.

        Args:
            observation: values by name; None counts as absent.
            action_space: of the step; None for that of the task.
            reward: of the action before.
            deterministic: see `JatEngine.get_next_action`.
            context_window: most tokens that the step attends to; None for the task's, or the model's longest.
            longest_window: tokens that the server's model attends to at most; None if it is not known.
            options: further options of the request by name; None counts as absent.

        Raises:
            InputError: a value cannot be sent.
        """
        fields = {name: as_data(name, value) for name, value in observation.items() if value is not None}
        fields |= {name: as_data(name, value) for name, value in options.items() if value is not None}
        if reward is not None:
            fields["reward"] = as_data("reward", reward)
        if context_window is None and action_space is not None and self.task is None:
            context_window = longest_window

        if self.begins:
            fields["episode_start"] = True
            if self.task is not None:
                fields["task"] = self.task
            if self._seed is not None:
                fields["seed"] = self._seed
        clips = options.get("action_clip") is not None
        if action_space is not None and (action_space is not self._space or clips is not self._clips):
            fields["action_space"] = space_as_data(action_space, clips)
        if deterministic is not self._deterministic:
            fields["deterministic"] = as_data("deterministic", deterministic)
        if context_window is not None and context_window is not self._window:
            fields["context_window"] = as_data("context_window", context_window)
        self._given = action_space, clips, deterministic, context_window
        return fields

    def taken(self) -> None:
        """Note that the server has taken the step that was written last."""
        space, self._clips, self._deterministic, window = self._given
        if space is not None:
            self._space = space
        if self.begins:  # later windows hold for their steps alone
            self._window = window
        self.begins, self._seed = False, None


def as_data(name: str, value: Any) -> Any:
    """Return a value as a message can hold it: text, a number, or an array of what is a sequence of numbers.

    Raises:
        InputError: it is none of them.
    """
    if isinstance(value, np.ndarray):
        array = value
    elif value is None or isinstance(value, str | bool | int | float | np.generic):
        return value
    else:
        try:
            array = np.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; tensors of a GPU
            raise InputError(f"{name}: expected an array of numbers, got {type(value).__name__} ({error})") from None
        if array.dtype.kind == "U" and isinstance(value, list | tuple) and array.size < MOST_ITEMS:
            return list(value)  # the server says what it expects
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name}: expected an array of numbers, got {type(value).__name__} of dtype {array.dtype}")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def space_as_data(space: Any, with_bounds: bool) -> dict[str, Any]:
    """Return Gymnasium's action space as a message can hold it, without importing Gymnasium.

    Args:
        space: `gymnasium.spaces.Box` or `Discrete`, which are recognised by the names of their classes.
        with_bounds: give the bounds, which clipping needs.

    Raises:
        InputError: it is neither.
    """
    names = {cls.__name__ for cls in type(space).__mro__}
    if "Discrete" in names:
        return {"type": "Discrete", "n": int(space.n), "start": int(getattr(space, "start", 0))}
    if "Box" in names:
        described: dict[str, Any] = {"type": "Box", "shape": [int(size) for size in space.shape]}
        if with_bounds:
            described |= {"low": as_data("low", space.low), "high": as_data("high", space.high)}
        return described
    raise InputError(
        f"action_space: expected a gymnasium.spaces.Box or Discrete, got {type(space).__name__}; pass "
        "action_space=env.action_space"
    )


def read_result(message: dict[str, Any]) -> tuple[Any, np.ndarray | None]:
    """Return the action of a server's answer, a list of floats or an int, and a copy of its prediction or None."""
    action, prediction = message["actions"].tolist()[0], message.get("predictions")
    return action, None if prediction is None else prediction[0].copy()
