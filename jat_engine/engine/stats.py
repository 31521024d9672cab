"""Counters of an engine's calls."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np

RECENT_CALLS = 1000
"""Calls whose latencies are kept."""


@dataclass(frozen=True)
class EngineStats:
    """Counters of a `JatEngine`. Calls that were refused do not count, nor does `warm_up`.

    Attributes:
        calls: successful calls of `get_next_action` and `get_next_actions`, of all sessions and batches.
        p50_us, p99_us: microseconds of the last thousand of them, waiting for other threads' calls included; None
            before the first call.
        used_pages: pages of the KV cache that hold tokens.
        free_pages: pages that hold none.
    """

    calls: int
    p50_us: float | None
    p99_us: float | None
    used_pages: int
    free_pages: int


class CallTimes:
    """Count calls and keep the times of the last of them. Guarded by the engine's lock."""

    def __init__(self) -> None:
        self.count = 0
        self._ns: deque[int] = deque(maxlen=RECENT_CALLS)

    def add(self, begin_ns: int) -> None:
        """Count a call that began at `begin_ns`, of `time.perf_counter_ns`, and ends now."""
        self.count += 1
        self._ns.append(perf_counter_ns() - begin_ns)

    def recent(self) -> list[int]:
        """Return nanoseconds of the last calls, oldest first."""
        return list(self._ns)


def make_stats(calls: int, recent_ns: list[int], used_pages: int, free_pages: int) -> EngineStats:
    """Build the counters from the latencies of recent calls."""
    p50, p99 = (float(p) / 1e3 for p in np.percentile(recent_ns, [50, 99])) if recent_ns else (None, None)
    return EngineStats(calls, p50, p99, used_pages, free_pages)
