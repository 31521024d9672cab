"""Write down what the clock found: tables by kernel and phase, sums, goals, and what is not modelled."""

from __future__ import annotations

from collections.abc import Sequence

from jat_engine.bench.report import markdown

from .graphs import Node
from .hardware import GPUS, PERSISTENT_LAUNCH_US, cycles_us
from .persistent import PersistentStep

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


def persistent_table(step: PersistentStep) -> str:
    """Return a table of the phases of the persistent kernel, and the sum."""
    phases = [phase for phase in step.phases if phase.cycles]
    table = markdown({
        "phase": [phase.name for phase in phases],
        "times": [str(phase.times) for phase in phases],
        "cycles each": [f"{phase.cycles / phase.times:.0f}" for phase in phases],
        "us a step": [f"{cycles_us(phase.cycles):.2f}" for phase in phases],
    })  # fmt: skip
    lines = [
        f"{step.num_blocks} blocks in clusters of {step.cluster_size}, {step.context} cached tokens.",
        "",
        table,
        "",
        f"Phases {step.compute_us:.1f} us + {step.grid_barriers} reductions and {step.cluster_barriers} cluster barriers "
        f"{step.waits_us:.1f} us + launch and return {PERSISTENT_LAUNCH_US:.1f} us.",
    ]
    for gpu in GPUS:
        lines.append(
            f"{gpu.name}: stream of {step.bytes_per_step / 1e6:.1f} MB {step.stream_us(gpu):.1f} us; "
            f"step {step.total_us(gpu):.1f} us."
        )
    return "\n".join(lines)
