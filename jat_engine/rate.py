"""`Loop`: a control loop at a fixed rate. Needs nothing but the standard library and numpy."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from .errors import InputError

RECENT_STEPS = 10_000
"""Steps whose times are kept: 100 seconds at 100 Hz."""


@dataclass(frozen=True)
class LoopStats:
    """Statistics of a `Loop`. Times are microseconds of the last `RECENT_STEPS` steps; None before the first.

    Attributes:
        steps: steps that were begun.
        missed: deadlines that passed while a step was still running; each step that was late skipped at least one.
        late_p50_us, late_p99_us, late_max_us: how long after its time a step began. This is the jitter of the system's
            timer and scheduler.
        busy_p50_us, busy_p99_us, busy_max_us: how long the loop's body took.
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
    """Steps at a fixed rate, on a grid of absolute times: `start`, `start + 1 / hz`, `start + 2 / hz`, ...

    An error of the timer does not add up, since every step waits for its own time. A step's deadline is the time of the
    next one. After a step that took longer, the deadlines that have passed are counted as missed and are skipped: the
    next step begins at the next time of the grid, and there is no burst of steps to catch up.

    As an iterator it yields each step's number on the grid; numbers of skipped times do not come::

        loop = Loop(hz=100)
        for tick in loop:
            act()
            if done:
                break
        print(loop.stats)

    Where the loop's condition is another, begin with `with Loop(100) as loop:` and end each step by `loop.wait()`.

    To be used from one thread.

    Attributes:
        hz: steps a second.
        period_s: seconds between two steps.
    """

    def __init__(
        self,
        hz: float,
        *,
        spin_us: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """
        Args:
            hz: steps a second.
            spin_us: microseconds before a step's time in which the loop asks the clock instead of sleeping. A sleep
                ends 50 to 100 us late on an ordinary Linux; this hides it and keeps a core busy meanwhile.
            clock: seconds that never go back; with `sleep`, another clock than the system's, such as a simulation's.
            sleep: waits for so many seconds of `clock`.

        Raises:
            InputError: `hz` is no positive number, or `spin_us` a negative one.
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
        """Begin a new grid, whose first step begins now: at first, and after a pause that shall not count as missed,
        such as an environment's reset. Counters go on.
        """
        self._end_step()
        self._origin = self._begin = self._clock()
        self._tick = 0
        self._count_step(0.0)

    def wait(self) -> int:
        """End the step and wait for the next one's time.

        Returns:
            The number of the next step on the grid.
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
        """Counters so far; a step that is running counts, and its time does not yet."""
        return LoopStats(self._steps, self._missed, *_summary(self._late), *_summary(self._busy))

    def _count_step(self, late_s: float) -> None:
        self._steps += 1
        self._late.append(max(0.0, late_s))
        self._is_running = True

    def _end_step(self) -> int:
        """Take a running step's time. Returns the number of the last time on the grid that has passed."""
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
