"""`NextToken`: choose the next token of one text from the model's logits.

The processors are transformers' own, in the order in which its `generate` applies them, and see one text alone: ids
[1, S] and scores [1, V]. So a choice does not depend on the batch that a text is computed in.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from .options import GenerationOptions

Processor = Callable[[Any, Any], Any]
"""Function of ids, int64 [1, S], and scores, float32 [1, V], that returns new scores."""


class NextToken:
    """Choice of a text's next token, with its own random numbers."""

    def __init__(
        self,
        options: GenerationOptions,
        prompt_length: int,
        min_length: int,
        generator: torch.Generator | None,
        processors: Iterable[Processor] = (),
        allowed_tokens: Callable[[torch.Tensor], Iterable[int]] | None = None,
    ) -> None:
        """Prepare the choice.

        Args:
            options: of the text.
            prompt_length: tokens of the prompt.
            min_length: tokens, with the prompt, before which no end token is chosen; 0 for none.
            generator: to sample with.
            processors: the caller's, behind those of the options; one of a class that the options have as well takes
                the place of theirs.
            allowed_tokens: function of the tokens so far, int64 [S], that returns those that may come next.
        """
        processors = list(processors)
        self._generator = generator if options.do_sample else None
        self._processors: list[Processor] = []
        if processors or allowed_tokens is not None or not options.is_plain:
            own = _processors_of(options, prompt_length, min_length, allowed_tokens)
            self._processors = [*merge(own, processors), *_warpers_of(options)]

    @property
    def needs_ids(self) -> bool:
        """True if `choose` reads the tokens so far."""
        return bool(self._processors)

    def choose(self, ids: torch.Tensor, logits: np.ndarray) -> tuple[int, torch.Tensor | None]:
        """Choose a token.

        Args:
            ids: int64 [1, S], the tokens so far.
            logits: float32 [V]; not changed.

        Returns:
            The token, and the processed scores, float32 [1, V]; None if they are the logits.
        """
        if not self._processors and self._generator is None:
            return int(logits.argmax()), None
        scores = torch.from_numpy(logits[None].copy())
        for process in self._processors:
            scores = process(ids, scores)
        if self._generator is None:
            return int(scores.argmax()), scores
        return sample(scores.softmax(-1), self._generator), scores


def merge(own: list[Any], given: list[Any]) -> list[Any]:
    """Return the caller's objects behind our own; one of the same class as an own one takes its place instead."""
    merged = [next((one for one in given if type(one) is type(mine)), mine) for mine in own]
    return merged + [one for one in given if not any(one is other for other in merged)]


def _processors_of(
    options: GenerationOptions,
    prompt_length: int,
    min_length: int,
    allowed_tokens: Callable[[torch.Tensor], Iterable[int]] | None,
) -> list[Processor]:
    """Return the processors that greedy decoding has, too."""
    import transformers  # its classes take seconds to import

    made: list[Processor] = []
    if options.repetition_penalty != 1:
        made.append(transformers.RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    if options.no_repeat_ngram_size > 0:
        made.append(transformers.NoRepeatNGramLogitsProcessor(options.no_repeat_ngram_size))
    eos = list(options.eos_token_id)
    if options.bad_words_ids:
        made.append(transformers.NoBadWordsLogitsProcessor([list(word) for word in options.bad_words_ids], eos or None))
    if min_length > 0 and eos:
        made.append(transformers.MinLengthLogitsProcessor(min_length, eos))
    if allowed_tokens is not None:
        made.append(transformers.PrefixConstrainedLogitsProcessor(lambda _, ids: list(allowed_tokens(ids)), 1))
    if options.suppress_tokens:
        made.append(transformers.SuppressTokensLogitsProcessor(list(options.suppress_tokens)))
    if options.begin_suppress_tokens:
        begin = list(options.begin_suppress_tokens)
        made.append(transformers.SuppressTokensAtBeginLogitsProcessor(begin, prompt_length))
    return made


def _warpers_of(options: GenerationOptions) -> list[Processor]:
    """Return the processors that restrict sampling, which come last."""
    if not options.do_sample:
        return []
    import transformers

    made: list[Processor] = []
    if options.temperature != 1:
        made.append(transformers.TemperatureLogitsWarper(options.temperature))
    if options.top_k > 0:
        made.append(transformers.TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        made.append(functools.partial(keep_top_p, options.top_p))
    if options.min_p is not None:
        made.append(transformers.MinPLogitsWarper(options.min_p))
    if options.typical_p < 1:
        made.append(transformers.TypicalLogitsWarper(options.typical_p))
    return made


def keep_top_p(top_p: float, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Keep the most likely tokens that have a probability of `top_p` together, as transformers' `TopPLogitsWarper`.

    Only values are sorted, and only those that are left; of equal ones at the limit, those of lower numbers go first.

    Args:
        top_p: in [0, 1].
        ids: not used.
        scores: float32 [1, V].

    Returns:
        [1, V], with -inf for the tokens that are not kept.
    """
    values = scores[0].numpy()
    kept = np.sort(values[values > -math.inf])
    if not len(kept):
        return scores

    # The same row of numbers as transformers', so that the sums are rounded alike.
    ordered = np.full(len(values), -np.inf, np.float32)
    ordered[-len(kept) :] = kept
    cumulative = torch.from_numpy(ordered[None]).softmax(-1).cumsum(-1)
    num_removed = int((cumulative <= 1 - top_p).sum())
    num_removed = min(num_removed, len(values) - 1)

    least = ordered[num_removed]
    removed = values < least
    num_equal = num_removed - int(removed.sum())
    if num_equal > 0:
        removed[np.flatnonzero(values == least)[:num_equal]] = True
    return scores.masked_fill(torch.from_numpy(removed[None]), -math.inf)


def sample(probabilities: torch.Tensor, generator: torch.Generator) -> int:
    """Draw a token as `torch.multinomial` does, with the same random numbers and the same result.

    It divides each probability by an exponentially distributed number and takes the largest quotient. Where few
    probabilities are above 0, only their numbers are computed here, from the generator's bits for all of them.

    Args:
        probabilities: float32 [1, V].
        generator: on the CPU.

    Raises:
        RuntimeError: a probability is not finite.
    """
    values = probabilities[0].numpy()
    kept = np.flatnonzero(values)
    is_usual = len(kept) * 4 < len(values) and bool(np.isfinite(values[kept]).all()) and len(kept) > 0
    if not is_usual or not _knows_exponential():
        return int(torch.multinomial(probabilities, 1, generator=generator))
    return int(kept[(values[kept] / _exponential(len(values), kept, generator)).argmax()])


_RANDOM_BITS = 53
"""Bits of a random double."""


def _exponential(size: int, kept: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """Return some of `size` exponentially distributed numbers, float32, as torch draws them on a CPU."""
    bits = torch.empty(size, dtype=torch.int64).random_(-(2**63), None, generator=generator).numpy()[kept]
    uniform = (bits & (2**_RANDOM_BITS - 1)) * 2.0**-_RANDOM_BITS
    return -np.log1p(-uniform).astype(np.float32)


@functools.cache
def _knows_exponential() -> bool:
    """Return whether `_exponential` is what this build of torch draws; some use another library for it."""
    ours, theirs = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    expected = torch.empty(4096).exponential_(generator=theirs).numpy()
    drawn = _exponential(4096, np.arange(4096), ours)
    return np.array_equal(drawn, expected) and torch.equal(ours.get_state(), theirs.get_state())
