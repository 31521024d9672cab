"""Sweep tile sizes of the linear layers, offline, in whole steps: what is fastest here can be committed as the table.

A kernel that is launched again and again by itself finds its code in the instruction cache and its neighbour's tail to
hide behind; in a step it does not. So a tile is judged by the whole graph of a step: product after product, the
fastest of the candidates stays. Engines never tune when they run. tiles.json in the report's folder has all readings,
fastest first, for kernels/tiles.py.

Kernels are compiled beforehand by as many processes as there are cores: `python -m benchmarks.gpu.tiles SHARE SHARES`.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch

from jat_engine import JatConfig, machine
from jat_engine.backends.base import PAGE_SIZE, STEP_TOKENS
from jat_engine.bench.bandwidth import device_seconds

from .process import Process, python_module
from .section import SectionRun, describe

SESSIONS = (8, 1, 4, 64, 16, 1024, 256)
"""In the order of worth."""
CONTEXT_LEN = 505
REPEATS = 30
COMPILE_SECONDS = 90.0


class Product(NamedTuple):
    """A linear layer of a block: outputs, inputs, and if its sums may be left to the next kernel to be added."""

    outputs: int
    inputs: int
    may_share: bool


def products(config: JatConfig) -> dict[str, Product]:
    """Return the linear layers of a block, by name, those that cost most first."""
    hidden = config.hidden_size
    return {
        "mlp_out": Product(hidden, 4 * hidden, True),
        "mlp_in": Product(4 * hidden, hidden, False),
        "qkv": Product(3 * hidden, hidden, False),
        "out_proj": Product(hidden, hidden, True),
    }


def candidates(rows: int, product: Product) -> Iterator[Any]:
    """Yield tiles for a product of so many rows."""
    from jat_engine.kernels.tiles import Tile

    shares = (1, 2, 4) if product.may_share else (1,)
    if rows <= 96:
        height = 16 if rows <= 16 else 32
        for shared, columns, parts, warps in itertools.product(shares, (8, 16, 32), (8, 16), (4, 8)):
            share = product.inputs // shared
            part = 1 << (-(-share // parts) - 1).bit_length()
            registers = columns * share / (64 * warps)  # of a thread, with weights
            is_sensible = part >= 32 and 24 <= registers <= 100 and height * part * parts <= 1 << 15
            if is_sensible and (columns > 8 or shared == 1):
                yield Tile(height, columns, part, parts, warps, 1, shared, whole=True)
        for shared, columns in itertools.product(shares, (16, 32)):
            if product.inputs // shared <= 1536:
                yield Tile(height, columns, 128, 1, 4, 4, shared)
        return
    if rows <= 256:
        for shared, height, columns, stages in itertools.product(shares, (64, 128), (32, 64, 128), (4, 6)):
            if (product.inputs // shared > 384 or stages == 4) and (columns > 32 or height == 64):
                yield Tile(height, columns, 64, 1, 4 if height * columns <= 64 * 128 else 8, stages, shared)
        return
    heights, warps_of = ((64, 128), (4, 8)) if rows <= 768 else ((128,), (4, 8))
    for height, columns, stages, warps in itertools.product(heights, (128, 256), (3, 4), warps_of):
        if height * columns / (32 * warps) <= 128:
            yield Tile(height, columns, 64, 1, warps, stages)


@contextlib.contextmanager
def tiles_instead(chosen: dict[tuple[int, int], Any]) -> Iterator[None]:
    """Launch linear layers with the chosen tiles, by (outputs, inputs), within the block."""
    from jat_engine.backends.cuda import blocks
    from jat_engine.kernels import linear

    tile_of, num_partials = linear.tile_of, linear.num_partials

    def chosen_tile(rows: int, outputs: int, inputs: int, dtype: Any, num_programs_k: int = 1) -> Any:
        return chosen.get((outputs, inputs)) or tile_of(rows, outputs, inputs, dtype, num_programs_k)

    def chosen_partials(rows: int, outputs: int, inputs: int, dtype: Any) -> int:
        tile = chosen.get((outputs, inputs))
        return int(tile.num_programs_k if tile else num_partials(rows, outputs, inputs, dtype))

    with (
        mock.patch.multiple(linear, tile_of=chosen_tile, num_partials=chosen_partials),
        mock.patch.multiple(blocks, num_partials=chosen_partials),
    ):
        yield


def run(section: SectionRun) -> None:
    config, device = JatConfig.from_preset("small"), torch.device(section.device)
    cores = max(1, machine.available_cores() - 1)
    compilers = [
        Process(python_module("tiles", str(share), str(cores)), section.folder / f"tiles{share}.log")
        for share in range(cores)
    ]
    seconds = min(COMPILE_SECONDS, section.time_left() * 0.6)
    section.record("compiled", [round(each.wait(max(1, seconds)).seconds, 1) for each in compilers])

    readings: list[dict[str, Any]] = []
    for sessions in SESSIONS:
        try:
            step = _Step(config, device, sessions)
        except Exception as error:
            section.record(f"{sessions} agents", describe(error, 4))
            continue
        if not _descend(section, config, step, readings):
            return


def _descend(section: SectionRun, config: JatConfig, step: _Step, readings: list[dict[str, Any]]) -> bool:
    """Take the fastest tile of one product after the other. Returns False where there is no time left."""
    chosen: dict[tuple[int, int], Any] = {}
    best, expected = step.measure(chosen)
    rows = step.sessions * STEP_TOKENS
    readings.append({"agents": step.sessions, "product": "all", "tile": "the table's", "us": best})
    for name, product in products(config).items():
        place = product.outputs, product.inputs
        for tile in candidates(rows, product):
            if section.time_left() < 4:
                return False
            row: dict[str, Any] = {"agents": step.sessions, "product": name, "tile": str(tuple(tile))}
            try:
                row["us"], values = step.measure({**chosen, place: tile})
                row["error"] = float(np.abs(values - expected).max() / np.abs(expected).max())
                if row["error"] < 0.1 and row["us"] < best:
                    best, chosen[place] = row["us"], tile
            except Exception as error:  # more registers or shared memory than there are
                row["failed"] = describe(error, 1)[-200:]
            readings.append(row)
        section.record("tiles", fastest_first(readings))
    summary = {name: str(tuple(chosen.get((p.outputs, p.inputs), ()))) for name, p in products(config).items()}
    section.record(f"{step.sessions} agents", {"us": best, **summary})
    return True


class _Step:
    """A step of some agents with random weights, to be captured with one set of tiles after the other."""

    def __init__(self, config: JatConfig, device: torch.device, sessions: int) -> None:
        from jat_engine.backends.cuda import graph
        from jat_engine.backends.cuda.buckets import shape_of
        from jat_engine.backends.cuda.kv_pages import KVPages, fill
        from jat_engine.backends.cuda.startup_check import make_group

        self.sessions, self._device = sessions, device
        self._weights = _random_weights(config, device)
        self._pages = -(-(CONTEXT_LEN + STEP_TOKENS) // PAGE_SIZE)
        self._cache = KVPages(config, sessions * self._pages, torch.bfloat16, device)
        numbers = np.random.default_rng(0).permutation(sessions * self._pages).astype(np.int32)
        fill(self._cache, numbers)
        self._group = make_group(self._weights, numbers.reshape(sessions, self._pages), CONTEXT_LEN)
        self._scratch = graph.Scratch(self._weights, sessions)
        self._scratch.unadded = torch.zeros(4 * sessions * STEP_TOKENS * config.hidden_size, device=device)
        self._shape = shape_of([self._group])

    def measure(self, chosen: dict[tuple[int, int], Any]) -> tuple[float, np.ndarray]:
        """Return the microseconds of the step's graph, and its predictions."""
        from jat_engine.backends.cuda import graph
        from jat_engine.backends.cuda.staging import stage

        with tiles_instead(chosen):
            step = graph.GraphStep(self._weights, self._cache, self._scratch, self._shape, self._pages)
        _staged = stage(step.inputs, self._weights, [self._group])  # keeps what the step reads alive
        step.launch()
        step.wait()
        values = step.predictions[: self.sessions, : self._group.space.size].copy()
        seconds = device_seconds(step.launch, REPEATS, self._device)
        return float(np.median(seconds)) * 1e6, values


