"""Clock the kernels of a step without a GPU, from the machine code they compile to.

    python -m benchmarks.kernel_cycles --agents 1                     # every Triton kernel of a step by graphs
    python -m benchmarks.kernel_cycles --agents 64 --kernel norm_qkv --profile

Cycles are of sm_90 code as launched (benchmarks/clock/: what the clock knows and what it does not). No GPU is needed.
"""

from __future__ import annotations

import argparse
import os

os.environ.pop("TRITON_INTERPRET", None)  # read when a kernel is defined

from jat_engine.bench.report import markdown

from .clock.interpret import Interpreter
from .clock.kernels import Clocked, clock_launch, compile_for_clock
from .clock.launches import key, record, step_launches
from .clock.profile import profile
from .triton_launches import Launch

CLOCK_GHZ = 1.755
"""Of an H100 or H200 under load."""


def kernels_as_markdown(rows: list[tuple[Clocked, int]]) -> str:
    """Return a table of kernels and how often each is launched."""
    clocked = [row for row, _ in rows]
    return markdown({
        "kernel": [row.name for row in clocked],
        "launches": [str(times) for _, times in rows],
        "programs": [str(row.programs) for row in clocked],
        "warps": [str(row.warps) for row in clocked],
        "registers": [str(row.registers) for row in clocked],
        "resident": [str(row.resident) for row in clocked],
        "waves": [str(row.waves) for row in clocked],
        "a program alone, cycles": [str(row.program_cycles) for row in clocked],
        "grid, cycles": [str(row.cycles) for row in clocked],
        "after the wait": [str(row.after_wait_cycles) for row in clocked],
        "us": [f"{row.after_wait_cycles / CLOCK_GHZ / 1e3:.2f}" for row in clocked],
        "barriers": [str(row.barriers) for row in clocked],
        "L2 MB": [f"{row.l2_bytes / 1e6:.2f}" for row in clocked],
        "guesses": [str(row.guesses) for row in clocked],
    })  # fmt: skip


def show(agents: int, context: int, kernel: str, with_profile: bool) -> None:
    """Print the clocked kernels of a step of so many agents."""
    with step_launches(most=agents) as (engine, noted):
        launches = record(engine, noted, agents, context)
        different: dict[object, tuple[Launch, int]] = {}
        for launch in launches:
            first, times = different.get(key(launch), (launch, 0))
            different[key(launch)] = first, times + 1
        chosen = [item for item in different.values() if not kernel or kernel in item[0].name]
        if not chosen:
            names = ", ".join(dict.fromkeys(launch.name for launch in launches))
            raise SystemExit(f"--kernel: expected one of {names}, got {kernel}")
        print(kernels_as_markdown([(clock_launch(launch), times) for launch, times in chosen]))
        for launch, _ in chosen if with_profile else ():
            made = compile_for_clock(launch)
            print(f"\n{launch.name}, grid {launch.grid}, {launch.options}")
            print(profile(made.program, Interpreter(made.program).block(0)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Cycles of every kernel of a step, from its machine code.")
    parser.add_argument("--agents", type=int, default=1)
    parser.add_argument("--context", type=int, default=505, help="cached tokens of each agent")
    parser.add_argument("--kernel", default="", help="only kernels whose name contains this")
    parser.add_argument("--profile", action="store_true", help="show where a program waits, and its bank conflicts")
    options = parser.parse_args()
    show(options.agents, options.context, options.kernel, options.profile)


if __name__ == "__main__":
    main()
