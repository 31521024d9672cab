"""`Loop`, a control loop at a fixed rate. It needs only the standard library and numpy."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from .errors import InputError

RECENT_STEPS = 10_000
"""Number of newest steps whose times are kept: 100 seconds at 100 Hz."""


@dataclass(frozen=True)
class LoopStats:
    """Statistics of a `Loop`. Times are in microseconds, over the last `RECENT_STEPS` steps; None before the first.

    Attributes:
        steps: number of steps that have begun.
        missed: number of deadlines that passed while a step was still running. A late step misses at least one.
        late_p50_us, late_p99_us, late_max_us: delay between the scheduled and the actual begin of a step. This is the
            jitter of the system's timer and scheduler.
        busy_p50_us, busy_p99_us, busy_max_us: duration of the loop's body.
    """

    steps: int
    missed: int
    late_p50_us: float | None
    late_p99_us: float | None
    late_max_us: float | None
    busy_p50_us: float | None
    busy_p99_us: float | None
    busy_max_us: float | None


class Loop:
    """Control loop at a fixed rate. Steps begin at `start`, `start + 1 / hz`, `start + 2 / hz`, ...

    These times are absolute, so timer errors do not accumulate. The deadline of a step is the begin of the next one. If
    a step takes longer, the deadlines that have passed count as missed and are skipped: the next step begins at the
    next scheduled time, and there is no burst of steps to catch up.

    Iterating over a loop yields the number of each step, counted in periods since `start`; the numbers of skipped
    deadlines are left out. For other forms of loop, write `with Loop(hz) as loop:` and end each step with
    `loop.wait()`. Use a loop from one thread only.

    Attributes:
        hz: steps per second.
        period_s: seconds between two steps.

    Example:
        >>> loop = Loop(hz=100)
        >>> for step in loop:
        ...     if step >= 3:
        ...         break
        >>> loop.stats.steps <= 4  # fewer if a step was skipped
        True
    """

    def __init__(
        self,
        hz: float,
        *,
        spin_us: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Prepare a loop; `start`, `wait` or iteration begins it.

        Args:
            hz: steps per second.
            spin_us: length of the busy wait before each step, in microseconds. On ordinary Linux a sleep ends 50 to
                100 us late; a busy wait avoids this delay but keeps a core busy.
            clock: function that returns the time in seconds and never goes back. Pass another clock, together with
                `sleep`, to follow the time of a simulation.
            sleep: function that waits for a number of seconds of `clock`.

        Raises:
            InputError: `hz` is not a positive number, or `spin_us` is negative.
        """
        if not _is_number(hz) or not 0 < hz < float("inf"):
            raise InputError(f"hz: expected a positive number of steps a second, got {hz!r}")
        if not _is_number(spin_us) or not 0 <= spin_us < float("inf"):
            raise InputError(f"spin_us: expected microseconds >= 0, got {spin_us!r}")
        self.hz = hz
        self.period_s = 1 / hz
        self._spin_s = spin_us * 1e-6
        self._clock, self._sleep = clock, sleep
        self._late: deque[float] = deque(maxlen=RECENT_STEPS)
        self._busy: deque[float] = deque(maxlen=RECENT_STEPS)
        self._steps = self._missed = self._tick = 0
        self._origin = self._begin = 0.0
        self._is_running = False

    def start(self) -> None:
        """Begin a step now and schedule the following ones from this time on.

        Call it first, and after a pause that must not count as missed, such as the reset of an environment. Within a
        step it ends that step and begins another, which counts as well. Counters are kept.
        """
        self._end_step()
        self._origin = self._begin = self._clock()
        self._tick = 0
        self._count_step(0.0)

    def wait(self) -> int:
        """End the current step and wait until the next one begins.

        Returns:
            The number of the next step, counted in periods since `start`.
        """
        if not self._is_running:
            self.start()
            return self._tick
        passed = self._end_step()
        self._tick = max(self._tick, passed) + 1
        due = self._origin + self._tick * self.period_s
        self._wait_until(due)
        self._begin = self._clock()
        self._count_step(self._begin - due)
        return self._tick

    def __iter__(self) -> Iterator[int]:
        self.start()
        try:
            yield self._tick
            while True:
                yield self.wait()
        finally:
            self._end_step()

    def __enter__(self) -> Loop:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end_step()

    @property
    def stats(self) -> LoopStats:
        """Counters up to now. A running step is counted, but its duration is not included yet."""
        return LoopStats(self._steps, self._missed, *_summary(self._late), *_summary(self._busy))

    def _count_step(self, late_s: float) -> None:
        self._steps += 1
        self._late.append(max(0.0, late_s))
        self._is_running = True

    def _end_step(self) -> int:
        """Record the duration of a running step, and return the number of the last period that has begun."""
        if not self._is_running:
            return 0
        self._is_running = False
        now = self._clock()
        self._busy.append(now - self._begin)
        passed = int((now - self._origin) / self.period_s)
        self._missed += max(0, passed - self._tick)
        return passed

    def _wait_until(self, due: float) -> None:
        left = due - self._clock()
        while left > self._spin_s:  # a sleep of another clock may end early
            self._sleep(left - self._spin_s)
            left = due - self._clock()
        while left > 0:
            left = due - self._clock()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _summary(seconds: deque[float]) -> tuple[float | None, float | None, float | None]:
    """Return median, 99th percentile and maximum, in microseconds."""
    if not seconds:
        return None, None, None
    p50, p99, most = np.percentile(list(seconds), [50, 99, 100]) * 1e6
    return float(p50), float(p99), float(most)
