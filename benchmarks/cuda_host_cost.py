"""Time what Python costs in a whole call of the CUDA backend: everything but the kernels, which are left out.

    python -m benchmarks.cuda_host_cost [--write]

Without a GPU: inputs are parsed, planned and written to the step's buffer, results are read and sessions advance, while
copies and launches do nothing. On a GPU the launch of a graph and the wait for it come on top. Windows are full, caches
of the processor are warm: no weights go through them, as on a machine with a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import weakref
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.pop("TRITON_INTERPRET", None)  # read when a kernel is defined

import numpy as np

from jat_engine.backends.cuda.graph import GraphStep
from jat_engine.backends.report import collect
from jat_engine.bench.report import by_column, markdown
from jat_engine.bench.results import percentiles
from jat_engine.config import JatConfig
from jat_engine.testing.spaces import Box, Discrete

from .no_kernels import make_engine, without_kernels

RESULTS = Path(__file__).parent / "results" / "cuda_host_cost"
WINDOW = 64
SPACE = Box(-1, 1, (6,))


def leave_out_launches() -> Any:
    """Let steps launch nothing: recording a kernel costs time as well."""
    begun: weakref.WeakSet[GraphStep] = weakref.WeakSet()

    def wait(step: GraphStep) -> None:
        if step not in begun:  # its results are there from then on
            begun.add(step)
            step.predictions[:] = 0
            step.choices[:] = 0
            step.finite[:] = 1

    return mock.patch.multiple(GraphStep, launch=lambda step: None, wait=wait)


def timed(step: Any, repeats: int) -> dict[str, float]:
    """Return the microseconds of `step`, after what fills the window and makes the graphs."""
    for _ in range(WINDOW // 2 + 4):
        step()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    found = percentiles([seconds])
    return {**{f"p{p}_us": round(found[p] * 1e6, 1) for p in ("50", "90", "99")}, "calls": repeats}


def measure() -> list[dict[str, Any]]:
    """Return a row for each kind of call."""
    random = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    # Two layers: the host's work does not depend on how many there are.
    with without_kernels(), leave_out_launches():
        seen_by_one: list[tuple[str, dict[str, Any], Any]] = [
            ("continuous", {"continuous_observation": random.standard_normal(39).astype(np.float32)}, SPACE),
            ("image", {"image_observation": random.integers(0, 256, (84, 84, 4), dtype=np.uint8)}, Discrete(18)),
        ]
        for path in ("persistent", "graphs"):
            is_persistent = path == "persistent"
            engine = make_engine(
                JatConfig(num_layers=2), max_cached_tokens=1200 * (WINDOW + 32), persistent=is_persistent
            )
            session = engine.open_session(WINDOW)
            for name, observation, space in seen_by_one:
                session.reset()

                def one(session: Any = session, observation: Any = observation, space: Any = space) -> None:
                    session.get_next_action(**observation, action_space=space, reward=0.1)

                rows.append({"call": "one agent", "path": path, "observation": name, "agents": 1, **timed(one, 2000)})
            session.close()
        for agents in (64, 1024):
            observations = random.standard_normal((agents, 39)).astype(np.float32)
            rewards = np.full(agents, 0.1)
            with engine.open_batch(agents, WINDOW) as batch:

                def step(batch: Any = batch, observations: Any = observations, rewards: Any = rewards) -> None:
                    batch.get_next_actions(continuous_observations=observations, rewards=rewards, action_space=SPACE)

                rows.append(
                    {
                        "call": "AgentBatch",
                        "path": "graphs",
                        "observation": "continuous",
                        "agents": agents,
                        **timed(step, 300),
                    }
                )
        sessions = [engine.open_session(WINDOW) for _ in range(64)]
        seen = [{"continuous_observation": row} for row in random.standard_normal((64, 39)).astype(np.float32)]

        def many() -> None:
            engine.get_next_actions(sessions, seen, [0.1] * 64, SPACE)

        rows.append(
            {"call": "sessions", "path": "graphs", "observation": "continuous", "agents": 64, **timed(many, 100)}
        )
    return rows


def as_markdown(rows: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    """Return the table, and where it was measured."""
    head = (
        "# What Python costs in a call of the CUDA backend\n\n"
        f"`python -m benchmarks.cuda_host_cost --write` on {machine['cpu']['name']}, {machine['cpu']['cores']} cores; "
        "microseconds of whole calls with the kernels left out. No GPU was there.\n\n"
    )
    return (
        head + markdown(by_column({name.removesuffix("_us"): str(v) for name, v in row.items()} for row in rows)) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="What Python costs in a call of the CUDA backend.")
    parser.add_argument("--write", action="store_true", help=f"keep the table in {RESULTS}.json and .md")
    options = parser.parse_args()
    rows, machine = measure(), collect()
    text = as_markdown(rows, machine)
    print(text)
    if options.write:
        RESULTS.with_suffix(".md").write_text(text)
        kept = {"versions": machine["versions"], "cpu": machine["cpu"], "platform": machine["platform"]}
        RESULTS.with_suffix(".json").write_text(json.dumps({**kept, "calls": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
