"""Checks of an engine's arguments that are not observations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from ..config import JatConfig
from ..errors import InputError
from ..observation import OBSERVATION_KEYS

_KEYS = frozenset(OBSERVATION_KEYS)


def make_generator(seed: Any) -> torch.Generator | None:
    """Return a generator with this seed; None, for torch's global one, without a seed."""
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**63:
        raise InputError(f"seed: expected None or an integer in [0, 2^63), got {seed!r}")
    return torch.Generator().manual_seed(int(seed))


def check_num_agents(num_agents: Any) -> int:
    """Return an integer of at least one agent; else raise `InputError`."""
    if isinstance(num_agents, bool) or not isinstance(num_agents, int | np.integer) or num_agents < 1:
        raise InputError(f"num_agents: expected an integer >= 1, got {num_agents!r}")
    return int(num_agents)


def check_flags(**flags: Any) -> None:
    """Raise `InputError` for a flag that is not a bool."""
    for name, value in flags.items():
        if not isinstance(value, bool | np.bool_):
            raise InputError(f"{name}: expected True or False, for all sessions alike, got {value!r}")


def list_items(name: str, values: Any, count: int | None) -> list[Any]:
    """Return a list of `count` items, if that is given; else raise `InputError`."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise InputError(f"{name}: expected a sequence with an item for each session, got {type(values).__name__}")
    items = list(values)
    if count is not None and len(items) != count:
        raise InputError(f"{name}: expected one for each of {count} sessions, got {len(items)}")
    return items


def check_observation(observation: Any) -> Mapping[str, Any]:
    """Return a mapping whose keys are keywords of `get_next_action`; else raise `InputError`."""
    if not isinstance(observation, Mapping) or not observation.keys() <= _KEYS:
        got = sorted(map(str, observation)) if isinstance(observation, Mapping) else type(observation).__name__
        raise InputError(f"observation: expected a mapping with keys of {list(OBSERVATION_KEYS)}, got {got}")
    return observation


def check_config(config: JatConfig) -> None:
    """Raise `InputError` for what only `JatModel` computes."""
    if config.activation_function != "gelu_new":
        raise InputError(f"config.activation_function: expected 'gelu_new', got {config.activation_function!r}")
    if config.layer_norm_epsilon != 1e-5:
        raise InputError(f"config.layer_norm_epsilon: expected 1e-05, got {config.layer_norm_epsilon!r}")
