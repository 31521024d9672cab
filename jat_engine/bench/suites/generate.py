"""Time text, greedily: the first token of prompts, and each token after it, in the same rounds as every peer's.

The logits of each writer are held against the reference's on given continuations before anything is timed.
"""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...config import JatConfig
from ...testing.agreement import TOLERANCES, error
from .. import costs
from ..bandwidth import last_level_cache_bytes
from ..peers import ENGINE, REFERENCE, Peers
from ..results import Row, describe, make_row, paired_ratio
from ..runner import PAUSE_S, Context, clock
from ..workload import open_checkpoint
from ..writers import RUNTIMES, Writer, load
from .batches import dot_peak
from .latency import note_versions

SUITE = "generate"

TEXTS, PROMPTS = (1, 8), (16, 400)
"""Prompts at once, and tokens of each."""

NEW_TOKENS = 32

FIRST, LATER = "the first token", "a later token"
"""Values of the case's `time of`."""

_CHECKED_TEXTS, _CHECKED_TOKENS = 2, 6
"""Continuations whose logits are held against the reference's, and tokens of each."""

_ROWS_OF_A_SHORT_CASE = 1000
"""Cases that read more rows take seconds a call: they have half of the rounds."""


@dataclass
class Measured:
    """Times of one writer, by round.

    Attributes:
        first: seconds to the first token.
        later: seconds of each later one.
        least_first, least_later: what the machine could do it in at the time; empty where that is not known.
    """

    first: list[list[float]] = field(default_factory=list)
    later: list[list[float]] = field(default_factory=list)
    least_first: list[float] = field(default_factory=list)
    least_later: list[float] = field(default_factory=list)


