"""The boundary of `get_next_action`: what a caller passes is checked here, once, and typed."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from .config import FRAME_SHAPE, MISSION_LENGTH, JatConfig
from .errors import InputError, SessionError

Modality = Literal["continuous", "discrete", "discrete+text", "image"]

_MODALITIES: dict[tuple[bool, bool, bool, bool], Modality] = {
    # continuous, discrete, text, image
    (True, False, False, False): "continuous",
    (False, True, False, False): "discrete",
    (False, True, True, False): "discrete+text",
    (False, False, False, True): "image",
}

OBSERVATION_KEYS = ("continuous_observation", "discrete_observation", "text_observation", "image_observation")
"""Keyword arguments of `get_next_action` that an observation comes by."""

OBSERVATIONS_KEYS = tuple(f"{key}s" for key in OBSERVATION_KEYS)
"""Keyword arguments of `AgentBatch.get_next_actions` that observations come by."""

_FIELDS: dict[Modality, str] = {
    "continuous": "continuous_observation",
    "discrete": "discrete_observation",
    "discrete+text": "discrete_observation + text_observation",
    "image": "image_observation",
}

_ALL_KEYS = " or ".join(f"{key}=..." for key in OBSERVATION_KEYS)


class Limits(NamedTuple):
    """The sizes of a `JatConfig` that inputs are checked against; quicker to read, each step, than the config."""

    max_continuous_size: int
    max_discrete_value: int
    vocab_size: int

    @classmethod
    def of(cls, config: JatConfig) -> Limits:
        """Return the sizes of a configuration."""
        return cls(config.max_continuous_size, config.max_discrete_value, config.vocab_size)

    @property
    def num_numbers(self) -> int:
        """Most numbers of a continuous observation; the reward takes one place."""
        return self.max_continuous_size - 1

    def num_integers(self, with_text: bool) -> int:
        """Return the most integers of a discrete observation; a mission takes places of its own."""
        return self.max_discrete_value - (MISSION_LENGTH if with_text else 0)


@dataclass(slots=True)
class Observations:
    """One checked observation of each of N agents, with the rewards that came with them.

    Attributes:
        modality: of all.
        values: float32 [N, X], int64 [N, X] or uint8 [N, 84, 84, 4]; of a single agent a list of one array, which can
            be the caller's own.
        texts: N missions of "discrete+text", else None.
        rewards: [N], 0.0 where none was given.
        fields: the keyword arguments they came by, for error messages.
        num_padding: zeros that were added to each agent's integers, to have as many as the model takes.
    """

    modality: Modality
    values: Sequence[np.ndarray] | np.ndarray
    texts: list[str] | None
    rewards: Sequence[float] | np.ndarray
    fields: str
    num_padding: int = 0

    @property
    def num_values(self) -> int:
        """Values of one observation, without padding."""
        return int(self.values[0].size) - self.num_padding


class ActionSpace(NamedTuple):
    """A checked action space: `size` values ("continuous") or `size` choices ("discrete")."""

    kind: Literal["continuous", "discrete"]
    size: int


def parse_observation(limits: Limits, observation: Mapping[str, Any], reward: Any = None) -> Observations:
    """Check one agent's observation against the model's sizes.

    Args:
        limits: the model's sizes.
        observation: values by `OBSERVATION_KEYS`; None counts as absent.
        reward: of the action before; None counts as 0.

    Returns:
        Observations of a single agent.

    Raises:
        InputError: names the field, what was expected and what came.
    """
    get = observation.get
    continuous, discrete = get("continuous_observation"), get("discrete_observation")
    text, image = get("text_observation"), get("image_observation")
    modality = _modality(continuous, discrete, text, image, "")

    texts, num_padding = None, 0
    if modality == "continuous":
        values = _continuous(limits, continuous)
    elif modality == "image":
        values = _image(image)
    else:
        if modality == "discrete+text":
            texts = [_text(text)]
        values, num_padding = _discrete(limits, discrete, with_text=texts is not None)
    return Observations(modality, [values], texts, [_reward(reward)], _FIELDS[modality], num_padding)


def parse_observations(
    limits: Limits, num_agents: int, observations: Mapping[str, Any], rewards: Any = None
) -> Observations:
    """Check one observation of each of N agents.

    Args:
        limits: the model's sizes.
        num_agents: N.
        observations: arrays by `OBSERVATIONS_KEYS`; None counts as absent.
        rewards: [N], of the actions before; None counts as zeros.

    Raises:
        InputError: names the field, what was expected and what came.
    """
    continuous, discrete, text, image = map(observations.get, OBSERVATIONS_KEYS)
    modality = _modality(continuous, discrete, text, image, "s")

    texts, num_padding = None, 0
    if modality == "continuous":
        values = _continuous_rows(limits, num_agents, continuous)
    elif modality == "image":
        shape = (num_agents, *FRAME_SHAPE)
        expected = f"uint8 of shape {shape}, channel last"
        values = to_array("image_observations", image, expected)
        if values.dtype != np.uint8 or values.shape != shape:
            raise InputError(f"image_observations: expected {expected}, got {describe(values)}")
        values = np.ascontiguousarray(values)
    else:
        if modality == "discrete+text":
            items = text.tolist() if isinstance(text, np.ndarray) else text
            if not isinstance(items, Sequence) or isinstance(items, str | bytes) or len(items) != num_agents:
                raise InputError(f"text_observations: expected {num_agents} strings, got {describe(text)}")
            texts = [_text(str(one) if isinstance(one, np.str_) else one) for one in items]
        values, num_padding = _discrete_rows(limits, num_agents, discrete, with_text=texts is not None)
    fields = " + ".join(f"{name}s" for name in _FIELDS[modality].split(" + "))
    return Observations(modality, values, texts, _rewards(num_agents, rewards), fields, num_padding)


def _modality(continuous: Any, discrete: Any, text: Any, image: Any, plural: str) -> Modality:
    """Return what kind of observation was given, or raise `InputError`; plural: "s" or "", behind field names."""
    given = continuous is not None, discrete is not None, text is not None, image is not None
    modality = _MODALITIES.get(given)
    if modality is None:
        names = [f"{key}{plural}" for key in OBSERVATION_KEYS]
        got = " + ".join(name for name, is_given in zip(names, given, strict=True) if is_given)
        raise InputError(
            f"observation{plural}: expected {names[0]}, or {names[1]} (with or without {names[2]}), or {names[3]}; "
            f"got {got or 'none of them'}"
        )
    return modality


def _continuous_rows(limits: Limits, num_agents: int, value: Any) -> np.ndarray:
    largest = limits.num_numbers
    expected = f"[{num_agents}, 1 to {largest}] finite numbers"
    array = to_array("continuous_observations", value, expected)
    if array.ndim != 2 or len(array) != num_agents or not 1 <= array.shape[1] <= largest:
        raise InputError(f"continuous_observations: expected {expected}, got shape {array.shape}")
    array = _float32(array)
    if not all_finite(array):
        agent, index = (int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise InputError(
            f"continuous_observations: expected finite float32 values, got {array[agent, index]} at {index} of "
            f"agent {agent}"
        )
    return array


def _discrete_rows(limits: Limits, num_agents: int, value: Any, with_text: bool) -> tuple[np.ndarray, int]:
    """Return integers as int64 [N, X], and how many zeros were added to each row."""
    size = limits.num_integers(with_text)
    expected = f"[{num_agents}, 1 to {size}] integers" + (" next to text_observations" if with_text else "")
    array = to_array("discrete_observations", value, expected)
    is_fitting = array.ndim == 2 and len(array) == num_agents and 1 <= array.shape[1] <= size
    if not is_fitting or array.dtype.kind == "f":
        raise InputError(f"discrete_observations: expected {expected}, got {describe(array)}")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= limits.vocab_size:
        raise InputError(f"discrete_observations: expected values in [0, {limits.vocab_size}), got {low} to {high}")
    return _padded(array, size)


def _padded(array: np.ndarray, size: int) -> tuple[np.ndarray, int]:
    """Return integers [..., X] as a new int64 [..., size], zeros at the end, and how many zeros were added."""
    given = array.shape[-1]
    padded = np.zeros((*array.shape[:-1], size), np.int64)
    padded[..., :given] = array
    return padded, size - given


def _rewards(num_agents: int, value: Any) -> np.ndarray:
    if value is None:
        return np.zeros(num_agents, np.float32)
    expected = f"{num_agents} finite numbers or None"
    array = to_array("rewards", value, expected)
    array = _float32(array)
    if array.shape != (num_agents,) or not all_finite(array):
        raise InputError(f"rewards: expected {expected}, got {describe(value)}")
    return array


def parse_action_space(limits: Limits, space: Any) -> ActionSpace:
    """Check a `gymnasium.spaces.Box` of one dimension or `Discrete` that starts at 0.

    Spaces are recognised by class name, so that acting does not need gymnasium installed.

    Raises:
        InputError: names what was expected and what came.
    """
    kind = _space_kind(type(space))  # type: ignore[arg-type]  # classes are hashable
    try:
        if kind == "Box":
            (size,) = space.shape
            if 1 <= size <= limits.max_continuous_size:
                return _action_space("continuous", operator.index(size))
        elif kind == "Discrete":
            size = operator.index(space.n)
            if 1 <= size <= limits.vocab_size and operator.index(getattr(space, "start", 0)) == 0:
                return _action_space("discrete", size)
    except (AttributeError, TypeError, ValueError):  # not what a space of that name has
        pass
    expected = {
        "Box": f"a Box of shape (A,) with 1 <= A <= {limits.max_continuous_size}",
        "Discrete": f"Discrete(n) with 1 <= n <= {limits.vocab_size} that starts at 0",
        None: "a gymnasium.spaces.Box or Discrete",
    }
    got = describe(space) if kind is None else repr(space)
    hint = "; pass action_space=env.action_space" if kind is None else ""
    raise InputError(f"action_space: expected {expected[kind]}, got {got}{hint}")


_action_space = functools.lru_cache(maxsize=64)(ActionSpace)
"""`ActionSpace`, without building an equal one in each step."""


def parse_action(space: ActionSpace, action: Any) -> Any:
    """Return an action of a space as episodes keep it: float32 [A], or an int. Raises `InputError`."""
    if space.kind == "discrete":
        try:
            choice = operator.index(action)
        except TypeError:
            choice = -1
        if isinstance(action, bool) or not 0 <= choice < space.size:
            raise InputError(f"action: expected an integer in [0, {space.size}), got {action!r:.80}")
        return choice
    values = _float32(to_array("action", action, f"{space.size} finite numbers"))
    if values.shape != (space.size,) or not all_finite(values):
        raise InputError(f"action: expected {space.size} finite numbers, got {action!r:.80}")
    return values


@functools.cache
def _space_kind(cls: Any) -> str | None:
    """Return "Box" or "Discrete" for a class of that name or a subclass of one; else None."""
    names = {base.__name__ for base in cls.__mro__}
    return next((kind for kind in ("Box", "Discrete") if kind in names), None)


def check_processor(processor: Any, is_needed: bool) -> None:
    """Refuse what cannot be a processor, such as an observation that was passed as the first argument.

    Args:
        is_needed: whether None is refused as well.

    Raises:
        InputError: names the keyword that such an observation is passed by.
    """
    if callable(processor) or (processor is None and not is_needed):
        return
    expected = "a JatProcessor" if is_needed else "a JatProcessor or nothing"
    got = "None" if processor is None else describe(processor)
    hint = "" if processor is None else f"; pass an observation as {_meant(processor)}"
    raise InputError(f"processor: expected {expected}, got {got}{hint}")


def _meant(value: Any) -> str:
    """Return the keyword argument that an observation of this kind is passed by."""
    if isinstance(value, Mapping):
        return "keyword arguments, **observation" if value.keys() <= set(OBSERVATION_KEYS) else _ALL_KEYS
    if isinstance(value, str):
        return "text_observation=... next to discrete_observation=..."
    try:
        array = to_array("observation", value, "numbers")
    except InputError:
        return _ALL_KEYS
    if array.ndim >= 2:
        return "image_observation=..."
    if array.dtype.kind == "f":
        return "continuous_observation=..."
    return "continuous_observation=..., or as discrete_observation=... if its integers are categories"


def check_context_window(context_window: Any) -> int | None:
    """None, or an integer of at least one token; else `InputError`."""
    if context_window is None:
        return None
    if isinstance(context_window, bool) or not isinstance(context_window, int | np.integer) or context_window < 1:
        raise InputError(f"context_window: expected None or an integer >= 1, got {context_window!r:.80}")
    return int(context_window)


def check_same_episode(
    previous: Observations, previous_space: ActionSpace, observations: Observations, space: ActionSpace
) -> None:
    """Raise `SessionError` unless a step has the modality, sizes and kind of action of the one before it."""
    if observations.modality != previous.modality:
        raise SessionError(
            f"observation: expected {previous.fields} as before in this episode, got {observations.fields}; "
            "reset to start a new episode"
        )
    size, before = observations.num_values, previous.num_values
    if size != before:
        raise SessionError(
            f"{observations.fields}: expected {before} values as before in this episode, got {size}; "
            "reset to start a new episode"
        )
    if space == previous_space:
        return
    if space.kind != previous_space.kind or space.kind == "continuous":
        raise SessionError(
            f"action_space: expected {previous_space.kind} of size {previous_space.size} as before in this "
            f"episode, got {space.kind} of size {space.size}; reset to start a new episode"
        )


def not_finite(observations: Observations, finite: Sequence[bool] | np.ndarray) -> InputError:
    """Return the error for observations whose predictions overflowed.

    Args:
        observations: of N agents.
        finite: [N], false for at least one.
    """
    bad = [agent for agent, is_finite in enumerate(finite) if not is_finite]
    largest = np.abs(observations.values[bad[0]].astype(np.float64)).max()
    agents = f" for agents {bad[:8]}" if len(finite) > 1 else ""
    return InputError(
        f"{observations.fields}: expected values of a size the model can compute with, got a prediction that "
        f"is not finite{agents}; largest value {largest:.3g}, reward {observations.rewards[bad[0]]:.3g}"
    )


def describe(value: Any) -> str:
    """Return what a value is, for an error: shape and dtype of an array, or type and beginning of anything else."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"{type(value).__name__} of shape {tuple(shape)} and dtype {dtype}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def to_array(field: str, value: Any, expected: str) -> np.ndarray:
    """Return numbers of any kind as an array: lists, arrays, and tensors on any device and of any dtype.

    Args:
        field: name of the argument, for the error.
        value: the numbers.
        expected: what the argument should be, for the error.

    Raises:
        InputError: `value` is not made of bools, integers or floats.
    """
    try:
        if hasattr(value, "detach"):  # a torch tensor, on any device
            value = value.detach().cpu()
            if value.is_floating_point():
                value = value.float()  # numpy has no bfloat16
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # ragged nested lists, tensors without data
        raise InputError(f"{field}: expected {expected}, got {describe(value)} ({error})") from None
    if array.dtype.kind not in "biuf":
        raise InputError(f"{field}: expected {expected}, got {describe(value)}")
    return array


