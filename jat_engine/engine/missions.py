"""Tokenisation of missions, with a cache: each text is tokenised once."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ..checkpoint.tokenizer import check_tokenizer_files
from ..checkpoint_files import find_file, read_json
from ..config import MISSION_LENGTH
from ..errors import CheckpointError, InputError

Encode = Callable[[str], list[int]]
"""Function from a text to all of its tokens."""


class Missions:
    """Cached tokeniser of missions."""

    def __init__(self, tokenizer: tuple[Encode, int] | str, vocab_size: int) -> None:
        """Store the tokenizer.

        Args:
            tokenizer: the tokenizer and its pad token; or the reason why there is none, which each mission is refused
                with.
            vocab_size: tokens the model knows, 0 to `vocab_size - 1`.
        """
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
        return cls(_read_tokenizer(source, hub), vocab_size)

    @classmethod
    def of_processor(cls, processor: Any, vocab_size: int) -> Missions:
        """Take a `JatProcessor`'s tokenizer. Without a processor or a pad token, `encode` raises `InputError`.

        Raises:
            InputError: `processor` is neither a processor with a tokenizer nor None.
        """
        if processor is None:
            return cls("expected an engine with a processor, got one made without", vocab_size)
        tokenizer = getattr(processor, "tokenizer", None)
        if tokenizer is None:
            raise InputError(f"processor: expected a JatProcessor or nothing, got {type(processor).__name__}")
        if tokenizer.pad_token_id is None:
            return cls(
                "expected a tokenizer with a pad_token, got one without; set processor.tokenizer.pad_token", vocab_size
            )
        return cls((lambda text: list(tokenizer(text)["input_ids"]), int(tokenizer.pad_token_id)), vocab_size)

    def encode(self, text: str) -> np.ndarray:
        """Return a mission's tokens, int64 [64]: padded with the pad token, or truncated with a warning.

        Raises:
            InputError: a token is not in the model's vocabulary, or there is no tokenizer.
        """
        return self._cached(text)


def _tokenize(tokenizer: tuple[Encode, int] | str, vocab_size: int, text: str) -> np.ndarray:
    if isinstance(tokenizer, str):
        raise InputError(f"text_observation: {tokenizer}")
    encode, pad = tokenizer
    tokens = encode(text)
    if len(tokens) > MISSION_LENGTH:
        warnings.warn(
            f"text_observation: expected at most {MISSION_LENGTH} tokens, got {len(tokens)}; the rest is cut off",
            stacklevel=2,
        )
    array = np.array((tokens + [pad] * MISSION_LENGTH)[:MISSION_LENGTH], np.int64)
    if array.max() >= vocab_size:
        raise InputError(
            f"text_observation: expected tokens below vocab_size={vocab_size}, got {array.max()}; "
            "the tokenizer is not the model's"
        )
    return array


def _read_tokenizer(source: str | os.PathLike[str], hub: dict[str, Any]) -> tuple[Encode, int] | str:
    """Read `tokenizer.json` with the tokenizers library: importing transformers' tokenizers takes seconds."""
    check_tokenizer_files(source, hub)
    path = find_file(source, "tokenizer.json", hub)
    if path is None:
        return (
            f"expected an engine with a tokenizer, got one of {source}, which had no tokenizer.json; save the "
            "processor there (processor.save_pretrained) and load the engine again, or append the mission's "
            f"{MISSION_LENGTH} tokens to discrete_observation"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises no other class
        raise CheckpointError(f"{path}: not a readable tokenizer: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()

    # The pad token is in the files that transformers adds.
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = find_file(source, name, hub)
        pad = read_json(path).get("pad_token") if path else None
        content = pad.get("content") if isinstance(pad, dict) else pad
        pad_id = tokenizer.token_to_id(content) if content else None
        if pad_id is not None:
            return lambda text: list(tokenizer.encode(text).ids), pad_id
    return f"expected a pad_token of the tokenizer in {source}/tokenizer_config.json, got none; add it and load again"
