"""`GenerationOptions`: how a text is continued, by the names and meaning of transformers' `generate`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..keywords import refuse_unknown

DEFAULT_NEW_TOKENS = 20
"""New tokens where no length is given, as many as the model has positions for: transformers' default."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "use_cache": (True,),
    "early_stopping": (False,),
    "length_penalty": (1.0,),
    "use_mtp": (False,),
    "top_h": (),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "encoder_repetition_penalty": (1.0,),
    "encoder_no_repeat_ngram_size": (0,),
    "renormalize_logits": (False,),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "remove_invalid_values": (False,),
    "exponential_decay_length_penalty": (),
    "sequence_bias": (),
    "token_healing": (False,),
    "guidance_scale": (1, 1.0),
    "watermarking_config": (),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "decoder_start_token_id": (),
    "cache_implementation": ("dynamic",),
    "cache_config": (),
    "max_cache_len": (),
    "is_assistant": (False,),
    "num_assistant_tokens": (20,),
    "num_assistant_tokens_schedule": ("constant",),
    "assistant_confidence_threshold": (0.4,),
    "prompt_lookup_num_tokens": (),
    "max_matching_ngram_size": (),
    "assistant_early_exit": (),
    "assistant_lookbehind": (10,),
    "target_lookbehind": (10,),
    "assistant_ensemble_weight": (),
    "speculation_type": (),
    "compile_config": (),
    "disable_compile": (False, True),
    "continuous_batching_config": (),
    "low_memory": (False,),
    "penalty_alpha": (),
    "dola_layers": (),
    "diversity_penalty": (0.0,),
    "num_beam_groups": (1,),
    "constraints": (),
    "force_words_ids": (),
    "prefill_chunk_size": (),
}
"""Fields of transformers' `GenerationConfig` that engines do without, with the values that change nothing, as None."""

_ARGUMENTS = ("assistant_model", "negative_prompt_ids", "negative_prompt_attention_mask", "custom_generate")
"""Arguments of transformers' `generate` that engines do not have; None, the default, changes nothing."""

_METADATA = ("transformers_version", "bos_token_id", "return_legacy_cache", "tokenizer", "synced_gpus")
"""Fields and arguments without an effect on the continuation of a prompt; an engine has its own tokenizer."""

_SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None, "typical_p": 1.0}
"""Fields that matter with `do_sample` alone, and their values where none is given."""


