"""Time on the device alone, without knowing a backend's insides; and the memory's rate."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def copy_bandwidth(num_bytes: int = 1 << 30, repeats: int = 30) -> float:
    """Bytes a second, read and written, of a device-to-device copy; on a CPU of a small one."""
    has_gpu = torch.cuda.is_available()
    num_bytes = num_bytes if has_gpu else 1 << 26
    source = torch.ones(num_bytes // 4, device="cuda" if has_gpu else "cpu")
    target = torch.empty_like(source)
    times = timed(lambda: target.copy_(source), repeats if has_gpu else 3)
    return 2 * num_bytes / float(np.median(times))


def timed(call: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each call, by events on a GPU."""
    call()
    if not torch.cuda.is_available():
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        return times
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for begin_event, end_event in pairs:
        begin_event.record()
        call()
        end_event.record()
    torch.cuda.synchronize()
    return [begin_event.elapsed_time(end_event) * 1e-3 for begin_event, end_event in pairs]


class GraphSpy:
    """While entered, remembers the CUDA graphs that are replayed."""

    def __enter__(self) -> GraphSpy:
        self.graphs: deque[Any] = deque(maxlen=64)
        self.count = 0
        original = self._original = torch.cuda.CUDAGraph.replay
        spy = self

        def replay(graph: Any) -> None:
            spy.graphs.append(graph)
            spy.count += 1
            original(graph)

        torch.cuda.CUDAGraph.replay = replay  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        torch.cuda.CUDAGraph.replay = self._original  # type: ignore[method-assign]

    def last(self, count: int) -> Callable[[], None]:
        """Replays the `count` graphs that came last, in their order."""
        graphs = list(self.graphs)[-count:]
        assert len(graphs) == count, f"expected {count} graphs, {len(graphs)} were replayed"

        def replay() -> None:
            for graph in graphs:
                graph.replay()

        return replay


_SHORT_WORK = 100_000
"""Cycles, some 50 us, that keep the device busy while what is timed is queued: else the interval between two events
holds the host's time of launching it.
"""


def isolated(call: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Microseconds of device time of a call, by events: alone, half a millisecond after the last, and in a row."""
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


def of_step(engine: Any, step: Callable[[], Any], repeats: int = 200) -> dict[str, Any]:
    """The device's part of a step that `step()` takes, by itself.

    graphs: those that the step replays, replayed again between two events. launch: the one-launch step's `run`, by the
    host's clock, from the launch until the host sees the result. What is computed again is what has been computed.
    """
    backend = engine._backend
    decode_us: list[float] = []
    original = backend.decode

    def decode(*arguments: Any) -> Any:
        begin = time.perf_counter()
        result = original(*arguments)
        decode_us.append((time.perf_counter() - begin) * 1e6)
        return result

    steps = 50
    with GraphSpy() as spy:
        backend.decode = decode
        try:
            for _ in range(steps):
                time.sleep(0.0005)
                step()
        finally:
            backend.decode = original
    found: dict[str, Any] = {"decode, call p50 us": float(np.median(decode_us)), "graphs a step": spy.count / steps}
    if spy.count >= steps:
        replay = spy.last(spy.count // steps)
        found["graphs"] = isolated(replay, repeats)
    launch = getattr(backend, "_one_launch", None)
    if launch is not None:
        found["launch"] = _launches(launch.run, repeats)
    return found


def _launches(run: Callable[[], Any], repeats: int) -> dict[str, Any]:
    times: dict[bool, list[float]] = {True: [], False: []}
    for number in range(2 * repeats):
        if number % 2:
            time.sleep(0.0005)
        begin = time.perf_counter()
        failure = run()
        times[bool(number % 2)].append((time.perf_counter() - begin) * 1e6)
        if failure:
            return {"error": str(failure)}
    return {
        "alone p50 us": float(np.median(times[True])),
        "alone p99 us": float(np.percentile(times[True], 99)),
        "in a row us": float(np.median(times[False])),
    }


def profile(step: Callable[[], Any], steps: int = 30) -> list[dict[str, Any]]:
    """Kernels and copies by name, as CUPTI sees them: launches and microseconds a step, longest first."""
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