_FLOAT32 = np.dtype(np.float32)


def all_finite(array: np.ndarray) -> bool:
    """Return whether all numbers are finite: `np.isfinite(array).all()`, which takes three times as long for a few."""
    return 0 not in np.isfinite(array).tobytes()


def _float32(array: np.ndarray) -> np.ndarray:
    """Return a contiguous float32 copy; what is too large becomes infinite, what is too small becomes 0."""
    if array.dtype == _FLOAT32:
        return array.copy()
    # A caller may have set numpy to warn or to raise at overflow and underflow.
    with np.errstate(all="ignore"):
        return array.astype(np.float32, order="C")


def _continuous(limits: Limits, value: Any) -> np.ndarray:
    largest = limits.num_numbers
    if type(value) is np.ndarray and (value.dtype == _FLOAT32 or value.dtype.kind in "biuf"):
        array = value
    else:
        array = to_array("continuous_observation", value, f"1 to {largest} finite numbers")
    if array.ndim != 1 or not 1 <= array.size <= largest:
        raise InputError(f"continuous_observation: expected 1 to {largest} finite numbers, got shape {array.shape}")
    array = _float32(array)
    if not all_finite(array):
        bad = int(np.flatnonzero(~np.isfinite(array))[0])
        raise InputError(f"continuous_observation: expected finite float32 values, got {array[bad]} at {bad}")
    return array