@dataclass(frozen=True)
class GenerationOptions:
    """Options of `JatEngine.generate`, checked. The names are those of transformers' `GenerationConfig`.

    Attributes:
        max_new_tokens: most tokens to write; goes before `max_length`. Neither given: 20, or as many as there are
            positions for.
        max_length: most tokens of prompt and continuation together, without the image.
        min_new_tokens: tokens before which no end token is chosen; goes before `min_length`.
        min_length: the same, with the prompt's tokens.
        max_time: seconds after which a text ends with its next token, from when it began.
        stop_strings: strings at which a text ends.
        do_sample: sample from the distribution; otherwise the most likely token is taken.
        temperature: divides the logits, > 0.
        top_k: tokens to sample from; 0 for all.
        top_p: sample from the most likely tokens with so much probability.
        min_p: sample from tokens with at least so much of the most likely one's probability; None for all.
        typical_p: sample from the locally typical tokens with so much probability.
        repetition_penalty: > 0; 1 for none.
        no_repeat_ngram_size: no n-gram of this size occurs twice; 0 to allow all.
        bad_words_ids: token sequences that are not written.
        suppress_tokens: tokens that are never written.
        begin_suppress_tokens: tokens with which no continuation begins.
        eos_token_id: tokens that end a text.
        pad_token_id: fills up rows of a tensor.
        num_return_sequences: continuations of each prompt; more than one with `do_sample`.
        output_scores: return the processed scores of each token, with `return_dict_in_generate`.
        output_logits: return the logits of each token, with `return_dict_in_generate`.
        return_dict_in_generate: return transformers' `GenerateDecoderOnlyOutput`.
        truncation: "left" to cut prompts that are too long; None refuses them.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int | None = None
    min_length: int = 0
    max_time: float | None = None
    stop_strings: tuple[str, ...] = ()
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    eos_token_id: tuple[int, ...] = ()
    pad_token_id: int | None = None
    num_return_sequences: int = 1
    output_scores: bool = False
    output_logits: bool = False
    return_dict_in_generate: bool = False
    truncation: str | None = None

    @classmethod
    def parse(
        cls, defaults: Any, generation_config: Any, given: Mapping[str, Any], vocab_size: int
    ) -> GenerationOptions:
        """Check options. A keyword goes before `generation_config`, and that before the checkpoint's defaults.

        Args:
            defaults: the checkpoint's `GenerationConfig`, or a mapping of its fields; None for none.
            generation_config: of the call: a `GenerationConfig`, a mapping of its fields, or None.
            given: keywords of the call. None stands for a field's neutral value, as for transformers.
            vocab_size: of the model.

        Raises:
            InputError: a field is unknown, not supported, or has an invalid value; the message names it.
        """
        own = [field.name for field in fields(cls)]
        refuse_unknown(set(given) - {*_NEUTRAL, *_ARGUMENTS, *_METADATA}, own, "an option of generate")
        config = _fields_of(generation_config, "generation_config")
        unknown = [name for name in config if name not in (*own, *_NEUTRAL, *_METADATA)]
        for name in unknown:
            if config[name] not in (None, False):
                raise InputError(
                    f"generation_config.{name}: expected a field that engines have, got {config[name]!r:.60}"
                )
        for values in (config, given):
            _refuse_unsupported(values)

        merged = {name: value for name, value in _fields_of(defaults, "defaults").items() if value is not None}
        _refuse_unsupported(
            {name: merged[name] for name in _NEUTRAL if name in merged and name not in (*config, *given)}
        )
        merged |= {name: value for name, value in config.items() if value is not None}
        merged |= given
        merged = {name: value for name, value in merged.items() if name in own}
        checked = {name: _CHECKS[name](name, value) for name, value in merged.items() if value is not None}
        # A keyword that is None turns its field off.
        for name in ("top_k", "begin_suppress_tokens"):
            if name in given and given[name] is None:
                checked[name] = 0 if name == "top_k" else ()
        options = cls(**checked)
        options._check_combinations({name for name in (*config, *given) if merged.get(name) is not None})
        options._check_tokens(vocab_size)
        return options

    def _check_combinations(self, chosen: set[str]) -> None:
        """Check fields against each other, and warn of those without an effect; `chosen` are the caller's."""
        if self.num_return_sequences > 1 and not self.do_sample:
            raise InputError(
                f"num_return_sequences: expected 1 without do_sample, got {self.num_return_sequences}; the most likely "
                "continuation is one; pass do_sample=True"
            )
        for name in ("output_scores", "output_logits"):
            if getattr(self, name) and name in chosen and not self.return_dict_in_generate:
                raise InputError(f"{name}: expected return_dict_in_generate=True with it, got {name} alone")
        if not self.do_sample:
            idle = [n for n, neutral in _SAMPLING.items() if n in chosen and getattr(self, n) not in (neutral, 0)]
            if idle:
                warnings.warn(
                    f"{', '.join(idle)}: expected with do_sample=True, got without; the most likely token is taken",
                    stacklevel=4,
                )
        elif self.temperature <= 0:
            raise InputError(
                f"temperature: expected a number > 0, got {self.temperature}; without do_sample the most likely "
                "token is taken"
            )
        for longer, shorter in (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length")):
            if longer in chosen and shorter in chosen:
                warnings.warn(f"{shorter}: expected without {longer}, which goes before it", stacklevel=4)

    def _check_tokens(self, vocab_size: int) -> None:
        """Check that tokens to be avoided are the model's."""
        tokens = {"suppress_tokens": self.suppress_tokens, "begin_suppress_tokens": self.begin_suppress_tokens}
        tokens |= {f"bad_words_ids[{i}]": word for i, word in enumerate(self.bad_words_ids)}
        for name, values in tokens.items():
            for token in values:
                if not 0 <= token < vocab_size:
                    raise InputError(f"{name}: expected tokens in [0, vocab_size={vocab_size}), got {token}")
        if self.pad_token_id is not None and self.pad_token_id < 0:
            raise InputError(f"pad_token_id: expected a token, got {self.pad_token_id}")

    @property
    def is_plain(self) -> bool:
        """True if the most likely token is taken as it is, without any processing."""
        return not self.do_sample and not self.changes_scores

    @property
    def changes_scores(self) -> bool:
        """True if scores are processed in greedy decoding, too."""
        has_minimum = bool(self.eos_token_id) and bool(self.min_new_tokens or self.min_length)
        avoided = self.bad_words_ids or self.suppress_tokens or self.begin_suppress_tokens
        return self.repetition_penalty != 1 or self.no_repeat_ngram_size > 0 or bool(avoided) or has_minimum

    def new_tokens(self, name: str, prompt_length: int, num_positions: int) -> int:
        """Return the most tokens to write after a prompt.

        Args:
            name: of the prompt, for the message.
            prompt_length: tokens, counted as `max_length` counts them.
            num_positions: positions of the model for text.

        Raises:
            InputError: `max_length` leaves no room for a new token.
        """
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        if self.max_length is None:
            return min(DEFAULT_NEW_TOKENS, max(num_positions - prompt_length, 1))
        if prompt_length >= self.max_length:
            raise InputError(
                f"{name}: expected fewer tokens than max_length={self.max_length}, got {prompt_length}; pass "
                "max_new_tokens instead, which does not count the prompt"
            )
        return self.max_length - prompt_length


def _fields_of(config: Any, name: str) -> dict[str, Any]:
    """Return the fields of a `GenerationConfig` or of a mapping; none for None."""
    if config is None:
        return {}
    if not isinstance(config, Mapping):
        if not hasattr(config, "to_dict"):
            raise InputError(f"{name}: expected a GenerationConfig or a mapping, got {type(config).__name__}")
        config = config.to_dict()
    return {key: value for key, value in config.items() if not str(key).startswith("_")}


def _refuse_unsupported(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if value is None or not (name in _NEUTRAL or name in _ARGUMENTS):
            continue
        if not any(_is_same(value, one) for one in _NEUTRAL.get(name, ())):
            neutral = " or ".join(repr(one) for one in _NEUTRAL.get(name, ())) or "None"
            raise InputError(
                f"{name}: expected {neutral}, since engines do without, got {value!r:.60}; JatModel.generate has it"
            )


def _is_same(value: Any, neutral: Any) -> bool:
    is_flag = isinstance(value, bool), isinstance(neutral, bool)
    return isinstance(value, bool | int | float | str) and is_flag[0] == is_flag[1] and value == neutral


# ---- checks of values ----------------------------------------------------------------------------------------------


def _integer(least: int) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer) or value < least:
            raise InputError(f"{name}: expected an integer >= {least}, got {value!r:.60}")
        return int(value)

    return check


def _number(least: float, most: float, *, is_open: bool = False) -> Callable[[str, Any], float]:
    def check(name: str, value: Any) -> float:
        is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
        is_number = is_number and math.isfinite(value)
        if not is_number or value < least or value > most or (is_open and value == least):
            limit = "" if most == math.inf else f" and <= {most:g}"
            raise InputError(
                f"{name}: expected a number {'>' if is_open else '>='} {least:g}{limit}, got {value!r:.60}"
            )
        return float(value)

    return check


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name}: expected True or False, got {value!r:.60}")
    return bool(value)


