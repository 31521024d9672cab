"""Hold one agent's whole call against the bytes it reads, at a full window: back to back and at a fixed rate.

In each round every agent takes a block of calls at either pace, in an order that changes. The memory's speed is
measured between the blocks, so a call's share of it is of the same second. The engine of another checkout takes part
where one is named; engines run in processes of their own, both versions' alike.
"""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...config import JatConfig
from ...testing.agreement import TOLERANCES, error
from .. import costs
from ..bandwidth import last_level_cache_bytes
from ..pacing import BACK_TO_BACK, SLEEP, Block, Idle, Mode, take_block
from ..peers import CPU_ONLY, ENGINE, REFERENCE, Peers, load
from ..peers.engine_process import BEFORE, EngineProcess, open_engines
from ..results import Interval, Row, make_row, paired_ratio, percentile
from ..runner import PAUSE_S, Context, clock, with_keywords
from ..workload import fitting_windows, main_window, open_checkpoint, step_arguments
from .latency import note_versions, open_agents, play

SUITE = "call"

KIND = "continuous"

RATE = 50
"""Calls a second of the paced calls, unless the options have other rates alone."""

BACK_TO_BACK_S, PACED_S = 0.25, 0.6
"""Seconds of a block."""

Take = Callable[[int, float], Block]
"""Calls a second and seconds of a block -> the block."""


@dataclass
class Measured:
    """Blocks of one agent at one pace, and the bytes a second that memory gave just before and after each."""

    blocks: list[Block] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> list[list[float]]:
        return [block.seconds for block in self.blocks]


def run(context: Context) -> None:
    options = context.options
    if options.device != "cpu":
        context.results.skipped[SUITE] = CPU_ONLY
        return
    model = options.models[0]
    with open_checkpoint(model) as folder:
        (window,) = fitting_windows([main_window(options.windows)], JatConfig.from_pretrained(folder))
        peers = load(
            folder, options.dtypes, options.peers, options.device, options.upstream, context.note, has_engine=False
        )
        open_engines(context, peers, folder)
        note_versions(context, peers)
        measure_model(context, peers, folder, {"model": model, "window": window})
        context.results.skipped.update({f"{SUITE}, {name}": reason for name, reason in peers.skipped.items()})
        peers.close()
        gc.collect()


def measure_model(context: Context, peers: Peers, folder: Path, case: dict[str, Any]) -> None:
    """Measure all agents at both paces. case: model and window."""
    window = case["window"]
    context.note(f"call: {case['model']}, filling windows of {window} ...")
    is_process = {name: isinstance(peer, EngineProcess) for name, peer in peers.found.items()}
    agents = open_agents(peers, window, [name for name in peers.found if is_process[name]])
    played = play(agents, functools.partial(step_arguments, KIND), window, peers)
    predictions = played.predictions
    takes: dict[str, Take] = {name: in_this_process(agent) for name, agent in agents.items()}
    for name in [name for name in peers.found if is_process[name]]:
        try:
            predictions[name] = peers.found[name].ask("follow", window=window, actions=played.actions)
            takes[name] = in_another_process(peers.found[name])
        except RuntimeError as failure:
            peers.drop(name, failure)
    errors = {name: error(found, predictions[REFERENCE]) for name, found in predictions.items() if name in takes}

    rate = RATE if RATE in context.options.hz else context.options.hz[0]
    modes = [Mode(BACK_TO_BACK), Mode(SLEEP, rate)]
    measured = take_rounds(context, takes, modes)
    config = JatConfig.from_pretrained(folder)
    for mode in modes:
        place = {**case, "pace": mode.pace, "hz": mode.hz or "none"}
        found = {name: measured[mode, name] for name in takes}
        context.results.rows += make_rows(context, config, place, found, errors)
    context.save()


def in_this_process(agent: Any) -> Take:
    """Return what takes a block with an agent of this process."""
    environment, call = Idle(), with_keywords(agent.get_next_action)
    return lambda hz, seconds: take_block(call, environment, hz, seconds)


def in_another_process(engine: EngineProcess) -> Take:
    """Return what takes a block with an engine's session, in its own process."""
    return lambda hz, seconds: Block(**engine.ask("block", hz=hz, seconds=seconds))


def take_rounds(context: Context, takes: dict[str, Take], modes: list[Mode]) -> dict[tuple[Mode, str], Measured]:
    """Let every agent take a block at every pace in each round, in an order that changes.

    There are fewer rounds than asked for, at least one, where they would take longer than `minutes` of the options.
    """
    options = context.options
    measured = {(mode, name): Measured() for mode in modes for name in takes}
    order = list(measured)
    context.note(f"call: {len(takes)} agents, {options.num_iters} rounds ...")
    rng = np.random.default_rng(0)
    begin = clock()
    for number in range(options.num_iters):
        if number and (clock() - begin) * (number + 1) / number > 60 * options.minutes:
            context.note(f"call: {number} rounds of {options.num_iters}, to keep to --minutes")
            break
        before = context.bandwidth.sample()
        for index in rng.permutation(len(order)):
            mode, name = order[index]
            time.sleep(PAUSE_S)
            block = takes[name](mode.hz, PACED_S if mode.hz else BACK_TO_BACK_S)
            after = context.bandwidth.sample()
            measured[mode, name].blocks.append(block)
            measured[mode, name].speeds.append((before + after) / 2)
            before = after
    return measured


# ---- rows ------------------------------------------------------------------------------------------------------------


def make_rows(
    context: Context,
    config: JatConfig,
    case: dict[str, Any],
    measured: dict[str, Measured],
    errors: dict[str, float],
) -> list[Row]:
    """Return a row for each agent at one pace."""
    rows: dict[str, Row] = {}
    for name, found in measured.items():
        agent, _, dtype = name.rpartition(" ")
        is_reference = name == REFERENCE
        row = make_row(
            SUITE,
            case,
            name,
            found.seconds,
            reference=None if is_reference else measured[REFERENCE].seconds,
            error=None if is_reference else errors[name],
            tolerance=None if is_reference else TOLERANCES[dtype],
        )
        for percent in (50, 99):
            row.intervals[f"p{percent} ms [95 %]"] = scaled(percentile(found.seconds, percent), 1e3)
        if agent in (ENGINE, BEFORE):
            row.facts["bits a weight"] = costs.bits_a_weight(config, dtype)
            num_bytes = costs.step_bytes(config, KIND, dtype, case["window"])
            row.facts["MB read"] = num_bytes / 1e6
            if context.bandwidth.is_limit and num_bytes > last_level_cache_bytes():  # else it is read from the cache
                limits = [num_bytes / speed for speed in found.speeds]
                row.intervals["share of bandwidth"] = paired_ratio(limits, row.round_medians)
        rows[name] = row

    for row in rows.values():
        for header, other in (("over int8", f"{ENGINE} int8"), ("over before", f"{BEFORE} {row.dtype}")):
            if row.agent == ENGINE and row.name != other and other in rows:
                row.intervals[header] = paired_ratio(row.round_medians, rows[other].round_medians)
    return list(rows.values())


def scaled(found: Interval, factor: float) -> Interval:
    """Return an interval in another unit."""
    return Interval(factor * found.value, factor * found.low, factor * found.high)
