"""Files of a record: a part of an episode is an npz file, without pickle, that numpy reads.

| array | |
|---|---|
| `about` | JSON: of the server, the session and the episode, and the settings of its steps |
| keys of `OBSERVATION_KEYS` | observations, [T, ...]; texts are in `about` |
| `actions` | int64 [T], or float64 [T, A] |
| `rewards` | float64 [T], of the action before; NaN where none was given |
| `settings` | int32 [T], index of each step's settings in `about` |
| `forced` | as `actions`, if a client has given some of them: the given ones; NaN or -1 where it has not |

The record of a session that was restored from another server's snapshot begins with a file without steps:

| array | |
|---|---|
| `about` | as above |
| `snapshot` | uint8, of `AgentSession.snapshot` |
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..action_options import parse_options
from ..errors import DataError, describe_error
from ..observation import OBSERVATION_KEYS, check_context_window
from .requests import Options
from .spaces import Space, describe_space, parse_space

VERSION = 1
SUFFIX = ".npz"

_TEXT = "text_observation"


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """A step of a record.

    Attributes:
        observation: by `OBSERVATION_KEYS`.
        reward: of the action before; None where none was given.
        settings: "space", "deterministic", "window" and options of the choice, as `step_settings` returns them.
        action: that was chosen.
        forced: that the client gave in its place; None where it gave none.
    """

    observation: Mapping[str, Any]
    reward: float | None
    settings: Mapping[str, Any]
    action: list[float] | int
    forced: list[float] | int | None = None


@dataclass
class Part:
    """Successive steps of an episode, with observations of the same shapes and dtypes; or the snapshot before them.

    Attributes:
        about: JSON values of server, session and episode; "number" is the part's, from 0, "first" its first step's.
        steps: of this part; none with a snapshot.
        num_bytes: estimate of the memory that the steps take.
        snapshot: of the session before the first step of the record; None if it has begun in this server.
    """

    about: dict[str, Any]
    steps: list[RecordedStep] = field(default_factory=list)
    num_bytes: int = 0
    snapshot: bytes | None = None

    def to_bytes(self) -> bytes:
        """Return the contents of the part's file."""
        buffer = io.BytesIO()
        if self.snapshot is not None:  # keys and values, which compress badly
            snapshot = np.frombuffer(self.snapshot, np.uint8)
            np.savez(buffer, allow_pickle=False, about=np.array(json.dumps(self.about)), snapshot=snapshot)
            return buffer.getvalue()

        distinct: dict[str, int] = {}
        indices = []
        for step in self.steps:
            indices.append(distinct.setdefault(json.dumps(step.settings, sort_keys=True), len(distinct)))
        about = self.about | {"settings": [json.loads(text) for text in distinct]}
        first = self.steps[0]
        if _TEXT in first.observation:
            about["texts"] = [str(step.observation[_TEXT]) for step in self.steps]
        arrays: dict[str, np.ndarray] = {
            key: np.stack([np.asarray(step.observation[key]) for step in self.steps])
            for key in OBSERVATION_KEYS
            if key != _TEXT and key in first.observation
        }
        rewards = [np.nan if step.reward is None else step.reward for step in self.steps]
        arrays |= {
            "actions": np.array([step.action for step in self.steps], _action_dtype(first.action)),
            "rewards": np.array(rewards, np.float64),
            "settings": np.array(indices, np.int32),
            "about": np.array(json.dumps(about)),
        }
        if any(step.forced is not None for step in self.steps):
            none = np.full(len(first.action), np.nan) if isinstance(first.action, list) else -1
            forced = [none if step.forced is None else step.forced for step in self.steps]
            arrays["forced"] = np.array(forced, _action_dtype(first.action))
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        return buffer.getvalue()


def signature(step: RecordedStep) -> tuple[Any, ...]:
    """Return the kinds, shapes and dtypes that the steps of a part have in common."""
    arrays = {key: np.asarray(value) for key, value in step.observation.items() if key != _TEXT}
    size = len(step.action) if isinstance(step.action, list) else None
    return (_TEXT in step.observation, size, *((key, one.shape, one.dtype) for key, one in arrays.items()))


def _action_dtype(action: list[float] | int) -> type[Any]:
    return np.float64 if isinstance(action, list) else np.int64


