"""Many steps, and the first one: memory that stays flat, and the time from a new process to an action."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from jat_engine import JatEngine

from ..agents import SPACES, observation
from .workload import random_checkpoint


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def soak(agent_steps: int = 100_000, sessions_at_once: int = 8) -> dict[str, Any]:
    """Sessions of all kinds and windows that join, reset and leave at random."""
    options: dict[str, Any] = {"dtype": "bfloat16", "backend": "cpu", "max_cached_tokens": sessions_at_once * 544}
    engine = JatEngine.from_pretrained(random_checkpoint("small"), device="cpu", **options)
    pool: Any = engine._backend._pool  # type: ignore[attr-defined]
    pool[:] = 0  # every page is touched, so that what grows is a leak
    rng = np.random.default_rng(0)
    kinds = list(SPACES)
    observations = {kind: [observation(kind, step) for step in range(50)] for kind in kinds}
    running: list[tuple[Any, str]] = []
    done, opened, samples = 0, 0, []
    began = time.perf_counter()
    while done < agent_steps:
        while len(running) < sessions_at_once:
            window = [None, 256, 32, 7][rng.integers(4)]
            running.append((engine.open_session(window, seed=opened), kinds[opened % 3]))
            opened += 1
        group = [pair for pair in running if rng.random() < 0.8] or running[:1]
        engine.get_next_actions(
            [session for session, _ in group],
            [observations[kind][rng.integers(50)] for _, kind in group],
            rewards=[0.1] * len(group),
            action_spaces=[SPACES[kind] for _, kind in group],
        )
        done += len(group)
        if rng.random() < 0.02:
            running[rng.integers(len(running))][0].reset()
        if rng.random() < 0.02:
            running.pop(rng.integers(len(running)))[0].close()
        if not samples or done - samples[-1][0] >= agent_steps // 100:
            samples.append((done, resident_bytes()))
    for session, _ in running:
        session.close()
    stats = engine.cache_stats
    steps, sizes = np.array(samples, float).T
    later = steps > agent_steps / 5
    slope = float(np.polyfit(steps[later], sizes[later], 1)[0])
    return {
        "agent-steps": done,
        "sessions opened": opened,
        "seconds": time.perf_counter() - began,
        "resident MB after 20 %": float(sizes[later][0]) / 1e6,
        "resident MB at the end": float(sizes[-1]) / 1e6,
        "slope, bytes per agent-step": slope,
        "pages used after closing": stats.used,
        "pages reserved after closing": stats.reserved,
        "pages free": stats.free,
        "pages total": stats.total,
        "pages peak": stats.peak,
    }


_FIRST_ACTION = """
import json, resource, sys, time
import numpy as np
import jat_engine
from jat_engine import JatEngine
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
Box = type("Box", (), {"shape": (8,)})
before, imported = peak(), time.time()
engine = JatEngine.from_pretrained(sys.argv[1], device="cpu", dtype=sys.argv[2], backend="cpu")
loaded, after = time.time(), peak()
engine.get_next_action(continuous_observation=np.zeros(27, np.float32), action_space=Box())
print(json.dumps({"imported": imported, "loaded": loaded, "acted": time.time(),
                  "load bytes": after - before, "weight bytes": engine.weight_bytes}))
"""


def cold_start(repeats: int = 5) -> list[dict[str, Any]]:
    """From the start of a process to its first action; the file once dropped from the page cache, then in it."""
    folder = random_checkpoint("small")
    rows = []
    for dtype in ("float32", "bfloat16", "int8"):
        for state in ("on disk", "in the page cache"):
            samples = []
            for _ in range(repeats):
                if state == "on disk":
                    descriptor = os.open(folder / "model.safetensors", os.O_RDONLY)
                    os.fsync(descriptor)
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                    os.close(descriptor)
                began = time.time()
                done = subprocess.run(
                    [sys.executable, "-c", _FIRST_ACTION, str(folder), dtype],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                got = json.loads(done.stdout)
                samples.append(
                    (
                        got["acted"] - began,
                        got["imported"] - began,
                        got["loaded"] - got["imported"],
                        got["load bytes"],
                        got["weight bytes"],
                    )
                )
            total, imports, load, load_bytes, weight_bytes = np.median(samples, axis=0)
            rows.append(
                {
                    "dtype": dtype,
                    "file": state,
                    "first action s": total,
                    "slowest s": max(sample[0] for sample in samples),
                    "imports s": imports,
                    "load s": load,
                    "peak memory of the load MB": load_bytes / 1e6,
                    "packed weights MB": weight_bytes / 1e6,
                    "peak / packed": load_bytes / weight_bytes,
                }
            )
    return rows
