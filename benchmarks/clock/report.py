"""Write down what the clock found: goals, sums, kernels, phases, and what is not modelled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jat_engine.bench.report import markdown

from .hardware import BAND, GPUS, cycles_us

NOT_MODELLED = (
    "latency of L2 and device memory beyond one number each (270 and 650 cycles), and its growth under load",
    "misses of the instruction cache, but for PHASE_FACTOR in the persistent kernel",
    "jitter of launches, the driver, and clocks below the highest one",
    "contention of loads of several blocks on the same lines: in each reduction of the persistent kernel every block "
    "polls 23 KB of packets, which all clusters poll",
    "phases of the persistent kernel that wait for their weights although the stream as a whole is shorter",
    "wgmma and bulk copies beyond their throughput",
    "the time a block waits for slower ones at a barrier, beyond the barrier's own and the slowest block's phases",
    "the host: Python and the driver's calls of a step",
)
"""What a reading may show that the clock does not."""

Row = dict[str, Any]


def kernel_table(rows: Sequence[Row]) -> str:
    """Return a table of the kernels of a step."""
    columns = {
        "kernel": [row["name"] for row in rows],
        "launches": [str(row["launches"]) for row in rows],
        "programs": [str(row["programs"]) for row in rows],
        "warps": [str(row["warps"]) for row in rows],
        "registers": [str(row["registers"]) for row in rows],
        "shared": [str(row["shared_bytes"]) for row in rows],
        "resident": [str(row["resident"]) for row in rows],
        "waves": [str(row["waves"]) for row in rows],
        "program, cycles": [str(row["program_cycles"]) for row in rows],
        "grid, cycles": [str(row["cycles"]) for row in rows],
        "chain, cycles": [str(row["chain_cycles"]) for row in rows],
        "starts early": ["yes" if row["has_pdl"] and row["is_hidden"] else "no" for row in rows],
        "barriers": [str(row["barriers"]) for row in rows],
        "device MB": [f"{row['device_bytes'] / 1e6:.2f}" for row in rows],
        "L2 MB": [f"{row['l2_bytes'] / 1e6:.2f}" for row in rows],
    }
    for gpu in GPUS:
        columns[f"us each, {gpu.name}"] = [f"{row[f'us_{gpu.name}']:.2f}" for row in rows]
        columns[f"bound, {gpu.name}"] = [row[f"bound_{gpu.name}"] for row in rows]
    columns["guesses"] = [str(row["guesses"]) for row in rows]
    return markdown(columns)


def step_sum(step: Row) -> str:
    """Return the sum that gives a step by graphs."""
    parts = []
    for gpu in GPUS:
        kernels = step["us"][gpu.name] - step["fixed_us"]
        fixed = f" + launch and copies {step['fixed_us']:.1f}" if step["fixed_us"] else ""
        parts.append(f"{gpu.name}: kernels {kernels:.1f}{fixed} = {step['us'][gpu.name]:.1f} us")
    return "; ".join(parts) + "."


def persistent_text(step: Row) -> str:
    """Return the phases of the persistent kernel, and the sum."""
    phases = [phase for phase in step["phases"] if phase["cycles"]]
    table = markdown({
        "phase": [phase["name"] for phase in phases],
        "times": [str(phase["times"]) for phase in phases],
        "cycles each": [f"{phase['cycles'] / phase['times']:.0f}" for phase in phases],
        "us a step": [f"{cycles_us(phase['cycles']):.2f}" for phase in phases],
    })  # fmt: skip
    streams = ", ".join(f"{gpu.name} {step['stream_us'][gpu.name]} us" for gpu in GPUS)
    sums = ", ".join(f"{gpu.name} {step['us'][gpu.name]} us" for gpu in GPUS)
    return (
        f"{step['num_blocks']} blocks in clusters of {step['cluster_size']}, {step['context']} cached tokens.\n\n"
        f"{table}\n\nPhases {step['compute_us']:.1f} us + {step['grid_barriers']} reductions and "
        f"{step['cluster_barriers']} cluster barriers {step['waits_us']:.1f} us + launch and return "
        f"{step['launch_us']:.1f} us, which include a block's arrivals, what it does until others have arrived, and "
        f"its end after the predictions. The stream of {step['bytes_per_step'] / 1e6:.1f} MB takes {streams}. "
        f"Step: {sums}."
    )


def goal_table(goals: Sequence[Row]) -> str:
    """Return a table of the goals, misses marked."""
    return markdown(
        {
            "step on an H200": [row["name"] for row in goals],
            "computed, us": ["not there" if row["us"] is None else f"{row['us']:.1f}" for row in goals],
            f"upper end (+{BAND:.0%}), us": ["" if row["us"] is None else f"{row['upper_us']:.1f}" for row in goals],
            "read, us": ["" if row["read_us"] is None else f"{row['read_us']:.0f}" for row in goals],
            "goal, us": [f"{row['goal_us']:.0f}" for row in goals],
            "verdict": ["met" if row["is_met"] else "**missed**" for row in goals],
        }
    )


def as_markdown(table: Row) -> str:
    """Return the whole table, and what it says."""
    lines = [
        "# Cycles of the kernels, and the predicted step",
        "",
        "Computed by `python -m benchmarks.kernel_cycles --write` from the sm_90 machine code, published size, "
        f"bfloat16, {table['context']} cached tokens, Triton {table['triton']}; nothing but the column of readings was "
        "timed. Integer instructions are executed, so that branches, addresses and bank conflicts are the code's own; "
        "warps are played on one multiprocessor by the compiler's stall counts and scoreboards. Where a kernel fits "
        "next to the one before, only what follows its wait counts. A launch takes the largest of its chain of "
        "instructions, its bytes from L2 and its bytes from device memory.",
        "",
        f"A prediction may be off by {BAND:.0%}; goals are judged by the reading in `gpu_readings.json`, and by the "
        "band's upper end where there is none.",
        "",
        goal_table(table["goals"]),
        "",
        "Not modelled:",
        "",
        *(f"- {item};" for item in NOT_MODELLED[:-1]),
        f"- {NOT_MODELLED[-1]}.",
        "",
        "Assumed (sources in `benchmarks/clock/hardware.py`): "
        + ", ".join(f"{name} {value:g}" for name, value in table["assumptions"].items())
        + ".",
    ]
    for step in table["persistent"]:
        lines += ["", f"## {step['name']}", "", persistent_text(step)]
    for step in table["graphs"]:
        lines += ["", f"## {step['name']}", "", step_sum(step), "", kernel_table(step["kernels"])]
    return "\n".join(lines) + "\n"
