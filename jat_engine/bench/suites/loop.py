"""Time one agent's `get_next_action` at a fixed rate, as a robot calls it, and count missed deadlines.

Between calls the process sleeps, or an environment computes; alone, and with a busy process on one core. In each round
every agent takes a block of calls at every pace, back to back included, in an order that changes; so ratios between
paces are of the same minutes, too.

Two engines more show what can be had: the floors. One computes in a single thread that is pinned to a core: nothing
has to be woken. The other has threads that never sleep between calls, which costs every core.

With a task, the only environment is that task's own: stepped by the agents' actions at every pace, back to back too.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...checkpoint.trained_tasks import as_trained, read_trained_tasks
from ...config import JatConfig
from ...envs import MissingSimulatorError
from ...testing.agreement import TOLERANCES
from ..pacing import (
    ANT,
    BACK_TO_BACK,
    Block,
    Environment,
    Mode,
    TaskEnvironment,
    busy_neighbour,
    list_modes,
    pinned,
    take_block,
    why_no_neighbour,
)
from ..peers import ENGINE, REFERENCE, Peers, load, open_peer
from ..results import Row, make_row, paired_ratio
from ..runner import PAUSE_S, Context, clock, with_keywords
from ..workload import check_model, fitting_windows, main_window, open_checkpoint, step_arguments
from .latency import fill, note_versions, open_agents

if TYPE_CHECKING:
    from ...envs import Task

SUITE = "loop"

KIND = "continuous"
"""Observation of the agents without a task: 27 numbers, as of MuJoCo's Ant."""

ONE_THREAD, NEVER_SLEEPING = f"{ENGINE} one pinned thread", f"{ENGINE} never sleeping"
FLOORS = (ONE_THREAD, NEVER_SLEEPING)

MOST_BLOCK_S, LEAST_BLOCK_S = 10.0, 0.05
MOST_BACK_TO_BACK_S = 0.3
"""Seconds of a block. Back to back, that gives more calls than any rate does."""

_MOST_SPIN_US = 1_000_000


@dataclass(frozen=True)
class Contender:
    """An agent that takes blocks of calls.

    Attributes:
        call: timed.
        is_pinned: whether the calling thread is kept on one core meanwhile.
        settle_s: how long its threads go on computing after a block, which is waited for.
    """

    call: Callable[[dict[str, Any]], Any]
    is_pinned: bool = False
    settle_s: float = 0.0


def run(context: Context) -> None:
    """Measure all models of the options that fit the task.

    Raises:
        ValueError: none does.
    """
    options = context.options
    models = options.models if options.task is None else fitting_models(context, options.task)
    for model in models:
        is_first = model == models[0]
        with open_checkpoint(model) as folder:
            wanted = main_window(options.windows) if options.task is None else even_window(options.task)
            (window,) = fitting_windows([wanted], JatConfig.from_pretrained(folder))
            names = options.peers if is_first else ()
            peers = load(folder, options.dtypes, names, options.device, options.upstream, context.note)
            add_floors(context, peers, folder)
            note_versions(context, peers)
            measure_model(context, peers, {"model": model, "window": window})
            context.results.skipped.update(peers.skipped)
            peers.close()
            gc.collect()


def fitting_models(context: Context, task: Task) -> list[str]:
    """Return the models that take a task's observations and actions; the others are noted as skipped.

    Raises:
        ValueError: there is none.
    """
    from ...evaluation.checks import check_sizes  # needs gymnasium

    fitting, problems = [], {}
    for model in context.options.models:
        folder = check_model(model)
        config = JatConfig.from_preset(model) if folder is None else JatConfig.from_pretrained(folder)
        try:
            check_sizes([task], config, "--task")
            if folder is not None:
                as_trained(task, read_trained_tasks(folder))  # refuses another environment of this name
            fitting.append(model)
        except ValueError as error:
            problems[f"loop, {model}"] = str(error)
    if not fitting:
        raise ValueError("; ".join(dict.fromkeys(problems.values())))
    context.results.skipped.update(problems)
    return fitting


