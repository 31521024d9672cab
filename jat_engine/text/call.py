"""`TextCall`: a call of `generate`, from checked prompts to requests and from finished requests to results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from .assets import TextAssets
from .next_token import Processor
from .options import GenerationOptions
from .prompts import Inputs, Prompt, PromptReader
from .request import TextRequest
from .stopping import Criterion, max_length_of

AllowedTokens = Callable[[int, torch.Tensor], Iterable[int]]
"""Function of a prompt's index and the tokens so far, int64 [S], that returns the tokens that may come next."""


@dataclass(frozen=True)
class TextCall:
    """A call's options and the caller's objects.

    Attributes:
        options: checked.
        reader: of the engine's prompts.
        assets: of the engine.
        processors: the caller's logits processors.
        criteria: the caller's stopping criteria.
        allowed_tokens: `prefix_allowed_tokens_fn`, or None.
        seeds: one for each continuation; None without sampling.
    """

    options: GenerationOptions
    reader: PromptReader
    assets: TextAssets
    processors: tuple[Processor, ...]
    criteria: tuple[Criterion, ...]
    allowed_tokens: AllowedTokens | None
    seeds: Iterator[int] | None

    def requests(self, prompt: Prompt) -> list[TextRequest]:
        """Return the requests for a prompt's continuations. Called for prompts in their order.

        Raises:
            InputError: the prompt is too long for the options.
        """
        options, count = self.options, self.options.num_return_sequences
        ids, max_new_tokens = self._fit(prompt)
        allowed = self.allowed_tokens
        made = []
        for number in range(count):
            generator = None if self.seeds is None else torch.Generator().manual_seed(next(self.seeds))
            made.append(
                TextRequest(
                    prompt.index * count + number,
                    prompt,
                    ids,
                    max_new_tokens,
                    options,
                    self.assets.tokenizer,
                    generator,
                    self.processors,
                    self.criteria,
                    None if allowed is None else lambda tokens: allowed(prompt.index, tokens),
                )
            )
        return made

    def _fit(self, prompt: Prompt) -> tuple[np.ndarray, int]:
        """Return the tokens to read, and the most that may be written."""
        positions, options = self.reader.num_positions(prompt), self.options
        ids = prompt.ids
        length = len(ids) + prompt.num_padding
        custom = max_length_of(self.criteria)
        if custom is not None:
            most = max(custom - length, 1)
        else:
            most = options.new_tokens(prompt.name, length, positions + prompt.num_padding)

        # The last token is not read, so it needs no position.
        room = positions - most + 1
        if len(ids) > room and options.truncation == "left" and room > 0:
            ids = ids[-room:]
        if len(ids) > room:
            image = "" if prompt.pixel_values is None else ", without those of the image"
            raise InputError(
                f"{prompt.name}: expected at most {max(room, 0)} tokens, which leaves room for {most} new in the "
                f"{positions} positions for text{image}, got {len(ids)}; shorten it, lower max_new_tokens, or pass "
                'truncation="left"'
            )
        return ids, most


def make_seeds(seed: Any, count: int | None) -> Iterator[int]:
    """Return the seeds of continuations.

    Args:
        seed: of the first continuation, the next ones have `seed` + 1, ...; or one for each; or None, to draw them from
            torch's global generator.
        count: of continuations; None if it is not known.

    Raises:
        InputError: a seed is not an integer in [0, 2^64), or there is another number of them.
    """
    if seed is None:
        drawn = [] if count is None else torch.randint(2**63 - 1, (count,)).tolist()
        return iter(drawn) if count is not None else iter(lambda: int(torch.randint(2**63 - 1, ())), -1)
    if isinstance(seed, Sequence | np.ndarray | torch.Tensor) and not isinstance(seed, str | bytes):
        seeds = [_check_seed(one) for one in (seed if isinstance(seed, Sequence) else seed.tolist())]
        if count is not None and len(seeds) != count:
            raise InputError(f"seed: expected one for each of {count} continuations, got {len(seeds)}")
        return _listed(seeds)
    first = _check_seed(seed)
    return _counted(first)


def _listed(seeds: list[int]) -> Iterator[int]:
    yield from seeds
    raise InputError(f"seed: expected one for each continuation, got {len(seeds)}")


