"""Time steps of many agents, 1 to 1024 of them; `JatModel`, the reference, serves them one after the other."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np

from ...testing.agreement import TOLERANCES, error
from .. import costs
from ..peers import REFERENCE, Peers, load
from ..peers.jat import EnginePeer
from ..results import describe, make_row
from ..runner import Contender, Context, take_turns, with_keywords
from ..workload import REWARD, SPACES, batch_arguments, open_checkpoint, step_arguments

SUITE = "throughput"

WINDOW = 32
"""Tokens; what the published evaluation gives Atari. Longer ones take long to fill for a thousand agents."""

PEERS = ("onnxruntime", "openvino")
"""Peers that can step many agents at once."""

PEER_AGENTS = 64
"""Peers' caches of more agents do not fit into small machines."""

CHECKED = 3
"""Agents of a batch that are compared with the reference: the first, the last, one between them."""

_KIND = "continuous"


def run(context: Context) -> None:
    options = context.options
    model = options.models[0]
    names = [name for name in options.peers if name in PEERS]
    most = max(options.batch_sizes)
    with open_checkpoint(model) as folder:
        peers = load(
            folder, options.dtypes, names, options.device, None, context.note, max_cached_tokens=most * (WINDOW + 48)
        )
        for num_agents in options.batch_sizes:
            measure_case(context, peers, {"model": model, "observation": _KIND, "window": WINDOW, "agents": num_agents})
            context.save()
            gc.collect()

        for name in options.peers:
            if name == "JatModel":
                continue  # one after the other
            if name not in PEERS:
                context.results.skipped[f"throughput, {name}"] = "it has no step of many agents"
            elif most > PEER_AGENTS:
                context.results.skipped[f"throughput, {name}, more than {PEER_AGENTS} agents"] = "to save memory"
        context.results.skipped.update(peers.skipped)
        peers.close()
        gc.collect()


def measure_case(context: Context, peers: Peers, case: dict[str, Any]) -> None:
    """Measure all peers that can step as many agents. case: model and agents, at least."""
    num_agents = case["agents"]
    context.note(f"throughput: {describe(case)} ...")
    batches: dict[str, Any] = {}
    for name, peer in list(peers.found.items()):
        if hasattr(peer, "open_batch") and (isinstance(peer, EnginePeer) or num_agents <= PEER_AGENTS):
            try:
                batches[name] = peer.open_batch(num_agents, WINDOW, _KIND)
            except Exception as failure:
                peers.drop(name, failure)

    reference = peers.found[REFERENCE].open(WINDOW)
    errors = fill(peers, reference, batches, num_agents)
    contenders = {
        name: Contender(lambda number: batch_arguments(num_agents, number), with_keywords(batch.get_next_actions))
        for name, batch in batches.items()
    }
    contenders[REFERENCE] = Contender(
        lambda number: step_arguments(_KIND, number), with_keywords(reference.get_next_action)
    )

    options = context.options
    rounds = int(np.clip(options.num_iters * PEER_AGENTS // num_agents, 3, options.num_iters))
    seconds = take_turns(contenders, rounds, num_warmup=options.num_iters_warmup, on_round=context.bandwidth.sample)

    one_by_one = [[value * num_agents for value in values] for values in seconds.pop(REFERENCE)]
    context.results.rows.append(
        make_row(SUITE, case, REFERENCE, one_by_one, facts={"agent-steps/s": num_agents / np.median(one_by_one)})
    )
    for name, values in seconds.items():
        peer = peers.found[name]
        row = make_row(
            SUITE,
            case,
            name,
            values,
            reference=one_by_one,
            error=errors[name],
            tolerance=TOLERANCES[peer.dtype],
        )
        row.facts["agent-steps/s"] = num_agents / row.p50
        if isinstance(peer, EnginePeer):
            row.facts["GFLOP/s"] = costs.step_operations(peer.engine.config, WINDOW, num_agents) / row.p50 / 1e9
        context.results.rows.append(row)
    for batch in batches.values():
        batch.close()


def fill(peers: Peers, reference: Any, batches: dict[str, Any], num_agents: int) -> dict[str, float]:
    """Step all batches until their windows are full and have moved on.

    Args:
        peers: of them.
        reference: an agent that is left with its window full.
        batches: by name; those that fail are taken out, and out of `peers`.
        num_agents: of each batch.

    Returns:
        Name -> error of the agents that are checked.
    """
    checked = sorted({0, num_agents // 2, num_agents - 1})[:CHECKED]
    agents = [reference, *(peers.found[REFERENCE].open(WINDOW) for _ in checked[1:])]
    expected: list[Any] = []
    actions: dict[str, list[Any]] = {name: [] for name in batches}
    for step in range(WINDOW // 2 + 4):
        arguments = batch_arguments(num_agents, step)
        for number, agent in zip(checked, agents, strict=True):
            fields = {"continuous_observation": arguments["continuous_observations"][number]}
            reward = REWARD if step else None
            expected.append(agent.get_next_action(**fields, reward=reward, action_space=SPACES[_KIND]))
        for name in list(batches):
            try:
                actions[name] += list(np.array(batches[name].get_next_actions(**arguments))[checked])
            except Exception as failure:
                peers.drop(name, failure)
                del batches[name]
    return {name: error(actions[name], expected) for name in batches}
