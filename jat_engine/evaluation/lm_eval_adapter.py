"""Adapter with which EleutherAI's lm-eval (the language model evaluation harness) evaluates a `JatEngine`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

try:
    import lm_eval.models  # registers lm-eval's own models, before anything else of it may
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ModuleNotFoundError as error:
    message = f"jat_engine.evaluation.lm_eval_adapter: {error}; pip install 'jat-engine[lm-eval]'"
    raise ModuleNotFoundError(message, name=error.name) from None

from tqdm import tqdm

from ..engine.engine import JatEngine
from ..errors import InputError

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

_TEXTS_AT_ONCE = 64
"""Requests whose scores are computed together; the engine divides them into steps itself."""

_MAX_NEW_TOKENS = 256
"""Tokens to write for a request that names no number, as lm-eval's own models do."""

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names that lm-eval's tasks have for the most tokens to write; the first that is there counts."""


class JatLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """Language model of lm-eval that computes with an engine. Pass it as an object.

    Example:
        >>> import lm_eval
        >>> results = lm_eval.simple_evaluate(model=JatLM(engine), tasks=["lambada_openai"])  # doctest: +SKIP
    """

    def __init__(self, engine: JatEngine) -> None:
        """Take an engine, which stays open and can act meanwhile.

        Args:
            engine: of a checkpoint with a tokenizer.

        Raises:
            InputError: the engine has no tokenizer, or its configuration no token for the end of a text.
        """
        super().__init__()
        self.engine = engine
        engine.text_tokenizer.check("tokenizer")
        eos = engine.config.eos_token_id
        if isinstance(eos, list):
            eos = eos[0] if eos else None
        if eos is None:
            raise InputError("eos_token_id: expected a token in config.json for lm-eval, got none; add it")
        self._eos: int = eos

    @property
    def eot_token_id(self) -> int:
        """Return the token at the end of a text, which also comes before texts without a context."""
        return self._eos

    @property
    def max_length(self) -> int:
        """Return the most tokens that are read."""
        return int(self.engine.config.max_position_embeddings)

    @property
    def tokenizer_name(self) -> str:
        """Return a name for lm-eval's cache of requests."""
        return f"JatEngine-{self.engine.config.vocab_size}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the tokens of a text. The model's texts have no special tokens."""
        return list(self.engine.text_tokenizer.encode(string))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Return the log-likelihood of continuations, and whether each of their tokens is the most likely one.

        Args:
            requests: key for lm-eval's cache or None, tokens of a context, tokens of its continuation.
            disable_tqdm: show no progress.
            kwargs: ignored.
        """
        results: list[tuple[float, bool]] = []
        with tqdm(total=len(requests), desc="Running loglikelihood requests", disable=disable_tqdm) as bar:
            for begin in range(0, len(requests), _TEXTS_AT_ONCE):
                batch = requests[begin : begin + _TEXTS_AT_ONCE]
                contexts, texts = zip(*(self._fit(context, text) for _, context, text in batch), strict=True)
                scores = self.engine.score(input_ids=list(texts), contexts=list(contexts))
                for (key, _, _), score in zip(batch, scores, strict=True):
                    answer = score.total, bool(score.is_greedy.all())
                    results.append(answer)
                    if key is not None:
                        self.cache_hook.add_partial("loglikelihood", key, answer)
                bar.update(len(batch))
        return results

    def _fit(self, context: list[int], text: list[int]) -> tuple[list[int], list[int]]:
        """Drop the oldest tokens of a context that is too long; the last token of all is predicted, not read."""
        room = self.max_length + 1 - len(text)
        if room < 1:
            raise InputError(
                f"continuation: expected at most {self.max_length} tokens (max_position_embeddings), got {len(text)}"
            )
        return context[-room:], text

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of whole texts, each read in windows of `max_length` tokens."""
        windows: list[tuple[None, list[int], list[int]]] = []
        counts = []
        for (text,) in (request.args for request in requests):
            tokens = self.tok_encode(text)
            rolling = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1)
            found = [(None, *make_disjoint_window(pair)) for pair in rolling]
            windows += found
            counts.append(len(found))

        values = iter(self._loglikelihood_tokens(windows, disable_tqdm))
        totals = [math.fsum(value for value, _ in itertools.islice(values, count)) for count in counts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue texts until one of the strings of `until`, which is cut off, or the end of the text."""
        written = []
        for request in tqdm(requests, desc="Running generate_until requests", disable=disable_tqdm):
            context, given = request.args
            text = self._continue(context, given)
            written.append(text)
            self.cache_hook.add_partial("generate_until", request.args, text)
        return written

    def _continue(self, context: str, given: Mapping[str, Any]) -> str:
        options = dict(given)
        until = options.pop("until", None) or []
        stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
        lengths = [value for name in _LENGTHS if (value := options.pop(name, None)) is not None]
        max_new_tokens = int(lengths[0]) if lengths else _MAX_NEW_TOKENS
        if not options.get("do_sample"):
            options = {name: value for name, value in options.items() if name not in ("do_sample", "temperature")}

        room = self.max_length - max_new_tokens
        if room < 1:
            raise InputError(
                f"max_gen_toks: expected less than {self.max_length} (max_position_embeddings), got {max_new_tokens}"
            )
        prompt = (self.tok_encode(context) or [self.prefix_token_id])[-room:]
        output = self.engine.generate(
            input_ids=[prompt], max_new_tokens=max_new_tokens, stop_strings=stops or None, **options
        )
        text = self.engine.text_tokenizer.decode(output[0][len(prompt) :])
        for stop in stops:
            text = text.partition(stop)[0]
        return text
