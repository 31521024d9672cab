"""Run contenders in turns, and hold what every suite is given.

These machines are shared. What one comparison measures minutes before the other has seen another machine; what takes
turns with it has seen the same one, and a ratio is taken within a round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .bandwidth import Bandwidth
from .results import Results

if TYPE_CHECKING:
    from ..envs import Task

PAUSE_S = 0.03
"""Before each turn: threads of OpenMP and other pools go on spinning for milliseconds after a call, on the cores of
whoever comes next. The first call of a turn is not timed either."""

TURN_S = 0.04
"""About how long the timed calls of a turn take together."""

_MOST_CALLS = 16

clock = time.perf_counter
"""Seconds."""


@dataclass(frozen=True)
class Options:
    """Options of a run.

    Attributes:
        num_iters: rounds; in each every contender takes a turn of several calls.
        num_iters_warmup: untimed calls of each contender before the first round.
        batch_sizes: agents that step together, of the throughput suite.
        models: presets, jat-mini, or folders of checkpoints.
        dtypes: of the engine and its peers.
        observations: modalities, keys of `workload.SPACES`.
        windows: tokens an agent looks back on.
        peers: names of `peers.NAMES`.
        upstream: a Python with the published package.
        device: "cpu" or "cuda".
        hz: calls a second, of the loop suite.
        paces: of `pacing.PACES`, or the name of `task` alone.
        neighbours: "none", "busy", or both.
        minutes: what the loop suite's calls may take together.
        agent_steps: of the soak suite.
        task: whose environment the loop suite steps between calls; None for those of its paces.
        before: a checkout of another version, with its native module, whose engine the suites call, batches and host
            measure, too.
    """

    num_iters: int
    num_iters_warmup: int
    batch_sizes: tuple[int, ...]
    models: tuple[str, ...]
    dtypes: tuple[str, ...]
    observations: tuple[str, ...]
    windows: tuple[int, ...]
    peers: tuple[str, ...]
    upstream: str | None
    device: str
    hz: tuple[int, ...] = (20, 50, 100, 200)
    paces: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ("none", "busy")
    minutes: float = 30.0
    agent_steps: int = 20_000
    task: Task | None = None
    before: Path | None = None


@dataclass(frozen=True)
class Context:
    """Hold what every suite is given.

    Attributes:
        options: of the run.
        results: rows are appended to it.
        bandwidth: of the memory, sampled between rounds.
        note: tells a person what goes on.
        save: writes what has been measured so far.
    """

    options: Options
    results: Results
    bandwidth: Bandwidth
    note: Callable[[str], object]
    save: Callable[[], object]

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.options.device)


@dataclass(frozen=True)
class Contender:
    """One side of a comparison.

    Attributes:
        prepare: number of the call -> what it is called with; not timed.
        call: timed.
    """

    prepare: Callable[[int], Any]
    call: Callable[[Any], Any]


def with_keywords(method: Callable[..., Any]) -> Callable[[dict[str, Any]], Any]:
    """Return `method` as a function of one mapping, which is what a contender is called with."""
    return lambda arguments: method(**arguments)


def take_turns(
    contenders: Mapping[str, Contender],
    num_rounds: int,
    *,
    num_warmup: int = 3,
    seed: int = 0,
    pause_s: float = PAUSE_S,
    on_round: Callable[[int], object] | None = None,
    on_failure: Callable[[str, Exception], object] | None = None,
) -> dict[str, list[list[float]]]:
    """Time all contenders in the same rounds, in an order that changes.

    Args:
        contenders: by name.
        num_rounds: in each every contender takes a turn of several calls, behind an untimed one.
        num_warmup: untimed calls of each contender before the first round, and what the number of calls a turn is
            chosen from: as many as take `TURN_S`, at least 1 and at most 16.
        seed: of the order.
        pause_s: before each turn.
        on_round: called with the number of each round before it; `False` ends the rounds, if there was one.
        on_failure: given a contender's name and its error; the others go on. By default the error is raised.

    Returns:
        Name -> seconds of each call, by round: [num_rounds][calls]; without contenders that failed.
    """
    numbers = dict.fromkeys(contenders, 0)

    def time_call(name: str) -> float:
        contender = contenders[name]
        arguments = contender.prepare(numbers[name])
        numbers[name] += 1
        begin = clock()
        contender.call(arguments)
        return clock() - begin

    seconds: dict[str, list[list[float]]] = {name: [] for name in contenders}

    def attempt(name: str, turn: Callable[[], None]) -> None:
        try:
            time.sleep(pause_s)
            turn()
        except Exception as error:
            if on_failure is None:
                raise
            on_failure(name, error)
            del seconds[name]

    calls: dict[str, int] = {}

    def warm_up(name: str) -> None:
        fastest = min(time_call(name) for _ in range(max(1, num_warmup)))
        calls[name] = int(np.clip(TURN_S / fastest, 1, _MOST_CALLS))

    def take_turn(name: str) -> None:
        time_call(name)
        seconds[name].append([time_call(name) for _ in range(calls[name])])

    for name in contenders:
        attempt(name, lambda name=name: warm_up(name))  # type: ignore[misc]

    rng = np.random.default_rng(seed)
    names = list(contenders)
    for number in range(num_rounds):
        if on_round is not None and on_round(number) is False and number:
            break
        for index in rng.permutation(len(names)):
            name = names[index]
            if name in seconds:
                attempt(name, lambda name=name: take_turn(name))  # type: ignore[misc]
    return seconds
