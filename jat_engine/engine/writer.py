"""`TextWriter`: the methods of `JatEngine` that write texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from ..config import JatConfig
from ..errors import InputError
from ..text.assets import TextAssets
from ..text.call import AllowedTokens, TextCall, check_padding, collect, make_seeds
from ..text.options import GenerationOptions
from ..text.prompts import Inputs, Prompt, PromptReader
from ..text.request import StreamedToken, TextRequest
from .text_batch import TextBatch

_MOST_AT_ONCE = 64
"""Continuations of a call that are in the batch at once; further ones join as these finish."""


class TextWriter:
    """Mixin with `generate` and `generate_stream`."""

    config: JatConfig
    _assets: TextAssets
    _texts: TextBatch

    def generate(
        self,
        text: Any = None,
        images: Any = None,
        *,
        input_ids: Any = None,
        pixel_values: Any = None,
        attention_mask: Any = None,
        generation_config: Any = None,
        logits_processor: Iterable[Any] | None = None,
        stopping_criteria: Iterable[Any] | None = None,
        prefix_allowed_tokens_fn: AllowedTokens | None = None,
        streamer: Any = None,
        seed: Any = None,
        **config: Any,
    ) -> Any:
        """Continue texts, with the names and meaning of transformers' `generate`.

        Prompts of different lengths are computed together, without padding, with those of other threads and between
        the steps of agents. A continuation does not depend on the others.

        Args:
            text: a prompt, or a list of prompts.
            images: an image before each prompt: whatever `JatProcessor` takes, one for a single prompt, else a list
                with an image or None for each.
            input_ids: instead of `text`, tokens: integers [B, S], or a list of lists.
            pixel_values: instead of `images`, float [B, num_channels, image_size, image_size] as a `JatProcessor`
                makes them, or a list of them and None.
            attention_mask: of the shape of `input_ids`; 0 for padding at the beginning or end, which is removed.
            generation_config: transformers' `GenerationConfig`; by default the checkpoint's.
            logits_processor: transformers' `LogitsProcessor` objects; called for each continuation alone, with ids
                int64 [1, S] and scores float32 [1, V].
            stopping_criteria: transformers' `StoppingCriteria` objects, called likewise.
            prefix_allowed_tokens_fn: function of the prompt's index and its tokens so far, int64 [S], that returns the
                tokens that may come next.
            streamer: of transformers, such as `TextStreamer`; for a single continuation.
            seed: for sampling: continuation i, counted over all prompts, has the generator
                `torch.manual_seed(seed + i)` has; or a list of seeds, one for each continuation. None draws them from
                torch's global generator.
            config: fields of `GenerationOptions`, which go before `generation_config`: `max_new_tokens`, `do_sample`,
                `stop_strings`, ..., and `truncation="left"` to cut prompts that are too long, instead of refusing them.

        Returns:
            For a text its continuation, for a list of texts a list of them, up to a stop string and without special
            tokens. For a tensor of tokens prompts and continuations, int64 [B, S + new], padded with `pad_token_id`;
            for lists of tokens a list of tensors int64 [S + new]. With `num_return_sequences` n, n for each prompt, one
            after the other. With `return_dict_in_generate` transformers' `GenerateDecoderOnlyOutput`.

        Raises:
            InputError: a prompt or an option is invalid; the message names it. Nothing has been computed.
            CacheFullError: the KV cache has too few free pages for a text.
            SessionError: the engine is closed.

        Example:
            >>> texts = engine.generate(["Once upon", "A red"], max_new_tokens=5, do_sample=True, seed=0)
            >>> len(texts), type(texts[0])
            (2, <class 'str'>)
            >>> [tuple(row.shape) for row in engine.generate(input_ids=[[1, 2, 3], [4]], max_new_tokens=2)]
            [(5,), (3,)]
        """
        inputs = Inputs(text, images, input_ids, pixel_values, attention_mask)
        prompts = self._reader.read(inputs)
        options = GenerationOptions.parse(self._assets.defaults, generation_config, config, self.config.vocab_size)
        count = len(prompts) * options.num_return_sequences
        objects = logits_processor, stopping_criteria, prefix_allowed_tokens_fn
        call = self._call(options, objects, seed, count)
        check_padding(call, inputs, prompts)
        if streamer is not None and count > 1:
            raise InputError(f"streamer: expected with a single continuation, got {count}; use generate_stream")

        requests = [request for prompt in prompts for request in call.requests(prompt)]
        if streamer is not None:
            streamer.put(torch.from_numpy(prompts[0].ids[None].copy()))
        for event in self._run(iter([requests])):
            if event.error is not None:
                if count > 1:
                    event.error.add_note(f"in the continuation of {requests[event.index].given.name}")
                raise event.error
            if streamer is not None:
                streamer.put(torch.tensor([event.token]))
        if streamer is not None:
            streamer.end()
        return collect(call, inputs, requests)

    def generate_stream(
        self,
        text: Any = None,
        images: Any = None,
        *,
        input_ids: Any = None,
        pixel_values: Any = None,
        attention_mask: Any = None,
        generation_config: Any = None,
        logits_processor: Iterable[Any] | None = None,
        stopping_criteria: Iterable[Any] | None = None,
        prefix_allowed_tokens_fn: AllowedTokens | None = None,
        seed: Any = None,
        **config: Any,
    ) -> Iterator[StreamedToken]:
        """Continue texts, and yield each token when it is there.

        Prompts may also be any iterable, such as a generator, which is read as far as there are places in the batch:
        prompts join as others finish. If one is invalid, or an object of the caller fails, that continuation ends with
        the finish reason "error", and the others go on. Invalid lists are refused before anything is computed.

        Args:
            text: as for `generate`, like all others.
            images: as above.
            input_ids: as above.
            pixel_values: as above.
            attention_mask: as above.
            generation_config: as above.
            logits_processor: as above.
            stopping_criteria: as above.
            prefix_allowed_tokens_fn: as above.
            seed: as above.
            config: as above.

        Returns:
            An iterator of `StreamedToken`. Closing it gives the memory of what is not finished back.

        Raises:
            InputError: a prompt or an option is invalid.
            SessionError: the engine is closed.

        Example:
            >>> for token in engine.generate_stream(input_ids=[[1, 2, 3]], max_new_tokens=2, eos_token_id=None):
            ...     print(token.index, token.finish_reason)
            0 None
            0 length
        """
        inputs = Inputs(text, images, input_ids, pixel_values, attention_mask)
        options = GenerationOptions.parse(self._assets.defaults, generation_config, config, self.config.vocab_size)
        objects = logits_processor, stopping_criteria, prefix_allowed_tokens_fn
        if options.output_scores or options.output_logits or options.return_dict_in_generate:
            raise InputError("return_dict_in_generate: expected with generate, got it with generate_stream")
        if inputs.is_lazy:
            given = self._reader.read_lazily(inputs)
            return self._run(_each(self._call(options, objects, seed, None), given))
        prompts = self._reader.read(inputs)
        call = self._call(options, objects, seed, len(prompts) * options.num_return_sequences)
        return self._run(iter([[request for prompt in prompts for request in call.requests(prompt)]]))

    @property
    def _reader(self) -> PromptReader:
        return PromptReader(self.config, self._assets)

    def _call(
        self, options: GenerationOptions, objects: tuple[Any, Any, Any], seed: Any, count: int | None
    ) -> TextCall:
        processors, criteria, allowed = objects
        if options.stop_strings:
            self._assets.tokenizer.check("stop_strings")
        seeds = make_seeds(seed, count) if options.do_sample or seed is not None else None
        call_objects = _callables("logits_processor", processors), _callables("stopping_criteria", criteria)
        return TextCall(
            options, self._reader, self._assets, *call_objects, allowed, seeds if options.do_sample else None
        )

    def _run(self, source: Iterator[list[TextRequest] | StreamedToken]) -> Iterator[StreamedToken]:
        """Run requests until all are finished, and yield their tokens."""
        waiting: list[TextRequest] = []
        running: list[TextRequest] = []
        is_read = False
        try:
            while True:
                while len(running) < _MOST_AT_ONCE and not (is_read and not waiting):
                    if waiting:
                        request = waiting.pop(0)
                        request.begin()
                        running.append(request)
                        self._texts.add(request)
                        continue
                    item = next(source, None)
                    if isinstance(item, StreamedToken):
                        yield item
                    elif item is None:
                        is_read = True
                    else:
                        waiting += item
                if not running:
                    return

                self._texts.advance(running)
                for request in running:
                    yield from request.take_events()
                running = [request for request in running if not request.finished or request.events]
        finally:
            for request in running:
                request.finished = True
            self._texts.remove(running)


def _each(call: TextCall, given: Iterator[Prompt | InputError]) -> Iterator[list[TextRequest] | StreamedToken]:
    """Return the requests of each prompt, or the error that stands for it."""
    for index, prompt in enumerate(given):
        try:
            if isinstance(prompt, InputError):
                raise prompt
            yield call.requests(prompt)
        except InputError as error:
            yield StreamedToken(index * call.options.num_return_sequences, None, "", "error", error)


def _callables(name: str, given: Iterable[Any] | None) -> tuple[Any, ...]:
    if given is None:
        return ()
    if callable(given) and not isinstance(given, list):
        given = [given]
    objects = tuple(given) if isinstance(given, Iterable) else (None,)
    if not all(callable(one) for one in objects):
        raise InputError(f"{name}: expected a list of callable objects, got {given!r:.60}")
    return objects
