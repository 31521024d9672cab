"""Conversion of the spaces of any Gymnasium environment to the observations and actions of an agent.

Which conversion fits follows from the spaces (`choose_adapter`):

| observation space | becomes |
|---|---|
| `Box` of pictures, uint8 [H, W, 1 or 3] of at least 16 x 16 pixels | `image_observation`, the published stack of 4 grey frames |
| any other `Box`; a `Dict` or `Tuple` of numbers | `continuous_observation`, flattened as `FlattenObservation` does |
| `Discrete`, `MultiDiscrete`, `MultiBinary`; a `Dict` or `Tuple` of them | `discrete_observation`, flattened in the order of keys, starts subtracted |
| a `Dict` with one text | `text_observation`, and its other entries as `discrete_observation` |
"""  # noqa: E501

from __future__ import annotations

import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np

from ..errors import InputError, SpaceError
from .gray_stack import FrameStack, stack_space
from .kinds import OBSERVATIONS, Action, Observation
from .mission import Mission

_KEYS: dict[Observation, tuple[str, ...]] = {
    "continuous": ("continuous_observation",),
    "discrete": ("discrete_observation",),
    "discrete+text": ("discrete_observation", "text_observation"),
    "image": ("image_observation",),
}

MIN_PIXELS = 16
"""A smaller array of bytes is a grid of integers rather than a picture."""

_MAX_VALUES = 2**16
"""Range of an integer entry beyond which it is a number rather than a category."""

_TEXT_CHARACTERS = "".join(sorted(set(string.printable) - set("\x0b\x0c\r")))


@dataclass(frozen=True)
class Adapter:
    """Rule by which observations and actions of an environment are converted.

    Attributes:
        observation: kind of the observations.
        action: kind of the actions.
        size: numbers or integers of an observation; 0 for pictures.
        entries: names of the parts of a `Dict` or `Tuple`, in the order in which they are flattened.
        starts: subtracted from the integers; empty if all are 0.
        text: key of the text of a `Dict`; "" without one.
        frame: shape of pictures, else empty.
        num_actions: values or choices of an action.
        action_start: added to a choice.
        space: the observation space.
    """

    observation: Observation
    action: Action
    size: int
    entries: tuple[str, ...]
    starts: tuple[int, ...]
    text: str
    frame: tuple[int, ...]
    num_actions: int
    action_start: int
    space: gym.Space[Any] = field(compare=False, repr=False)

    @property
    def rule(self) -> dict[str, Any]:
        """Everything that the conversion depends on, as JSON values; entries that have no effect are left out."""
        values = {
            "observation": self.observation,
            "size": self.size,
            "entries": list(self.entries),
            "starts": list(self.starts),
            "text": self.text,
            "frame": list(self.frame),
            "action": self.action,
            "num_actions": self.num_actions,
            "action_start": self.action_start,
        }
        return {name: value for name, value in values.items() if value}

    def __str__(self) -> str:
        """Return the rule in words, for people."""
        parts = f" ({', '.join(self.entries)})" if self.entries else ""
        words = {
            "continuous": f"continuous_observation of {self.size} numbers{parts}",
            "discrete": f"discrete_observation of {self.size} integers{parts}",
            "discrete+text": f"text_observation ({self.text}) and discrete_observation of {self.size} integers{parts}",
            "image": f"image_observation: pictures {list(self.frame)} in grey, 84 x 84, the last 4",
        }[self.observation]
        actions = f"{self.num_actions} {'values' if self.action == 'continuous' else 'choices'}"
        return f"{type(self.space).__name__} -> {words}; actions: {actions}"

    def observation_space(self) -> gym.spaces.Dict:
        """Return the space of converted observations."""
        if self.observation == "image":
            return stack_space()
        if self.observation == "continuous":
            low, high = _bounds(self.space, self.size)
            return gym.spaces.Dict({"continuous_observation": gym.spaces.Box(low, high, dtype=np.float32)})
        counts = np.concatenate([leaf.counts for leaf in _leaves(self.space) if not leaf.is_text])
        spaces: dict[str, gym.Space[Any]] = {"discrete_observation": gym.spaces.MultiDiscrete(counts)}
        if self.text:
            spaces["text_observation"] = Mission(_TEXT_CHARACTERS)
        return gym.spaces.Dict(spaces)

    def action_space(self, space: gym.Space[Any]) -> gym.Space[Any]:
        """Return the space of the agent's actions for an environment's action space."""
        return gym.spaces.Discrete(self.num_actions) if self.action == "discrete" else space

    def begin(self) -> Converter:
        """Return a converter for the observations of one environment."""
        return Converter(self)

    def executed(self, action: Any) -> Any:
        """Convert the agent's action to the environment's."""
        return int(action) + self.action_start if self.action == "discrete" else action

    def stored(self, action: Any) -> Any:
        """Convert the environment's action to the agent's, as datasets keep it."""
        return int(action) - self.action_start if self.action == "discrete" else np.asarray(action, np.float32)