class RandomWeights:
    """Random parameters, as `jat_engine.checkpoint.weights.Weights`."""

    def __init__(self, config: JatConfig) -> None:
        from jat_engine.checkpoint.weights import checkpoint_shapes

        self._shapes = checkpoint_shapes(config)

    def get(self, name: str) -> torch.Tensor:
        return self.rows(name, self._shapes[name][0])

    def pieces(self, name: str, rows: int = 2048) -> Iterator[torch.Tensor]:
        yield from self.get(name).split(rows)

    def rows(self, name: str, count: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        return torch.randn((count, *self._shapes[name][1:]), generator=generator) * 0.04


_WEIGHTS: list[Any] = []


def _random_weights(config: JatConfig, device: torch.device) -> Any:
    from jat_engine.backends.cuda.weights import CudaWeights

    if not _WEIGHTS:
        _WEIGHTS.append(CudaWeights(config, RandomWeights(config), "bfloat16", device))  # type: ignore[arg-type]
    return _WEIGHTS[0]


def fastest_first(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort rows by agents and product, then by time; those without one last."""
    return sorted(rows, key=lambda row: (row["agents"], row["product"], row.get("us", float("inf"))))


def compile_share(share: int, shares: int, device: torch.device) -> None:
    """Launch every candidate of a share once, so that Triton's cache has it."""
    from jat_engine.kernels import linear

    config = JatConfig.from_preset("small")
    hidden, pdl = config.hidden_size, device.type == "cuda" and torch.cuda.get_device_capability() >= (9, 0)
    heads = config.num_heads
    done: set[Any] = set()
    tasks = [
        (sessions * STEP_TOKENS, name, product, tile)
        for sessions in SESSIONS
        for name, product in products(config).items()
        for tile in candidates(sessions * STEP_TOKENS, product)
    ]
    vector = torch.zeros(4 * hidden, device=device)
    for rows, name, product, tile in tasks[share::shares]:
        if (name, tile) in done:
            continue
        done.add((name, tile))
        x = torch.zeros(rows, hidden, device=device)
        a = torch.zeros(rows, product.inputs, device=device, dtype=torch.bfloat16)
        weight = torch.zeros(product.outputs, product.inputs, device=device, dtype=torch.bfloat16)
        normed, norm = a[:, :hidden].contiguous(), vector[:hidden]
        try:
            with tiles_instead({(product.outputs, product.inputs): tile}):
                if name == "qkv":
                    pages = torch.zeros(2, 2, heads, PAGE_SIZE, hidden // heads, device=device, dtype=torch.bfloat16)
                    slots = torch.full((rows,), -1, device=device, dtype=torch.int32)
                    q = torch.zeros_like(x)
                    linear.norm_qkv(x, norm, norm, weight, None, q, pages, slots, normed=normed, pdl=pdl)
                elif name == "mlp_in":
                    out = torch.zeros(rows, product.outputs, device=device, dtype=torch.bfloat16)
                    linear.norm_linear(x, norm, norm, weight, None, vector, out, gelu=True, normed=normed, pdl=pdl)
                else:
                    parts = tile.num_programs_k
                    partial = torch.zeros(parts, rows, hidden, device=device) if parts > 1 else None
                    linear.linear_residual(a, weight, None, norm, x, partial=partial, pdl=pdl)
        except Exception as error:  # more registers or shared memory than there are
            print(f"{name} {tuple(tile)}: {describe(error, 1)[-200:]}", flush=True)


if __name__ == "__main__":
    compile_share(int(sys.argv[1]), int(sys.argv[2]), torch.device("cuda"))
