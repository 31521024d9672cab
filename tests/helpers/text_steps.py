"""Texts for tests of `TextBatch`: a sequence that keeps all logits and writes greedily."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from jat_engine import JatEngine


class GreedyText:
    """A `Sequence` that chooses the most likely token, and keeps the logits after every token."""

    wants_prompt_logits = True

    def __init__(self, prompt: np.ndarray, num_new: int, pixel_values: np.ndarray | None = None) -> None:
        self.prompt = np.asarray(prompt, np.int64)
        self.pixel_values = pixel_values
        self.max_new_tokens = num_new
        self.finished = False
        self.error: BaseException | None = None
        self.tokens: list[int] = []
        self.first: int | None = None
        self._logits: list[np.ndarray] = []

    @property
    def logits(self) -> np.ndarray:
        """Logits after each token of the prompt, and each new one but the last, float32 [n, vocab_size]."""
        return np.concatenate(self._logits)

    def accept_prompt(self, first: int, logits: np.ndarray) -> None:
        self.first = first if self.first is None else self.first
        self._logits.append(logits.copy())

    def accept(self, logits: np.ndarray) -> int | None:
        if self.tokens:
            self._logits.append(logits[None].copy())
        self.tokens.append(int(logits.argmax()))
        return self.tokens[-1] if len(self.tokens) < self.max_new_tokens else None


def finish(engine: JatEngine, texts: Iterable[GreedyText]) -> None:
    """Run texts, which have been added or are added here, until all are finished."""
    texts = list(texts)
    for text in texts:
        engine._texts.add(text)
    while not all(text.finished for text in texts):
        engine._texts.advance(texts)
