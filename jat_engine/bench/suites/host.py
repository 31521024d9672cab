"""Time what a call of the engine costs outside its native parts: checks, sessions, Python.

Greedy and sampled, of this version's engine and of another checkout's, in turns. A call after a large model's step
finds cold caches, so both small and large models count.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from ...config import JatConfig
from ..peers import CPU_ONLY, ENGINE, Peers
from ..peers.engine_process import BEFORE, open_engines
from ..results import make_row, paired_ratio
from ..runner import PAUSE_S, Context
from ..workload import SPACES, fitting_windows, open_checkpoint

SUITE = "host"

WINDOW, CALLS = 64, 40

MODELS = ("jat-mini",)
"""Measured in addition to the first model of the run."""


def run(context: Context) -> None:
    options = context.options
    if options.device != "cpu":
        context.results.skipped["host overhead"] = CPU_ONLY
        return
    for model in dict.fromkeys((options.models[0], *MODELS)):
        context.note(f"host overhead, {model} ...")
        with open_checkpoint(model) as folder:
            (window,) = fitting_windows([WINDOW], JatConfig.from_pretrained(folder))
            peers = Peers()
            open_engines(context, peers, folder, options.dtypes[-1:])
            measure(context, peers, model, window)
            context.results.skipped.update({f"{SUITE}, {name}": reason for name, reason in peers.skipped.items()})
            peers.close()


def measure(context: Context, peers: Peers, model: str, window: int) -> None:
    """Add a row for each engine, kind of observation, and way to choose an action."""
    rng = np.random.default_rng(0)
    for kind, space in SPACES.items():
        for is_greedy in (True, False) if hasattr(space, "n") else (True,):  # nothing is sampled of numbers
            case: dict[str, Any] = {
                "model": model,
                "observation": kind,
                "actions": "greedy" if is_greedy else "sampled",
            }
            found: dict[str, list[list[list[float]]]] = {name: [] for name in peers.found}
            for _ in range(context.options.num_iters):
                for name in rng.permutation(list(found)):
                    time.sleep(PAUSE_S)
                    arguments = {"kind": kind, "deterministic": is_greedy, "window": window, "calls": CALLS}
                    found[name].append(peers.found[name].ask("own_cost", **arguments))

            rows = {}
            for name, rounds in found.items():
                own = [[total - native for total, native in calls] for calls in rounds]
                whole = [total for calls in rounds for total, _ in calls]
                rows[name] = make_row(SUITE, case, name, own, facts={"whole call us": 1e6 * float(np.median(whole))})
            for row in rows.values():
                other = rows.get(f"{BEFORE} {row.dtype}")
                if row.agent == ENGINE and other is not None:
                    row.intervals["over before"] = paired_ratio(row.round_medians, other.round_medians)
            context.results.rows += rows.values()
    context.save()
