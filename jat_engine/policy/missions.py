"""Missions as integers, for vector environments that keep observations in arrays."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from ..errors import InputError

_KEY = "text_observation"
_CODE_POINTS = 0x110000
"""Characters of Unicode."""


class EncodeMission(gym.ObservationWrapper[Any, Any, Any]):
    """Wrapper that turns the mission of an observation into integers; an environment without missions stays as it is.

    Stable-Baselines3's vector environments keep observations in arrays, and cannot be made from a space of texts.
    `JatPolicy` reads both forms.

    Args:
        env: its missions become uint32 [L], L the most characters of its space: the code points of the characters,
            then zeros.

    Raises:
        InputError: a mission is longer than its space says.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        space = env.observation_space
        text = space.spaces.get(_KEY) if isinstance(space, gym.spaces.Dict) else None
        self._length = text.max_length if isinstance(text, gym.spaces.Text) else 0
        if self._length:
            codes = gym.spaces.Box(0, _CODE_POINTS - 1, (self._length,), np.uint32)
            self.observation_space = gym.spaces.Dict({**space.spaces, _KEY: codes})  # type: ignore[attr-defined]

    def observation(self, observation: Any) -> Any:
        """Return the observation with its mission as integers."""
        if not self._length:
            return observation
        mission = observation[_KEY]
        if len(mission) > self._length:
            raise InputError(f"{_KEY}: expected at most {self._length} characters, got {len(mission)}")
        return {**observation, _KEY: np.array([mission], f"<U{self._length}").view("<u4")}


def decode_missions(codes: Any) -> list[str]:
    """Return the missions of N environments that `EncodeMission` has encoded.

    Args:
        codes: integers [N, L], code points and then zeros.

    Raises:
        InputError: the integers are no code points.
    """
    codes = np.asarray(codes)
    is_text = codes.ndim == 2 and codes.shape[1] > 0 and codes.dtype.kind in "iu"
    if not is_text or (codes < 0).any() or (codes >= _CODE_POINTS).any():
        raise InputError(
            f"{_KEY}: expected texts, or the code points of EncodeMission as integers [N, L], got {codes.dtype} "
            f"{list(codes.shape)}"
        )
    return [str(text) for text in np.ascontiguousarray(codes, "<u4").view(f"<U{codes.shape[1]}")[:, 0]]
