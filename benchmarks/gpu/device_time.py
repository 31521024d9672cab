"""Time on the device alone, without knowing a backend's insides; and the memory's rate."""

from __future__ import annotations

import time
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
    """While entered, remembers the CUDA graph that was replayed last, and the events around each replay."""

    def __enter__(self) -> GraphSpy:
        self.graph: Any = None
        self.count = 0
        original = self._original = torch.cuda.CUDAGraph.replay
        spy = self

        def replay(graph: Any) -> None:
            spy.graph, spy.count = graph, spy.count + 1
            original(graph)

        torch.cuda.CUDAGraph.replay = replay  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        torch.cuda.CUDAGraph.replay = self._original  # type: ignore[method-assign]


def find_step(backend: Any, depth: int = 3) -> Any:
    """The one-launch step inside a backend: an object of a class named `Step` that has `run`."""
    seen: set[int] = set()
    level = [backend]
    for _ in range(depth):
        following = []
        for item in level:
            if id(item) in seen:
                continue
            seen.add(id(item))
            if type(item).__name__ == "Step" and callable(getattr(item, "run", None)):
                return item
            values = list(getattr(item, "__dict__", {}).values())
            following += [v for v in values if type(v).__module__.startswith("jat_engine") or isinstance(v, dict | list)]
            if isinstance(item, dict):
                following += list(item.values())[:64]
            elif isinstance(item, list):
                following += item[:64]
        level = following
    return None


def of_step(engine: Any, step: Callable[[], Any], repeats: int = 200) -> dict[str, Any]:
    """Microseconds of the device's part of a step that `step()` takes.

    Graphs: the last graph that the step replayed, replayed again between two events, alone (with a pause) and back to
    back. One launch: `Step.run`, from the launch until the host sees the result.
    """
    backend = engine._backend
    native = find_step(backend)
    decode_us: list[float] = []
    original = backend.decode

    def decode(*arguments: Any) -> Any:
        begin = time.perf_counter()
        result = original(*arguments)
        decode_us.append((time.perf_counter() - begin) * 1e6)
        return result

    with GraphSpy() as spy:
        backend.decode = decode
        try:
            for _ in range(50):
                step()
        finally:
            backend.decode = original
    found: dict[str, Any] = {
        "decode, call p50 us": float(np.median(decode_us)) if decode_us else None,
        "graph replays a step": spy.count / 50,
    }
    if spy.graph is not None:
        alone = []
        for _ in range(repeats):
            time.sleep(0.0005)
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            spy.graph.replay()
            end.record()
            end.synchronize()
            alone.append(begin.elapsed_time(end) * 1e3)
        found["last graph, alone p50 us"] = float(np.median(alone))
        found["last graph, alone p99 us"] = float(np.percentile(alone, 99))
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(repeats):
            spy.graph.replay()
        end.record()
        end.synchronize()
        found["last graph, back to back us"] = begin.elapsed_time(end) * 1e3 / repeats
    if native is not None and spy.count == 0:
        stream = torch.cuda.current_stream().cuda_stream
        runs = []
        for number in range(2 * repeats):
            if number % 2:
                time.sleep(0.0005)
            begin_s = time.perf_counter()
            reason = native.run(stream)
            runs.append((time.perf_counter() - begin_s) * 1e6)
            if reason:
                found["one launch, error"] = str(reason)
                break
        found["one launch, until seen, alone p50 us"] = float(np.median(runs[1::2] or runs))
        found["one launch, until seen, back to back p50 us"] = float(np.median(runs[0::2]))
    return found


def profile(step: Callable[[], Any], steps: int = 30) -> list[dict[str, Any]]:
    """Kernels and copies by name, as CUPTI sees them: launches and microseconds a step, longest first."""
    from torch.profiler import ProfilerActivity, profile as profiler

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
