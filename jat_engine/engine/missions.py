"""Tokenisation of missions, with a cache: each text is tokenised once."""

from __future__ import annotations

import functools
import os
import warnings
from typing import Any

import numpy as np

from ..config import MISSION_LENGTH
from ..errors import InputError
from ..text.tokenizer import TextTokenizer


class Missions:
    """Cached tokeniser of missions.

    Attributes:
        tokenizer: of the engine; without one, or without a padding token, each mission is refused.
    """

    def __init__(self, tokenizer: TextTokenizer, vocab_size: int) -> None:
        """Store the tokenizer.

        Args:
            tokenizer: of the engine.
            vocab_size: tokens the model knows, 0 to `vocab_size - 1`.
        """
        self.tokenizer = tokenizer
        self._cached = functools.lru_cache(maxsize=4096)(functools.partial(_tokenize, tokenizer, vocab_size))

    @classmethod
    def of_checkpoint(cls, source: str | os.PathLike[str], hub: dict[str, Any], vocab_size: int) -> Missions:
        """Read a checkpoint's tokenizer. Without `tokenizer.json` or a pad token, `encode` raises `InputError`.

        Args:
            source: the checkpoint's folder or hub repository.
            hub: options that say where to look for the repository.
            vocab_size: of the model.

        Raises:
            CheckpointError: a file of the tokenizer is damaged, or two of them disagree.
        """
        return cls(TextTokenizer.of_checkpoint(source, hub), vocab_size)

    @classmethod
    def of_processor(cls, processor: Any, vocab_size: int) -> Missions:
        """Take a `JatProcessor`'s tokenizer. Without a processor or a pad token, `encode` raises `InputError`.

        Raises:
            InputError: `processor` is neither a processor with a tokenizer nor None.
        """
        return cls(TextTokenizer.of_processor(processor), vocab_size)

    def encode(self, text: str) -> np.ndarray:
        """Return a mission's tokens, int64 [64]: padded with the pad token, or truncated with a warning.

        Raises:
            InputError: a token is not in the model's vocabulary, or there is no tokenizer.
        """
        return self._cached(text)


def _tokenize(tokenizer: TextTokenizer, vocab_size: int, text: str) -> np.ndarray:
    if tokenizer.reason:
        remedy = f", or append the mission's {MISSION_LENGTH} tokens to discrete_observation"
        raise InputError(f"text_observation: {tokenizer.reason}{remedy if ';' in tokenizer.reason else ''}")
    if tokenizer.pad_id is None:
        raise InputError(f"text_observation: {tokenizer.pad_reason}")
    tokens = tokenizer.encode(text)
    if len(tokens) > MISSION_LENGTH:
        warnings.warn(
            f"text_observation: expected at most {MISSION_LENGTH} tokens, got {len(tokens)}; the rest is cut off",
            stacklevel=2,
        )
    array = np.array((tokens + [tokenizer.pad_id] * MISSION_LENGTH)[:MISSION_LENGTH], np.int64)
    if array.max() >= vocab_size:
        raise InputError(
            f"text_observation: expected tokens below vocab_size={vocab_size}, got {array.max()}; "
            "the tokenizer is not the model's"
        )
    return array
