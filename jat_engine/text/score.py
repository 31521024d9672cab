"""`TextScore`, how likely a text is to the model, and the sequence that it is computed by."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_ROWS_AT_ONCE = 32
"""Rows of logits that are reduced together: with the published vocabulary, 6 MB of intermediate results."""


@dataclass(frozen=True, eq=False)
class TextScore:
    """Log-likelihood of a text, token by token. The last of its tokens are scored, given all that comes before them.

    Attributes:
        tokens: int64 [S], of context and text.
        logprobs: float32 [N], natural logarithm of the probability of each of the last N tokens.
        is_greedy: bool [N], the token is the most likely one.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    is_greedy: np.ndarray

    @property
    def num_tokens(self) -> int:
        """Return N, the number of tokens that are scored."""
        return len(self.logprobs)

    @property
    def total(self) -> float:
        """Return the log-likelihood of all tokens that are scored."""
        return math.fsum(self.logprobs)

    @property
    def perplexity(self) -> float:
        """Return exp(-total / N): e to the power of the loss of `JatModel`, if there is no context."""
        try:
            return math.exp(-self.total / self.num_tokens)
        except OverflowError:
            return math.inf

    def __repr__(self) -> str:
        return f"TextScore(total={self.total:.6g}, num_tokens={self.num_tokens}, perplexity={self.perplexity:.6g})"


class ScoredText:
    """Sequence of a `TextBatch` that reads a text and writes nothing.

    Attributes:
        prompt: int64 [S - 1], context and text without the last token, after which nothing is predicted.
        pixel_values: float32 [num_channels, image_size, image_size], the image before them; None for none.
        max_new_tokens: 0.
        wants_prompt_logits: True.
        finished: True once all tokens are scored.
        error: that ended the sequence; None if there was none.
    """

    def __init__(self, tokens: np.ndarray, pixel_values: np.ndarray | None, first: int) -> None:
        """Begin without scores.

        Args:
            tokens: int64 [S], context and text.
            pixel_values: float32 [num_channels, image_size, image_size], the image before them; None for none.
            first: index of the first token to score, 1 to S - 1.
        """
        assert 1 <= first < len(tokens), "a token is scored, and there is one before it"
        self.prompt = tokens[:-1]
        self.pixel_values = pixel_values
        self.max_new_tokens = 0
        self.wants_prompt_logits = True
        self.finished = False
        self.error: BaseException | None = None
        self._tokens = tokens
        self._first = first
        self._logprobs = np.zeros(len(tokens) - first, np.float32)
        self._is_greedy = np.zeros(len(tokens) - first, np.bool_)

    def accept_prompt(self, first: int, logits: np.ndarray) -> None:
        """Score the tokens that some logits predict.

        Args:
            first: index of the token that the first row comes after; -1 is the image's last patch.
            logits: float32 [n, vocab_size].
        """
        begin = max(first + 1, self._first)  # a row predicts the token after its own
        end = first + 1 + len(logits)
        for start in range(begin, end, _ROWS_AT_ONCE):
            stop = min(start + _ROWS_AT_ONCE, end)
            rows, targets = logits[start - first - 1 : stop - first - 1], self._tokens[start:stop]
            top = rows.max(axis=1)
            chosen = rows[np.arange(len(rows)), targets]
            partition = np.exp(rows - top[:, None]).sum(axis=1)
            scored = slice(start - self._first, stop - self._first)
            self._logprobs[scored] = chosen - top - np.log(partition)
            self._is_greedy[scored] = rows.argmax(axis=1) == targets
        self.finished |= end == len(self._tokens)

    def accept(self, logits: np.ndarray) -> int | None:
        """Return None: nothing is written after the text."""
        return None

    def score(self) -> TextScore:
        """Return the scores.

        Raises:
            BaseException: the error that ended the sequence, if there was one.
        """
        if self.error is not None:
            raise self.error
        assert self.finished, "the text has been read"
        return TextScore(self._tokens, self._logprobs, self._is_greedy)
