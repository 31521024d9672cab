"""`StopRules`: when a text ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

from .options import GenerationOptions

Criterion = Callable[..., Any]
"""Function of ids, int64 [1, S], and scores that returns bool [1] or a bool: True to end the text."""


class StopRules:
    """Rules by which a text ends, apart from stop strings, which `TextDecoder` finds.

    Attributes:
        needs_ids: True if `reason` reads the tokens so far.
        finds_stop_strings: False if an object of the caller looks for stop strings instead.
    """

    def __init__(self, options: GenerationOptions, criteria: Iterable[Criterion] = ()) -> None:
        """Prepare the rules.

        Args:
            options: of the text.
            criteria: the caller's. An `EosTokenCriteria`, `MaxTimeCriteria` or `StopStringCriteria` of transformers
                goes before the field that does the same; for `MaxLengthCriteria` see `max_length_of`.
        """
        self._criteria = list(criteria)
        replaced = {type(one).__name__ for one in self._criteria if _is_of_transformers(one)}
        self._eos = frozenset() if "EosTokenCriteria" in replaced else frozenset(options.eos_token_id)
        self._max_time = None if "MaxTimeCriteria" in replaced else options.max_time
        self._begin = time.monotonic()
        self.needs_ids = bool(self._criteria)
        self.finds_stop_strings = "StopStringCriteria" not in replaced

    def begin(self) -> None:
        """Start the clock of `max_time`."""
        self._begin = time.monotonic()

    def reason(
        self, token: int, is_stopped: bool, is_last: bool, ids: torch.Tensor, scores: tuple[torch.Tensor, ...] | None
    ) -> str | None:
        """Return why the text ends with its newest token; None if it goes on.

        Args:
            token: the newest.
            is_stopped: a stop string has ended within it.
            is_last: no more tokens may be written.
            ids: int64 [1, S], with the newest token.
            scores: of the tokens so far, float32 [1, V] each; None if they are not kept.

        Returns:
            "eos", "stop", "length", "time" or "criteria".
        """
        # Criteria count their calls perhaps, so each is called for each token.
        is_met = [bool(torch.as_tensor(criterion(ids, scores)).all()) for criterion in self._criteria]
        if token in self._eos:
            return "eos"
        if is_stopped:
            return "stop"
        if is_last:
            return "length"
        if self._max_time is not None and time.monotonic() - self._begin > self._max_time:
            return "time"
        return "criteria" if any(is_met) else None


def max_length_of(criteria: Iterable[Criterion]) -> int | None:
    """Return the length of a transformers' `MaxLengthCriteria`, with the prompt; None without one.

    As for transformers, it goes before `max_new_tokens` and `max_length`.
    """
    for one in criteria:
        if type(one).__name__ == "MaxLengthCriteria" and _is_of_transformers(one):
            return int(one.max_length)  # type: ignore[attr-defined]
    return None


def _is_of_transformers(one: Any) -> bool:
    """Return whether an object is of a class of transformers, without importing transformers."""
    return type(one).__module__.startswith("transformers.")
