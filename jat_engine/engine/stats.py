"""Counters of an engine's calls."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np

RECENT_CALLS = 1000
"""Number of latest calls whose latencies are kept."""


@dataclass(frozen=True)
class EngineStats:
    """Counters of a `JatEngine`. Refused calls and `warm_up` are not counted.

    Attributes:
        calls: successful calls of `get_next_action` and `get_next_actions`, of all sessions and batches.
        p50_us: median latency of the last 1000 of them in microseconds, waiting for other threads' calls included; None
            before the first call.
        p99_us: 99th percentile of the same.
        used_pages: pages of the KV cache that hold tokens.
        free_pages: pages that hold none.
    """

    calls: int
    p50_us: float | None
    p99_us: float | None
    used_pages: int
    free_pages: int


class CallTimes:
    """Number of calls, and the latencies of the latest. Guarded by the engine's lock."""

    def __init__(self) -> None:
        self.count = 0
        self._ns: deque[int] = deque(maxlen=RECENT_CALLS)

    def add(self, begin_ns: int) -> None:
        """Count a call that began at `begin_ns` (`time.perf_counter_ns`) and ends now."""
        self.count += 1
        self._ns.append(perf_counter_ns() - begin_ns)

    def recent(self) -> list[int]:
        """Return latencies of the latest calls in nanoseconds, oldest first."""
        return list(self._ns)


def make_stats(calls: int, recent_ns: list[int], used_pages: int, free_pages: int) -> EngineStats:
    """Build `EngineStats` from the latencies of recent calls in nanoseconds."""
    p50, p99 = (float(p) / 1e3 for p in np.percentile(recent_ns, [50, 99])) if recent_ns else (None, None)
    return EngineStats(calls, p50, p99, used_pages, free_pages)
