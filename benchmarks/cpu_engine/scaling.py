"""How a step's time grows: with the number of sessions, with the tokens in the cache, with the model."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from jat_engine import JatEngine, JatModel, JatProcessor

from ..agents import SPACES, observation, step_arguments
from .workload import random_checkpoint, random_engine

BATCHES = (1, 2, 4, 8, 16, 32, 64)
WARM_STEPS, TIMED_STEPS = 40, 20


def batches() -> list[dict[str, Any]]:
    """Sessions of all three kinds in one step, 78 to 118 tokens cached; `JatModel` steps one after the other."""
    folder = random_checkpoint("small")
    model, processor = JatModel.from_pretrained(folder), JatProcessor.from_pretrained(folder)
    one_by_one = []
    for kind in SPACES:
        session = model.open_session()
        for step in range(WARM_STEPS + 10):
            begin = time.perf_counter()
            session.get_next_action(processor, **step_arguments(kind, step))
            if step >= WARM_STEPS:
                one_by_one.append(time.perf_counter() - begin)
    reference = float(np.mean(one_by_one))
    rows = []
    for dtype in ("float32", "bfloat16", "int8"):
        engine = JatEngine.from_pretrained(folder, device="cpu", dtype=dtype, backend="cpu")
        for size in BATCHES:
            sessions = [engine.open_session(128, seed=number) for number in range(size)]
            kinds = [list(SPACES)[number % len(SPACES)] for number in range(size)]
            seconds = []
            for step in range(WARM_STEPS + TIMED_STEPS):
                observations = [observation(kind, step, number) for number, kind in enumerate(kinds)]
                begin = time.perf_counter()
                engine.get_next_actions(sessions, observations, [0.1] * size, [SPACES[kind] for kind in kinds])
                if step >= WARM_STEPS:
                    seconds.append(time.perf_counter() - begin)
            for session in sessions:
                session.close()
            p50 = float(np.median(seconds))
            rows.append(
                {
                    "dtype": dtype,
                    "sessions": size,
                    "step ms": p50 * 1e3,
                    "per agent-step ms": p50 / size * 1e3,
                    "agent-steps/s": size / p50,
                    "times JatModel one by one": reference * size / p50,
                }
            )
    return rows


def growth(episodes: int = 3) -> list[dict[str, Any]]:
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
