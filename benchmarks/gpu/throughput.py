"""Many agents in one step: the whole `get_next_actions` and its decode alone, windows of 508 tokens, all full.

A third of the agents each would mix the encoders' times in, so all have continuous observations. Floor: the blocks'
weights once and every agent's keys and values, over the rate of a device-to-device copy.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from .context import Context, describe
from .device_time import GraphSpy, copy_bandwidth, isolated
from .paths import PATHS, Agents
from .workload import SPACES, block_bytes, cached_bytes, checkpoint, observation

COUNTS = (1, 4, 16, 64, 256, 1024)
PATH, REDUCED_PATH = "graphs bfloat16", "torch float32"


def run(context: Context) -> None:
    name = REDUCED_PATH if context.quick else PATH
    counts = (1, 2, 4) if context.quick else COUNTS
    window = 16 if context.quick else 508
    if name in context.failed_paths:
        context.record("not run", f"{name}: {context.failed_paths[name]}")
        return
    largest = counts[-1]
    agents = Agents(name, checkpoint(context), context.device, max_cached_tokens=largest * (window + 32))
    engine: Any = agents.engine
    context.record("engine", agents.facts)
    bandwidth = copy_bandwidth()
    context.record("copy bandwidth GB/s", bandwidth / 1e9)
    decode = _TimedDecode(engine._backend)
    sessions = [engine.open_session(window, seed=number) for number in range(largest)]
    observations = [[observation("continuous", t, number) for number in range(largest)] for t in range(4)]

    def step(count: int, t: int) -> tuple[float, float]:
        begin = time.perf_counter()
        engine.get_next_actions(sessions[:count], observations[t % 4][:count], [0.1] * count, SPACES["continuous"])
        return time.perf_counter() - begin, decode.seconds

    began, steps = time.perf_counter(), window // 2 + 3
    for t in range(steps):
        step(largest, t)
        if context.time_left() < 12 and not context.quick:
            context.record("window not full", {"steps": t + 1, "of": steps})
            break
    context.record("filling", {"agents": largest, "steps": steps, "seconds": round(time.perf_counter() - began, 1)})
    cached = sessions[0].num_cached_tokens
    rows = []
    for count in counts:
        try:
            rows.append(_measure(context, engine, step, count, cached, bandwidth, PATHS[name].dtype))
        except Exception as error:
            rows.append({"agents": count, "error": describe(error)})
        context.record("agents", rows)
    context.record("cache", _plain(engine.cache_stats))


def _measure(
    context: Context, engine: Any, step: Any, count: int, cached: int, bandwidth: float, dtype: str
) -> dict[str, Any]:
    import torch

    before = torch.cuda.memory_allocated() if context.has_gpu else 0
    for t in range(5):
        step(count, t)  # a bucket's graph is captured here
    grown = torch.cuda.memory_allocated() - before if context.has_gpu else 0
    with GraphSpy() as spy:
        limit = min(6.0, context.time_left() / 4)
        repeats = 3 if context.quick else 200
        began, pairs = time.perf_counter(), []
        while len(pairs) < repeats and (len(pairs) < 3 or time.perf_counter() - began < limit):
            pairs.append(step(count, len(pairs)))
    whole, decode = np.array(pairs).T
    p50, p99 = np.percentile(whole, [50, 99])
    cache_bytes = count * cached_bytes(engine.config, cached + 3, dtype)
    num_bytes = block_bytes(engine.config, dtype) + cache_bytes
    row: dict[str, Any] = {
        "agents": count,
        "step ms": p50 * 1e3,
        "p99 ms": p99 * 1e3,
        "decode ms": float(np.median(decode)) * 1e3,
        "agent-steps/s": count / p50,
        "agent-steps/s, decode alone": count / float(np.median(decode)),
        "GB a step": num_bytes / 1e9,
        "KV GB/s in decode": cache_bytes / float(np.median(decode)) / 1e9,
        "floor ms": num_bytes / bandwidth * 1e3,
        "memory of the bucket MB": grown / 1e6,
        "n": len(pairs),
    }
    if spy.count >= len(pairs):
        graphs = spy.last(spy.count // len(pairs))
        row["graphs a step"] = spy.count / len(pairs)
        row["graphs ms"] = isolated(graphs, 20)["in a row us"] / 1e3
        row["floor / graphs"] = row["floor ms"] / row["graphs ms"]
    memory = getattr(engine, "memory", None)
    if memory:
        row["memory MB"] = {name: round(size / 1e6, 1) for name, size in memory.items()}
    return {k: float(v) if isinstance(v, np.floating) else v for k, v in row.items()}


class _TimedDecode:
    """Replaces a backend's `decode` by itself with a clock."""

    def __init__(self, backend: Any) -> None:
        self.seconds = 0.0
        original = backend.decode

        def decode(*arguments: Any) -> Any:
            begin = time.perf_counter()
            result = original(*arguments)
            self.seconds = time.perf_counter() - begin
            return result

        backend.decode = decode


def _plain(stats: Any) -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(stats)
