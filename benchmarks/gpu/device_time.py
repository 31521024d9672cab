"""Time a step on the device alone, without knowing a backend's insides."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from jat_engine.backends.cuda.capture import CapturedGraph


class GraphSpy:
    """Remember the CUDA graphs that an engine replays within the block."""

    def __enter__(self) -> GraphSpy:
        self.graphs: deque[Any] = deque(maxlen=64)
        self.count = 0
        original = self._original = CapturedGraph.launch
        spy = self

        def replay(graph: Any) -> Any:
            spy.graphs.append(graph)
            spy.count += 1
            return original(graph)

        CapturedGraph.launch = replay  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        CapturedGraph.launch = self._original  # type: ignore[method-assign]

    def last(self, count: int) -> Callable[[], None]:
        """Return a function that replays the `count` graphs that came last, in their order."""
        graphs = list(self.graphs)[-count:]
        assert len(graphs) == count, f"expected {count} graphs, {len(graphs)} were replayed"

        def replay() -> None:
            for graph in graphs:
                graph.launch()

        return replay


_SHORT_WORK = 100_000
"""Cycles, some 50 us, that keep the device busy while what is timed is queued: else the interval between two events
holds the host's time of launching it.
"""


def isolated(call: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Return microseconds of a call on the device, by events: alone, 0.5 ms after the last, and in a row."""
    alone = []
    for _ in range(repeats):
        time.sleep(0.0005)
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(_SHORT_WORK)
        begin.record()
        call()
        end.record()
        end.synchronize()
        alone.append(begin.elapsed_time(end) * 1e3)

    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(10 * _SHORT_WORK)
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return {
        "alone p50 us": float(np.median(alone)),
        "alone p99 us": float(np.percentile(alone, 99)),
        "in a row us": begin.elapsed_time(end) * 1e3 / repeats,
    }


def of_step(step: Callable[[], Any], repeats: int = 200) -> dict[str, Any]:
    """Return the device's part of a step that `step()` takes.

    graphs: those that the step replays, replayed again between two events: what is computed is what has been computed.
    launch: where there is a kernel that no graph holds, the sum of the kernels' times as the profiler has them.
    """
    steps = 50
    with GraphSpy() as spy:
        for _ in range(steps):
            time.sleep(0.0005)
            step()
    found: dict[str, Any] = {"graphs a step": spy.count / steps}
    if spy.count >= steps:
        replay = spy.last(spy.count // steps)
        found["graphs"] = isolated(replay, repeats)
    alone = [row for row in profile(step) if row["kernel"].startswith(PERSISTENT_KERNELS)]
    if alone:
        found["launch"] = {"alone p50 us": sum(float(row["us a step"]) for row in alone)}
    return found


PERSISTENT_KERNELS = ("jat::", "void jat::", "_ZN3jat")
"""Beginnings of the names of csrc/cuda's kernels, as the profiler writes them."""


def profile(step: Callable[[], Any], steps: int = 30) -> list[dict[str, Any]]:
    """Return kernels and copies by name, as CUPTI sees them: launches and microseconds a step, longest first."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    for _ in range(3):
        step()
    torch.cuda.synchronize()
    with profiler(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    sums: dict[str, list[float]] = {}
    for event in found.events():
        if "CUDA" not in str(event.device_type):
            continue
        duration = event.time_range.elapsed_us()
        sums.setdefault(event.name, []).append(duration)
    rows = [
        {
            "kernel": name[:90],
            "a step": len(times) / steps,
            "us each": float(np.median(times)),
            "us a step": sum(times) / steps,
        }
        for name, times in sums.items()
    ]
    return sorted(rows, key=lambda row: -float(row["us a step"]))[:30]
