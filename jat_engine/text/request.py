"""`TextRequest`: a prompt and its continuation, as a `TextBatch` runs it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from .next_token import NextToken, Processor
from .options import GenerationOptions
from .prompts import Prompt
from .stopping import Criterion, StopRules
from .streaming import TextDecoder
from .tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True)
class StreamedToken:
    """A token of `JatEngine.generate_stream`.

    Attributes:
        index: of the continuation: that of the prompt, or with `num_return_sequences` n the prompt's times n and more.
        token: its number; None if the continuation ended with an error.
        text: that has become certain with this token; "" without a tokenizer. The texts of a continuation are together
            its text.
        finish_reason: "eos", "stop", "length", "time", "criteria" or "error" with the last token; None before.
        error: that ended the continuation; None if there was none.
    """

    index: int
    token: int | None
    text: str
    finish_reason: str | None = None
    error: BaseException | None = None


class TextRequest:
    """A continuation that is being written; a `Sequence` of a batch.

    Attributes:
        index: of the continuation.
        prompt: int64 [S], tokens that are read: the given ones, or with `truncation` their end.
        given: as it was given.
        max_new_tokens: the most tokens.
        tokens: written so far, stop strings and end token included.
        finish_reason: why it ended; None while it goes on.
        scores: processed scores of each token, float32 [1, V]; empty unless asked for.
        logits: of each token, float32 [1, V]; empty unless asked for.
        events: tokens that nobody has taken yet.
    """

    wants_prompt_logits = False

    def __init__(
        self,
        index: int,
        given: Prompt,
        prompt: np.ndarray,
        max_new_tokens: int,
        options: GenerationOptions,
        tokenizer: TextTokenizer,
        generator: torch.Generator | None,
        processors: Iterable[Processor] = (),
        criteria: Iterable[Criterion] = (),
        allowed_tokens: Callable[[torch.Tensor], Iterable[int]] | None = None,
    ) -> None:
        """Prepare a continuation.

        Args:
            index: as the attribute, like the next three.
            given: as above.
            prompt: as above.
            max_new_tokens: as above.
            options: of the call.
            tokenizer: of the engine; without one there is no text.
            generator: to sample with.
            processors: the caller's logits processors.
            criteria: the caller's stopping criteria.
            allowed_tokens: see `NextToken`.
        """
        self.index = index
        self.given = given
        self.prompt = prompt
        self.pixel_values = given.pixel_values
        self.max_new_tokens = max_new_tokens
        self.tokens: list[int] = []
        self.finish_reason: str | None = None
        self.finished = False
        self.error: BaseException | None = None
        self.scores: list[torch.Tensor] = []
        self.logits: list[torch.Tensor] = []
        self.events: deque[StreamedToken] = deque()
        self._pieces: list[str] = []
        self._keeps_scores = options.output_scores and options.return_dict_in_generate
        self._keeps_logits = options.output_logits and options.return_dict_in_generate

        length = len(prompt)
        min_length = max(options.min_length - given.num_padding, 0)
        if options.min_new_tokens is not None:
            min_length = length + options.min_new_tokens
        self._next = NextToken(options, length, min_length, generator, processors, allowed_tokens)
        self._rules = StopRules(options, criteria)
        stops = options.stop_strings if self._rules.finds_stop_strings else ()
        self._decoder = None if tokenizer.reason else TextDecoder(tokenizer, stops, prompt.tolist() if stops else ())
        self._ids = torch.empty((1, length + max_new_tokens if self._needs_ids else 0), dtype=torch.int64)
        if self._needs_ids:
            self._ids[0, :length] = torch.from_numpy(prompt)

    @property
    def _needs_ids(self) -> bool:
        return self._next.needs_ids or self._rules.needs_ids

    @property
    def text(self) -> str:
        """The text so far, up to a stop string."""
        return "".join(self._pieces)

    def begin(self) -> None:
        """Start the clock of `max_time`."""
        self._rules.begin()

    def accept_prompt(self, first: int, logits: np.ndarray) -> None:
        """Do nothing: a continuation needs no logits of its prompt."""

    def accept(self, logits: np.ndarray) -> int | None:
        """Choose the next token, float32 [vocab_size] -> a number; None if it ends the text. See `Sequence`."""
        if self.finished:  # nobody waits for it any more
            return None
        length = len(self.prompt) + len(self.tokens)
        token, scores = self._next.choose(self._ids[:, :length], logits)
        if self._keeps_logits:
            self.logits.append(torch.from_numpy(logits[None].copy()))
        if self._keeps_scores:
            self.scores.append(torch.from_numpy(logits[None].copy()) if scores is None else scores)
        if self._needs_ids:
            self._ids[0, length] = token

        text = "" if self._decoder is None else self._decoder.put(token)
        is_stopped = self._decoder is not None and self._decoder.stopped
        is_last = len(self.tokens) + 1 >= self.max_new_tokens
        kept = tuple(self.scores) if self._keeps_scores else None
        reason = self._rules.reason(token, is_stopped, is_last, self._ids[:, : length + 1], kept)
        if reason is not None and self._decoder is not None:
            text += self._decoder.flush()

        self.tokens.append(token)
        self._pieces.append(text)
        self.finish_reason = reason
        self.events.append(StreamedToken(self.index, token, text, reason))
        self.finished = reason is not None
        return None if self.finished else token

    def take_events(self) -> list[StreamedToken]:
        """Remove and return the tokens that nobody has taken yet, at the end with the error, if there is one."""
        is_finished, events = self.finished, []
        while self.events:
            events.append(self.events.popleft())
        if is_finished and self.error is not None and self.finish_reason is None:
            self.finish_reason = "error"
            events.append(StreamedToken(self.index, None, "", "error", self.error))
        return events