def _discrete(limits: Limits, value: Any, with_text: bool) -> tuple[np.ndarray, int]:
    """Return integers as int64 [X], and how many zeros were added to them."""
    size = limits.num_integers(with_text)
    expected = f"1 to {size} integers" + (" next to a text_observation" if with_text else "")
    array = value if type(value) is np.ndarray else to_array("discrete_observation", value, expected)
    if array.dtype == np.int64 and array.shape == (size,) and array.view(np.uint64).max() < limits.vocab_size:
        return np.ascontiguousarray(array), 0  # the usual case; negative numbers are the largest unsigned ones
    array = to_array("discrete_observation", value, expected)
    if array.dtype.kind == "f":
        raise InputError(f"discrete_observation: expected {expected}, got dtype {array.dtype}")
    if array.ndim != 1 or not 1 <= array.size <= size:
        raise InputError(f"discrete_observation: expected {expected}, got shape {array.shape}")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= limits.vocab_size:
        raise InputError(f"discrete_observation: expected values in [0, {limits.vocab_size}), got {low} to {high}")
    return _padded(array, size)


_IMAGE = f"uint8 of shape {FRAME_SHAPE}, channel last"


def _image(value: Any) -> np.ndarray:
    array = value if type(value) is np.ndarray else to_array("image_observation", value, _IMAGE)
    if array.dtype != np.uint8 or array.shape != FRAME_SHAPE:
        raise InputError(f"image_observation: expected {_IMAGE}, got shape {array.shape} and dtype {array.dtype}")
    return np.ascontiguousarray(array)


_LARGEST = float(np.finfo(np.float32).max)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"text_observation: expected a string, got {describe(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # lone surrogates
        raise InputError(f"text_observation: expected text that is valid Unicode, got {error}") from None
    return value


def _reward(value: Any) -> float:
    if value is None:
        return 0.0
    if isinstance(value, float) and -_LARGEST <= value <= _LARGEST:  # the usual case, numpy's float64 too
        return float(value)
    array = to_array("reward", value, "a finite number or None")
    if array.size != 1 or not -_LARGEST <= array.item() <= _LARGEST:
        raise InputError(f"reward: expected a finite number or None, got {describe(value)}")
    return float(array.item())
