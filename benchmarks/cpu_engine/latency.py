"""One agent: time of a whole `get_next_action`, beside `JatModel` in the same run and beside the memory's limit."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

from jat_engine import JatEngine, JatModel, JatProcessor, _cpu
from jat_engine.info import available_cores
from jat_engine.weights import parameter_shapes

from ..agents import SPACES, step_arguments
from .workload import random_checkpoint

DTYPES = ("float32", "bfloat16", "int8")
WINDOWS = (256, None)
ROUNDS, ENGINE_STEPS, MODEL_STEPS = 40, 8, 2
PAUSE_S = 0.03
"""Before each agent's turn: OpenMP's threads go on spinning for milliseconds after a step of `JatModel`, on the cores
of whoever comes next. The first step of a turn is not timed."""


def run() -> dict[str, Any]:
    """Rounds in which every agent takes a few steps, in an order that changes: noise meets all alike."""
    folder = random_checkpoint("small")
    model, processor = JatModel.from_pretrained(folder), JatProcessor.from_pretrained(folder)
    engines = {dtype: JatEngine.from_pretrained(folder, device="cpu", dtype=dtype, backend="cpu") for dtype in DTYPES}
    calls: dict[tuple[str, int | None, str], Callable[[int], Any]] = {}
    for kind in SPACES:
        for window in WINDOWS:
            calls[kind, window, "JatModel float32"] = _model_call(model, processor, kind, window)
            for dtype, engine in engines.items():
                calls[kind, window, f"JatEngine {dtype}"] = _engine_call(engine, kind, window)
    for (_, window, _), call in calls.items():
        for step in range((window or 508) // 2 + 3):  # until the window is full
            call(step)

    latencies: dict[Any, list[float]] = defaultdict(list)
    bandwidths: list[float] = []
    rng = np.random.default_rng(0)
    keys = list(calls)
    for number in range(ROUNDS):
        bandwidths.append(_cpu.read_bandwidth(1 << 28, available_cores(), 3))
        for index in rng.permutation(len(keys)):
            key = keys[index]
            time.sleep(PAUSE_S)
            calls[key](0)
            for step in range(MODEL_STEPS if key[2].startswith("JatModel") else ENGINE_STEPS):
                # Observations are made beforehand; only the call is timed.
                latencies[key].append(calls[key](number * ENGINE_STEPS + step))
    bandwidth = float(np.median(bandwidths))

    rows = []
    for kind, window, name in keys:
        reference = float(np.median(latencies[kind, window, "JatModel float32"]))
        p50, p99 = np.percentile(latencies[kind, window, name], [50, 99])
        row = {"observation": kind, "window": window or 508, "agent": name, "p50 ms": p50 * 1e3, "p99 ms": p99 * 1e3}
        row["times faster"] = reference / p50
        if name.startswith("JatEngine"):
            num_bytes = step_bytes(engines[name.split()[1]], kind)
            cache_bytes = cached_bytes(engines[name.split()[1]], window or 508)
            row["weights MB"] = num_bytes / 1e6
            row["weights / limit"] = num_bytes / bandwidth / p50
            row["with cache / limit"] = (num_bytes + cache_bytes) / bandwidth / p50
        rows.append(row)
    return {
        "read bandwidth GB/s": {
            "median": bandwidth / 1e9,
            "p10": float(np.percentile(bandwidths, 10)) / 1e9,
            "p90": float(np.percentile(bandwidths, 90)) / 1e9,
            "threads": available_cores(),
        },
        "steps": rows,
        "overhead": overhead(engines["bfloat16"]),
    }


def step_bytes(engine: JatEngine, kind: str) -> int:
    """Bytes of weights that a step reads: the blocks, and the large layer of the observation's encoder."""
    config = engine.config
    blocks = 12 * config.num_layers * config.hidden_size**2  # 4 in the attention, 8 in the MLP
    encoders = {"babyai": "multi_discrete_encoder.4.weight", "atari": "image_encoder.module.fc.weight"}
    encoder = math.prod(parameter_shapes(config)[encoders[kind]]) if kind in encoders else 0
    return (blocks + encoder) * {"float32": 4, "bfloat16": 2, "int8": 1}[engine.choice.dtype]


def cached_bytes(engine: JatEngine, window: int) -> int:
    """Bytes of keys and values that a step reads: global layers see the window, local ones at most their own."""
    config = engine.config
    tokens = sum(min(window, config.window_size) if a == "local" else window for a in config.attention_layers)
    return tokens * 2 * config.hidden_size * (4 if engine.choice.dtype == "float32" else 2)


def _model_call(model: JatModel, processor: JatProcessor, kind: str, window: int | None) -> Callable[[int], float]:
    session = model.open_session()

    def call(step: int) -> float:
        arguments = step_arguments(kind, step)
        begin = time.perf_counter()
        session.get_next_action(processor, **arguments, context_window=window)
        return time.perf_counter() - begin

    return call


def _engine_call(engine: JatEngine, kind: str, window: int | None) -> Callable[[int], float]:
    session = engine.open_session(window)

    def call(step: int) -> float:
        arguments = step_arguments(kind, step)
        begin = time.perf_counter()
        session.get_next_action(**arguments)
        return time.perf_counter() - begin

    return call


def overhead(engine: JatEngine, steps: int = 300) -> list[dict[str, Any]]:
    """What a call costs beside its native parts: checks, sessions, Python. Discrete actions are sampled."""
    model: Any = engine._backend._model  # type: ignore[attr-defined]
    rows = []
    for kind in SPACES:
        with engine.open_session(64, seed=0) as session:
            samples = []
            for step in range(steps):
                arguments = {**step_arguments(kind, step), "deterministic": False}
                native = model.seconds
                begin = time.perf_counter()
                session.get_next_action(**arguments)
                total = time.perf_counter() - begin
                samples.append(total - (model.seconds - native))
        p50, p99 = np.percentile(samples, [50, 99])
        rows.append({"observation": kind, "overhead p50 us": p50 * 1e6, "p99 us": p99 * 1e6})
    return rows
