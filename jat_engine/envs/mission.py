"""`Mission`, the space of BabyAI's missions, which `AsyncVectorEnv` can keep in shared memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import gymnasium as gym
import numpy as np
from gymnasium.vector.utils import read_from_shared_memory

CHARACTERS = "abcdefghijklmnopqrstuvwxyz ,"
MAX_LENGTH = 512


class Mission(gym.spaces.Text):
    """Space of missions, up to `MAX_LENGTH` characters.

    An `AsyncVectorEnv` with shared memory reads a `Text` once, when it is made, and returns that for ever. From a
    `Mission` it gets a view of the memory.

    Args:
        characters: that missions consist of; by default those of BabyAI: lower-case letters, spaces and commas.
    """

    def __init__(self, characters: str = CHARACTERS) -> None:
        super().__init__(max_length=MAX_LENGTH, charset=characters)


class MissionsView(Sequence[str]):
    """Missions of N environments, read from shared memory when they are accessed. A deep copy is a tuple of strings.

    Args:
        codes: int32 [N, MAX_LENGTH], positions in `characters`, and larger numbers after the end.
        characters: of the space.
    """

    def __init__(self, codes: np.ndarray, characters: Sequence[str] = CHARACTERS) -> None:
        self._codes, self._characters = codes, characters

    def __len__(self) -> int:
        return len(self._codes)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(map(self._decode, self._codes[index]))
        return self._decode(self._codes[index])

    def _decode(self, codes: np.ndarray) -> str:
        return "".join(self._characters[code] for code in codes[codes < len(self._characters)])

    def __iter__(self) -> Iterator[str]:
        return map(self._decode, self._codes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(tuple(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> tuple[str, ...]:
        return tuple(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (tuple(self),)


@read_from_shared_memory.register(Mission)
def _view(space: Mission, shared_memory: Any, n: int = 1) -> MissionsView:
    return MissionsView(
        np.frombuffer(shared_memory.get_obj(), np.int32).reshape(n, space.max_length), space.character_list
    )
