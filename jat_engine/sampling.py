"""Choosing one of several actions from their logits."""

from __future__ import annotations

import numpy as np
import torch


class Sampler:
    """Draws `torch.multinomial(softmax(logits), 1, generator=generator)`, or takes the most likely choice.

    On a CPU torch draws q from an exponential distribution and takes the largest p / q. That is where `logits - log(q)`
    is largest, in three operations on memory that is there instead of a dozen on new: after a step's weights have gone
    through the caches each operation takes tens of microseconds.
    """

    def __init__(self, generator: torch.Generator | None) -> None:
        """generator: None for torch's global one."""
        self._generator = generator
        self._resize(0)

    def choose(self, logits: np.ndarray, deterministic: bool) -> int:
        """logits: float32 [n], finite."""
        if deterministic:
            return int(logits.argmax())
        if logits.size != self._scores.size:
            self._resize(logits.size)
        self._q.exponential_(generator=self._generator)
        np.log(self._scores, out=self._scores)
        np.subtract(logits, self._scores, out=self._scores)
        return int(self._scores.argmax())

    def _resize(self, size: int) -> None:
        self._q = torch.empty(size)
        self._scores = self._q.numpy()  # the same memory