def _tokens(name: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, torch.Tensor | np.ndarray):
        value = value.reshape(-1).tolist()
    items = [value] if isinstance(value, int | np.integer) and not isinstance(value, bool) else value
    if isinstance(items, str | bytes | bool) or not isinstance(items, Iterable):
        raise InputError(f"{name}: expected tokens, got {value!r:.60}")
    return tuple(_integer(0)(name, token) for token in items)


def _one_token(name: str, value: Any) -> int:
    tokens = _tokens(name, value)
    if len(tokens) != 1:
        raise InputError(f"{name}: expected one token, got {value!r:.60}")
    return tokens[0]


def _words(name: str, value: Any) -> tuple[tuple[int, ...], ...]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise InputError(f"{name}: expected a list of lists of tokens, got {value!r:.60}")
    words = []
    for word in value:
        if isinstance(word, int | np.integer) or not (tokens := _tokens(name, word)):
            raise InputError(f"{name}: expected a list of lists of tokens, none of them empty, got {value!r:.60}")
        words.append(tokens)
    if not words:
        raise InputError(f"{name}: expected at least one list of tokens, got none; leave it out")
    return tuple(words)


def _strings(name: str, value: Any) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple | set | frozenset) or not all(isinstance(one, str) and one for one in items):
        raise InputError(f"{name}: expected a string or strings, none of them empty, got {value!r:.60}")
    return tuple(items)


def _side(name: str, value: Any) -> str | None:
    if value is False:
        return None
    if value != "left":
        raise InputError(f"{name}: expected 'left', to cut the beginning of long prompts, or None, got {value!r:.60}")
    return "left"


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "max_new_tokens": _integer(1),
    "max_length": _integer(1),
    "min_new_tokens": _integer(0),
    "min_length": _integer(0),
    "max_time": _number(0, math.inf),
    "stop_strings": _strings,
    "do_sample": _flag,
    "temperature": _number(0, math.inf),
    "top_k": _integer(0),
    "top_p": _number(0, 1),
    "min_p": _number(0, 1),
    "typical_p": _number(0, 1, is_open=True),
    "repetition_penalty": _number(0, math.inf, is_open=True),
    "no_repeat_ngram_size": _integer(0),
    "bad_words_ids": _words,
    "suppress_tokens": _tokens,
    "begin_suppress_tokens": _tokens,
    "eos_token_id": _tokens,
    "pad_token_id": _one_token,
    "num_return_sequences": _integer(1),
    "output_scores": _flag,
    "output_logits": _flag,
    "return_dict_in_generate": _flag,
    "truncation": _side,
}
