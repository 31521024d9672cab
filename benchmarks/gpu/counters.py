"""Read duration and DRAM throughput of a step's kernels by ncu, and what its warps wait for; clocks left as they are.

A warp that is stalled for "no_instruction" waits for code: whether that is what makes the persistent kernel's phases
longer than their cycles is the question.
"""

from __future__ import annotations

import csv
import re
import shutil
from typing import Any

from .checkpoints import checkpoint
from .paths import file_name
from .process import python_module
from .process import run as run_process
from .section import SectionRun

METRICS = {
    "gpu__time_duration.sum": "duration",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "DRAM %",
    "dram__bytes_read.sum": "DRAM read",
    "lts__t_sector_hit_rate.pct": "L2 hit %",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps active %",
}
_STALLS = re.compile(r"smsp__average_warps_issue_stalled_(\w+)_per_issue_active\.ratio")
"""Of ncu's section WarpStateStats: warps that wait for a reason whenever one issues."""
_LEAST_STALL = 0.05

PATHS = {"persistent bfloat16": 4, "graphs bfloat16": 40}
"""Path -> how many launches are profiled."""


def run(section: SectionRun) -> None:
    if shutil.which("ncu") is None:
        section.record("not run", "there is no ncu")
        return
    for name, launches in PATHS.items():
        if name in section.failed_paths:
            section.record(name, {"not run": section.failed_paths[name][-300:]})
        elif section.time_left() < 8:
            section.record(name, {"not run": "no time left"})
        else:
            section.guard(name, lambda name=name, launches=launches: _profile(section, name, launches))


def _profile(section: SectionRun, name: str, launches: int) -> Any:
    command = ["ncu", "--clock-control", "none", "--profile-from-start", "off", "--launch-count", str(launches)]
    command += ["--cache-control", "none", "--csv", "--page", "raw", "--metrics", ",".join(METRICS)]
    command += ["--section", "WarpStateStats"]
    command += python_module("few_steps", str(checkpoint(section)), name, "3", "34")
    log = section.folder / f"ncu-{file_name(name)}.log"
    done = run_process(command, log, min(30, section.time_left() - 2))
    rows = parse(done.output)
    if not rows:
        raise RuntimeError(f"ncu: exit {done.code}, no rows\n{done.tail}")
    return rows


def parse(output: str) -> list[dict[str, Any]]:
    """Read ncu's raw page as rows: the header line names the columns, the next one the units."""
    lines = [line for line in output.splitlines() if line.startswith('"')]
    if len(lines) < 3:
        return []
    header, units, *body = csv.reader(lines)
    rows = []
    for values in body:
        record = dict(zip(header, values, strict=False))
        row: dict[str, Any] = {"kernel": record.get("Kernel Name", "?")[:70], "grid": record.get("Grid Size", "")}
        for metric, title in METRICS.items():
            if metric in header:
                unit = units[header.index(metric)]
                row[f"{title} {unit}".replace("% %", "%")] = record.get(metric)
        stalls = {reason[1]: _number(record[name]) for name in header if (reason := _STALLS.fullmatch(name))}
        longest = sorted(stalls.items(), key=lambda stall: -stall[1])
        if longest:
            row["warps stalled"] = ", ".join(f"{name} {value:.2f}" for name, value in longest if value >= _LEAST_STALL)
        rows.append(row)
    return rows


def _number(text: str) -> float:
    try:
        return float(text.replace(",", ""))
    except ValueError:  # "n/a"
        return 0.0
