"""Count what a step on a GPU moves from what it launches: bytes of device memory, their floor, and re-reads.

    python -m benchmarks.step_traffic [--write]

No GPU is needed and nothing is timed. The engine's own step is built at the published size; its Triton launches are
recorded instead of run, with their grids and tiles, and counted here. The floor is what any step must read: the weights
of the blocks once, and the keys and values its queries see. Device bytes are distinct bytes a step reads or writes that
do not fit into the L2 cache from the step before: weights, keys and values. L2 bytes are activations, partial sums and
norms, times the programs that read them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # read when a kernel is defined

from torch import Tensor

from jat_engine.backends.base import STEP_TOKENS as ROWS
from jat_engine.bench import costs
from jat_engine.bench.report import markdown
from jat_engine.bench.workload import batch_arguments
from jat_engine.config import JatConfig
from jat_engine.engine.engine import JatEngine

from .no_kernels import make_engine, without_kernels
from .triton_launches import Launch

RESULTS = Path(__file__).parent / "results" / "step_traffic"
NUM_MULTIPROCESSORS = 132
"""Of the H200. It decides how many programs share the keys of one agent."""
CASES = ((1, 256), (1, 508), (64, 508), (1024, 508))
"""Agents and cached tokens."""
DTYPE = "bfloat16"
WINDOW = 4
"""Tokens; launches depend on the agents alone, so that short windows, which fill soon, tell them."""


def record(engine: JatEngine, launches: list[Launch], agents: int) -> list[Launch]:
    """Return the launches of a step of so many saturated agents with continuous observations and actions."""
    with engine.open_batch(agents, WINDOW, seed=0) as batch:
        for step in range(WINDOW):
            launches.clear()
            batch.get_next_actions(**batch_arguments(agents, step))
    return list(launches)


def device_bytes(launch: Launch, agents: int, context: int, config: JatConfig, itemsize: int) -> int:
    """Return the bytes of weights, keys and values."""
    given = launch.arguments
    if launch.name == "paged_attention":
        # Of the three queries the first sees the oldest key; each sees the new keys up to its own.
        keys = min(context, given["window"] - 1) + ROWS
        return agents * keys * 2 * config.hidden_size * itemsize
    weight = given.get("weight_ptr")
    total = weight.nbytes if isinstance(weight, Tensor) else 0
    if launch.name == "qkv":
        total += agents * ROWS * 2 * config.hidden_size * itemsize
    return total


def l2_bytes(launch: Launch, agents: int, config: JatConfig, itemsize: int) -> int:
    """Return the bytes of activations, as often as programs read them, and what is written of them."""
    hidden, rows = config.hidden_size, agents * ROWS
    given = launch.arguments
    blocks = launch.grid[0]  # of outputs: each reads all columns of its rows
    if launch.name in ("qkv", "linear"):
        read = rows * hidden * itemsize
        return blocks * read + (rows * hidden * 4 if launch.name == "qkv" else rows * given["N"] * itemsize)
    if launch.name == "layer_norm":
        return rows * hidden * (3 * 4 + itemsize)
    if launch.name == "linear_residual":
        return blocks * rows * given["K"] * itemsize + 2 * rows * given["N"] * 4
    if launch.name == "paged_attention":
        return rows * hidden * (4 + itemsize)
    if launch.name == "head":
        return agents * hidden * 4 * 3
    return rows * hidden * 4  # embed


def count(config: JatConfig) -> dict[str, Any]:
    """Return the table of all cases, bfloat16."""
    itemsize = costs.CACHE_BYTES[DTYPE]
    most = max(agents for agents, _ in CASES)
    with without_kernels(NUM_MULTIPROCESSORS) as launches:
        engine = make_engine(config, max_cached_tokens=most * (WINDOW + 2 * 16))
        by_agents = {agents: record(engine, launches, agents) for agents in dict.fromkeys(n for n, _ in CASES)}

    cases = []
    for agents, context in CASES:
        kernels: dict[str, dict[str, int]] = {}
        for launch in by_agents[agents]:
            row = kernels.setdefault(launch.name, {"launches": 0, "programs": 0, "device_bytes": 0, "l2_bytes": 0})
            row["launches"] += 1
            row["programs"] = math.prod(launch.grid)
            row["device_bytes"] += device_bytes(launch, agents, context, config, itemsize)
            row["l2_bytes"] += l2_bytes(launch, agents, config, itemsize)
        floor = costs.matrix_bytes(config, DTYPE) + agents * costs.cache_bytes(config, context, DTYPE)
        total = sum(row["device_bytes"] for row in kernels.values())
        cases.append({
            "agents": agents,
            "context": context,
            "launches": sum(row["launches"] for row in kernels.values()),
            "floor_bytes": floor,
            "device_bytes": total,
            "ratio": round(total / floor, 4),
            "l2_bytes": sum(row["l2_bytes"] for row in kernels.values()),
            "kernels": kernels,
        })  # fmt: skip
    return {"preset": "small", "dtype": DTYPE, "multiprocessors": NUM_MULTIPROCESSORS, "cases": cases}


def as_markdown(table: dict[str, Any]) -> str:
    """Return the tables, and what they say."""
    cases = table["cases"]
    lines = [
        "# What a step moves",
        "",
        "Counted by `python -m benchmarks.step_traffic --write` from the engine's recorded launches, published size, "
        f"bfloat16, tiles and splits for {table['multiprocessors']} multiprocessors. Nothing here was timed. MB are "
        "10^6 bytes. L2 bytes are counted once for each program that asks for them.",
        "",
        markdown({
            "agents": [str(case["agents"]) for case in cases],
            "cached tokens": [str(case["context"]) for case in cases],
            "launches": [str(case["launches"]) for case in cases],
            "floor MB": [f"{case['floor_bytes'] / 1e6:.1f}" for case in cases],
            "device MB": [f"{case['device_bytes'] / 1e6:.1f}" for case in cases],
            "ratio": [f"{case['ratio']:.4f}" for case in cases],
            "L2 MB": [f"{case['l2_bytes'] / 1e6:.1f}" for case in cases],
        }),
    ]  # fmt: skip

    for case in cases:
        kernels = case["kernels"].values()
        lines += [
            "",
            f"## {case['agents']} agents, {case['context']} cached tokens, by kernel",
            "",
            markdown({
                "kernel": list(case["kernels"]),
                "launches": [str(row["launches"]) for row in kernels],
                "programs each": [str(row["programs"]) for row in kernels],
                "device MB": [f"{row['device_bytes'] / 1e6:.2f}" for row in kernels],
                "L2 MB": [f"{row['l2_bytes'] / 1e6:.2f}" for row in kernels],
            }),
        ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="What a step on a GPU moves, and the least it could.")
    parser.add_argument("--write", action="store_true", help=f"keep the table in {RESULTS}.json and .md")
    options = parser.parse_args()
    table = count(JatConfig())
    text = as_markdown(table)
    print(text)
    if options.write:
        RESULTS.with_suffix(".md").write_text(text)
        RESULTS.with_suffix(".json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