def even_window(task: Task) -> int:
    """Return the tokens that a task's agent looks back on, as whole steps of two."""
    return max(2, task.context_window - task.context_window % 2)


def add_floors(context: Context, peers: Peers, folder: Any) -> None:
    """Add the two floors at every dtype of the engine, where threads can be pinned and kept from sleeping."""
    dtypes = [dtype for dtype in context.options.dtypes if f"{ENGINE} {dtype}" in peers.found]
    backends = {peers.found[f"{ENGINE} {dtype}"].engine.choice.backend for dtype in dtypes}
    reason = why_no_floors(backends)
    if reason:
        context.results.skipped["loop, floors"] = reason
        return
    for dtype in dtypes:
        for name, engine_options in ((ONE_THREAD, {"num_threads": 1}), (NEVER_SLEEPING, {"spin_us": spin_us(context)})):
            peers.add(
                f"{name} {dtype}",
                lambda dtype=dtype, given=engine_options: open_peer(  # type: ignore[misc]
                    ENGINE, folder, dtype, context.options.device, **given
                ),
            )


def why_no_floors(backends: set[str]) -> str:
    """Return why there are no floors to compare with; "" where there are."""
    if backends - {"cpu"}:
        return f"they are the native CPU backend's threads; the engine's backend is {', '.join(sorted(backends))}"
    return "" if hasattr(os, "sched_setaffinity") else "this system cannot pin a thread to a core"