def read_part(path: Path) -> Part:
    """Return the part in a file.

    Raises:
        DataError: it is no part of a record, or was damaged.
        OSError: it cannot be read.
    """
    data = path.read_bytes()
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(str(arrays["about"]))
        if about["version"] != VERSION:
            got = about["version"]
            raise DataError(f"{path}: expected a record of version {VERSION}, got {got}; use the version that wrote it")
        _check_about(about)
        if "snapshot" in arrays:
            return Part(about, snapshot=arrays["snapshot"].tobytes())
        return Part({k: v for k, v in about.items() if k not in ("settings", "texts")}, list(_steps(arrays, about)))
    except DataError:
        raise
    except Exception as error:  # of zip files, their decompressors, numpy and JSON: classes with none in common
        raise DataError(
            f"{path}: expected a record of `jat-engine serve --record`, got {describe_error(error):.160}; copy it again"
        ) from None


def _check_about(about: Mapping[str, Any]) -> None:
    """Check the fields that a replay reads, apart from the steps' settings."""
    for name in ("session", "episode", "number", "first"):
        if type(about[name]) is not int or about[name] < 0:
            raise ValueError(f"{name}: expected an integer >= 0, got {about[name]!r:.40}")
    for name, kind in (("seed", int), ("window", int), ("task", str)):
        if about[name] is not None and type(about[name]) is not kind:
            raise ValueError(f"{name}: expected {kind.__name__} or null, got {about[name]!r:.40}")


def _steps(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> Iterator[RecordedStep]:
    keys = [key for key in OBSERVATION_KEYS if key in arrays]
    actions, rewards, indices = arrays["actions"], arrays["rewards"], arrays["settings"]
    texts, forced, settings = about.get("texts"), arrays.get("forced"), about["settings"]
    if (actions.dtype.kind, actions.ndim) not in (("i", 1), ("f", 2)):
        raise ValueError(f"actions of dtype {actions.dtype} and shape {actions.shape}")
    if rewards.dtype.kind != "f" or any(len(arrays[key]) != len(actions) for key in (*keys, "rewards", "settings")):
        raise ValueError("arrays of different lengths")
    if forced is not None and (forced.shape, forced.dtype) != (actions.shape, actions.dtype):
        raise ValueError("given actions of another shape")
    if texts is not None and (len(texts) != len(actions) or not all(isinstance(text, str) for text in texts)):
        raise ValueError("texts: expected one for each step")
    for one in settings:
        space_of_settings(one)
        check_context_window(one["window"])
        if type(one["deterministic"]) is not bool:
            raise ValueError("deterministic: expected true or false")

    for t, (action, reward, index) in enumerate(zip(actions.tolist(), rewards.tolist(), indices.tolist(), strict=True)):
        observation: dict[str, Any] = {key: arrays[key][t] for key in keys}
        if texts is not None:
            observation[_TEXT] = texts[t]
        given = None if forced is None or _is_none(forced[t]) else forced[t].tolist()
        yield RecordedStep(observation, None if np.isnan(reward) else reward, settings[index], action, given)


def _is_none(forced: np.ndarray) -> bool:
    """Return True for the entry of a step whose client has given no action: -1, or NaN throughout."""
    return bool(np.isnan(forced).all()) if forced.dtype.kind == "f" else bool(forced == -1)


def step_settings(space: Space, deterministic: bool, window: int | None, options: Options) -> dict[str, Any]:
    """Return the settings of a step as JSON values.

    Args:
        space: that the action was chosen from.
        deterministic: the most likely choice was taken.
        window: most tokens that the step attended to; None for the model's longest.
        options: of the choice; those that were not given are left out.
    """
    found: dict[str, Any] = {"space": _space_as_json(space), "deterministic": deterministic, "window": window}
    return found | {name: _plain(value) for name, value in options._asdict().items() if value is not None}


def space_of_settings(settings: Mapping[str, Any]) -> Space:
    """Return the action space of a step's settings. Raises `InputError`."""
    values = settings["space"]
    return parse_space({"type": "Discrete" if "n" in values else "Box"} | values)


def options_of_settings(settings: Mapping[str, Any]) -> Any:
    """Return the options of a step's choice as an engine takes them; None for none. Raises `InputError`."""
    given = Options(*(settings.get(name) for name in Options._fields))
    return parse_options(given.action_mask, given.temperature, given.top_k, given.action_clip)


def _space_as_json(space: Space) -> dict[str, Any]:
    """Return an action space as a record has it: without its type, which its other fields tell."""
    described = describe_space(space, with_bounds=True)
    return {name: _plain(value) for name, value in described.items() if name != "type"}


def _plain(value: Any) -> Any:
    """Return a value of a request as JSON has it."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)[:80]
