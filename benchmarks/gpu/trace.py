"""Read where the persistent kernel spends its time: times of its phases by the GPU's own clock.

The module `_cuda_traced` is the kernel with a note of the GPU's time (globaltimer, one clock for the whole GPU) at the
begin of every phase, in four of its blocks. A step of it is a little slower than one of `_cuda`.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import jat_engine
from jat_engine import machine
from jat_engine.bench.workload import step_arguments

from ..clock.phases import PHASES
from .checkpoints import checkpoint
from .paths import open_path
from .process import python_module
from .process import run as run_process
from .section import SectionRun

PATH = "persistent bfloat16"
TARGET = "_cuda_traced"
STEPS, WINDOW = 30, 256

Event = tuple[int, int, int]
"""Block, phase, and the time at which the block began it, nanoseconds."""


def run(section: SectionRun) -> None:
    if PATH in section.failed_paths:
        section.record("not run", section.failed_paths[PATH][-300:])
        return
    folder = section.folder / "build"
    if shutil.which("cmake") is None or not (folder / "CMakeCache.txt").exists():
        section.record("not run", "there is no build to make the traced kernel in")
        return
    jobs = str(min(machine.available_cores(), 16))
    command = ["cmake", "--build", str(folder), "--target", TARGET, "--parallel", jobs]
    done = run_process(command, folder / f"{TARGET}.log", section.time_left() - 12)
    if done.code != 0:
        raise RuntimeError(f"{TARGET}: exit {done.code}\n{done.tail}")
    section.record("build", {"seconds": round(done.seconds, 1)})

    (library,) = folder.glob(f"**/{TARGET}.*so")
    output = section.folder / "trace_events.json"
    command = python_module("trace", str(library), str(checkpoint(section)), str(output))
    done = run_process(command, section.folder / "trace_steps.log", section.time_left() - 2)
    if done.code != 0:
        raise RuntimeError(f"traced steps: exit {done.code}\n{done.tail}")
    steps = [[(block, phase, time) for block, phase, time in step] for step in json.loads(output.read_text())]
    section.record("whole step on the device us", median(span_us(step) for step in steps))
    section.record("phases", table(steps))


def span_us(step: Sequence[Event]) -> float:
    """Return the microseconds from the first note of a step to the last, of whichever blocks."""
    times = [time for _, _, time in step]
    return (max(times) - min(times)) / 1e3


def table(steps: Sequence[Sequence[Event]]) -> list[dict[str, Any]]:
    """Return a row for each phase: how often a step has it, and microseconds, of the average block and of each.

    The last block has the most neurons, and its cluster may have no head.
    """
    blocks = sorted({block for step in steps for block, _, _ in step})
    microseconds: dict[int, list[float]] = {}
    of_block: dict[tuple[int, int], float] = {}
    for step in steps:
        for block in blocks:
            own = sorted((time, phase) for b, phase, time in step if b == block)
            for (begin, phase), (end, _) in itertools.pairwise(own):
                microseconds.setdefault(phase, []).append((end - begin) / 1e3)
                of_block[phase, block] = of_block.get((phase, block), 0.0) + (end - begin) / 1e3
    runs = len(steps) * len(blocks)
    return [
        {
            "phase": PHASES.get(phase, str(phase)),
            "times a step": len(found) / runs,
            "us each, median": median(found),
            "us each, longest": max(found),
            "us a step": sum(found) / runs,
            **{f"block {block}": of_block.get((phase, block), 0.0) / len(steps) for block in blocks},
        }
        for phase, found in sorted(microseconds.items())
    ]


def main() -> None:
    """Take steps with the traced module in the place of `_cuda`, and write what it noted: LIBRARY CHECKPOINT OUTPUT."""
    library, folder, output = map(Path, sys.argv[1:])
    found = importlib.util.spec_from_file_location(f"jat_engine.{TARGET}", library)
    if found is None or found.loader is None:
        raise ImportError(f"expected a compiled module, got {library}")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    sys.modules["jat_engine._cuda"] = module
    jat_engine._cuda = module  # type: ignore[attr-defined]

    agent = open_path(PATH, folder, "cuda").open(WINDOW)
    for step in range(WINDOW // 2 + 8):
        agent.get_next_action(**step_arguments("continuous", step))
    module.take_trace()
    steps = []
    for step in range(STEPS):
        agent.get_next_action(**step_arguments("continuous", step))
        steps.append(module.take_trace())
    output.write_text(json.dumps(steps))


if __name__ == "__main__":
    main()
