"""`EpisodeStarts`: which agents of a vector environment begin a new episode."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import InputError

_SAME_STEP, NEXT_STEP, DISABLED = "SameStep", "NextStep", "Disabled"
MODES = (NEXT_STEP, _SAME_STEP, DISABLED)
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
        self.num_envs = count_envs(vector_env)
        self.mode = find_mode(vector_env, mode)
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
        ended = read_flags("terminated", terminated, self.num_envs)
        if truncated is not None:
            ended = ended | read_flags("truncated", truncated, self.num_envs)
        if self.mode != NEXT_STEP:
            return ended
        self._ended, started = ended, self._ended
        return started

    def reset(self) -> None:
        """Forget the ended episodes, after `vector_env.reset()` of all environments."""
        self._ended = np.zeros(self.num_envs, bool)


def count_envs(vector_env: Any) -> int:
    """Return the number of environments of a vector environment.

    Raises:
        InputError: it is none.
    """
    count = getattr(vector_env, "num_envs", None)
    if not isinstance(count, int | np.integer):
        raise InputError(
            f"vector_env: expected a vector environment, got {type(vector_env).__name__}; for a single environment "
            "call session.reset() or reset_rl() when its episode is over"
        )
    return int(count)


def is_of_stable_baselines(vector_env: Any) -> bool:
    """Return True for vector environments of Stable-Baselines3, and of classes that extend them."""
    return any(each.__module__.split(".")[0] == "stable_baselines3" for each in type(vector_env).__mro__)


def find_mode(vector_env: Any, given: Any = None) -> str:
    """Return a vector environment's `AutoresetMode`: "NextStep", "SameStep" or "Disabled".

    Args:
        vector_env: vector environment of Gymnasium or Stable-Baselines3.
        given: the mode or its value; None for the one that the environment states.

    Raises:
        InputError: the mode is unknown.
    """
    if given is None:
        given = (getattr(vector_env, "metadata", None) or {}).get("autoreset_mode")
    if given is None and is_of_stable_baselines(vector_env):
        given = _SAME_STEP
    value = getattr(given, "value", given)
    if value not in MODES:
        found = "does not state its mode in metadata['autoreset_mode']" if given is None else f"has the mode {given!r}"
        raise InputError(
            f"vector_env: {type(vector_env).__name__} {found}; expected one of {', '.join(MODES)}: pass what it does, "
            "such as mode='SameStep' if a step that ends an episode returns the first observation of the next one"
        )
    return str(value)


def read_flags(name: str, values: Any, num_envs: int) -> np.ndarray:
    """Return one bool for each environment, bool [N].

    Args:
        name: of the argument, for the error.
        values: the flags.
        num_envs: N.

    Raises:
        InputError: the flags are not bool [N].
    """
    flags = np.array(np.asarray(values))  # tensors do not take a `copy` of their own
    if flags.shape != (num_envs,) or flags.dtype != bool:
        raise InputError(
            f"{name}: expected a bool for each of {num_envs} environments, got {flags.dtype} {flags.shape}"
        )
    return flags
