"""Runs primitives.cu, compiled by the build section, or here if it was not."""

from __future__ import annotations

import json
from pathlib import Path

from .build import _compile_primitives
from .context import Context
from .process import run as run_process


def run(context: Context) -> None:
    program = context.folder / "primitives"
    if not program.exists():
        compiling = _compile_primitives(context)
        if compiling is None:
            context.record("not run", "there is no nvcc")
            return
        done = compiling.wait(context.time_left() - 5)
        if done.code != 0:
            raise RuntimeError(f"nvcc: exit {done.code}\n{done.tail}")
    done = run_process([str(program)], Path(context.work) / "primitives.out", context.time_left() - 2)
    if done.code != 0:
        raise RuntimeError(f"primitives: exit {done.code}\n{done.tail}")
    for name, value in json.loads(done.output).items():
        context.record("not run" if name == "skipped" else name, value)
