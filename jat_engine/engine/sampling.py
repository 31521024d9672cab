"""Choosing one of several actions from their logits."""

from __future__ import annotations

import numpy as np
import torch


class Sampler:
    """The random part of `torch.multinomial(softmax(logits), 1, generator=generator)`.

    On a CPU torch draws q from an exponential distribution and takes the largest p / q. That is where `logits - log(q)`
    is largest, in three operations on memory that is there instead of a dozen on new: after a step's weights have gone
    through the caches each operation takes tens of microseconds.
    """

    def __init__(self, generator: torch.Generator | None) -> None:
        """generator: None for torch's global one."""
        self._generator = generator
        self._is_used = True
        self._resize(0)

    def draw(self, size: int) -> np.ndarray:
        """log(q), float32 [size], to be subtracted from logits; valid until the next draw.

        The same again until it has been `used`: a step that is refused leaves the random numbers where they were.
        """
        if size != self._noise.size:
            self._resize(size)
        if self._is_used:
            self._q.exponential_(generator=self._generator)
            np.log(self._noise, out=self._noise)
            self._is_used = False
        return self._noise

    def used(self) -> None:
        """A step has been taken with what was drawn."""
        self._is_used = True

    def _resize(self, size: int) -> None:
        self._q = torch.empty(size)
        self._noise = self._q.numpy()  # the same memory
        self._is_used = True


def choose(logits: np.ndarray, noise: np.ndarray | None) -> int:
    """The most likely of the choices or, with a draw of `Sampler`, a random one. logits: float32 [n], finite."""
    return int((logits if noise is None else np.subtract(logits, noise, out=noise)).argmax())