def run(context: Context) -> None:
    options, model = context.options, context.options.models[0]
    with open_checkpoint(model) as folder:
        config = JatConfig.from_pretrained(folder)
        writers = load(folder, options.dtypes, options.peers, options.device, context.note)
        note_versions(context, writers)
        left_out = [name for name in options.peers if name not in ("JatModel", *RUNTIMES)]
        context.results.skipped.update({f"{SUITE}, {name}": "it does not write texts" for name in left_out})
        new_tokens = min(NEW_TOKENS, config.max_position_embeddings // 4)
        longest = config.max_position_embeddings - new_tokens
        lengths = sorted({min(length, longest) for length in PROMPTS})
        errors = check(context, writers, config, lengths[-1])
        for num_texts in TEXTS:
            for length in lengths:
                case: dict[str, str | int] = {"model": model, "texts": num_texts, "prompt": length}
                measured = measure_case(context, writers, config, case, new_tokens)
                context.results.rows += make_rows(case, measured, errors)
                context.save()
        context.results.skipped.update({f"{SUITE}, {name}": reason for name, reason in writers.skipped.items()})
        writers.close()
        gc.collect()


def random_tokens(config: JatConfig, num_texts: int, length: int, seed: int) -> np.ndarray:
    """Return int64 [num_texts, length], without special tokens."""
    return np.random.default_rng(seed).integers(0, min(50_000, config.vocab_size - 8), (num_texts, length))


def check(context: Context, writers: Peers, config: JatConfig, length: int) -> dict[str, float]:
    """Return each writer's error against the reference's logits; writers that fail are dropped."""
    context.note(f"{SUITE}: comparing the logits ...")
    prompts = random_tokens(config, _CHECKED_TEXTS, length, seed=1)
    forced = random_tokens(config, _CHECKED_TEXTS, _CHECKED_TOKENS, seed=2)
    found = {}
    for name, writer in list(writers.found.items()):
        if not writer.has_weights:
            continue
        try:
            found[name] = writer.predict(prompts, forced).reshape(-1, config.vocab_size)
        except Exception as failure:
            if name == REFERENCE:
                raise
            writers.drop(name, failure)
    return {name: error(logits, found[REFERENCE]) for name, logits in found.items() if name != REFERENCE}


# ---- times -----------------------------------------------------------------------------------------------------------


def measure_case(
    context: Context, writers: Peers, config: JatConfig, case: dict[str, Any], new_tokens: int
) -> dict[str, Measured]:
    """Let every writer continue the same prompts once in each round, in an order that changes."""
    num_texts, length = case["texts"], case["prompt"]
    context.note(f"{SUITE}: {describe(case)} ...")
    rounds = context.options.num_iters
    if num_texts * length > _ROWS_OF_A_SHORT_CASE:
        rounds = -(-rounds // 2)
    measured = {name: Measured() for name in writers.found}
    rng = np.random.default_rng(0)
    for name in list(measured):
        attempt(writers, measured, name, random_tokens(config, num_texts, length, seed=3), 2)
    for number in range(rounds):
        prompts = random_tokens(config, num_texts, length, seed=4 + number)
        for name in rng.permutation(list(measured)):
            time.sleep(PAUSE_S)
            least = least_seconds(context, config, writers.found[name].dtype, case, new_tokens)
            attempt(writers, measured, name, prompts[:, : min(length, 16)], 2)  # wakes its threads; not counted
            found = attempt(writers, measured, name, prompts, new_tokens)
            if found is not None:
                measured[name].first.append(found[:1])
                measured[name].later.append(found[1:])
                measured[name].least_first += least[0]
                measured[name].least_later += least[1]
    return measured


def attempt(
    writers: Peers, measured: dict[str, Measured], name: str, prompts: np.ndarray, new_tokens: int
) -> list[float] | None:
    """Return the seconds of each of a continuation's steps; None if the writer fails, which drops it."""
    if name not in measured:
        return None
    try:
        return seconds_of(writers.found[name], prompts, new_tokens)
    except Exception as failure:
        if name == REFERENCE:
            raise
        writers.drop(name, failure)
        del measured[name]
        return None


def seconds_of(writer: Writer, prompts: np.ndarray, new_tokens: int) -> list[float]:
    """Return the seconds of each of a continuation's steps."""
    times = [clock()]
    writer.write(prompts, new_tokens, lambda: times.append(clock()))
    return list(map(float, np.diff(times)))


def least_seconds(
    context: Context, config: JatConfig, dtype: str, case: dict[str, Any], new_tokens: int
) -> tuple[list[float], list[float]]:
    """Measure the memory's speed and the arithmetic's; return what the first and a later token take at least.

    A later token reads the weights, the head, and keys and values. The first takes as long as the longer of reading
    the weights and of its products. Each is one number, or none where it is not known.
    """
    num_texts, length = case["texts"], case["prompt"]
    speed = context.bandwidth.sample()
    peak = dot_peak("int8" if dtype == "int4" else dtype) if context.options.device == "cpu" else 0.0
    weights = costs.text_step_bytes(config, dtype, 0, num_texts)
    if not context.bandwidth.is_limit or not peak or weights <= last_level_cache_bytes():
        return [], []
    products = costs.prompt_operations(config, length, num_texts) / 2
    later = costs.text_step_bytes(config, dtype, length + new_tokens // 2, num_texts)
    return [max(products / peak, weights / speed)], [later / speed]


# ---- rows ------------------------------------------------------------------------------------------------------------


def make_rows(
    case: dict[str, str | int],
    measured: dict[str, Measured],
    errors: dict[str, float],
) -> list[Row]:
    """Return two rows for each writer: the first token's and the later ones'."""
    rows: list[Row] = []
    for what in (FIRST, LATER):
        seconds = {name: found.first if what == FIRST else found.later for name, found in measured.items()}
        of_what: dict[str, Row] = {}
        for name, values in seconds.items():
            dtype = name.rpartition(" ")[2]
            row = make_row(
                SUITE,
                {**case, "time of": what},
                name,
                values,
                reference=None if name == REFERENCE else seconds[REFERENCE],
                error=errors.get(name),
                tolerance=TOLERANCES[dtype] if name in errors else None,
            )
            tokens = int(case["texts"]) * (int(case["prompt"]) if what == FIRST else 1)
            row.facts["tokens/s"] = tokens / row.p50
            least = measured[name].least_first if what == FIRST else measured[name].least_later
            if least:
                row.intervals["share of limit"] = paired_ratio(least, row.round_medians)
            of_what[name] = row
        for row in of_what.values():
            for other in of_what.values():
                if row.agent == ENGINE and other.agent != ENGINE and other.dtype == row.dtype and other.agrees:
                    row.intervals[f"over {other.agent}"] = paired_ratio(row.round_medians, other.round_medians)
        rows += of_what.values()
    return rows
