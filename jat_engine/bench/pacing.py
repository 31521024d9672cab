"""Calls at a pace: back to back, or at a fixed rate with an environment between them."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..rate import Loop
from . import measure
from .workload import step_arguments

LEAD_IN = 2
"""Untimed calls at the beginning of a block: they follow on another agent's."""

FEWEST = 3
"""Timed calls of a block, also where its time is over before."""

LONGEST_S = 3.0
"""After so many seconds one timed call is enough: with a busy neighbour a call of some agents takes seconds."""

BUSY_SHARE = 0.5
"""Share of the period for which a busy environment computes."""

BACK_TO_BACK, SLEEP, BUSY, ANT, EVICTED = "back to back", "sleep", "busy", "mujoco-ant", "evicted"

PACES = (SLEEP, BUSY, ANT, EVICTED)
"""Paces of the suite: at a rate, with sleep between calls, an environment that computes, or the real one; and back
to back with caches that other data went through, which tells what of a slow-down is the caches'."""

_KIND = "continuous"


class Environment(Protocol):
    """Environment that runs between two calls."""

    def observe(self) -> dict[str, Any]:
        """Return the next call's keyword arguments; belongs to nothing that is timed."""

    def step(self, action: Any) -> None:
        """Let time pass after an action; counts as the environment's time."""


class Idle:
    """An environment that costs nothing: between calls the loop sleeps."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def observe(self) -> dict[str, Any]:
        return step_arguments(_KIND, next(self._numbers))

    def step(self, action: Any) -> None:
        pass


class Busy(Idle):
    """An environment that computes for a fixed time, as a simulator does; then the loop sleeps."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def step(self, action: Any) -> None:
        end = measure.clock() + self._seconds
        while measure.clock() < end:
            pass


class Evicting(Idle):
    """An environment that walks over twice as much memory as the last-level cache holds."""

    def __init__(self) -> None:
        super().__init__()
        self._memory = np.ones(2 * last_level_cache_bytes() // 8)

    def step(self, action: Any) -> None:
        self._memory.sum()


class Ant:
    """MuJoCo's Ant, stepped by the agent's own actions, clipped.

    An agent goes on over the end of an episode: its window stays full.
    """

    def __init__(self) -> None:
        from ..envs import make

        self._env = make(ANT, seed=0)
        self._space: Any = self._env.action_space
        self._reset()

    def _reset(self) -> None:
        self._observation, _ = self._env.reset()
        self._reward = 0.0

    def observe(self) -> dict[str, Any]:
        return {**self._observation, "reward": self._reward, "action_space": self._space, "deterministic": True}

    def step(self, action: Any) -> None:
        action = np.clip(np.asarray(action, np.float32), self._space.low, self._space.high)
        self._observation, reward, terminated, truncated, _ = self._env.step(action)
        self._reward = float(reward)
        if terminated or truncated:
            self._reset()


def last_level_cache_bytes() -> int:
    """Return the largest cache of the first core, 32 MiB where the system does not say."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 0)
        if unit and text[:-1].isdigit():
            sizes.append(int(text[:-1]) * unit)
    return max(sizes, default=32 << 20)


@dataclass(frozen=True)
class Mode:
    """Attributes:
    pace: one of `PACES` or `BACK_TO_BACK`.
    hz: calls a second; 0 for as many as there can be.
    """

    pace: str
    hz: int = 0

    def make_environment(self) -> Environment:
        """Raises `MissingSimulatorError`."""
        if self.pace == ANT:
            return Ant()
        if self.pace == EVICTED:
            return Evicting()
        return Busy(BUSY_SHARE / self.hz) if self.pace == BUSY else Idle()


def list_modes(paces: Iterable[str], rates: Iterable[int]) -> list[Mode]:
    """Return `BACK_TO_BACK`, what others are held against, and the paces at each rate."""
    rates = list(rates)
    modes = [Mode(BACK_TO_BACK)]
    for pace in paces:
        modes += [Mode(pace)] if pace == EVICTED else [Mode(pace, hz) for hz in rates]
    return modes


@dataclass
class Block:
    """Timed calls of one agent in a row.

    Attributes:
        seconds: of each call.
        missed: calls that, with the environment's step after them, took longer than the period.
    """

    seconds: list[float] = field(default_factory=list)
    missed: int = 0


def take_block(call: Callable[[dict[str, Any]], Any], environment: Environment, hz: int, block_s: float) -> Block:
    """Call an agent at a pace for about `block_s` seconds.

    Args:
        hz: calls a second, on a grid of fixed times; 0 for back to back.
    """
    block = Block()
    begin_s = measure.clock()
    for number, _ in enumerate(Loop(hz) if hz else itertools.count()):
        arguments = environment.observe()
        before = measure.clock()
        action = call(arguments)
        after = measure.clock()
        environment.step(action)
        end = measure.clock()
        is_long = before - begin_s > LONGEST_S
        if number < LEAD_IN and not is_long:
            continue
        block.seconds.append(after - before)
        if hz and end - before > 1 / hz:
            block.missed += 1
        if end - begin_s >= block_s and (is_long or len(block.seconds) >= FEWEST):
            break
    return block


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """Keep the calling thread on the first core it may use; afterwards it may use those of before."""
    before = os.sched_getaffinity(0)  # of this thread, on Linux
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
