"""One agent: time of a whole `get_next_action` once its window is full, beside every peer in the same rounds.

While windows fill, each agent is given the same observations and the reference's actions, and its predictions are held
against the reference's.
"""

from __future__ import annotations

import gc
from typing import Any

from ..agreement import TOLERANCES, error
from ..context import Context
from ..measure import Contender, take_turns
from ..own import EnginePeer
from ..peer import Agent
from ..peers import REFERENCE, Peers, load
from ..results import describe, make_row
from ..workload import OTHER_WINDOWS, open_checkpoint, step_arguments

SUITE = "latency"

ONE_WINDOW = {"torch.compile float32", "torch.compile bfloat16", "JatModel bfloat16", "published package float32"}
"""Agents that are measured at one window only, since they take minutes to compile or to fill one."""

THE_WINDOW = 256
"""The one window; what the published evaluation takes for most tasks."""


def run(context: Context) -> None:
    options = context.options
    for model in options.models:
        with open_checkpoint(model) as folder:
            names = options.peers if model == options.models[0] else ()
            peers = load(folder, options.dtypes, names, options.device, options.upstream, context.note)
            context.results.skipped.update(peers.skipped)
            for observation in options.observations if model == options.models[0] else options.observations[:1]:
                for window in options.windows if model == options.models[0] else OTHER_WINDOWS:
                    measure_case(context, peers, {"model": model, "observation": observation, "window": window})
            peers.close()
            gc.collect()


def measure_case(context: Context, peers: Peers, case: dict[str, Any]) -> None:
    kind, window = case["observation"], case["window"]
    context.note(f"latency: {describe(case)} ...")
    found = {name: peer for name, peer in peers.found.items() if window == THE_WINDOW or name not in ONE_WINDOW}
    for name in [name for name in peers.found if name not in found]:
        context.results.skipped[f"{name}, window {window}"] = f"measured at a window of {THE_WINDOW} only, to save time"
    agents = {name: peer.open(window) for name, peer in found.items()}
    errors = fill(agents, kind, window)
    contenders = {name: Contender(lambda n: step_arguments(kind, n), Call(agent)) for name, agent in agents.items()}
    options, bandwidth = context.options, context.bandwidth
    rounds = options.num_iters if case["model"] == options.models[0] else -(-options.num_iters // 2)
    seconds = take_turns(contenders, rounds, num_warmup=options.num_iters_warmup, on_round=bandwidth.sample)
    for name, peer in found.items():
        is_reference = name == REFERENCE
        row = make_row(
            SUITE,
            case,
            name,
            seconds[name],
            reference=None if is_reference else seconds[REFERENCE],
            error=None if is_reference else errors[name],
            tolerance=None if is_reference else TOLERANCES[peer.dtype],
        )
        if isinstance(peer, EnginePeer):
            num_bytes = peer.step_bytes(kind) + peer.cache_bytes(window)
            row.facts["MB read"] = num_bytes / 1e6
            row.facts["share of bandwidth"] = num_bytes / bandwidth.median / row.p50
        context.results.rows.append(row)


class Call:
    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def __call__(self, arguments: dict[str, Any]) -> Any:
        return self._agent.get_next_action(**arguments)


def fill(agents: dict[str, Any], kind: str, window: int) -> dict[str, float]:
    """Step all agents until their windows are full and have moved on; name -> error against the reference."""
    predictions: dict[str, list[Any]] = {name: [] for name in agents}
    for step in range(window // 2 + 4):
        arguments = step_arguments(kind, step)
        actions = {}
        for name, agent in agents.items():
            actions[name], prediction = agent.get_next_action(**arguments, return_prediction=True)
            predictions[name].append(prediction)
        for agent in agents.values():
            agent.force_action(actions[REFERENCE])
    return {name: error(values, predictions[REFERENCE]) for name, values in predictions.items()}
