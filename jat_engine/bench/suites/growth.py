"""Time a step as its cache fills: from the first step of an episode to a full window."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import numpy as np

from ...config import JatConfig
from .. import costs
from ..peers import ENGINE, Peers, open_peer
from ..results import make_row
from ..runner import PAUSE_S, Context
from ..workload import longest_window, open_checkpoint, step_arguments

SUITE = "growth"

_KIND = "continuous"
_ROUNDS = 3
_EVERY = 64
"""Cached tokens between two rows."""

_NEAR = 2
"""Steps before and after a row's that count towards it."""


def run(context: Context) -> None:
    for model in context.options.models:
        context.note(f"growth: {model} ...")
        with open_checkpoint(model) as folder:
            measure_model(context, model, folder)
        context.save()
        gc.collect()


def measure_model(context: Context, model: str, folder: Path) -> None:
    """Let the engine at every dtype play an episode in each round, in an order that changes."""
    options = context.options
    config = JatConfig.from_pretrained(folder)
    window = longest_window(config)
    peers = Peers()
    for dtype in options.dtypes:
        peers.add(
            f"{ENGINE} {dtype}",
            lambda dtype=dtype: open_peer(ENGINE, folder, dtype, options.device),  # type: ignore[misc]
        )
    context.results.skipped.update({f"growth, {name}": reason for name, reason in peers.skipped.items()})

    names = list(peers.found)
    episodes: dict[str, list[list[float]]] = {name: [] for name in names}
    rng = np.random.default_rng(0)
    for number in range(min(options.num_iters, _ROUNDS)):
        context.bandwidth.sample(number)
        for index in rng.permutation(len(names)):
            time.sleep(PAUSE_S)
            episodes[names[index]].append(play(peers.found[names[index]], window))

    for name, seconds in episodes.items():
        dtype = name.rpartition(" ")[2]
        for cached in sorted({*range(0, window, _EVERY), window}):
            first = max(0, cached // 2 - _NEAR)
            near = [values[first : cached // 2 + _NEAR + 1] for values in seconds]
            row = make_row(SUITE, {"model": model, "cached tokens": cached}, name, near)
            row.facts["MB read"] = costs.step_bytes(config, _KIND, dtype, cached) / 1e6
            context.results.rows.append(row)
    peers.close()


def play(peer: object, window: int) -> list[float]:
    """Return the seconds of each step of an episode: the t-th begins with 2 t cached tokens, up to `window`."""
    agent = peer.open(window)  # type: ignore[attr-defined]
    seconds = []
    for step in range(window // 2 + 1 + _NEAR):
        arguments = step_arguments(_KIND, step)
        begin = time.perf_counter()
        agent.get_next_action(**arguments)
        seconds.append(time.perf_counter() - begin)
    return seconds
