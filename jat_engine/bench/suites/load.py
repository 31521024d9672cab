"""Cold start: from the start of a process to its first action; the checkpoint read from disk, and from memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from ..context import Context
from ..peers import EXPORTED, REFERENCE
from ..results import make_row
from ..workload import open_checkpoint

SUITE = "load"

_CONVERTED = ("torch.compile", "openvino")
"""Peers that convert or compile the model in each process."""

_ROUNDS = 3


def run(context: Context) -> None:
    options = context.options
    if options.device != "cpu":
        context.results.skipped["load"] = "measured on CPUs; for GPUs see benchmarks/gpu_report.py"
        return
    rounds = min(options.num_iters, _ROUNDS)
    with open_checkpoint(options.models[0]) as folder:
        names = [f"JatEngine {dtype}" for dtype in options.dtypes]
        for peer in options.peers:
            if peer in _CONVERTED:
                context.results.skipped[f"{peer}, load"] = "converts or compiles the model in each process"
            elif peer in EXPORTED:
                names += [f"{peer} {dtype}" for dtype in EXPORTED[peer] if dtype in options.dtypes]
        names.insert(0, REFERENCE)
        for state in ("disk", "memory"):
            context.note(f"load: checkpoint in {state} ...")
            seconds: dict[str, list[list[float]]] = {name: [] for name in names}
            parts: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
            for number in range(rounds):
                for index in np.random.default_rng(number).permutation(len(names)):
                    name = names[index]
                    if name not in seconds:
                        continue
                    if state == "disk":
                        drop_cached(folder)
                    try:
                        total, imports, load = start(name, folder)
                    except subprocess.CalledProcessError as error:
                        del seconds[name]
                        last = (error.stderr.strip().splitlines() or ["it ended without a word"])[-1]
                        context.results.skipped[f"{name}, load"] = last.partition("Unavailable: ")[2] or last
                        continue
                    seconds[name].append([total])
                    parts[name].append((imports, load))
            for name, values in seconds.items():
                imports, load = np.median(parts[name], axis=0)
                reference = None if name == REFERENCE else seconds[REFERENCE]
                facts = {"imports s": float(imports), "load s": float(load)}
                case: dict[str, str | int] = {"model": options.models[0], "checkpoint in": state}
                context.results.rows.append(make_row(SUITE, case, name, values, reference=reference, facts=facts))


def drop_cached(folder: Path) -> None:
    """The checkpoint's files from the page cache; a hint that Linux takes for clean pages."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def start(name: str, folder: Path) -> tuple[float, float, float]:
    """Seconds to the first action, of imports and of loading.

    Raises:
        subprocess.CalledProcessError: it did not get there.
    """
    agent, _, dtype = name.rpartition(" ")
    began = time.time()
    done = subprocess.run(
        [sys.executable, "-m", "jat_engine.bench.first_action", agent, dtype, str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    return told["acted"] - began, told["imported"] - began, told["loaded"] - told["imported"]
