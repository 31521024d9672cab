"""`EpisodeStarts`: which agents of a vector environment begin a new episode."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import InputError

_SAME_STEP, _NEXT_STEP, _DISABLED = "SameStep", "NextStep", "Disabled"
MODES = (_NEXT_STEP, _SAME_STEP, _DISABLED)
"""Values of `gymnasium.vector.AutoresetMode`."""


class EpisodeStarts:
    """Tell which agents of a vector environment begin a new episode, in every `AutoresetMode` of Gymnasium.

    A vector environment resets its environments itself, and its mode says when: with the step after the last one of an
    episode ("NextStep", Gymnasium's default), or within that last step ("SameStep"); or the caller does ("Disabled"),
    directly after the step. Call this once after each step.

    Attributes:
        mode: "NextStep", "SameStep" or "Disabled".
        num_envs: N.

    Args:
        vector_env: vector environment of Gymnasium or Stable-Baselines3, which has just been reset.
        mode: an `AutoresetMode` or its value, for environments that do not state it in
            `metadata["autoreset_mode"]`.

    Raises:
        InputError: `vector_env` is not a vector environment, or its mode is unknown.

    Example:
        >>> from gymnasium.vector import SyncVectorEnv
        >>> vector_env = SyncVectorEnv([lambda: make("babyai-go-to-obj")] * 4)
        >>> observations, _ = vector_env.reset(seed=0)
        >>> starts = EpisodeStarts(vector_env)
        >>> _, _, terminated, truncated, _ = vector_env.step([0, 1, 2, 2])
        >>> starts(terminated, truncated)
        array([False, False, False, False])
    """

    def __init__(self, vector_env: Any, mode: Any = None) -> None:
        count = getattr(vector_env, "num_envs", None)
        if not isinstance(count, int | np.integer):
            raise InputError(
                f"vector_env: expected a vector environment, got {type(vector_env).__name__}; for a single environment "
                "call session.reset() or reset_rl() when its episode is over"
            )
        self.num_envs = int(count)
        self.mode = _mode(vector_env, mode)
        self._ended = np.zeros(self.num_envs, bool)

    def __call__(self, terminated: Any, truncated: Any = None) -> np.ndarray:
        """Return the agents whose next observation is the first of an episode, for `AgentBatch.reset`.

        Args:
            terminated: bool [N], as the step returned it; for Stable-Baselines3 its `dones`.
            truncated: bool [N]; None for none.

        Returns:
            bool [N].

        Raises:
            InputError: the arguments are not bool [N].
        """
        ended = self._flags("terminated", terminated)
        if truncated is not None:
            ended = ended | self._flags("truncated", truncated)
        if self.mode != _NEXT_STEP:
            return ended
        self._ended, started = ended, self._ended
        return started

    def reset(self) -> None:
        """Forget the ended episodes, after `vector_env.reset()` of all environments."""
        self._ended = np.zeros(self.num_envs, bool)

    def _flags(self, name: str, values: Any) -> np.ndarray:
        flags = np.array(values)
        if flags.shape != (self.num_envs,) or flags.dtype != bool:
            raise InputError(
                f"{name}: expected a bool for each of {self.num_envs} environments, got {flags.dtype} {flags.shape}"
            )
        return flags


def _mode(vector_env: Any, given: Any) -> str:
    if given is None:
        given = (getattr(vector_env, "metadata", None) or {}).get("autoreset_mode")
    if given is None and any(each.__module__.split(".")[0] == "stable_baselines3" for each in type(vector_env).__mro__):
        given = _SAME_STEP
    value = getattr(given, "value", given)
    if value not in MODES:
        found = "does not state its mode in metadata['autoreset_mode']" if given is None else f"has the mode {given!r}"
        raise InputError(
            f"vector_env: {type(vector_env).__name__} {found}; expected one of {', '.join(MODES)}: pass what it does, "
            "such as EpisodeStarts(vector_env, mode='SameStep') if a step that ends an episode returns the first "
            "observation of the next one"
        )
    return str(value)
