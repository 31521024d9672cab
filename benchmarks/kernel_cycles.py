"""Clock the kernels of a step without a GPU, from the machine code they compile to.

    python -m benchmarks.kernel_cycles --agents 1                     # every Triton kernel of a step by graphs
    python -m benchmarks.kernel_cycles --agents 64 --kernel norm_qkv --profile
    python -m benchmarks.kernel_cycles --persistent                   # phases of the persistent kernel; needs nvcc, c++
    python -m benchmarks.kernel_cycles --persistent --phase 4         # where its warps wait in q, k, v

Cycles are of sm_90 code as launched (benchmarks/clock/: what the clock knows and what it does not). No GPU is needed.
"""

from __future__ import annotations

import argparse
import os

os.environ.pop("TRITON_INTERPRET", None)  # read when a kernel is defined

from .clock.graphs import clock_step, predict
from .clock.hardware import GPUS
from .clock.interpret import Interpreter
from .clock.kernels import compile_for_clock
from .clock.launches import key, record, step_launches
from .clock.persistent import clock_persistent, load_step
from .clock.profile import profile, profile_phase
from .clock.report import graph_table, persistent_table

CONTEXT = 505
"""Cached tokens: with the three new ones, 508 keys."""


def show(agents: int, context: int, kernel: str, with_profile: bool) -> None:
    """Print the clocked kernels of a step of so many agents."""
    with step_launches(most=agents) as (engine, noted):
        launches = record(engine, noted, agents, context)
        chosen = [launch for launch in launches if not kernel or kernel in launch.name]
        if not chosen:
            names = ", ".join(dict.fromkeys(launch.name for launch in launches))
            raise SystemExit(f"--kernel: expected one of {names}, got {kernel}")
        if with_profile:
            for launch in {key(launch): launch for launch in chosen}.values():
                made = compile_for_clock(launch)
                print(f"\n{launch.name}, grid {launch.grid}, {launch.options}")
                print(profile(made.program, Interpreter(made.program).block(0)))
            return
        nodes = clock_step(launches if not kernel else chosen, context)
        print(graph_table(nodes))
        for gpu in () if kernel else GPUS:
            told = predict(nodes, gpu)
            print(f"{gpu.name}: {told.kernels_us:.1f} us of kernels + {told.fixed_us:.1f} us = {told.total_us:.1f} us")


def show_persistent(clusters: int, context: int, phase: int | None) -> None:
    """Print the phases of the persistent kernel, or where it waits in one of them."""
    if phase is None:
        print(persistent_table(clock_persistent(8 * clusters, 8, context)))
        return
    program, _ = load_step(8 * clusters, 8, context)
    print(profile_phase(program, Interpreter(program).block(7), phase))


def main() -> None:
    parser = argparse.ArgumentParser(description="Cycles of every kernel of a step, from its machine code.")
    parser.add_argument("--agents", type=int, default=1)
    parser.add_argument("--context", type=int, default=CONTEXT, help="cached tokens of each agent")
    parser.add_argument("--kernel", default="", help="only kernels whose name contains this")
    parser.add_argument("--profile", action="store_true", help="show where a program waits, and its bank conflicts")
    parser.add_argument("--persistent", action="store_true", help="the persistent kernel instead of graphs")
    parser.add_argument("--clusters", type=int, default=16, help="of 8 blocks, of the persistent kernel")
    parser.add_argument("--phase", type=int, help="profile this phase of the persistent kernel")
    options = parser.parse_args()
    if options.persistent:
        show_persistent(options.clusters, options.context, options.phase)
        return
    show(options.agents, options.context, options.kernel, options.profile)


if __name__ == "__main__":
    main()
