"""Many agents in one step, windows of 508 tokens, all full: the whole call and its decode alone.

"batch" is `AgentBatch.get_next_actions`, arrays in and out; "sessions" is `JatEngine.get_next_actions`, which costs
Python for every agent. All have continuous observations, so that no encoder's time is mixed in. Floor: the blocks'
weights once and every agent's keys and values, over the rate of a device-to-device copy.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from jat_engine.bench.workload import SPACES, observation

from .context import Context, describe
from .device_time import GraphSpy, copy_bandwidth, isolated
from .paths import PATHS, Agents
from .workload import block_bytes, cached_bytes, checkpoint

COUNTS = (1, 4, 16, 64, 256, 1024)
SESSION_COUNTS = (1, 64, 1024)
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
    frames = [[observation("continuous", t, number) for number in range(largest)] for t in range(4)]
    arrays = [np.stack([one["continuous_observation"] for one in frame]) for frame in frames]
    space = SPACES["continuous"]
    steps = window // 2 + 3
    rows: list[dict[str, Any]] = []

    def measure(api: str, count: int, step: Any, cached: Any) -> None:
        try:
            began = time.perf_counter()
            for t in range(steps):
                step(t)
                if context.time_left() < 12 and not context.quick:
                    rows.append({"api": api, "agents": count, "error": f"no time left to fill windows: {t + 1} steps"})
                    return
            filling = time.perf_counter() - began
            row = _measure(context, engine, decode, step, count, cached(), bandwidth, PATHS[name].dtype)
            rows.append({"api": api, **row, "filling s": round(filling, 1)})
        except Exception as error:
            rows.append({"api": api, "agents": count, "error": describe(error)})
        context.record("agents", rows)

    for count in counts:
        with engine.open_batch(count, window, seed=0) as batch:

            def step(t: int, batch: Any = batch, count: int = count) -> None:
                batch.get_next_actions(
                    continuous_observations=arrays[t % 4][:count], rewards=np.full(count, 0.1), action_space=space
                )

            measure("batch", count, step, lambda batch=batch: int(batch.num_cached_tokens[0]))
    for count in counts if context.quick else SESSION_COUNTS:
        sessions = [engine.open_session(window, seed=number) for number in range(count)]

        def step(t: int, sessions: Any = sessions, count: int = count) -> None:
            engine.get_next_actions(sessions, frames[t % 4][:count], [0.1] * count, space)

        measure("sessions", count, step, lambda sessions=sessions: sessions[0].num_cached_tokens)
        for session in sessions:
            session.close()
    context.record("cache", _plain(engine.cache_stats))


def _measure(
    context: Context,
    engine: Any,
    decode: _TimedDecode,
    step: Any,
    count: int,
    cached: int,
    bandwidth: float,
    dtype: str,
) -> dict[str, Any]:
    with GraphSpy() as spy:
        limit = min(6.0, context.time_left() / 4)
        repeats = 3 if context.quick else 200
        began, pairs = time.perf_counter(), []
        while len(pairs) < repeats and (len(pairs) < 3 or time.perf_counter() - began < limit):
            begin = time.perf_counter()
            step(len(pairs))
            pairs.append((time.perf_counter() - begin, decode.seconds))
    whole, decoded = np.array(pairs).T
    p50, p99 = np.percentile(whole, [50, 99])
    cache_bytes = count * cached_bytes(engine.config, cached + 3, dtype)
    num_bytes = block_bytes(engine.config, dtype) + cache_bytes
    row: dict[str, Any] = {
        "agents": count,
        "step ms": p50 * 1e3,
        "p99 ms": p99 * 1e3,
        "decode ms": float(np.median(decoded)) * 1e3,
        "agent-steps/s": count / p50,
        "agent-steps/s, decode alone": count / float(np.median(decoded)),
        "GB a step": num_bytes / 1e9,
        "KV GB/s in decode": cache_bytes / float(np.median(decoded)) / 1e9,
        "floor ms": num_bytes / bandwidth * 1e3,
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
    """Replaces a backend's `decode` and `decode_batch` by themselves with a clock."""

    def __init__(self, backend: Any) -> None:
        self.seconds = 0.0
        backend.decode, backend.decode_batch = self._timed(backend.decode), self._timed(backend.decode_batch)

    def _timed(self, original: Any) -> Any:
        def call(*arguments: Any) -> Any:
            begin = time.perf_counter()
            result = original(*arguments)
            self.seconds = time.perf_counter() - begin
            return result

        return call


def _plain(stats: Any) -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(stats)
