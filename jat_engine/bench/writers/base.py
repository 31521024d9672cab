"""Define a writer: anything that continues texts greedily from a checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

import numpy as np

Choose = Callable[[np.ndarray], np.ndarray]
"""Logits, float32 [B, vocab_size], valid during the call -> the next tokens, int64 [B]."""


class Writer(Protocol):
    """A way to continue texts.

    Attributes:
        name: as tables show it, without the dtype.
        dtype: of the weights.
        has_weights: False if it computes on weights of its own, so that only its speed can be compared.
    """

    name: str
    dtype: str
    has_weights: bool

    def write(self, prompts: np.ndarray, num_new: int, on_step: Callable[[], object]) -> np.ndarray:
        """Continue prompts greedily, without an end.

        Args:
            prompts: int64 [B, S].
            num_new: tokens of each continuation.
            on_step: called when all texts have their first token, their second one, and so on.

        Returns:
            The new tokens, int64 [B, num_new].
        """

    def predict(self, prompts: np.ndarray, forced: np.ndarray) -> np.ndarray:
        """Return the logits of the continuations `forced`, in the steps that `write` takes.

        Args:
            prompts: int64 [B, S].
            forced: int64 [B, n].

        Returns:
            float32 [B, n, vocab_size]: before each of the forced tokens.
        """

    def close(self) -> None:
        """Give back memory and threads."""


class StepWriter(ABC):
    """Make a `Writer` of a decoder that takes one step after the other: greedy search in the tightest loop."""

    name: str
    dtype: str
    has_weights = True

    @abstractmethod
    def run(self, prompts: np.ndarray, num_new: int, choose: Choose) -> None:
        """Read prompts and call `choose` `num_new` times, each time followed, but for the last, by a decoding step."""

    def write(self, prompts: np.ndarray, num_new: int, on_step: Callable[[], object]) -> np.ndarray:
        steps: list[np.ndarray] = []

        def choose(logits: np.ndarray) -> np.ndarray:
            steps.append(logits.argmax(axis=1))
            on_step()
            return steps[-1]

        self.run(prompts, num_new, choose)
        return np.stack(steps, axis=1)

    def predict(self, prompts: np.ndarray, forced: np.ndarray) -> np.ndarray:
        found: list[np.ndarray] = []

        def choose(logits: np.ndarray) -> np.ndarray:
            found.append(logits.copy())
            return forced[:, len(found) - 1]

        self.run(prompts, forced.shape[1], choose)
        return np.stack(found, axis=1)

    @abstractmethod
    def close(self) -> None:
        """Give back memory and threads."""
