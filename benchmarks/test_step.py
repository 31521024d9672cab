"""Time a step under pytest-benchmark, for its statistics, histograms and `--benchmark-compare`:

    pytest benchmarks/test_step.py --benchmark-group-by=param:kind

Each agent by itself, one after the other; ratios between agents are `jat-engine bench`'s, where they take turns.
JAT_BENCHMARK_CHECKPOINT names another checkpoint than the published size with random weights.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jat_engine.bench.peers import REFERENCE
from jat_engine.bench.peers.jat import EnginePeer, ModelPeer
from jat_engine.bench.suites.latency import fill
from jat_engine.bench.workload import SPACES, batch_arguments, open_checkpoint, step_arguments
from jat_engine.testing.agreement import TOLERANCES

WINDOW = 32

AGENTS = ("JatModel float32", "JatEngine float32", "JatEngine bfloat16", "JatEngine int8")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with open_checkpoint(os.environ.get("JAT_BENCHMARK_CHECKPOINT", "small")) as folder:
        yield folder


@pytest.fixture(scope="module")
def peer(folder: Path) -> Callable[[str], Any]:
    """Each loaded once."""
    made: dict[str, Any] = {}

    def peer(name: str) -> Any:
        agent, dtype = name.split()
        if name not in made:
            made[name] = {"JatModel": ModelPeer, "JatEngine": EnginePeer}[agent].load(folder, dtype, "cpu")
        return made[name]

    return peer


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("name", AGENTS)
def test_step(benchmark: Any, peer: Callable[[str], Any], name: str, kind: str) -> None:
    """One agent, its window full; its predictions are the reference's."""
    agent = peer(name).open(WINDOW)
    agents = {REFERENCE: peer(REFERENCE).open(WINDOW), name + " ": agent}
    errors = fill(agents, functools.partial(step_arguments, kind), WINDOW)
    assert errors[name + " "] <= TOLERANCES[name.split()[1]]
    steps = itertools.count()
    benchmark.pedantic(
        agent.get_next_action, setup=lambda: ((), step_arguments(kind, next(steps))), rounds=50, warmup_rounds=5
    )


@pytest.mark.parametrize("num_agents", [1, 16])
@pytest.mark.parametrize("name", AGENTS[1:])
def test_batch_step(benchmark: Any, peer: Callable[[str], Any], name: str, num_agents: int) -> None:
    batch = peer(name).open_batch(num_agents, WINDOW, "continuous")
    steps = itertools.count()
    actions = benchmark.pedantic(
        batch.get_next_actions,
        setup=lambda: ((), batch_arguments(num_agents, next(steps))),
        rounds=30,
        warmup_rounds=WINDOW,
    )
    assert actions.shape == (num_agents, 8)
