"""Write down what the clock found: tables by kernel and phase, sums, goals, and what is not modelled."""

from __future__ import annotations

from collections.abc import Sequence

from jat_engine.bench.report import markdown

from .graphs import Node
from .hardware import GPUS

NOT_MODELLED = (
    "latency of L2 and device memory beyond one number each (270 and 650 cycles), and its growth under load",
    "misses of the instruction cache",
    "jitter of launches, the driver, and clocks below the highest one",
    "contention of additions and loads of several blocks on the same lines",
    "wgmma and bulk copies beyond their throughput",
    "time that a block waits for slower blocks at a barrier, beyond the barrier's own",
)
"""What a reading may show that the clock does not."""


def graph_table(nodes: Sequence[Node]) -> str:
    """Return a table of the kernels of a step."""
    clocked = [node.clocked for node in nodes]
    columns = {
        "kernel": [row.name for row in clocked],
        "launches": [str(node.launches) for node in nodes],
        "programs": [str(row.programs) for row in clocked],
        "warps": [str(row.warps) for row in clocked],
        "registers": [str(row.registers) for row in clocked],
        "shared": [str(row.shared_bytes) for row in clocked],
        "resident": [str(row.resident) for row in clocked],
        "waves": [str(row.waves) for row in clocked],
        "program, cycles": [str(row.program_cycles) for row in clocked],
        "grid, cycles": [str(row.cycles) for row in clocked],
        "after the wait": [str(row.after_wait_cycles) for row in clocked],
        "prologue hidden": ["yes" if node.has_pdl and node.is_hidden else "no" for node in nodes],
        "barriers": [str(row.barriers) for row in clocked],
        "device MB": [f"{node.device_bytes / 1e6:.2f}" for node in nodes],
        "L2 MB": [f"{row.l2_bytes / 1e6:.2f}" for row in clocked],
    }
    for gpu in GPUS:
        columns[f"us each, {gpu.name}"] = [f"{node.us(gpu):.2f}" for node in nodes]
        columns[f"bound, {gpu.name}"] = [node.bound(gpu) for node in nodes]
    columns["guesses"] = [str(row.guesses) for row in clocked]
    return markdown(columns)