def _counted(first: int) -> Iterator[int]:
    number = first
    while True:
        yield number % 2**64
        number += 1


def _check_seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
        raise InputError(f"seed: expected integers in [0, 2^64) or None, got {seed!r:.60}")
    return int(seed)


# ---- results -------------------------------------------------------------------------------------------------------


def collect(call: TextCall, inputs: Inputs, requests: list[TextRequest]) -> Any:
    """Return the result of a call whose requests are finished; see `JatEngine.generate`."""
    options = call.options
    if options.return_dict_in_generate:
        return _as_output(call, inputs, requests)
    if inputs.text is not None:
        texts = [request.text for request in requests]
        return texts[0] if isinstance(inputs.text, str) and len(texts) == 1 else texts
    if inputs.is_tensor:
        return _as_tensor(call, inputs, requests)
    return [torch.tensor([*request.given.ids.tolist(), *request.tokens]) for request in requests]


def check_padding(call: TextCall, inputs: Inputs, prompts: list[Prompt]) -> None:
    """Check that rows of a tensor can be filled up, if their lengths may differ.

    Raises:
        InputError: there is no token for padding.
    """
    options = call.options
    if not (inputs.is_tensor or options.return_dict_in_generate) or _pad_token(call) is not None:
        return
    may_end = options.stop_strings or options.max_time is not None or call.criteria
    is_ragged = len({len(prompt.ids) + prompt.num_padding for prompt in prompts}) > 1
    if is_ragged or (may_end and len(prompts) * options.num_return_sequences > 1):
        raise InputError("pad_token_id: expected a token to fill up the rows of the result with, got none; pass one")


def _pad_token(call: TextCall) -> int | None:
    options = call.options
    if options.pad_token_id is not None:
        return options.pad_token_id
    return options.eos_token_id[0] if options.eos_token_id else call.assets.tokenizer.pad_id


def _as_tensor(call: TextCall, inputs: Inputs, requests: list[TextRequest]) -> torch.Tensor:
    """Return prompts and continuations, int64 [N, S + new], padded before the prompts and after the continuations."""
    pad, rows = _pad_token(call) or 0, []
    widest = max(len(request.given.ids) + request.given.num_padding for request in requests)
    longest = max(len(request.tokens) for request in requests)
    for request in requests:
        prompt = request.given.ids.tolist()
        before, after = widest - len(prompt), longest - len(request.tokens)
        rows.append([*_padding_of(inputs, request, before, pad), *prompt, *request.tokens, *[pad] * after])
    tokens = torch.tensor(rows)
    return tokens.to(inputs.input_ids.device) if isinstance(inputs.input_ids, torch.Tensor) else tokens


def _padding_of(inputs: Inputs, request: TextRequest, count: int, pad: int) -> list[int]:
    """Return the padding before a prompt: the given row's masked tokens, where it has them."""
    if not inputs.is_tensor or not request.given.num_padding:
        return [pad] * count
    mask = torch.as_tensor(inputs.attention_mask)[request.given.index].bool()
    return torch.as_tensor(inputs.input_ids)[request.given.index][~mask.to("cpu")].tolist()


def _as_output(call: TextCall, inputs: Inputs, requests: list[TextRequest]) -> Any:
    """Return transformers' output. A row that has ended holds scores of 0 for padding and -inf for all else."""
    from transformers.generation import GenerateDecoderOnlyOutput

    options, pad = call.options, _pad_token(call) or 0
    fields: dict[str, Any] = {"sequences": _as_tensor(call, inputs, requests)}
    if options.output_scores:
        fields["scores"] = _stack([request.scores for request in requests], pad)
    if options.output_logits:
        fields["logits"] = _stack([request.logits for request in requests], pad)
    return GenerateDecoderOnlyOutput(**fields)


def _stack(rows: list[list[torch.Tensor]], pad: int) -> tuple[torch.Tensor, ...]:
    """Return the numbers of all rows by token: float32 [N, V] each."""
    ended = torch.full_like(rows[0][0], -torch.inf)
    if pad < ended.shape[1]:
        ended[0, pad] = 0
    steps = range(max(len(row) for row in rows))
    return tuple(torch.cat([row[step] if step < len(row) else ended for row in rows]) for step in steps)
