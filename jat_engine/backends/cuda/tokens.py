"""What stands for a token's embedding until the GPU makes it."""

from __future__ import annotations

import numpy as np
from torch import Tensor

_NO_VALUES = np.empty(0, np.float32)


class Token:
    """Where the GPU finds or how it makes one token's embedding, without position.

    Attributes:
        source: an encoder float32 [X, H] for `values` [X]; or, without values, the finished row, float32 [H].
        address: of `source`.
        values: float32 [X], or empty.
        integers, reward: int32 [X] and its reward, if they are to be encoded into `source` first.
        frame: uint8 [84, 84, 4], if it is to be encoded into `source` first.
    """

    __slots__ = ("address", "frame", "integers", "reward", "source", "values")

    def __init__(
        self,
        source: Tensor,
        address: int,
        values: np.ndarray = _NO_VALUES,
        integers: np.ndarray | None = None,
        reward: float = 0.0,
        frame: np.ndarray | None = None,
    ) -> None:
        self.source = source
        self.address = address
        self.values = values
        self.integers = integers
        self.reward = reward
        self.frame = frame

    def is_encoded(self) -> None:
        """`source` holds the row now. What it was made of is not needed any more."""
        self.integers = self.frame = None
