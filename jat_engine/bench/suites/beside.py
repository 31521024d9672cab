"""Time an agent's step while a prompt is read by another thread of the same engine: in chunks, at once, and alone."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ... import JatEngine
from ...config import JatConfig
from ...engine.session import AgentSession
from ..pacing import BACK_TO_BACK, SLEEP, Idle, Mode, take_block
from ..peers import CPU_ONLY, ENGINE
from ..results import make_row, paired_ratio, round_medians
from ..runner import PAUSE_S, Context, clock, with_keywords
from ..workload import fitting_windows, main_window, open_checkpoint, step_arguments
from .generate import random_tokens

SUITE = "beside"

PROMPT = 400
"""Tokens of each prompt."""

RATE = 50
"""Calls a second of the paced calls, unless the options have other rates alone."""

BLOCK_S = 1.0
"""Seconds of a block."""

ALONE, IN_CHUNKS, AT_ONCE = "nothing", "a prompt, in chunks", "a prompt, at once"
"""Reading beside the agent: nothing, prompts with its default chunks, prompts in one step each."""


@dataclass
class Measured:
    """Blocks of an agent: seconds of its calls, by round, how many missed the period, and those of first tokens."""

    seconds: list[list[float]] = field(default_factory=list)
    missed: int = 0
    first_tokens: list[float] = field(default_factory=list)


class Prompts:
    """Prompts that a thread reads, one after the other, and the seconds to each one's first token."""

    def __init__(self, engine: JatEngine, prompts: np.ndarray) -> None:
        self._engine, self._prompts = engine, prompts
        self.seconds: list[float] = []

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Read prompts for as long as the block lasts."""
        is_over = threading.Event()

        def read() -> None:
            while not is_over.is_set():
                begin = clock()
                self._engine.generate(input_ids=self._prompts, do_sample=False, max_new_tokens=1)
                self.seconds.append(clock() - begin)

        thread = threading.Thread(target=read)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()


def run(context: Context) -> None:
    options = context.options
    if options.device != "cpu":
        context.results.skipped[SUITE] = CPU_ONLY
        return
    model = options.models[0]
    with open_checkpoint(model) as folder:
        for dtype in options.dtypes:
            context.note(f"{SUITE}: {dtype} ...")
            measure_dtype(context, folder, model, dtype)
            context.save()
            gc.collect()


def measure_dtype(context: Context, folder: Path, model: str, dtype: str) -> None:
    """Measure one dtype's agent, at both paces, beside each of the three."""
    options, config = context.options, JatConfig.from_pretrained(folder)
    (window,) = fitting_windows([main_window(options.windows)], config)
    length = min(PROMPT, config.max_position_embeddings - 1)
    engines = {
        beside: JatEngine.from_pretrained(folder, device="cpu", dtype=dtype, prefill_chunk=chunk)
        for beside, chunk in ((IN_CHUNKS, None), (AT_ONCE, length))
    }
    engines[ALONE] = engines[IN_CHUNKS]
    sessions = {beside: engine.open_session(window, seed=0) for beside, engine in engines.items()}
    prompts = random_tokens(config, 1, length, seed=0)
    readers = {beside: Prompts(engine, prompts) for beside, engine in engines.items()}
    for session in sessions.values():
        for step in range(window // 2 + 4):
            session.get_next_action(**step_arguments("continuous", step))
    for engine in engines.values():
        engine.generate(input_ids=prompts, do_sample=False, max_new_tokens=1)  # the head is packed

    rate = RATE if RATE in options.hz else options.hz[0]
    modes = [Mode(BACK_TO_BACK), Mode(SLEEP, rate)]
    measured = {(mode, beside): Measured() for mode in modes for beside in (ALONE, IN_CHUNKS, AT_ONCE)}
    take_rounds(context, measured, sessions, readers)
    for (mode, beside), found in measured.items():
        case: dict[str, Any] = {"model": model, "window": window, "pace": mode.pace, "hz": mode.hz or "none"}
        row = make_row(SUITE, {**case, "beside": beside}, f"{ENGINE} {dtype}", found.seconds)
        if mode.hz:
            row.facts["missed %"] = 100 * found.missed / row.num_calls
        if beside != ALONE:
            row.facts["first token ms"] = 1e3 * float(np.median(found.first_tokens))
            alone = round_medians(measured[mode, ALONE].seconds)
            row.intervals["over alone"] = paired_ratio(row.round_medians, alone)
        context.results.rows.append(row)
    for session in sessions.values():
        session.close()
    for engine in (engines[IN_CHUNKS], engines[AT_ONCE]):
        engine.close()


def take_rounds(
    context: Context,
    measured: dict[tuple[Mode, str], Measured],
    sessions: dict[str, AgentSession],
    readers: dict[str, Prompts],
) -> None:
    """Let the agent take a block at each pace beside each of the three in every round, in an order that changes.

    Args:
        context: of the run.
        measured: by pace and what is beside; the blocks are added to it.
        sessions: with full windows, by what is beside.
        readers: of prompts, likewise.
    """
    order, rng = list(measured), np.random.default_rng(0)
    for _ in range(context.options.num_iters):
        context.bandwidth.sample()
        for index in rng.permutation(len(order)):
            mode, beside = order[index]
            time.sleep(PAUSE_S)
            call, reader = with_keywords(sessions[beside].get_next_action), readers[beside]
            reader.seconds.clear()
            with contextlib.nullcontext() if beside == ALONE else reader.reading():
                block = take_block(call, Idle(), mode.hz, BLOCK_S)
            found = measured[order[index]]
            found.seconds.append(block.seconds)
            found.missed += block.missed
            found.first_tokens += reader.seconds
