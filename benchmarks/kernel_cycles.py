"""Clock the kernels of a step without a GPU, from the machine code they compile to.

    python -m benchmarks.kernel_cycles --agents 1                     # every Triton kernel of a step by graphs
    python -m benchmarks.kernel_cycles --agents 64 --kernel qkv --profile
    python -m benchmarks.kernel_cycles --frames 1024                  # the image encoder
    python -m benchmarks.kernel_cycles --persistent                   # phases of the persistent kernel; needs nvcc, c++
    python -m benchmarks.kernel_cycles --persistent --phase 4         # where its warps wait in q, k, v
    python -m benchmarks.kernel_cycles --write                        # all of it, some minutes
    python -m benchmarks.kernel_cycles --agents 1 --check             # exit 1 if a kernel is slower than in the table

Cycles are of sm_90 code as launched (benchmarks/clock/: what the clock knows and what it does not). No GPU is needed.
--write keeps the table in benchmarks/results/kernel_cycles.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)  # read when a kernel is defined

from .clock.graphs import FIXED_US, clock_step
from .clock.interpret import Interpreter
from .clock.kernels import compile_for_clock
from .clock.launches import image_launches, key, record, step_launches
from .clock.limits import kernel_violations, phase_violations
from .clock.persistent import SOURCES, clock_persistent, compile_step, load_step
from .clock.profile import profile, profile_phase
from .clock.report import as_markdown, kernel_table, persistent_text, step_sum
from .clock.table import CONTEXT, make_table, persistent_row, step_row
from .triton_launches import Launch

RESULTS = Path(__file__).parent / "results" / "kernel_cycles"


def show(launches: list[Launch], context: int, kernel: str, with_profile: bool, fixed_us: float) -> None:
    """Print the clocked kernels of a step, and its sum.

    Args:
        launches: of the step.
        context: cached tokens of each agent.
        kernel: only kernels whose name contains this.
        with_profile: show where their warps wait instead.
        fixed_us: what a step takes beyond its kernels.
    """
    chosen = [launch for launch in launches if kernel in launch.name]
    if not chosen:
        names = ", ".join(dict.fromkeys(launch.name for launch in launches))
        raise SystemExit(f"--kernel: expected one of {names}, got {kernel}")
    if with_profile:
        for launch in {key(launch): launch for launch in chosen}.values():
            made = compile_for_clock(launch)
            print(f"\n{launch.name}, grid {launch.grid}, {launch.options}")
            print(profile(made.program, Interpreter(made.program).block(0)))
        return
    step = step_row("", clock_step(chosen, context), fixed_us)
    print(kernel_table(step["kernels"]))
    if not kernel:
        print(step_sum(step))


def show_persistent(clusters: int, context: int, phase: int | None) -> None:
    """Print the phases of the persistent kernel, or where it waits in one of them."""
    if phase is None:
        print(persistent_text(persistent_row(clock_persistent(8 * clusters, 8, context))))
        return
    program, _ = load_step(8 * clusters, 8, context)
    print(profile_phase(program, Interpreter(program).block(7), phase))


def check(agents: int) -> None:
    """Exit with what is slower than in the committed table: one step by graphs."""
    with step_launches(agents) as (engine, noted):
        fresh = step_row("", clock_step(record(engine, noted, agents, CONTEXT), CONTEXT), FIXED_US)
    table = json.loads(RESULTS.with_suffix(".json").read_text())
    name = f"graphs, {agents} agent{'s' * (agents > 1)}"
    (committed,) = (step for step in table["graphs"] if step["name"] == name)
    _exit(kernel_violations(fresh["kernels"], committed["kernels"]))


def check_persistent(sources: Path) -> None:
    """Exit with the phases of the persistent kernel that are slower than in the table; two layers, one block.

    Args:
        sources: folder of the kernel's files.
    """
    cubin = compile_step(sources)
    fresh = persistent_row(clock_persistent(num_layers=2, context=CONTEXT, blocks=(7,), cubin=cubin))
    table = json.loads(RESULTS.with_suffix(".json").read_text())
    _exit(phase_violations(fresh["phases"], table["persistent"][0]["phases"]))


def _exit(wrong: list[str]) -> None:
    if wrong:
        raise SystemExit("Slower than the table:\n" + "\n".join(wrong))


def main() -> None:
    parser = argparse.ArgumentParser(description="Cycles of every kernel of a step, from its machine code.")
    parser.add_argument("--agents", type=int, default=1)
    parser.add_argument("--context", type=int, default=CONTEXT, help="cached tokens of each agent")
    parser.add_argument("--kernel", default="", help="only kernels whose name contains this")
    parser.add_argument("--kv-dtype", default="", help="of keys and values, instead of the weights' own")
    parser.add_argument("--profile", action="store_true", help="show where a program waits, and its bank conflicts")
    parser.add_argument("--frames", type=int, help="the image encoder with so many frames, instead of agents")
    parser.add_argument("--persistent", action="store_true", help="the persistent kernel instead of graphs")
    parser.add_argument("--clusters", type=int, default=16, help="of 8 blocks, of the persistent kernel")
    parser.add_argument("--phase", type=int, help="profile this phase of the persistent kernel")
    parser.add_argument("--write", action="store_true", help=f"keep the whole table in {RESULTS}.json and .md")
    parser.add_argument("--check", action="store_true", help="compare with the table instead of printing")
    parser.add_argument("--sources", type=Path, default=SOURCES, help="of the persistent kernel, with --check")
    options = parser.parse_args()

    if options.check:
        check_persistent(options.sources) if options.persistent else check(options.agents)
    elif options.write:
        table = make_table()
        RESULTS.with_suffix(".md").write_text(as_markdown(table))
        RESULTS.with_suffix(".json").write_text(json.dumps(table, indent=1) + "\n")
        print(as_markdown(table))
    elif options.persistent:
        show_persistent(options.clusters, options.context, options.phase)
    elif options.frames is not None:
        show(image_launches(options.frames), 0, options.kernel, options.profile, 0.0)
    else:
        more = {"kv_dtype": options.kv_dtype} if options.kv_dtype else {}
        with step_launches(options.agents, **more) as (engine, noted):
            launches = record(engine, noted, options.agents, options.context)
            show(launches, options.context, options.kernel, options.profile, FIXED_US)


if __name__ == "__main__":
    main()
