"""Turns of a vector environment's agents: which of them act on an observation, and which begin an episode with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..envs.vector import DISABLED, NEXT_STEP, read_flags
from ..errors import InputError
from ..observation import to_array

_LOST = "life_lost"


class Turn(NamedTuple):
    """What the observations of a step, or of a reset, are to the agents.

    Attributes:
        acts: bool [N]; False for the last observation of an episode, after which the environment ignores an action.
        begins: bool [N], the observation is the first of an episode.
        rewards: float64 [N], of the agents' previous actions; 0 where there is none, or it has no effect.
        lost: bool [N], of those that do not act: a life is lost, and the game goes on.
        held: float64 [N], of those that do not act: the reward, for the next turn.
    """

    acts: np.ndarray
    begins: np.ndarray
    rewards: np.ndarray
    lost: np.ndarray
    held: np.ndarray


def first_turn(num_envs: int) -> Turn:
    """Return the turn after a reset of all environments.

    Args:
        num_envs: N.
    """
    no, zeros = np.zeros(num_envs, bool), np.zeros(num_envs)
    return Turn(~no, ~no, zeros, no, zeros)


def next_turn(
    mode: str, last: Turn, rewards: Any, terminated: Any, truncated: Any, infos: Any, reset_mask: Any = None
) -> Turn:
    """Return the turn after a step of the environments, in every `AutoresetMode` of Gymnasium.

    In Atari with `terminal_on_life_loss` a lost life ends what the environment calls an episode, and its reset goes on
    with the game. So does the agent: it has been rewarded, and remembers.

    Args:
        mode: "NextStep", "SameStep" or "Disabled".
        last: the turn before the step.
        rewards: [N], of the step, like the next three.
        terminated: bool [N].
        truncated: bool [N].
        infos: Gymnasium's mapping of arrays, or a mapping for each environment.
        reset_mask: bool [N], environments that the caller has reset after the step; None for those that need it.

    Raises:
        InputError: the arguments are not of N environments, or the caller has left one out that needs a reset.
    """
    num_envs = len(last.acts)
    values = to_array("rewards", rewards, f"{num_envs} numbers").astype(np.float64)
    if values.shape != (num_envs,):
        raise InputError(f"rewards: expected those of the step, {num_envs} numbers, got {rewards!r:.80}")
    terminated = read_flags("terminated", terminated, num_envs)
    truncated = read_flags("truncated", truncated, num_envs)
    lost = _lives_lost(infos, num_envs) & terminated & ~truncated
    ended = terminated | truncated

    by_caller = np.zeros(num_envs, bool) if reset_mask is None else read_flags("reset_mask", reset_mask, num_envs)
    forgotten = ended & ~by_caller
    if mode == DISABLED and reset_mask is not None and forgotten.any():
        raise InputError(
            f"reset_mask: expected True for environments {np.flatnonzero(forgotten).tolist()}, whose episodes have "
            "ended; reset them as well"
        )

    # Gymnasium's default resets an environment by the step after the last one of its episode.
    by_step = ~last.acts
    waits = forgotten if mode == NEXT_STEP else np.zeros(num_envs, bool)
    at_once = ended & ~waits
    goes_on = (by_step & last.lost) | (at_once & lost)
    begins = (by_step | at_once | by_caller) & ~goes_on

    # The step that resets an environment has no reward of its own.
    used = np.where(by_step & last.lost, last.held, values)
    return Turn(~waits, begins, np.where(begins | waits, 0, used), lost & waits, np.where(waits, values, 0))


def _lives_lost(infos: Any, num_envs: int) -> np.ndarray:
    """Return in which environments the step has lost a life, bool [N]; of those that have not ended, any bool.

    Where the step has also reset an environment, `infos` are of the reset, and "final_info" is of the step.
    """
    if isinstance(infos, Mapping):
        of_step = infos.get("final_info", infos)
        lost = np.asarray(of_step.get(_LOST, [False] * num_envs) if isinstance(of_step, Mapping) else None)
        if lost.shape == (num_envs,):
            return lost.astype(bool)  # False where an environment has no such entry
    elif isinstance(infos, Sequence) and len(infos) == num_envs and all(isinstance(info, Mapping) for info in infos):
        of_steps = [info.get("final_info", info) for info in infos]
        if all(isinstance(info, Mapping) for info in of_steps):
            return np.array([bool(info.get(_LOST, False)) for info in of_steps])
    raise InputError(f"infos: expected those of the step, of {num_envs} environments, got {infos!r:.80}")
