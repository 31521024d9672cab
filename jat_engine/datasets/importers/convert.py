"""Convert episodes of other datasets to the published columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...envs.adapters import MIN_PIXELS, Adapter
from ...envs.gray_stack import FrameStack
from ...envs.kinds import Action, Observation
from ...errors import DataError, InputError
from ..schema import FRAMES_SHAPE
from .source import RawEpisode


class Conversion:
    """Convert raw episodes of one source to columns of one kind of observation and action.

    Args:
        observation: kind of the observations: "continuous", "discrete", "discrete+text" or "image".
        action: kind of the actions: "continuous" or "discrete".
        adapter: rule of the environment's spaces; None if the source's arrays are the agent's own observations and
            actions, or pictures.
        spaces: True if observations have the structure of the adapter's space, as those of Minari; False if they are
            rows of a table.

    Attributes:
        sizes: columns -> values of a step that the task's environment has, and "discrete_actions" -> its number of
            choices; empty without an environment. Those of an adapter are checked without.
    """

    def __init__(self, observation: Observation, action: Action, adapter: Adapter | None, *, spaces: bool) -> None:
        self.observation, self.action, self.adapter = observation, action, adapter
        self._spaces = spaces
        self.sizes: Mapping[str, int] = {} if adapter is None else {f"{action}_actions": adapter.num_actions}
        self._counts: np.ndarray | None = None
        if adapter is not None and observation in ("discrete", "discrete+text"):
            space: Any = adapter.observation_space()["discrete_observation"]
            self._counts = space.nvec

    def columns(self, episode: RawEpisode) -> dict[str, Any]:
        """Return the columns of an episode, as `check_episode` takes them.

        Args:
            episode: with at least one step.

        Raises:
            DataError: observations or actions are not those of the task; names the episode and the step.
        """
        steps = len(episode.actions)
        if steps == 0:
            raise DataError(f"{episode.where}: expected at least one step, got none; leave the episode out")
        columns = self._observations(episode, steps)
        for name, values in columns.items():
            if len(values) != steps:
                raise DataError(f"{episode.where}: expected {steps} {name}, one for each action, got {len(values)}")

        columns[f"{self.action}_actions"] = self._actions(np.asarray(episode.actions), episode.where)
        for name in columns.keys() & self.sizes.keys() - {"discrete_actions"}:
            if np.ndim(columns[name]) == 2 and np.shape(columns[name])[1] != self.sizes[name]:
                raise DataError(
                    f"{episode.where}: {name}: expected {self.sizes[name]} values a step, as the environment has, got "
                    f"{np.shape(columns[name])[1]}"
                )
        columns["rewards"] = np.zeros(steps, np.float32) if episode.rewards is None else episode.rewards
        return columns

    # ---- observations ----------------------------------------------------------------------------------------------

    def _observations(self, episode: RawEpisode, steps: int) -> dict[str, Any]:
        if self._spaces and self.adapter is None:  # the environment has the agent's own observations
            return {f"{name}s": values for name, values in episode.observations.items()}
        if self.adapter is not None and (self._spaces or not self.adapter.entries):
            columns = self._adapted(episode, steps)
        else:
            columns = self._plain(episode, steps)
        if self._counts is not None:
            _check_integers(columns["discrete_observations"], self._counts, episode.where)
        return columns

    def _adapted(self, episode: RawEpisode, steps: int) -> dict[str, Any]:
        """Convert the observations step by step, as the environment's are while an agent plays."""
        assert self.adapter is not None, "only sources with a rule come here"
        converter, converted = self.adapter.begin(), list[dict[str, Any]]()
        for step in range(steps):
            value = entry(episode.observations, step)
            if not self._spaces:
                value = self._shaped(np.asarray(value), f"{episode.where}, step {step}")
            try:
                converted.append(converter.next(value) if converted else converter.first(value))
            except InputError as error:
                raise DataError(f"{episode.where}, step {step}: {error}") from error

        columns: dict[str, Any] = {}
        for name in converted[0]:
            values = [observation[name] for observation in converted]
            columns[f"{name}s"] = values if name == "text_observation" else np.stack(values)
        return columns

    def _shaped(self, value: np.ndarray, where: str) -> np.ndarray:
        """Return a row of a table in the shape of the observation space."""
        assert self.adapter is not None, "only sources with a rule come here"
        space = self.adapter.space
        shape = tuple(space.shape or ())
        if value.size != int(np.prod(shape)):
            raise DataError(f"{where}: observation: expected {list(shape)}, as {space} has, got {list(value.shape)}")
        return value.reshape(shape)

    def _plain(self, episode: RawEpisode, steps: int) -> dict[str, Any]:
        """Convert rows of a table by their kind alone. Entries of a `Dict` are in the order of the adapter's."""
        values, where = np.asarray(episode.observations), f"{episode.where}: observations"
        if self.observation == "image":
            return {"image_observations": frames(values, where)}

        values = values.reshape(len(values), -1)
        if self.adapter is not None and values.shape[1] != self.adapter.size:
            raise DataError(
                f"{where}: expected {self.adapter.size} values a step, {', '.join(self.adapter.entries)} joined in "
                f"this order, got {values.shape[1]}"
            )
        if self.observation == "continuous":
            return {"continuous_observations": numbers(values, where)}
        integers_ = integers(values, where)
        if self.adapter is not None and self.adapter.starts:
            integers_ = integers_ - np.asarray(self.adapter.starts)
        if self.observation == "discrete":
            return {"discrete_observations": integers_}
        if episode.texts is None:
            raise DataError(f"{episode.where}: expected a text for each step; name its column with --columns text=NAME")
        return {"text_observations": list(episode.texts), "discrete_observations": integers_}

    # ---- actions ---------------------------------------------------------------------------------------------------

    def _actions(self, values: np.ndarray, where: str) -> np.ndarray:
        where = f"{where}: actions"
        values = values.reshape(len(values), -1)
        if self.action == "continuous":
            return numbers(values, where)

        if values.shape[1] != 1:
            raise DataError(
                f"{where}: expected one integer for each step, got {values.shape[1]}; make one number of them, such as "
                "with numpy.ravel_multi_index"
            )
        start = 0 if self.adapter is None else self.adapter.action_start
        chosen = integers(values[:, 0], where) - start
        choices = self.sizes.get("discrete_actions")
        if choices is None:
            return chosen
        wrong = (chosen < 0) | (chosen >= choices)
        if wrong.any():
            step = int(np.argmax(wrong))
            raise DataError(
                f"{where}, step {step}: expected {start} to {start + choices - 1}, as the action space has, got "
                f"{chosen[step] + start}"
            )
        return chosen


