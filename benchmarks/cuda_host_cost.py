"""What Python costs in a whole call of the CUDA backend: everything but the kernels, which are left out.

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
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # read when a kernel is defined

import numpy as np
import torch
from gymnasium import spaces

from jat_engine.backends import Choice
from jat_engine.backends.cuda.backend import CudaBackend
from jat_engine.backends.options import EngineOptions
from jat_engine.backends.report import collect
from jat_engine.config import JatConfig
from jat_engine.engine.engine import JatEngine

from .step_traffic import Shapes
from .triton_launches import recorded

RESULTS = Path(__file__).parent / "results" / "cuda_host_cost"
WINDOW = 64
SPACE = spaces.Box(-1, 1, (6,))


def make_engine() -> Any:
    """Two layers: the host's work does not depend on how many there are."""
    config = JatConfig(num_layers=2)
    choice = Choice(torch.device("cpu"), "cuda", "bfloat16", "", is_asked=True)
    options = EngineOptions(one_launch=False, max_cached_tokens=1200 * (WINDOW + 32))
    missions: Any = None
    CudaBackend._check = lambda self: None  # type: ignore[method-assign]  # kernels that are left out compute nothing
    return JatEngine(config, Shapes(config), choice, options, missions)


def leave_out_kernels(engine: Any) -> None:
    """Graphs made so far do nothing from now on, and find zeros."""
    for graph in engine._backend._graphs.values():
        graph._run = lambda: None
        graph.predictions[:] = 0
        graph.finite[:] = 1


def timed(engine: Any, step: Any, repeats: int) -> dict[str, float]:
    """Microseconds of `step`, after what fills the window and makes the graphs."""
    for _ in range(WINDOW // 2 + 4):
        try:
            step()
        except ValueError:  # the first step of a new graph finds what was in its memory
            leave_out_kernels(engine)
        leave_out_kernels(engine)
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    p50, p90, p99 = np.percentile(seconds, [50, 90, 99]) * 1e6
    return {"p50_us": round(p50, 1), "p90_us": round(p90, 1), "p99_us": round(p99, 1), "calls": repeats}


def measure() -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    with recorded():
        engine = make_engine()
        session = engine.open_session(WINDOW)
        for name, observation, space in (
            ("continuous", {"continuous_observation": random.standard_normal(39).astype(np.float32)}, SPACE),
            (
                "image",
                {"image_observation": random.integers(0, 256, (84, 84, 4), dtype=np.uint8)},
                spaces.Discrete(18),
            ),
        ):
            session.reset()

            def one(observation: Any = observation, space: Any = space) -> None:
                session.get_next_action(**observation, action_space=space, reward=0.1)

            rows.append({"call": "one agent", "observation": name, "agents": 1, **timed(engine, one, 2000)})
        session.close()
        for agents in (64, 1024):
            observations = random.standard_normal((agents, 39)).astype(np.float32)
            rewards = np.full(agents, 0.1)
            with engine.open_batch(agents, WINDOW) as batch:

                def step(batch: Any = batch, observations: Any = observations, rewards: Any = rewards) -> None:
                    batch.get_next_actions(continuous_observations=observations, rewards=rewards, action_space=SPACE)

                rows.append(
                    {"call": "AgentBatch", "observation": "continuous", "agents": agents, **timed(engine, step, 300)}
                )
        sessions = [engine.open_session(WINDOW) for _ in range(64)]
        seen = [{"continuous_observation": row} for row in random.standard_normal((64, 39)).astype(np.float32)]

        def many() -> None:
            engine.get_next_actions(sessions, seen, [0.1] * 64, SPACE)

        rows.append({"call": "sessions", "observation": "continuous", "agents": 64, **timed(engine, many, 100)})
    return rows


def as_markdown(rows: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    lines = [
        "# What Python costs in a call of the CUDA backend",
        "",
        f"`python -m benchmarks.cuda_host_cost --write` on {machine['cpu']['name']}, {machine['cpu']['cores']} cores; "
        "microseconds of whole calls with the kernels left out. No GPU was there.",
        "",
        "| call | observation | agents | p50 | p90 | p99 | calls |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['call']} | {row['observation']} | {row['agents']} | {row['p50_us']} | {row['p90_us']} | "
        f"{row['p99_us']} | {row['calls']} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


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
