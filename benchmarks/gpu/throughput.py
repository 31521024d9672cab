"""Time many agents in one step, windows of 508 tokens, all full: the whole call, and its graphs alone.

"batch" is `AgentBatch.get_next_actions`, arrays in and out; "sessions" is `JatEngine.get_next_actions`, which costs
Python for every agent. All have continuous observations, so that no encoder's time is mixed in. Floor: the blocks'
weights once and every agent's keys and values, over the rate of a device-to-device copy.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from jat_engine import JatEngine
from jat_engine.bench import costs
from jat_engine.bench.results import make_row
from jat_engine.bench.workload import REWARD, SPACES, batch_arguments, observation

from .checkpoints import checkpoint
from .device_time import GraphSpy, isolated
from .latency import bandwidth
from .paths import PATHS, engine_of, facts, open_path
from .section import SectionRun, describe

COUNTS = (1, 4, 8, 64, 1024, 16, 256)
SESSION_COUNTS = (1, 64, 1024)
PATH, REDUCED_PATH = "graphs bfloat16", "torch float32"
SPACE = SPACES["continuous"]

Step = Callable[[int], object]


def run(section: SectionRun) -> None:
    name = REDUCED_PATH if section.quick else PATH
    counts = (1, 2, 4) if section.quick else COUNTS
    window = 16 if section.quick else 508
    if name in section.failed_paths:
        section.record("not run", f"{name}: {section.failed_paths[name]}")
        return
    largest = max(counts)
    engine = engine_of(open_path(name, checkpoint(section), section.device, max_cached_tokens=largest * (window + 32)))
    assert engine is not None, "both paths are engines"
    section.record("engine", facts(engine))
    rate = bandwidth(section)
    section.record("copy bandwidth GB/s", rate / 1e9)
    rows: list[dict[str, Any]] = []

    def measure(api: str, count: int, step: Step, cached: Callable[[], int]) -> None:
        try:
            began = time.perf_counter()
            for t in range(window // 2 + 3):
                step(t)
                if section.time_left() < 12 and not section.quick:
                    rows.append({"api": api, "agents": count, "error": f"no time left to fill windows: {t + 1} steps"})
                    return
            filling = time.perf_counter() - began
            row = _measure(section, engine, step, count, cached(), rate, PATHS[name].dtype)
            rows.append({"api": api, **row, "filling s": round(filling, 1)})
        except Exception as error:
            rows.append({"api": api, "agents": count, "error": describe(error)})
        section.record("agents", rows)

    for count in counts:
        arguments = [batch_arguments(count, t) for t in range(4)]
        with engine.open_batch(count, window, seed=0) as batch:
            measure(
                "batch",
                count,
                lambda t, batch=batch, given=arguments: batch.get_next_actions(**given[t % 4]),
                lambda batch=batch: int(batch.num_cached_tokens[0]),
            )
    frames = [[observation("continuous", t, number) for number in range(largest)] for t in range(4)]
    for count in counts if section.quick else SESSION_COUNTS:
        sessions = [engine.open_session(window, seed=number) for number in range(count)]
        measure(
            "sessions",
            count,
            lambda t, sessions=sessions, count=count: engine.get_next_actions(
                sessions, frames[t % 4][:count], [REWARD] * count, SPACE
            ),
            lambda sessions=sessions: sessions[0].num_cached_tokens,
        )
        for session in sessions:
            session.close()
    section.record("cache", dataclasses.asdict(engine.cache_stats))


def _measure(
    section: SectionRun, engine: JatEngine, step: Step, count: int, cached: int, rate: float, dtype: str
) -> dict[str, Any]:
    with GraphSpy() as spy:
        limit = min(6.0, section.time_left() / 4)
        repeats = 3 if section.quick else 200
        began = time.perf_counter()
        seconds: list[float] = []
        while len(seconds) < repeats and (len(seconds) < 3 or time.perf_counter() - began < limit):
            begin = time.perf_counter()
            step(len(seconds))
            seconds.append(time.perf_counter() - begin)

    timed = make_row("throughput", {"agents": count}, f"JatEngine {dtype}", [seconds])
    cache_bytes = count * costs.cache_bytes(engine.config, cached, dtype)
    num_bytes = costs.step_bytes(engine.config, "continuous", dtype, cached, count)
    row: dict[str, Any] = {
        "agents": count,
        "step ms": timed.p50 * 1e3,
        "p99 ms": timed.seconds["99"] * 1e3,
        "agent-steps/s": count / timed.p50,
        "GB a step": num_bytes / 1e9,
        "floor ms": num_bytes / rate * 1e3,
        "n": timed.num_calls,
    }
    if spy.count >= len(seconds):
        graphs = spy.last(spy.count // len(seconds))
        row["graphs a step"] = spy.count / len(seconds)
        row["graphs ms"] = isolated(graphs, 20)["in a row us"] / 1e3
        row["floor / graphs"] = row["floor ms"] / row["graphs ms"]
        row["agent-steps/s, graphs alone"] = count / row["graphs ms"] * 1e3
        row["KV GB/s in graphs"] = cache_bytes / row["graphs ms"] / 1e6
    row["memory MB"] = {name: round(size / 1e6, 1) for name, size in engine.memory.items()}
    return row
