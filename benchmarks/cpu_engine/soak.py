"""Many steps of sessions that come and go: memory that stays flat, and pages that come back."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from jat_engine import JatEngine
from jat_engine.bench.workload import SPACES, observation

from .workload import small_checkpoint


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run(agent_steps: int = 100_000, sessions_at_once: int = 8) -> dict[str, Any]:
    """Sessions of all kinds and windows that join, reset and leave at random."""
    options: dict[str, Any] = {"dtype": "bfloat16", "backend": "cpu", "max_cached_tokens": sessions_at_once * 544}
    engine = JatEngine.from_pretrained(small_checkpoint(), device="cpu", **options)
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
