"""Predict a step by graphs: every kernel of it clocked, with its bytes, its node and what dependent launch hides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jat_engine.backends.base import STEP_TOKENS

from ..triton_launches import Launch
from .hardware import (
    CLOCK_GHZ,
    COPY_US,
    GRAPH_LAUNCH_US,
    KERNEL_RAMP_US,
    Gpu,
    cycles_us,
    l2_us,
)
from .kernels import MAX_WARPS, REGISTERS, SHARED_BYTES, SHARED_OF_A_BLOCK, Clocked, clock_launch
from .launches import key

COPIES = 2
"""Copy nodes of a step: its inputs from pinned memory, its outputs to it."""


@dataclass(frozen=True)
class Node:
    """A kernel of a step that is launched `launches` times.

    Attributes:
        clocked: what the clock found.
        launches: how often a step has it.
        device_bytes: distinct bytes of weights, keys and values that a launch reads or writes.
        has_pdl: it is launched while the kernel before still runs.
        is_hidden: its programs fit next to those of the kernel before, so it starts while that one runs.
        shadow_cycles: for which the kernel before runs after its own wait.
    """

    clocked: Clocked
    launches: int
    device_bytes: int
    has_pdl: bool
    is_hidden: bool
    shadow_cycles: int

    def chain_cycles(self) -> int:
        """Return the cycles from the end of the kernel before: what follows the wait, and what no shadow hid."""
        if not (self.has_pdl and self.is_hidden):
            return self.clocked.cycles
        return max(self.clocked.after_wait_cycles, self.clocked.cycles - self.shadow_cycles)

    def parts_us(self, gpu: Gpu) -> dict[str, float]:
        """Return the microseconds of one launch by each of its bounds; the largest counts.

        What a kernel asks for before its wait comes while the kernel before still runs: of its bytes of device memory
        only their time counts, of those from L2 only what it asks for later.
        """
        early = self.has_pdl and self.is_hidden
        later = self.clocked.late_l2_bytes if early else self.clocked.l2_bytes
        memory = gpu.memory_us(self.device_bytes)
        return {
            "chain": KERNEL_RAMP_US + cycles_us(self.chain_cycles()),
            "L2": KERNEL_RAMP_US + l2_us(later),
            "memory": memory if early else KERNEL_RAMP_US + memory,
        }

    def us(self, gpu: Gpu) -> float:
        """Return the microseconds of one launch."""
        return max(self.parts_us(gpu).values())

    def bound(self, gpu: Gpu) -> str:
        """Return what decides its time: "chain", "memory" or "L2"."""
        parts = self.parts_us(gpu)
        return max(parts, key=lambda name: parts[name])


def device_bytes(launch: Launch, context: int) -> int:
    """Return the distinct bytes of weights, keys and values a launch reads or writes.

    Args:
        launch: of any kernel.
        context: cached tokens of each session.
    """
    given = launch.arguments
    total = sum(
        value.nbytes
        for name, value in given.items()
        if isinstance(value, Tensor) and (name.startswith("weight") or value.dtype == torch.uint8)  # frames
    )
    pages = given.get("kv_layer_ptr")
    if not isinstance(pages, Tensor):
        return total
    token_bytes = 2 * pages.shape[2] * pages.shape[4] * pages.element_size()
    lengths = given.get("context_lens_ptr")
    if isinstance(lengths, Tensor):
        # Of the queries the first sees the oldest key; each sees the new keys up to its own.
        keys = min(context, int(given["window"]) - 1) + STEP_TOKENS
        return total + len(lengths) * keys * token_bytes
    slots = given.get("slot_mapping_ptr")
    return total + (len(slots) * token_bytes if isinstance(slots, Tensor) else 0)


def fits_beside(before: Clocked | None, after: Clocked, multiprocessors: int) -> bool:
    """Return whether a program of a kernel fits on a multiprocessor that still runs the kernel before."""
    if before is None:
        return False
    there = min(before.resident, -(-before.programs // multiprocessors))
    if before.programs > before.resident * multiprocessors:
        return False  # the kernel before still has programs that wait for room

    def need(kernel: Clocked, count: int) -> tuple[int, int, int]:
        registers = -(-kernel.registers // 8) * 8 * 32 * kernel.warps
        return count * registers, count * (kernel.shared_bytes + SHARED_OF_A_BLOCK), count * kernel.warps

    limits = REGISTERS, SHARED_BYTES, MAX_WARPS
    return all(a + b <= limit for a, b, limit in zip(need(before, there), need(after, 1), limits, strict=True))


def clock_step(launches: Sequence[Launch], context: int, multiprocessors: int = 132) -> list[Node]:
    """Clock the launches of a step; equal ones once.

    Args:
        launches: in order.
        context: cached tokens of each session.
        multiprocessors: of the GPU.
    """
    clocked: dict[Any, Clocked] = {}
    nodes: dict[Any, Node] = {}
    before: Node | None = None
    for launch in launches:
        same = key(launch)
        if same not in clocked:
            clocked[same] = clock_launch(launch, multiprocessors=multiprocessors)
        hidden = fits_beside(before.clocked if before else None, clocked[same], multiprocessors)
        has_pdl = bool(launch.options.get("launch_pdl")) and before is not None
        shadow = before.chain_cycles() + round(KERNEL_RAMP_US * CLOCK_GHZ * 1e3) if before else 0

        kind = same, hidden, has_pdl, shadow
        count = nodes[kind].launches + 1 if kind in nodes else 1
        before = nodes[kind] = Node(
            clocked[same], count, device_bytes(launch, context), has_pdl, hidden, shadow
        )  # fmt: skip
    return list(nodes.values())


FIXED_US = GRAPH_LAUNCH_US + COPIES * COPY_US
"""Of a step: the graph's launch and its copies."""


def kernels_us(nodes: Sequence[Node], gpu: Gpu) -> float:
    """Return the microseconds of all kernels of a step."""
    return sum(node.launches * node.us(gpu) for node in nodes)
