"""Call agents at a pace: back to back, or at a fixed rate with an environment between the calls.

Alone, or with a busy neighbour: another process that computes on one core for as long as something is measured.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..rate import Loop
from . import runner
from .bandwidth import last_level_cache_bytes
from .workload import step_arguments

if TYPE_CHECKING:
    from ..envs import Task

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


# ---- environments ----------------------------------------------------------------------------------------------------


class Environment(Protocol):
    """Environment that runs between two calls."""

    def observe(self) -> dict[str, Any]:
        """Return the next call's keyword arguments; not timed."""

    def step(self, action: Any) -> None:
        """Let time pass after an action; counts as the environment's time."""

    def close(self) -> None:
        """Give back what the environment holds."""


class Idle:
    """An environment that costs nothing: between calls the loop sleeps."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def observe(self) -> dict[str, Any]:
        return step_arguments(_KIND, next(self._numbers))

    def step(self, action: Any) -> None:
        pass

    def close(self) -> None:
        pass


class Busy(Idle):
    """An environment that computes for a fixed time, as a simulator does; then the loop sleeps."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def step(self, action: Any) -> None:
        end = runner.clock() + self._seconds
        while runner.clock() < end:
            pass


class Evicting(Idle):
    """An environment that walks over twice as much memory as the last-level cache holds."""

    def __init__(self) -> None:
        super().__init__()
        self._memory = np.ones(2 * last_level_cache_bytes() // 8)

    def step(self, action: Any) -> None:
        self._memory.sum()


class TaskEnvironment:
    """The environment of a task, stepped by the agent's own actions; continuous ones are clipped to the action space.

    An agent goes on over the end of an episode: its window stays full.

    Args:
        task: the task.

    Raises:
        MissingSimulatorError: its simulator is not installed.
    """

    def __init__(self, task: Task) -> None:
        from ..evaluation.environment import evaluation_env

        self._env = evaluation_env(task)
        self._space: Any = self._env.action_space
        self._space.seed(0)
        self._reset(seed=0)

    def _reset(self, seed: int | None = None) -> None:
        self._observation, _ = self._env.reset(seed=seed)
        self._reward = 0.0

    def observe(self) -> dict[str, Any]:
        return {**self._observation, "reward": self._reward, "action_space": self._space, "deterministic": True}

    def step(self, action: Any) -> None:
        if not hasattr(self._space, "n"):
            action = np.clip(np.asarray(action, np.float32), self._space.low, self._space.high)
        self._observation, reward, terminated, truncated, _ = self._env.step(action)
        self._reward = float(reward)
        if terminated or truncated:
            self._reset()

    def wander(self, step: int) -> dict[str, Any]:
        """Take a random action, except before step 0, and return the next call's keyword arguments."""
        if step:
            self.step(self._space.sample())
        return self.observe()

    def close(self) -> None:
        self._env.close()


# ---- paces -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mode:
    """Pace of calls.

    Attributes:
        pace: one of `PACES`, `BACK_TO_BACK`, or the name of the task that is measured.
        hz: calls a second; 0 for as many as there can be.
    """

    pace: str
    hz: int = 0

    def make_environment(self) -> Environment:
        """Return what happens between calls. Raises `MissingSimulatorError`."""
        if self.pace == ANT:
            from ..envs import get_task

            return TaskEnvironment(get_task(ANT))
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
    begin_s = runner.clock()
    for number, _ in enumerate(Loop(hz) if hz else itertools.count()):
        arguments = environment.observe()
        before = runner.clock()
        action = call(arguments)
        after = runner.clock()
        environment.step(action)
        end = runner.clock()
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


# ---- the busy neighbour ----------------------------------------------------------------------------------------------

_PROGRAM = """
import os, signal, sys
core, parent = int(sys.argv[1]), int(sys.argv[2])
signal.signal(signal.SIGINT, signal.SIG_IGN)
os.sched_setaffinity(0, {core})
print("ready", flush=True)
while os.getppid() == parent:
    for _ in range(100_000):
        pass
"""
# Ctrl-C reaches the whole group: the parent ends this process, which otherwise would print a traceback. A parent that
# was killed ends nothing, so this process asks, every few milliseconds, whether the parent is still there.


def why_no_neighbour() -> str:
    """Return why there cannot be a busy neighbour here; "" where there can."""
    if not hasattr(os, "sched_getaffinity"):
        return "this system cannot pin a process to a core"
    if len(os.sched_getaffinity(0)) < 2:
        return "there is one core, which the neighbour would have for itself"
    return ""


def neighbours_core() -> int:
    """Return the core that the neighbour computes on: the last that this process may use."""
    return max(os.sched_getaffinity(0))


@contextlib.contextmanager
def busy_neighbour() -> Iterator[int]:
    """Keep one core busy within the block; gives the process's id.

    The process ends with the block, however the block ends, and by itself when this process is gone.
    """
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(neighbours_core()), str(os.getpid())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None, "it was asked for"
        if process.stdout.readline().strip() != b"ready":
            raise OSError(f"the busy neighbour ended with code {process.wait()} before it began")
        yield process.pid
    finally:
        process.kill()
        process.communicate()
