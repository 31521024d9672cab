"""Run primitives.cu, compiled by the build section, or here if it was not."""

from __future__ import annotations

import json
from pathlib import Path

from .build import compile_primitives
from .process import run as run_process
from .section import SectionRun


def run(section: SectionRun) -> None:
    program = section.folder / "primitives"
    if not program.exists():
        compiling = compile_primitives(section)
        if compiling is None:
            section.record("not run", "there is no nvcc")
            return
        done = compiling.wait(section.time_left() - 5)
        if done.code != 0:
            raise RuntimeError(f"nvcc: exit {done.code}\n{done.tail}")
    done = run_process([str(program)], Path(section.work) / "primitives.out", section.time_left() - 2)
    if done.code != 0:
        raise RuntimeError(f"primitives: exit {done.code}\n{done.tail}")
    for name, value in json.loads(done.output).items():
        section.record("not run" if name == "skipped" else name, value)
