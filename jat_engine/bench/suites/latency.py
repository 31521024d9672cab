"""Time one agent's whole `get_next_action` once its window is full, in the same rounds as every peer's.

While windows fill, each agent is given the same observations and the reference's actions, and its predictions are held
against the reference's.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

from ...config import JatConfig
from ...testing.agreement import TOLERANCES, error
from .. import costs
from ..bandwidth import last_level_cache_bytes
from ..peers import REFERENCE, Peers, load
from ..peers.jat import EnginePeer
from ..results import describe, make_row
from ..runner import Contender, Context, take_turns, with_keywords
from ..workload import OTHER_WINDOWS, fitting_windows, main_window, open_checkpoint, step_arguments

SUITE = "latency"

ONE_WINDOW = {"torch.compile float32", "torch.compile bfloat16", "JatModel bfloat16", "published package float32"}
"""Agents that are measured at one window only, since they take minutes to compile or to fill one."""


def run(context: Context) -> None:
    options = context.options
    for model in options.models:
        is_first = model == options.models[0]
        with open_checkpoint(model) as folder:
            wanted = options.windows if is_first else OTHER_WINDOWS
            windows = fitting_windows(wanted, JatConfig.from_pretrained(folder))
            one_window = main_window(windows)
            names = options.peers if is_first else ()
            peers = load(folder, options.dtypes, names, options.device, options.upstream, context.note)
            context.results.skipped.update(peers.skipped)
            note_versions(context, peers)

            for observation in options.observations if is_first else options.observations[:1]:
                for window in windows:
                    case: dict[str, Any] = {"model": model, "observation": observation, "window": window}
                    left_out = ONE_WINDOW if window != one_window else set()
                    measure_case(context, peers, case, left_out)
                    context.save()

            for name in ONE_WINDOW & peers.found.keys() if len(windows) > 1 else ():
                context.results.skipped[f"{name}, other windows than {one_window}"] = "one window only, to save time"
            context.results.skipped.update(peers.skipped)
            peers.close()
            gc.collect()


def note_versions(context: Context, peers: Peers) -> None:
    """Keep the versions that peers in processes of their own tell."""
    for name, peer in peers.found.items():
        if hasattr(peer, "versions"):
            context.results.machine.setdefault("peers", {})[name] = peer.versions


def measure_case(context: Context, peers: Peers, case: dict[str, Any], left_out: Container[str] = ()) -> None:
    """Measure all peers in one case.

    Args:
        case: model, observation and window.
        left_out: peers that do not take part in it.
    """
    kind, window = case["observation"], case["window"]
    context.note(f"latency: {describe(case)} ...")
    agents = open_agents(peers, window, left_out)
    errors = fill(agents, functools.partial(step_arguments, kind), window, peers)

    contenders = {
        name: Contender(lambda number: step_arguments(kind, number), with_keywords(agent.get_next_action))
        for name, agent in agents.items()
    }
    options, bandwidth = context.options, context.bandwidth
    rounds = options.num_iters if case["model"] == options.models[0] else -(-options.num_iters // 2)
    seconds = take_turns(contenders, rounds, num_warmup=options.num_iters_warmup, on_round=bandwidth.sample)

    for name in agents:
        peer = peers.found[name]
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
            num_bytes = costs.step_bytes(peer.engine.config, kind, peer.dtype, window)
            row.facts["MB read"] = num_bytes / 1e6
            if bandwidth.is_limit and num_bytes > last_level_cache_bytes():  # else it is read from the cache
                row.facts["share of bandwidth"] = num_bytes / bandwidth.median / row.p50
        context.results.rows.append(row)


def open_agents(peers: Peers, window: int, left_out: Container[str]) -> dict[str, Any]:
    """Open an agent of each peer; those that fail are dropped from `peers`, unless it is the reference."""
    agents = {}
    for name in [name for name in peers.found if name not in left_out]:
        try:
            agents[name] = peers.found[name].open(window)
        except Exception as failure:
            if name == REFERENCE:
                raise
            peers.drop(name, failure)
    return agents


@dataclass(frozen=True)
class Played:
    """Steps that all agents took together.

    Attributes:
        predictions: name -> a prediction a step.
        actions: of the reference, which all followed.
    """

    predictions: dict[str, list[Any]]
    actions: list[Any]


def play(
    agents: dict[str, Any], arguments_of: Callable[[int], dict[str, Any]], window: int, peers: Peers | None = None
) -> Played:
    """Step all agents until their windows are full and have moved on.

    Args:
        agents: by name; those that fail are taken out, and out of `peers`.
        arguments_of: number of a step -> keyword arguments of `get_next_action`; called once for each, in order.
        window: of the agents.
        peers: if None, an error is raised.
    """
    predictions: dict[str, list[Any]] = {name: [] for name in agents}
    actions = []
    for step in range(window // 2 + 4):
        arguments = arguments_of(step)
        for name in sorted(agents, key=lambda name: name != REFERENCE):  # the reference chooses
            try:
                action, prediction = agents[name].get_next_action(**arguments, return_prediction=True)
                if name == REFERENCE:
                    actions.append(action)
                agents[name].force_action(actions[-1])
            except Exception as failure:
                if name == REFERENCE or peers is None:
                    raise
                peers.drop(name, failure)
                del agents[name]
                continue
            predictions[name].append(prediction)
    return Played({name: predictions[name] for name in agents}, actions)


def fill(
    agents: dict[str, Any], arguments_of: Callable[[int], dict[str, Any]], window: int, peers: Peers | None = None
) -> dict[str, float]:
    """Step all agents until their windows are full, see `play`; return each one's error against the reference."""
    predictions = play(agents, arguments_of, window, peers).predictions
    return {name: error(found, predictions[REFERENCE]) for name, found in predictions.items()}
