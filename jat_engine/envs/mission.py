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
    """Space of missions: lower-case letters, spaces and commas, up to `MAX_LENGTH` characters.

    An `AsyncVectorEnv` with shared memory reads a `Text` once, when it is made, and returns that for ever. From a
    `Mission` it gets a view of the memory.
    """

    def __init__(self) -> None:
        super().__init__(max_length=MAX_LENGTH, charset=CHARACTERS)


class MissionsView(Sequence[str]):
    """Missions of N environments, read from shared memory when they are accessed. A deep copy is a tuple of strings.

    Args:
        codes: int32 [N, MAX_LENGTH], positions in `CHARACTERS`, and larger numbers after the end.
    """

    def __init__(self, codes: np.ndarray) -> None:
        self._codes = codes

    def __len__(self) -> int:
        return len(self._codes)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(map(_decode, self._codes[index]))
        return _decode(self._codes[index])

    def __iter__(self) -> Iterator[str]:
        return map(_decode, self._codes)

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
    return MissionsView(np.frombuffer(shared_memory.get_obj(), np.int32).reshape(n, space.max_length))


def _decode(codes: np.ndarray) -> str:
    return "".join(CHARACTERS[code] for code in codes[codes < len(CHARACTERS)])
