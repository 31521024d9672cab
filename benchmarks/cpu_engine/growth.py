"""How a step's time grows with the tokens in the cache, and with the model."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from jat_engine.bench.workload import step_arguments

from .workload import random_engine


def run(episodes: int = 3) -> list[dict[str, Any]]:
    """One continuous agent from an empty cache to 508 tokens, two published sizes."""
    rows = []
    for preset in ("small", "medium"):
        for dtype in ("bfloat16", "int8"):
            engine = random_engine(preset, dtype, max_cached_tokens=1100)
            times: list[list[float]] = []
            for _ in range(episodes):
                with engine.open_session(508) as session:
                    times.append([])
                    for step in range(256):
                        arguments = step_arguments("continuous", step)
                        begin = time.perf_counter()
                        session.get_next_action(**arguments)
                        times[-1].append(time.perf_counter() - begin)
            by_step = np.median(times, axis=0)
            for cached in range(0, 509, 4):
                near = by_step[max(0, cached // 2 - 2) : cached // 2 + 3]
                rows.append(
                    {
                        "model": preset,
                        "dtype": dtype,
                        "weights MB": engine.weight_bytes / 1e6,
                        "cached tokens": cached,
                        "step ms": float(np.median(near)) * 1e3,
                    }
                )
            del engine
    return rows
