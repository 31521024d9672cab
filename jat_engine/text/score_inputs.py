"""Check the inputs of `JatEngine.score`, and make one sequence of tokens of each context and text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class ScoredTokens:
    """Tokens of a text that is to be scored.

    Attributes:
        name: of the text, for messages.
        tokens: int64 [S], of context and text.
        first: index of the first token to score, at least 1.
    """

    name: str
    tokens: np.ndarray
    first: int

    def fit(self, most: int, truncation: bool | str) -> ScoredTokens:
        """Return at most `most` tokens.

        Args:
            most: the most tokens.
            truncation: False to refuse longer texts, "right" to drop their last tokens, "left" their first ones.

        Raises:
            InputError: there are more tokens, or none is left to score.
        """
        tokens, first, count = self.tokens, self.first, len(self.tokens)
        if count > most:
            if truncation is False:
                raise InputError(
                    f"{self.name}: expected at most {most} tokens (max_position_embeddings, less an image's patches, "
                    f'and one that is only predicted), got {count}; shorten it, or pass truncation="left" or "right"'
                )
            tokens = tokens[:most] if truncation == "right" else tokens[-most:]
            first = first if truncation == "right" else max(first - (count - most), 1)
        if first >= len(tokens):
            reason = "the tokens before it fill all positions" if count > most else "a text's first token is not scored"
            raise InputError(
                f"{self.name}: expected at least one token to score, got {len(self.tokens)} token(s); {reason}"
            )
        return ScoredTokens(self.name, tokens, first)


def parse_texts(texts: Any, contexts: Any, encode: Encode, vocab_size: int) -> list[ScoredTokens]:
    """Tokenise texts, each together with the context before it.

    Args:
        texts: a string or a list of strings.
        contexts: a string or a list of strings; None for none.
        encode: returns the tokens of a text.
        vocab_size: tokens that the model knows.

    Raises:
        InputError: a type is wrong, a text is empty, or there is another number of contexts than of texts.
    """
    given, before = _strings("texts", texts), None if contexts is None else _strings("contexts", contexts)
    _check_count(given, before)
    parsed = []
    for index, text in enumerate(given):
        name = "texts" if isinstance(texts, str) else f"texts[{index}]"
        if not text:
            raise InputError(f"{name}: expected a text with characters, got an empty one")
        context = "" if before is None else before[index]
        # As a whole, since a word may be one token together with the space before it.
        tokens = _check_tokens(name, encode(context + text), vocab_size)
        parsed.append(ScoredTokens(name, tokens, max(len(encode(context)) if context else 0, 1)))
    return parsed


def parse_ids(input_ids: Any, contexts: Any, vocab_size: int) -> list[ScoredTokens]:
    """Join tokens of contexts and texts.

    Args:
        input_ids: a list of integers, a list of such lists, or an array or tensor [S] or [B, S].
        contexts: the same of the contexts, which may be empty; None for none.
        vocab_size: tokens that the model knows.

    Raises:
        InputError: a type or a value is wrong, a text has no tokens, or there is another number of contexts.
    """
    given, before = _rows("input_ids", input_ids), None if contexts is None else _rows("contexts", contexts)
    _check_count(given, before)
    parsed = []
    for index, row in enumerate(given):
        name = "input_ids" if is_single(input_ids) else f"input_ids[{index}]"
        tokens = _check_tokens(name, row, vocab_size)
        if not len(tokens):
            raise InputError(f"{name}: expected at least one token, got none")
        context = np.zeros(0, np.int64)
        if before is not None and len(before[index]):
            context = _check_tokens(f"contexts[{index}]", before[index], vocab_size)
        parsed.append(ScoredTokens(name, np.concatenate((context, tokens)), max(len(context), 1)))
    return parsed


def is_single(given: Any) -> bool:
    """Tell if an argument is one text, a string or tokens, and not a list of texts."""
    if isinstance(given, str):
        return True
    if hasattr(given, "ndim"):
        return bool(given.ndim == 1)
    return isinstance(given, list | tuple) and bool(given) and isinstance(given[0], int | np.integer)


def _strings(name: str, given: Any) -> list[str]:
    values = [given] if isinstance(given, str) else given
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
        raise InputError(f"{name}: expected a string or a list of strings, got {given!r:.80}")
    return list(values)


def _rows(name: str, given: Any) -> list[Any]:
    if is_single(given):
        return [given]
    if hasattr(given, "ndim") and given.ndim == 2:
        return list(given)
    if not isinstance(given, list | tuple):
        raise InputError(f"{name}: expected lists of tokens or an array [B, S], got {given!r:.80}")
    return list(given)


def _check_count(texts: list[Any], contexts: list[Any] | None) -> None:
    if contexts is not None and len(contexts) != len(texts):
        raise InputError(f"contexts: expected one for each of {len(texts)} text(s), got {len(contexts)}")


def _check_tokens(name: str, given: Any, vocab_size: int) -> np.ndarray:
    """Return tokens as int64 [S]."""
    if hasattr(given, "detach"):  # a tensor
        given = given.detach().cpu().numpy()
    try:
        tokens = np.asarray(given)
    except ValueError:  # rows of different lengths
        tokens = np.empty(0, object)
    if not tokens.size and tokens.ndim == 1 and tokens.dtype.kind == "f":  # an empty list
        tokens = tokens.astype(np.int64)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise InputError(f"{name}: expected a list of integers, got {given!r:.80}")
    wrong = tokens[(tokens < 0) | (tokens >= vocab_size)]
    if wrong.size:
        raise InputError(f"{name}: expected tokens of 0 to {vocab_size - 1} (vocab_size - 1), got {wrong[0]}")
    return tokens.astype(np.int64)