def spin_us(context: Context) -> int:
    """Return for how long threads that never sleep go on: twice the longest period."""
    return min(_MOST_SPIN_US, 2_000_000 // min(context.options.hz))


def measure_model(context: Context, peers: Peers, case: dict[str, Any]) -> None:
    """Measure all agents at all paces. case: model and window."""
    options = context.options
    agents = open_agents(peers, case["window"], left_out=())
    environments = open_environments(context)
    arguments_of: Callable[[int], dict[str, Any]] = functools.partial(step_arguments, KIND)
    if options.task is not None:
        case["task"] = options.task.name
        environment = environments[Mode(BACK_TO_BACK)]
        assert isinstance(environment, TaskEnvironment), "it is the task's at every pace"
        arguments_of = environment.wander
    errors = fill(agents, arguments_of, case["window"], peers)
    contenders = {
        name: Contender(
            with_keywords(agent.get_next_action),
            is_pinned=name.startswith(ONE_THREAD),
            settle_s=spin_us(context) * 1e-6 if name.startswith(NEVER_SLEEPING) else 0.0,
        )
        for name, agent in agents.items()
    }

    for neighbour in options.neighbours:
        reason = why_no_neighbour() if neighbour == "busy" else ""
        if reason:
            context.results.skipped["loop, busy neighbour"] = reason
            continue
        budget_s = options.minutes * 60 / len(options.models) / len(options.neighbours)
        context.note(f"loop: {case['model']}, neighbour {neighbour}, about {budget_s / 60:.2g} minutes ...")
        with busy_neighbour() if neighbour == "busy" else contextlib.nullcontext():
            blocks = take_rounds(context, contenders, environments, budget_s)
        for mode in environments:
            found = {name: blocks[mode, name] for name in agents}
            back_to_back = {name: blocks[Mode(BACK_TO_BACK), name] for name in agents}
            place = {**case, "pace": mode.pace, "hz": mode.hz or "none", "neighbour": neighbour}
            context.results.rows += [
                replace(row, task=described(options.task)) for row in make_rows(place, found, back_to_back, errors)
            ]
        context.save()
    for environment in set(environments.values()):
        environment.close()


def described(task: Task | None) -> dict[str, Any] | None:
    """Return a task's name and rule, with adapter and module, as results keep them; None without one."""
    return None if task is None else {"name": task.name, **task.rule}


def open_environments(context: Context) -> dict[Mode, Environment]:
    """Return what happens between calls, by pace: one environment of the task, or that of each pace.

    MuJoCo's Ant is left out where it is not installed.
    """
    modes = list_modes(context.options.paces, context.options.hz)
    if context.options.task is not None:
        return dict.fromkeys(modes, TaskEnvironment(context.options.task))
    found: dict[Mode, Environment] = {}
    for mode in modes:
        try:
            found[mode] = mode.make_environment()
        except (ImportError, MissingSimulatorError) as error:
            context.results.skipped[f"loop, {ANT}"] = str(error)
    return found


def take_rounds(
    context: Context, contenders: dict[str, Contender], environments: dict[Mode, Environment], budget_s: float
) -> dict[tuple[Mode, str], list[Block]]:
    """Let every contender take a block of calls at every pace, in each round, in an order that changes.

    Args:
        budget_s: seconds for all of it. Blocks are as long as that allows; where calls take longer than thought, there
            are fewer rounds, at least one.
    """
    rounds = context.options.num_iters
    blocks: dict[tuple[Mode, str], list[Block]] = {(mode, name): [] for mode in environments for name in contenders}
    settle_s = PAUSE_S + sum(contender.settle_s for contender in contenders.values()) / len(contenders)
    block_s = float(np.clip(budget_s / (rounds * len(blocks)) - settle_s, LEAST_BLOCK_S, MOST_BLOCK_S))

    rng = np.random.default_rng(0)
    order = list(blocks)
    begin = clock()
    for number in range(rounds):
        if number and (clock() - begin) * (number + 1) / number > 1.1 * budget_s:
            context.note(f"loop: {number} rounds of {rounds}, to keep to --minutes")
            break
        context.bandwidth.sample(number)
        for index in rng.permutation(len(order)):
            mode, name = order[index]
            contender = contenders[name]
            time.sleep(PAUSE_S)
            seconds = block_s if mode.hz else min(block_s, MOST_BACK_TO_BACK_S)
            with pinned() if contender.is_pinned else contextlib.nullcontext():
                blocks[mode, name].append(take_block(contender.call, environments[mode], mode.hz, seconds))
            time.sleep(contender.settle_s)
    return blocks


def make_rows(
    case: dict[str, Any],
    blocks: dict[str, list[Block]],
    back_to_back: dict[str, list[Block]],
    errors: dict[str, float],
) -> list[Row]:
    """Return a row for each agent at one pace. blocks, back_to_back: by name, of the same rounds."""
    seconds = {name: [block.seconds for block in found] for name, found in blocks.items()}
    rows: dict[str, Row] = {}
    for name, found in blocks.items():
        is_reference = name == REFERENCE
        dtype = name.rpartition(" ")[2]
        row = make_row(
            SUITE,
            case,
            name,
            seconds[name],
            reference=None if is_reference else seconds[REFERENCE],
            error=None if is_reference else errors[name],
            tolerance=None if is_reference else TOLERANCES[dtype],
        )
        if case["pace"] != BACK_TO_BACK:
            medians = [float(np.median(block.seconds)) for block in back_to_back[name]]
            row.facts["over back to back"] = paired_ratio(row.round_medians, medians).value
        if case["hz"] != "none":
            missed = sum(block.missed for block in found)
            row.facts["missed"] = missed
            row.facts["missed %"] = 100 * missed / row.num_calls
        rows[name] = row

    for row in rows.values():
        if row.agent == ENGINE:
            row.facts.update(
                over_floor(row, [rows[f"{name} {row.dtype}"] for name in FLOORS if f"{name} {row.dtype}" in rows])
            )
    return list(rows.values())


def over_floor(row: Row, floors: Sequence[Row]) -> dict[str, float]:
    """Return the engine's p50 and p99 over those of the better floor, each; nothing without a floor."""
    floors = [floor for floor in floors if floor.agrees]
    if not floors:
        return {}
    best = min(floors, key=lambda floor: floor.p50)
    tail = min(floor.seconds["99"] for floor in floors)
    return {
        "p50 over floor": paired_ratio(row.round_medians, best.round_medians).value,
        "p99 over floor": row.seconds["99"] / tail,
    }
