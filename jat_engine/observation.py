"""The boundary of `get_next_action`: what a caller passes is checked here, once, and typed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .config import FRAME_SHAPE, MISSION_LENGTH, JatConfig
from .errors import InputError, SessionError

Modality = Literal["continuous", "discrete", "discrete+text", "image"]

_KEYS = {
    ("continuous_observation",): "continuous",
    ("discrete_observation",): "discrete",
    ("discrete_observation", "text_observation"): "discrete+text",
    ("image_observation",): "image",
}


@dataclass(frozen=True)
class Observation:
    """One checked observation with the reward that came with it.

    Attributes:
        modality: "continuous", "discrete", "discrete+text" or "image".
        values: float32 [X], int64 [N] or uint8 [84, 84, 4].
        text: the mission of "discrete+text", else None.
        reward: 0.0 if none was given.
    """

    modality: Modality
    values: np.ndarray
    text: str | None
    reward: float

    @property
    def fields(self) -> str:
        """The keyword arguments it came by."""
        if self.modality == "discrete+text":
            return "discrete_observation + text_observation"
        return "discrete_observation" if self.modality == "discrete" else f"{self.modality}_observation"


@dataclass(frozen=True)
class ActionSpace:
    """A checked action space: `size` values ("continuous") or `size` choices ("discrete")."""

    kind: Literal["continuous", "discrete"]
    size: int


def parse_observation(
    config: JatConfig,
    *,
    continuous_observation: Any = None,
    discrete_observation: Any = None,
    text_observation: Any = None,
    image_observation: Any = None,
    reward: Any = None,
) -> Observation:
    """Check one step's input against the model's sizes.

    Raises:
        InputError: names the field, what was expected and what came.
    """
    given = {
        "continuous_observation": continuous_observation,
        "discrete_observation": discrete_observation,
        "text_observation": text_observation,
        "image_observation": image_observation,
    }
    keys = tuple(key for key, value in given.items() if value is not None)
    modality = _KEYS.get(keys)
    if modality is None:
        raise InputError(
            "observation: expected continuous_observation, or discrete_observation (with or without "
            f"text_observation), or image_observation; got {' + '.join(keys) or 'none of them'}"
        )
    text = None
    if modality == "continuous":
        values = _continuous(config, continuous_observation)
    elif modality == "image":
        values = _image(image_observation)
    else:
        if modality == "discrete+text":
            text = _text(text_observation)
        values = _discrete(config, discrete_observation, with_text=text is not None)
    return Observation(modality, values, text, _reward(reward))  # type: ignore[arg-type]


def parse_action_space(config: JatConfig, space: Any) -> ActionSpace:
    """Check a `gymnasium.spaces.Box` of one dimension or `Discrete` that starts at 0.

    Spaces are recognised by class name, so that acting does not need gymnasium installed.

    Raises:
        InputError: names what was expected and what came.
    """
    names = {cls.__name__ for cls in type(space).__mro__}
    if "Box" in names:
        if len(space.shape) != 1 or not 1 <= space.shape[0] <= config.max_continuous_size:
            raise InputError(
                f"action_space: expected a Box of shape (A,) with 1 <= A <= {config.max_continuous_size}, got {space}"
            )
        return ActionSpace("continuous", int(space.shape[0]))
    if "Discrete" in names:
        if getattr(space, "start", 0) != 0 or not 1 <= space.n <= config.vocab_size:
            raise InputError(
                f"action_space: expected Discrete(n) with 1 <= n <= {config.vocab_size} that starts at 0, got {space}"
            )
        return ActionSpace("discrete", int(space.n))
    raise InputError(
        f"action_space: expected a gymnasium.spaces.Box or Discrete, got {_describe(space)}; "
        "pass action_space=env.action_space"
    )


def check_context_window(context_window: Any) -> int | None:
    """None, or an integer of at least one token; else `InputError`."""
    if context_window is None:
        return None
    if isinstance(context_window, bool) or not isinstance(context_window, int | np.integer) or context_window < 1:
        raise InputError(f"context_window: expected None or an integer >= 1, got {context_window!r}")
    return int(context_window)


def check_same_episode(
    previous: Observation, previous_space: ActionSpace, observation: Observation, space: ActionSpace
) -> None:
    """Raise `SessionError` unless a step has the modality, sizes and kind of action of the one before it."""
    if observation.modality != previous.modality:
        raise SessionError(
            f"observation: expected {previous.fields} as before in this episode, got {observation.fields}; "
            "reset to start a new episode"
        )
    if observation.values.shape != previous.values.shape:
        raise SessionError(
            f"{observation.fields}: expected {previous.values.size} values as before in this episode, "
            f"got {observation.values.size}; reset to start a new episode"
        )
    if space.kind != previous_space.kind or (space.kind == "continuous" and space != previous_space):
        raise SessionError(
            f"action_space: expected {previous_space.kind} of size {previous_space.size} as before in this "
            f"episode, got {space.kind} of size {space.size}; reset to start a new episode"
        )


def not_finite(observation: Observation) -> InputError:
    """The error for an observation whose prediction overflowed."""
    largest = np.abs(observation.values.astype(np.float64)).max()
    return InputError(
        f"{observation.fields}: expected values of a size the model can compute with, got a prediction that "
        f"is not finite; largest value {largest:.3g}, reward {observation.reward:.3g}"
    )


def _describe(value: Any) -> str:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"{type(value).__name__} of shape {tuple(shape)} and dtype {dtype}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _array(field: str, value: Any, expected: str) -> np.ndarray:
    if hasattr(value, "detach"):  # a torch tensor, on any device
        value = value.detach().cpu()
        if value.is_floating_point():
            value = value.float()  # numpy has no bfloat16
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:  # ragged nested lists
        raise InputError(f"{field}: expected {expected}, got {_describe(value)} ({error})") from None
    if array.dtype.kind not in "biuf":
        raise InputError(f"{field}: expected {expected}, got {_describe(value)}")
    return array


def _continuous(config: JatConfig, value: Any) -> np.ndarray:
    largest = config.max_continuous_size - 1  # the reward takes one place
    expected = f"1 to {largest} finite numbers"
    array = _array("continuous_observation", value, expected)
    if array.ndim != 1 or not 1 <= array.size <= largest:
        raise InputError(f"continuous_observation: expected {expected}, got shape {array.shape}")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        bad = int(np.flatnonzero(~np.isfinite(array))[0])
        raise InputError(f"continuous_observation: expected finite float32 values, got {array[bad]} at {bad}")
    return array


def _discrete(config: JatConfig, value: Any, with_text: bool) -> np.ndarray:
    size = config.max_discrete_value - (MISSION_LENGTH if with_text else 0)
    expected = f"{size} integers" + (" beside a text_observation" if with_text else "")
    array = _array("discrete_observation", value, expected)
    if array.dtype.kind == "f":
        raise InputError(f"discrete_observation: expected {expected}, got dtype {array.dtype}")
    if array.shape != (size,):
        raise InputError(f"discrete_observation: expected {expected}, got shape {array.shape}")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= config.vocab_size:
        raise InputError(f"discrete_observation: expected values in [0, {config.vocab_size}), got {low} to {high}")
    return array.astype(np.int64)


def _image(value: Any) -> np.ndarray:
    expected = f"uint8 of shape {FRAME_SHAPE}, channel last"
    array = _array("image_observation", value, expected)
    if array.dtype != np.uint8 or array.shape != FRAME_SHAPE:
        raise InputError(f"image_observation: expected {expected}, got shape {array.shape} and dtype {array.dtype}")
    return array.copy()  # environments may reuse their frame buffer


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"text_observation: expected a string, got {_describe(value)}")
    return value


def _reward(value: Any) -> float:
    if value is None:
        return 0.0
    array = _array("reward", value, "a finite number or None")
    if array.size != 1 or not np.isfinite(np.float32(array.item())):
        raise InputError(f"reward: expected a finite number or None, got {_describe(value)}")
    return float(array.item())
