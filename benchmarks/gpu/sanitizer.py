"""Run compute-sanitizer over a few steps of the tiny model, through graphs and through the persistent kernel."""

from __future__ import annotations

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .checkpoints import tiny_checkpoint
from .paths import file_name
from .process import python_module
from .process import run as run_process
from .section import SectionRun

TOOLS = ("memcheck", "racecheck", "synccheck")
PATHS = ("graphs bfloat16", "persistent bfloat16")


def run(section: SectionRun) -> None:
    if shutil.which("compute-sanitizer") is None:
        section.record("not run", "there is no compute-sanitizer")
        return
    folder = tiny_checkpoint(section.folder)
    found: dict[str, Any] = {}

    def check(tool: str, name: str) -> None:
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "86", "--print-limit", "20"]
        command += python_module("few_steps", str(folder), name, "3", "1")
        log = section.folder / f"sanitizer-{tool}-{file_name(name)}.log"
        done = run_process(command, log, section.time_left() - 3)
        found[f"{tool}, {name}"] = verdict(done.code, done.output, round(done.seconds, 1))
        section.record("verdicts", dict(found))

    def one_after_the_other(name: str) -> None:
        for tool in TOOLS:
            if name in section.failed_paths:
                found[f"{tool}, {name}"] = {"verdict": f"left out: {section.failed_paths[name][-200:]}"}
            elif section.time_left() > 8:
                check(tool, name)
            else:
                found[f"{tool}, {name}"] = {"verdict": "left out: no time left"}

    with ThreadPoolExecutor(len(PATHS)) as pool:
        list(pool.map(one_after_the_other, PATHS))
    section.record("verdicts", found)


def verdict(code: int | None, output: str, seconds: float) -> dict[str, Any]:
    """Return what the tool says at the end, and the first errors."""
    lines = output.splitlines()
    summary = [line.strip("= ") for line in lines if re.search(r"(ERROR|RACECHECK) SUMMARY|LEAK SUMMARY", line)]
    errors = [
        line.strip("= ") for line in lines if re.search(r"=========\s+(Invalid|Error|Race|Barrier|Program hit)", line)
    ]
    row: dict[str, Any] = {"verdict": "; ".join(summary) or "no verdict", "exit": "timed out" if code is None else code}
    row["first errors"] = errors[:6]
    row["seconds"] = seconds
    if not summary:
        row["output"] = "\n".join(lines[-8:])[-1200:]
    return row