def _check_integers(values: np.ndarray, counts: np.ndarray, where: str) -> None:
    wrong = (values < 0) | (values >= counts)
    if wrong.any():
        step, element = np.argwhere(wrong)[0]
        raise DataError(
            f"{where}, step {step} (element {element}): observation: expected 0 to {counts[element] - 1} after the "
            f"start is subtracted, as its space has, got {values[step, element]}"
        )


def entry(values: Any, step: int) -> Any:
    """Return one step of arrays, of lists, or of dicts and tuples of those."""
    if isinstance(values, Mapping):
        return {key: entry(value, step) for key, value in values.items()}
    if isinstance(values, tuple):
        return tuple(entry(value, step) for value in values)
    return values[step]


def infer_kinds(episode: RawEpisode, observation: Observation | None = None) -> tuple[Observation, Action]:
    """Return the kinds of observation and action that the types of a table's columns suggest.

    Args:
        episode: one of the table.
        observation: kind of the observations, if it is known.

    Raises:
        DataError: there is no kind for them.
    """
    values, actions = np.asarray(episode.observations), np.asarray(episode.actions)
    kind: Observation
    if observation is not None:
        kind = observation
    elif episode.texts is not None:
        kind = "discrete+text"
    elif values.dtype == np.uint8 and values.ndim >= 3 and min(values.shape[1:3]) >= MIN_PIXELS:
        kind = "image"
    elif values.dtype.kind == "f":
        kind = "continuous"
    elif values.dtype.kind in "iub":
        kind = "discrete"
    else:
        raise DataError(f"{episode.where}: observations: expected numbers, got {values.dtype}; convert the column")
    if actions.dtype.kind not in "iubf":
        raise DataError(f"{episode.where}: actions: expected numbers, got {actions.dtype}; convert the column")
    return kind, "continuous" if actions.dtype.kind == "f" else "discrete"


def frames(values: np.ndarray, where: str) -> np.ndarray:
    """Return pictures as stacks of the last four grey frames, uint8 [L, 84, 84, 4]; such stacks unchanged.

    Args:
        values: uint8 [L, 84, 84, 4], or pictures, uint8 [L, H, W] or [L, H, W, 1 or 3].
        where: the episode, for error messages.

    Raises:
        DataError: they are something else.
    """
    if values.dtype == np.uint8 and values.shape[1:] == FRAMES_SHAPE:
        return values
    if values.dtype != np.uint8 or not (values.ndim == 3 or (values.ndim == 4 and values.shape[3] in (1, 3))):
        raise DataError(
            f"{where}: expected uint8 [steps, height, width, 1 or 3], or stacks {list(FRAMES_SHAPE)}, got "
            f"{values.dtype} {list(values.shape)}"
        )
    stack = FrameStack()
    pushed = [stack.next(frame) if step else stack.first(frame) for step, frame in enumerate(values)]
    return np.stack([observation["image_observation"] for observation in pushed])


def numbers(values: np.ndarray, where: str) -> np.ndarray:
    """Return numbers of any type as float32.

    Raises:
        DataError: they are no numbers.
    """
    if values.dtype.kind not in "fiub":
        raise DataError(f"{where}: expected numbers, got {values.dtype}; convert the column")
    with np.errstate(over="ignore"):  # `check_episode` names the step of what becomes infinite
        return values.astype(np.float32)


def integers(values: np.ndarray, where: str) -> np.ndarray:
    """Return integers, also those that are stored as floating-point numbers, as int64.

    Raises:
        DataError: one has a fraction, or they are no numbers; names the step.
    """
    if values.dtype.kind in "iub":
        return values.astype(np.int64)
    if values.dtype.kind != "f":
        raise DataError(f"{where}: expected integers, got {values.dtype}; convert the column")
    with np.errstate(invalid="ignore"):
        wrong = ~((np.rint(values) == values) & (np.abs(values) < 2.0**53))
    if wrong.any():
        index = np.argwhere(wrong)[0]
        raise DataError(f"{where}, step {index[0]}: expected an integer, got {values[tuple(index)]}")
    return values.astype(np.int64)
