"""What a step on a GPU moves, counted from what it launches: bytes of device memory beside the floor, and re-reads.

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
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # read when a kernel is defined

import numpy as np
import torch
from torch import Tensor

from jat_engine.backends import Plan
from jat_engine.backends.base import PAGE_SIZE
from jat_engine.backends.base import STEP_TOKENS as ROWS
from jat_engine.backends.cuda.backend import CudaBackend
from jat_engine.checkpoint.weights import parameter_shapes
from jat_engine.config import JatConfig
from jat_engine.observation import ActionSpace

from .triton_launches import Launch, recorded

RESULTS = Path(__file__).parent / "results" / "step_traffic"
NUM_MULTIPROCESSORS = 132
"""Of the H200. It decides how many programs share the keys of one agent."""
CASES = ((1, 256), (1, 508), (64, 508), (1024, 508))
"""Agents and cached tokens."""


class Shapes:
    """Parameters of the right shapes."""

    def __init__(self, config: JatConfig) -> None:
        self._shapes = parameter_shapes(config)

    def get(self, name: str) -> Tensor:
        return torch.zeros(self._shapes[name])

    def pieces(self, name: str, rows: int = 2048) -> Iterator[Tensor]:
        yield from torch.zeros(self._shapes[name]).split(rows)

    def rows(self, name: str, count: int) -> Tensor:
        return torch.zeros(count, *self._shapes[name][1:])


class Unchecked(CudaBackend):
    """Kernels that are recorded compute nothing that could be checked."""

    def _check(self) -> None:
        pass


def record(backend: CudaBackend, agents: int, context: int) -> list[Launch]:
    """The launches of a step of so many saturated agents with 39 continuous observations and 6 actions."""
    pages = np.zeros(-(-(context + ROWS + PAGE_SIZE - 1) // PAGE_SIZE), np.int32)
    tokens: list[Any] = []
    for _ in range(agents):
        for size in (40, 6, 40):
            tokens.append(backend.embed_continuous(np.zeros(size, np.float32), None))
    spaces = [ActionSpace("continuous", 6)] * agents
    plan = Plan([ROWS] * agents, [context] * agents, [0] * agents, [pages] * agents, spaces, [None] * agents, tokens)
    with recorded() as launches:
        backend.decode(plan)
    return launches


def device_bytes(launch: Launch, agents: int, context: int, config: JatConfig, itemsize: int) -> int:
    """Weights, keys and values."""
    given = launch.arguments
    if launch.name == "paged_attention":
        # Of the three queries the first sees the oldest key; each sees the new keys up to its own.
        keys = min(context, given["window"] - 1) + ROWS
        return agents * keys * 2 * config.hidden_size * itemsize
    weight = given.get("weight_ptr")
    total = weight.nbytes if isinstance(weight, Tensor) else 0
    if launch.name == "norm_qkv":
        total += agents * ROWS * 2 * config.hidden_size * itemsize
    return total


def l2_bytes(launch: Launch, agents: int, config: JatConfig, itemsize: int) -> int:
    """Activations, as often as programs read them, and what is written of them."""
    hidden, rows = config.hidden_size, agents * ROWS
    given = launch.arguments
    blocks = launch.grid[0]  # of outputs: each reads all columns of its rows
    if launch.name in ("norm_qkv", "norm_linear"):
        # Normed here, three passes over x: mean, variance, product; the later ones may find it in the L1 cache.
        read = 3 * rows * hidden * 4 + 2 * hidden * 4 if given["NORM"] else rows * hidden * itemsize
        return blocks * read + (rows * hidden * 4 if launch.name == "norm_qkv" else rows * given["N"] * itemsize)
    if launch.name == "layer_norm":
        return rows * hidden * (3 * 4 + itemsize)
    if launch.name == "linear_residual":
        return blocks * rows * given["K"] * itemsize + 2 * rows * given["N"] * 4
    if launch.name == "combine_out_proj":
        partials = given["NUM_SPLITS"] * rows * (hidden + 2 * config.num_heads) * 4
        return blocks * partials + 2 * rows * given["N"] * 4
    if launch.name == "paged_attention":
        splits = given["NUM_SPLITS"]
        written = rows * hidden * itemsize if splits == 1 else splits * rows * (hidden + 2 * config.num_heads) * 4
        return splits * rows * hidden * 4 + written
    if launch.name == "head":
        return agents * hidden * 4 * 3
    return rows * hidden * 4  # embed


def count(config: JatConfig) -> dict[str, Any]:
    """The table of all cases, bfloat16."""
    itemsize = 2
    torch_device = torch.device("cpu")
    backend = Unchecked(config, Shapes(config), "bfloat16", torch_device, one_launch=False)
    with recorded():
        backend.allocate_cache(1)
    weights = backend._weights
    weights.num_multiprocessors = NUM_MULTIPROCESSORS
    block_weights = weights.block_bytes
    cases = []
    for agents, context in CASES:
        kernels: dict[str, dict[str, int]] = {}
        for launch in record(backend, agents, context):
            row = kernels.setdefault(launch.name, {"launches": 0, "programs": 0, "device_bytes": 0, "l2_bytes": 0})
            row["launches"] += 1
            row["programs"] = _product(launch.grid)
            row["device_bytes"] += device_bytes(launch, agents, context, config, itemsize)
            row["l2_bytes"] += l2_bytes(launch, agents, config, itemsize)
        seen = sum(min(context, layer.window - 1) for layer in weights.layers)
        floor = block_weights + agents * seen * 2 * config.hidden_size * itemsize
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
    return {"preset": "small", "dtype": "bfloat16", "multiprocessors": NUM_MULTIPROCESSORS, "cases": cases}


def as_markdown(table: dict[str, Any]) -> str:
    lines = [
        "# What a step moves",
        "",
        "Counted by `python -m benchmarks.step_traffic --write` from the engine's recorded launches, published size, "
        f"bfloat16, tiles and splits for {table['multiprocessors']} multiprocessors. Nothing here was timed. MB are "
        "10^6 bytes. L2 bytes are counted once for each program that asks for them.",
        "",
        "| agents | cached tokens | launches | floor MB | device MB | ratio | L2 MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in table["cases"]:
        lines.append(
            f"| {case['agents']} | {case['context']} | {case['launches']} | {case['floor_bytes'] / 1e6:.1f} | "
            f"{case['device_bytes'] / 1e6:.1f} | {case['ratio']:.4f} | {case['l2_bytes'] / 1e6:.1f} |"
        )
    for case in table["cases"]:
        lines += [
            "",
            f"## {case['agents']} agents, {case['context']} cached tokens, by kernel",
            "",
            "| kernel | launches | programs each | device MB | L2 MB |",
            "|---|---|---|---|---|",
        ]
        for name, row in case["kernels"].items():
            lines.append(
                f"| {name} | {row['launches']} | {row['programs']} | {row['device_bytes'] / 1e6:.2f} | "
                f"{row['l2_bytes'] / 1e6:.2f} |"
            )
    return "\n".join(lines) + "\n"


def _product(grid: tuple[int, ...]) -> int:
    return int(np.prod(grid))


def main() -> None:
    parser = argparse.ArgumentParser(description="What a step on a GPU moves, beside the floor.")
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
