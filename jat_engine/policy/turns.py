"""Turns of a vector environment's agents: which of them act on an observation, and which begin an episode with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..envs.vector import DISABLED, NEXT_STEP, read_flags
from ..errors import InputError

_LOST = "life_lost"


class Turn(NamedTuple):
    """What the observations of a step are to the agents.

    Attributes:
        acts: bool [N]; False for the last observation of an episode, after which the environment ignores an action.
        begins: bool [N], the observation is the first of an episode.
        rewards: [N], of the agents' previous actions.
    """

    acts: np.ndarray
    begins: np.ndarray
    rewards: np.ndarray


class Turns:
    """Tell the turns of N agents from the steps of their vector environment, in every `AutoresetMode` of Gymnasium.

    In Atari with `terminal_on_life_loss` a lost life ends what the environment calls an episode, and its reset goes on
    with the game. So does the agent: it has been rewarded, and remembers.

    Args:
        mode: "NextStep", "SameStep" or "Disabled".
        num_envs: N.
    """

    def __init__(self, mode: str, num_envs: int) -> None:
        self._mode, self._num_envs = mode, num_envs
        self.reset()

    def reset(self) -> Turn:
        """Return the turn after a reset of all environments."""
        none = np.zeros(self._num_envs, bool)
        # Of the last step: environments that the next step resets, those of them whose game goes on, and the rewards.
        self._ended, self._lost, self._rewards = none, none, np.zeros(self._num_envs)
        return Turn(~none, ~none, self._rewards)

    def after_step(self, rewards: np.ndarray, terminated: Any, truncated: Any, infos: Any, reset_mask: Any) -> Turn:
        """Return the turn after a step of the environments. Invalid input changes nothing.

        Args:
            rewards: [N], of the step, like the next three.
            terminated: bool [N].
            truncated: bool [N].
            infos: Gymnasium's mapping of arrays, or a mapping for each environment.
            reset_mask: bool [N], environments that the caller has reset after the step; None for those that need it.

        Raises:
            InputError: the arguments are not of N environments, or the caller has left one out that needs a reset.
        """
        terminated = read_flags("terminated", terminated, self._num_envs)
        truncated = read_flags("truncated", truncated, self._num_envs)
        lost = _lives_lost(infos, self._num_envs) & terminated & ~truncated
        ended = terminated | truncated

        by_caller = np.zeros_like(ended) if reset_mask is None else read_flags("reset_mask", reset_mask, self._num_envs)
        if self._mode == NEXT_STEP:
            at_once = ended & by_caller
        elif self._mode == DISABLED and reset_mask is not None and (ended & ~by_caller).any():
            raise InputError(
                f"reset_mask: expected True for environments {np.flatnonzero(ended & ~by_caller).tolist()}, whose "
                "episodes have ended; reset them as well"
            )
        else:
            at_once = ended

        goes_on = (self._ended & self._lost) | (at_once & lost)
        begins = (self._ended | at_once | by_caller) & ~goes_on
        # The step that resets an environment has no reward of its own.
        turn = Turn(~(ended & ~at_once), begins, np.where(self._ended & self._lost, self._rewards, rewards))
        self._ended, self._lost, self._rewards = ended & ~at_once, lost, rewards
        return turn


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
