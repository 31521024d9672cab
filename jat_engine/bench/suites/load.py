"""Time a cold start: from the start of a process to its first action, the checkpoint on disk or in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ...testing.agreement import TOLERANCES, error
from ..peers import CPU_ONLY, REFERENCE
from ..results import make_row
from ..runner import Context
from ..workload import open_checkpoint

SUITE = "load"

_ROUNDS = 3


def run(context: Context) -> None:
    options = context.options
    if options.device != "cpu":
        context.results.skipped["load"] = CPU_ONLY
        return
    rounds = min(options.num_iters, _ROUNDS)
    with open_checkpoint(options.models[0]) as folder:
        names = [REFERENCE, *(f"JatEngine {dtype}" for dtype in options.dtypes)]
        if options.peers:
            context.results.skipped["load, peers"] = "how fast they start depends on how one keeps their graphs"
        for state in ("disk", "memory"):
            context.note(f"load: checkpoint in {state} ...")

            seconds: dict[str, list[list[float]]] = {name: [] for name in names}
            told: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
            for number in range(rounds):
                for index in np.random.default_rng(number).permutation(len(names)):
                    name = names[index]
                    if state == "disk":
                        drop_cached(folder)
                    total, found = start(name, folder)
                    seconds[name].append([total])
                    told[name].append(found)

            expected = [told[REFERENCE][0]["action"]]
            for name, values in seconds.items():
                is_reference = name == REFERENCE
                case: dict[str, str | int] = {"model": options.models[0], "checkpoint in": state}
                row = make_row(
                    SUITE,
                    case,
                    name,
                    values,
                    reference=None if is_reference else seconds[REFERENCE],
                    error=None if is_reference else error([told[name][0]["action"]], expected),
                    tolerance=None if is_reference else TOLERANCES[name.split()[1]],
                )
                for part in ("imports s", "load s"):
                    row.facts[part] = float(np.median([found[part] for found in told[name]]))
                context.results.rows.append(row)
            context.save()


def drop_cached(folder: Path) -> None:
    """Drop the checkpoint's files from the page cache; a hint that Linux takes for clean pages."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def start(name: str, folder: Path) -> tuple[float, dict[str, Any]]:
    """Start a process, and return the seconds to its first action and what it told.

    Raises:
        RuntimeError: it did not get there; with its last line.
    """
    agent, _, dtype = name.rpartition(" ")
    began = time.time()
    done = subprocess.run(
        [sys.executable, "-m", "jat_engine.bench.cold_start", agent, dtype, str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it ended without a word"])[-1])
    told = json.loads(done.stdout.splitlines()[-1])
    told["imports s"], told["load s"] = told["imported"] - began, told["loaded"] - told["imported"]
    return told["acted"] - began, told
