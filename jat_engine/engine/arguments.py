"""Checks of those arguments of an engine that are not observations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from ..action_options import ActionOptions, parse_options
from ..config import JatConfig
from ..errors import InputError
from ..observation import OBSERVATION_KEYS, to_array

_KEYS = frozenset(OBSERVATION_KEYS)


def make_generator(seed: Any) -> torch.Generator | None:
    """Return a CPU generator with this seed, or a copy of the given one; None, torch's global generator, for None.

    Raises:
        InputError: the seed is neither None, nor an integer in [0, 2^64), nor a CPU generator.
    """
    if seed is None:
        return None
    if isinstance(seed, torch.Generator) and seed.device.type == "cpu":
        return torch.Generator().set_state(seed.get_state())
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
        raise InputError(f"seed: expected None or an integer in [0, 2^64), got {seed!r}")
    return torch.Generator().manual_seed(int(seed))


def check_num_agents(num_agents: Any) -> int:
    """Return `num_agents` as an int.

    Raises:
        InputError: it is not an integer of at least 1.
    """
    if isinstance(num_agents, bool) or not isinstance(num_agents, int | np.integer) or num_agents < 1:
        raise InputError(f"num_agents: expected an integer >= 1, got {num_agents!r}")
    return int(num_agents)


def check_counts(num_agents: Any) -> list[int]:
    """Return one number of agents, or several, as a list of ints.

    Raises:
        InputError: there is none, or one is not an integer of at least 1.
    """
    is_several = isinstance(num_agents, Iterable) and not isinstance(num_agents, str | bytes)
    # An array or tensor of one number counts as iterable and is not.
    counts = list(num_agents) if is_several and getattr(num_agents, "ndim", True) else [num_agents]
    if not counts:
        raise InputError("num_agents: expected an integer >= 1 or some of them, got none")
    return [check_num_agents(count) for count in counts]


def find_mask(which: Any, num_agents: int) -> np.ndarray:
    """Return some of N agents as a mask, bool [N].

    Args:
        which: a mask [N] of bools or of zeros and ones, or distinct indices in [0, N).
        num_agents: N.

    Raises:
        InputError: `which` is neither, or integers that could be both.
    """
    expected = f"a bool mask of {num_agents} agents, or distinct indices below that"
    values = to_array("which", which, expected)
    if values.ndim != 1:
        raise InputError(f"which: expected {expected}, got {which!r:.80}")

    is_mask = len(values) == num_agents and bool(((values == 0) | (values == 1)).all())
    is_indices = not len(values) or (
        values.dtype.kind in "iu"
        and 0 <= int(values.min()) <= int(values.max()) < num_agents
        and len(np.unique(values)) == len(values)
    )
    if is_mask and is_indices and num_agents <= 2:
        raise InputError(f"which: expected {expected}, got {which!r:.80}, which could be both; give a mask of bools")
    if is_mask:
        return values.astype(bool)
    if not is_indices:
        raise InputError(f"which: expected {expected}, got {which!r:.80}")
    mask = np.zeros(num_agents, bool)
    mask[values.astype(np.int64)] = True
    return mask


def check_flags(**flags: Any) -> None:
    """Check that keyword arguments are bools.

    Raises:
        InputError: one of them is not.
    """
    for name, value in flags.items():
        if not isinstance(value, bool | np.bool_):
            raise InputError(f"{name}: expected True or False, for all sessions alike, got {value!r}")


def list_items(name: str, values: Any, count: int | None) -> list[Any]:
    """Return the items of a sequence as a list.

    Args:
        name: of the argument, for the error.
        values: the sequence; neither a string nor a mapping.
        count: how many items there must be; None for any number.

    Raises:
        InputError: `values` is not a sequence, or of another length.
    """
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise InputError(f"{name}: expected a sequence with an item for each session, got {type(values).__name__}")
    items = list(values)
    if count is not None and len(items) != count:
        raise InputError(f"{name}: expected one for each of {count} sessions, got {len(items)}")
    return items


def spread(name: str, value: Any, count: int) -> list[Any]:
    """Return an argument that is one value for all sessions, or a list or tuple with one for each, as a list.

    Args:
        name: of the argument, for the error.
        value: of all, or of each.
        count: number of sessions.

    Raises:
        InputError: a list or tuple of another length.
    """
    return list_items(name, value, count) if isinstance(value, list | tuple) else [value] * count


def list_options(
    count: int, action_masks: Any, temperature: Any, top_k: Any, action_clip: Any
) -> list[ActionOptions | InputError | None]:
    """Return the options of each session in a step of several.

    Args:
        count: number of sessions.
        action_masks: one for each session, or None.
        temperature: of all sessions, or a list or tuple of each one's; see `spread`.
        top_k: as above.
        action_clip: as above.

    Returns:
        The options, None for a session without any, or the error of a session whose own options are invalid.

    Raises:
        InputError: an option of all sessions is invalid, or there is not one for each session.
    """
    masks = list_items("action_masks", [None] * count if action_masks is None else action_masks, count)
    given = {"temperature": temperature, "top_k": top_k, "action_clip": action_clip}
    if not any(isinstance(value, list | tuple) for value in given.values()):
        shared = parse_options(None, temperature, top_k, action_clip, is_shared=True)
        own = shared or ActionOptions()
        return [shared if mask is None else own._replace(action_mask=mask) for mask in masks]

    options: list[ActionOptions | InputError | None] = []
    for row in zip(masks, *(spread(name, value, count) for name, value in given.items()), strict=True):
        try:
            options.append(parse_options(*row))
        except InputError as error:
            options.append(InputError(*error.args))  # without the traceback, which would keep this frame alive
    return options


def check_observation(observation: Any) -> Mapping[str, Any]:
    """Return the observation of one agent.

    Raises:
        InputError: it is not a mapping, or has a key that is not in `OBSERVATION_KEYS`.
    """
    # An instance of dict is known sooner than one of an abstract class.
    if not isinstance(observation, (dict, Mapping)) or not _KEYS.issuperset(observation):
        got = sorted(map(str, observation)) if isinstance(observation, Mapping) else type(observation).__name__
        raise InputError(f"observation: expected a mapping with keys of {list(OBSERVATION_KEYS)}, got {got}")
    return observation


def check_config(config: JatConfig) -> None:
    """Check that the backends can compute a model.

    Raises:
        InputError: the configuration asks for what only `JatModel` computes.
    """
    if config.activation_function != "gelu_new":
        raise InputError(f"config.activation_function: expected 'gelu_new', got {config.activation_function!r}")
    if config.layer_norm_epsilon != 1e-5:
        raise InputError(f"config.layer_norm_epsilon: expected 1e-05, got {config.layer_norm_epsilon!r}")