class Converter:
    """Convert the observations of one environment, episode after episode.

    Args:
        adapter: the rule.
    """

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._frames = FrameStack()
        self._leaves = [] if adapter.observation == "image" else list(_leaves(adapter.space))

    def first(self, observation: Any) -> dict[str, Any]:
        """Convert the first observation of an episode.

        Returns:
            Keyword arguments of `get_next_action`: float32 [X], int64 [X] with or without a text, or uint8 [84, 84, 4].

        Raises:
            InputError: the observation is not one of the space: another shape, a missing entry.
        """
        return self._convert(observation, self._frames.first)

    def next(self, observation: Any) -> dict[str, Any]:
        """Convert the observation after a step. See `first`."""
        return self._convert(observation, self._frames.next)

    def _convert(self, observation: Any, push: Callable[[np.ndarray], dict[str, np.ndarray]]) -> dict[str, Any]:
        adapter = self._adapter
        if adapter.observation == "image":
            frame = np.asarray(observation)
            if frame.shape != adapter.frame or frame.dtype != np.uint8:
                raise InputError(
                    f"observation: expected uint8 {list(adapter.frame)}, as its space says, got {frame.dtype} "
                    f"{list(frame.shape)}"
                )
            return push(frame)

        values = [leaf.read(observation) for leaf in self._leaves]
        if adapter.observation == "continuous":
            numbers = np.asarray(gym.spaces.flatten(adapter.space, observation), np.float32).reshape(-1)
            return {"continuous_observation": numbers}

        texts = [str(value) for leaf, value in zip(self._leaves, values, strict=True) if leaf.is_text]
        integers = [
            value.reshape(-1).astype(np.int64) - leaf.starts
            for leaf, value in zip(self._leaves, values, strict=True)
            if not leaf.is_text
        ]
        return {"discrete_observation": np.concatenate(integers), **({"text_observation": texts[0]} if texts else {})}


