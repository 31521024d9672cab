"""Hold steps of many agents against the limits: products against the arithmetic's peak, attention against the memory.

Of the engine at every dtype, and of that of another checkout, in turns. Each has two batches, one with full windows and
one with short ones: what the full ones take longer is attention, whose bytes are the keys and values.
"""

from __future__ import annotations

import gc
import time
from typing import Any

import numpy as np

from ...backends.select import native_module
from ...config import JatConfig
from ...machine import available_cores
from ...testing.agreement import TOLERANCES, error
from .. import costs
from ..peers import CPU_ONLY, ENGINE, Peers, open_peer
from ..peers.engine_process import BEFORE, open_engines
from ..results import Row, describe, make_row, paired_ratio
from ..runner import PAUSE_S, Context
from ..workload import REWARD, SPACES, batch_arguments, fitting_windows, main_window, open_checkpoint

SUITE = "batches"

SHORT = 16
"""Tokens of the short windows."""

KIND = "continuous"

TURN_S = 0.25
"""About how long the timed calls of a turn take together."""

FEWEST_ROUNDS = 3


def run(context: Context) -> None:
    options = context.options
    if options.device != "cpu":
        context.results.skipped[SUITE] = CPU_ONLY
        return
    model, most = options.models[0], max(options.batch_sizes)
    with open_checkpoint(model) as folder:
        config = JatConfig.from_pretrained(folder)
        windows = fitting_windows([SHORT, main_window(options.windows)], config)
        peers, reference = Peers(), open_peer(ENGINE, folder, "float32")
        dtypes = [dtype for dtype in options.dtypes if dtype != "float32"] or options.dtypes
        open_engines(context, peers, folder, dtypes, max_cached_tokens=most * (sum(windows) + 96))
        for num_agents in options.batch_sizes:
            case = {"model": model, "agents": num_agents, "window": windows[-1]}
            measure_case(context, peers, reference, config, case, windows)
            context.save()
        context.results.skipped.update({f"{SUITE}, {name}": reason for name, reason in peers.skipped.items()})
        peers.close()
        reference.close()
        gc.collect()


def measure_case(
    context: Context, peers: Peers, reference: Any, config: JatConfig, case: dict[str, Any], windows: list[int]
) -> None:
    """Measure all engines with as many agents.

    Args:
        context: of the run.
        peers: of engines in processes of their own; those that fail are dropped.
        reference: the engine in float32.
        config: of the model.
        case: model, agents and window.
        windows: the short and the full one.
    """
    num_agents = case["agents"]
    context.note(f"{SUITE}: {describe(case)} ...")
    expected = {window: predict(reference, num_agents, window) for window in windows}
    errors: dict[str, float] = {}
    for name, peer in list(peers.found.items()):
        try:
            errors[name] = max(
                error(peer.ask("open_batch", num_agents=num_agents, window=window, actions=actions), predictions)
                for window, (actions, predictions) in expected.items()
            )
        except RuntimeError as failure:
            peers.drop(name, failure)

    seconds: dict[tuple[str, int], list[list[float]]] = {(name, window): [] for name in errors for window in windows}
    speeds: dict[str, list[float]] = {name: [] for name in errors}
    peaks: dict[str, list[float]] = {name: [] for name in errors}
    options = context.options
    rng = np.random.default_rng(0)
    rounds = min(options.num_iters, max(FEWEST_ROUNDS, options.num_iters * 64 // num_agents))
    for _ in range(rounds):
        for name in rng.permutation(list(errors)):
            peer = peers.found[name]
            time.sleep(PAUSE_S)
            speeds[name].append(context.bandwidth.sample())
            peaks[name].append(dot_peak(peer.dtype))
            for window in windows:
                (once,) = peer.ask("batch", num_agents=num_agents, window=window, calls=1)
                calls = int(np.clip(TURN_S / once, 1, 32))
                seconds[name, window].append(peer.ask("batch", num_agents=num_agents, window=window, calls=calls))
    for name in errors:
        peers.found[name].ask("close_batches")

    rows = {
        name: make_a_row(config, case, name, [seconds[name, window] for window in windows], windows, errors[name])
        for name in errors
    }
    for name, row in rows.items():
        add_shares(config, row, [seconds[name, window] for window in windows], windows, speeds[name], peaks[name])
        other = rows.get(f"{BEFORE} {row.dtype}")
        if row.agent == ENGINE and other is not None:
            row.intervals["times faster than before"] = paired_ratio(other.round_medians, row.round_medians)
    context.results.rows += rows.values()


def predict(reference: Any, num_agents: int, window: int) -> tuple[list[Any], list[Any]]:
    """Return the actions of the first of the agents, and predictions: of the first and the last, step by step.

    Both follow the first one's actions.
    """
    first, last = reference.open(window), reference.open(window)
    actions, predictions = [], []
    for step in range(window // 2 + 4):
        arguments = batch_arguments(num_agents, step)
        found = []
        for agent, index in ((first, 0), (last, -1)):
            fields = {"continuous_observation": arguments["continuous_observations"][index]}
            reward = REWARD if step else None
            action = agent.get_next_action(**fields, reward=reward, action_space=SPACES[KIND])
            found.append(action)
            agent.force_action(found[0])
        actions.append(found[0])
        predictions += found
    for agent in (first, last):
        agent.close()
    return actions, predictions


def dot_peak(dtype: str) -> float:
    """Return the multiply-adds a second that all cores can do in a dtype; 0 where the native module does not tell."""
    native, _ = native_module()
    if not hasattr(native, "dot_peak"):
        return 0.0
    return float(native.dot_peak("int8" if dtype == "int4" else dtype, available_cores()))


def make_a_row(
    config: JatConfig,
    case: dict[str, Any],
    name: str,
    seconds: list[list[list[float]]],
    windows: list[int],
    worst: float,
) -> Row:
    """Return a row of the full windows. seconds: of each of `windows`."""
    row = make_row(SUITE, case, name, seconds[-1], error=worst, tolerance=TOLERANCES[name.rpartition(" ")[2]])
    row.facts["agent-steps/s"] = case["agents"] / row.p50
    row.facts["GFLOP/s"] = costs.step_operations(config, windows[-1], case["agents"]) / row.p50 / 1e9
    return row


def add_shares(
    config: JatConfig,
    row: Row,
    seconds: list[list[list[float]]],
    windows: list[int],
    speeds: list[float],
    peaks: list[float],
) -> None:
    """Add the share of the arithmetic's peak, with full and short windows, and attention's share of the memory's speed.

    Args:
        config: of the model.
        row: of the full windows.
        seconds: of each of `windows`, by round.
        windows: the short and the full one.
        speeds: bytes a second that memory gave in each round.
        peaks: multiply-adds a second in each round; zeros where they are not known.
    """
    num_agents = int(row.case["agents"])
    medians = [[float(np.median(values)) for values in of_window] for of_window in seconds]
    for window, times in zip(windows, medians, strict=True):
        if all(peaks):
            products = costs.step_operations(config, window, num_agents) / 2
            header = "share of peak" if window == windows[-1] else f"share of peak, window {window}"
            row.intervals[header] = paired_ratio([products / peak for peak in peaks], times)
    if len(windows) < 2:
        return
    longer = [full - short for short, full in zip(*medians, strict=True)]
    num_bytes = num_agents * (
        costs.cache_bytes(config, windows[1], row.dtype) - costs.cache_bytes(config, windows[0], row.dtype)
    )
    if min(longer) > 0:
        row.intervals["attention's share of bandwidth"] = paired_ratio([num_bytes / speed for speed in speeds], longer)
