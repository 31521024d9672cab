"""`Sequence`: what a `TextBatch` runs."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Sequence(Protocol):
    """A text that is read by the model and may be continued, one token at a time.

    Attributes:
        prompt: int64 [S], tokens to read; not empty.
        pixel_values: float32 [num_channels, image_size, image_size], the image before the text; None for none.
        max_new_tokens: the most tokens that `accept` returns and that are read in turn.
        wants_prompt_logits: `accept_prompt` is called.
        finished: True if nothing more is to be computed.
        error: that ended the sequence; None if there was none. Other sequences of a step go on.
    """

    prompt: np.ndarray
    pixel_values: np.ndarray | None
    max_new_tokens: int
    wants_prompt_logits: bool
    finished: bool
    error: BaseException | None

    def accept_prompt(self, first: int, logits: np.ndarray) -> None:
        """Take the logits after tokens `first`, `first` + 1, ... of the prompt; -1 is the image's last patch.

        Args:
            first: index of the first token.
            logits: float32 [n, vocab_size].
        """
        ...

    def accept(self, logits: np.ndarray) -> int | None:
        """Take the logits after the newest token, float32 [vocab_size].

        Returns:
            The next token, which is to be read; None if the sequence is finished.
        """
        ...