class AdaptedEnv(gym.Wrapper[Any, Any, Any, Any]):
    """Wrapper that converts an environment's observations and actions by an adapter.

    Args:
        env: the environment; its spaces are those of the adapter.
        adapter: the rule.

    Attributes:
        raw_observation: the last observation as the environment returned it, for experts that were written for it;
            None before the first reset. From outer wrappers it is `env.get_wrapper_attr("raw_observation")`.
    """

    raw_observation: Any = None

    def __init__(self, env: gym.Env[Any, Any], adapter: Adapter) -> None:
        super().__init__(env)
        self._adapter, self._converter = adapter, adapter.begin()
        self.observation_space = adapter.observation_space()
        self.action_space = adapter.action_space(env.action_space)

    def reset(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        self.raw_observation = observation
        return self._converter.first(observation), info

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(self._adapter.executed(action))
        self.raw_observation = observation
        return self._converter.next(observation), float(reward), bool(terminated), bool(truncated), info

    def render(self) -> Any:
        frame = self.env.render()  # from MuJoCo: a view with negative strides, which torch does not accept
        return np.ascontiguousarray(frame) if isinstance(frame, np.ndarray) else frame


def own_kind(space: gym.Space[Any]) -> Observation | None:
    """Return the kind of observations that already are keyword arguments of `get_next_action`; None for others."""
    if not isinstance(space, gym.spaces.Dict):
        return None
    kind = next((kind for kind in OBSERVATIONS if set(space.spaces) == set(_KEYS[kind])), None)
    return kind if all(_is_own(key, part) for key, part in space.spaces.items()) else None


def _is_own(key: str, space: gym.Space[Any]) -> bool:
    """Return True if the values of a space are those that `get_next_action` takes as this keyword argument."""
    if key == "text_observation":
        return True
    if key == "image_observation":
        return space == stack_space()[key]
    if key == "continuous_observation":
        return isinstance(space, gym.spaces.Box) and len(space.shape) == 1 and space.dtype.kind == "f"
    return isinstance(space, gym.spaces.MultiDiscrete) and len(space.shape) == 1 and not space.start.any()


def choose_adapter(
    observation_space: gym.Space[Any], action_space: gym.Space[Any], kind: Observation | None = None
) -> Adapter:
    """Return the rule for an environment's spaces; the module's docstring has the table.

    Args:
        observation_space: of the environment.
        action_space: of the environment.
        kind: kind of observation to convert to, in place of the one that the table gives.

    Raises:
        SpaceError: an agent has no such observations or actions; the message names the wrapper that helps.

    Example:
        >>> import gymnasium
        >>> env = gymnasium.make("CartPole-v1")
        >>> adapter = choose_adapter(env.observation_space, env.action_space)
        >>> print(adapter)
        Box -> continuous_observation of 4 numbers; actions: 2 choices
    """
    action, num_actions, action_start = _action(action_space)
    if kind is None:
        kind = _kind(observation_space)
    size, entries, starts, text, frame = _observation(observation_space, kind)
    return Adapter(kind, action, size, entries, starts, text, frame, num_actions, action_start, observation_space)


def own_action(space: gym.Space[Any]) -> Action:
    """Return the kind of an action space that agents have.

    Raises:
        SpaceError: agents have no such actions, or the space does not begin at 0.
    """
    action, _, start = _action(space)
    if start:
        raise SpaceError(f"action_space: expected a Discrete that starts at 0, got {space}")
    return action


def _action(space: gym.Space[Any]) -> tuple[Action, int, int]:
    """Return kind, number of values or choices, and start of an action space."""
    if isinstance(space, gym.spaces.Discrete):
        return "discrete", int(space.n), int(space.start)
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1 and space.shape[0] and space.dtype.kind == "f":
        return "continuous", int(space.shape[0]), 0
    advice = {
        "MultiDiscrete": "gymnasium.wrappers.TransformAction from Discrete(n), n the product of its numbers, with "
        "numpy.unravel_index",
        "MultiBinary": "gymnasium.wrappers.TransformAction from Discrete(2 ** n), one number for each combination",
        "Box": "gymnasium.wrappers.TransformAction from a Box of shape (A,) and of floats",
    }.get(type(space).__name__, "gymnasium.wrappers.TransformAction from a Box of shape (A,) or a Discrete")
    raise SpaceError(
        f"action_space: expected a Discrete, or a Box of shape (A,) of floats, got {space}; wrap the environment in "
        f"{advice}"
    )


def _kind(space: gym.Space[Any]) -> Observation:
    if isinstance(space, gym.spaces.Box):
        return "image" if _is_picture(space) else "continuous"
    leaves = list(_leaves(space))
    if any(leaf.is_text for leaf in leaves):
        return "discrete+text"
    return "discrete" if all(leaf.counts is not None and not leaf.is_box for leaf in leaves) else "continuous"


def _is_picture(space: gym.spaces.Box) -> bool:
    shape = space.shape
    has_pixels = len(shape) in (2, 3) and min(shape[:2]) >= MIN_PIXELS and (len(shape) == 2 or shape[2] in (1, 3))
    return space.dtype == np.uint8 and has_pixels


def _observation(
    space: gym.Space[Any], kind: Observation
) -> tuple[int, tuple[str, ...], tuple[int, ...], str, tuple[int, ...]]:
    """Return size, entries, starts, text and frame of an `Adapter`."""
    if kind == "image":
        if not isinstance(space, gym.spaces.Box) or not _is_picture(space):
            raise SpaceError(
                f"observation_space: expected a Box of pictures, uint8 [height, width, 1 or 3], got {space}; wrap the "
                "environment in gymnasium.wrappers.TransformObservation (float pictures times 255, channels last), or "
                "FilterObservation for one entry of a Dict"
            )
        return 0, (), (), "", tuple(space.shape)

    leaves = list(_leaves(space))
    texts = [leaf for leaf in leaves if leaf.is_text]
    others = [leaf for leaf in leaves if not leaf.is_text]
    entries = tuple(leaf.name for leaf in others if leaf.name)
    if kind == "continuous":
        pictures = [leaf.name for leaf in leaves if isinstance(leaf.space, gym.spaces.Box) and _is_picture(leaf.space)]
        if texts or pictures:
            raise SpaceError(
                f"observation_space: expected numbers, got a {'text' if texts else 'picture'} in "
                f"{texts[0].name if texts else pictures[0]!r} as well; leave it out with "
                "gymnasium.wrappers.FilterObservation"
            )
        size = int(gym.spaces.flatdim(space))
        if not size:
            raise SpaceError(
                f"observation_space: expected at least one number, got {space}; add one, such as a constant, with "
                "gymnasium.wrappers.TransformObservation"
            )
        return size, entries, (), "", ()

    if (len(texts) == 1) != (kind == "discrete+text") or not others:
        raise SpaceError(
            f"observation_space: expected {'one text and' if kind == 'discrete+text' else 'no text but'} integers, got "
            f"{space}; wrap the environment in gymnasium.wrappers.TransformObservation, or FilterObservation"
        )
    for leaf in others:
        if leaf.counts is None:
            raise SpaceError(
                f"observation_space: {leaf.name or 'entry'}: expected integers of a range below {_MAX_VALUES}, got "
                f"{leaf.space}; leave it out with gymnasium.wrappers.FilterObservation, or make categories of it with "
                "TransformObservation"
            )
    starts = np.concatenate([leaf.starts for leaf in others])
    return (
        len(starts),
        entries,
        tuple(starts.tolist()) if starts.any() else (),
        texts[0].name if texts else "",
        (),
    )


@dataclass(frozen=True)
class _Leaf:
    """One part of an observation space.

    Attributes:
        path: keys and positions that lead to it.
        space: its space.
        is_text: True for texts.
        counts: number of values of each integer, int64 [n]; None if it has no integers of a small range.
        starts: smallest value of each integer, int64 [n].
    """

    path: tuple[Any, ...]
    space: gym.Space[Any]
    is_text: bool
    counts: Any
    starts: Any

    @property
    def name(self) -> str:
        return ".".join(map(str, self.path))

    @property
    def is_box(self) -> bool:
        return isinstance(self.space, gym.spaces.Box)

    def read(self, observation: Any) -> Any:
        """Return this part of an observation, as an array or a text.

        Raises:
            InputError: it is missing, or another kind or size of value than the space has, or an integer outside it.
        """
        where = f"observation[{self.name!r}]" if self.name else "observation"
        value = observation
        try:
            for key in self.path:
                value = value[key]
            array = np.asarray(value)
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise InputError(f"{where}: expected one of {self.space}, got {observation!r:.80}") from error
        if self.is_text:
            if not isinstance(value, str):
                raise InputError(f"{where}: expected a text, got {value!r:.80}")
            return value

        size = int(np.prod(self.space.shape or ()))
        if array.dtype.kind not in "biuf":
            raise InputError(f"{where}: expected one of {self.space}, got {value!r:.80}")
        if array.size != size:
            raise InputError(
                f"{where}: expected {size} values, as its space has, got {array.size}; an environment keeps the size "
                "of its observations"
            )
        low, high = self._range()
        if low is not None and not ((array == np.floor(array)) & (array >= low) & (array <= high)).all():
            raise InputError(
                f"{where}: expected integers of {self.space}, got {' '.join(map(str, array.reshape(-1)[:8]))}; correct "
                "them, or the space"
            )
        return array

    def _range(self) -> tuple[Any, Any]:
        """Return the smallest and the largest value that can be stored; None and None for floats."""
        dtype = self.space.dtype
        if self.is_box and dtype is not None and dtype.kind == "f":
            return None, None
        if not self.is_box:
            shape = self.space.shape or ()
            return self.starts.reshape(shape), (self.starts + self.counts - 1).reshape(shape)
        if dtype == np.bool_:
            return 0, 1
        limits = np.iinfo(dtype)
        return limits.min, limits.max


def _leaves(space: gym.Space[Any], path: tuple[Any, ...] = ()) -> Iterator[_Leaf]:
    """Yield the parts of a space that are no `Dict` or `Tuple`, in the order in which Gymnasium flattens them."""
    if isinstance(space, gym.spaces.Dict):
        for key, part in space.spaces.items():
            yield from _leaves(part, (*path, key))
        return
    if isinstance(space, gym.spaces.Tuple):
        for number, part in enumerate(space.spaces):
            yield from _leaves(part, (*path, number))
        return

    is_text = isinstance(space, gym.spaces.Text) or (space.dtype is not None and space.dtype.kind == "U")
    counts, starts = (None, None) if is_text else _integers(space)
    if not is_text and counts is None and not isinstance(space, gym.spaces.Box):
        raise SpaceError(
            f"observation_space: {'.'.join(map(str, path)) or 'its kind'}: expected Box, Discrete, MultiDiscrete, "
            f"MultiBinary or Text, got {space}; wrap the environment in gymnasium.wrappers.TransformObservation"
        )
    yield _Leaf(path, space, is_text, counts, starts)


def _integers(space: gym.Space[Any]) -> tuple[Any, Any]:
    """Return the numbers of values and the smallest values of a space of integers; None and None for others."""
    if isinstance(space, gym.spaces.Discrete):
        return np.array([space.n], np.int64), np.array([space.start], np.int64)
    if isinstance(space, gym.spaces.MultiDiscrete):
        return space.nvec.reshape(-1).astype(np.int64), np.asarray(space.start).reshape(-1).astype(np.int64)
    if isinstance(space, gym.spaces.MultiBinary):
        size = int(np.prod(space.shape))
        return np.full(size, 2, np.int64), np.zeros(size, np.int64)
    if isinstance(space, gym.spaces.Box) and space.dtype.kind in "iub":
        low, high = (bound.reshape(-1).astype(np.float64) for bound in (space.low, space.high))
        if (high - low < _MAX_VALUES).all():
            return (high - low + 1).astype(np.int64), low.astype(np.int64)
    return None, None


def _bounds(space: gym.Space[Any], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and the highest value of each number of a flattened space, float32 [size]."""
    flat = gym.spaces.flatten_space(space)
    if isinstance(flat, gym.spaces.Box) and flat.shape == (size,):
        with np.errstate(over="ignore"):
            return flat.low.astype(np.float32), flat.high.astype(np.float32)
    return np.full(size, -np.inf, np.float32), np.full(size, np.inf, np.float32)
