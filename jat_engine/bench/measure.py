"""Taking turns: everything that is compared is timed in the same rounds, in an order that changes.

These machines are shared. What one comparison measures minutes before the other has seen another machine; what takes
turns with it has seen the same one, and a ratio is taken within a round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

PAUSE_S = 0.03
"""Before each turn: threads of OpenMP and other pools go on spinning for milliseconds after a call, on the cores of
whoever comes next. The first call of a turn is not timed either."""

TURN_S = 0.04
"""About how long the timed calls of a turn take together."""

_MOST_CALLS = 16

clock = time.perf_counter
"""Seconds."""


@dataclass(frozen=True)
class Contender:
    """What is timed.

    Attributes:
        prepare: number of the call -> what it is called with; not timed.
        call: timed.
    """

    prepare: Callable[[int], Any]
    call: Callable[[Any], Any]


def take_turns(
    contenders: Mapping[str, Contender],
    num_rounds: int,
    *,
    num_warmup: int = 3,
    seed: int = 0,
    pause_s: float = PAUSE_S,
    on_round: Callable[[int], object] | None = None,
) -> dict[str, list[list[float]]]:
    """Name -> seconds of each call, by round: [num_rounds][calls].

    Args:
        num_warmup: untimed calls of each contender before the first round, and what the number of calls a turn is
            chosen from: as many as take `TURN_S`, at least 1 and at most 16.
        on_round: called before each round.
    """
    numbers = dict.fromkeys(contenders, 0)

    def time_call(name: str) -> float:
        contender = contenders[name]
        arguments = contender.prepare(numbers[name])
        numbers[name] += 1
        begin = clock()
        contender.call(arguments)
        return clock() - begin

    calls = {}
    for name in contenders:
        time.sleep(pause_s)
        fastest = min(time_call(name) for _ in range(max(1, num_warmup)))
        calls[name] = int(np.clip(TURN_S / fastest, 1, _MOST_CALLS))
    rng = np.random.default_rng(seed)
    names = list(contenders)
    seconds: dict[str, list[list[float]]] = {name: [] for name in names}
    for number in range(num_rounds):
        if on_round is not None:
            on_round(number)
        for index in rng.permutation(len(names)):
            name = names[index]
            time.sleep(pause_s)
            time_call(name)
            seconds[name].append([time_call(name) for _ in range(calls[name])])
    return seconds
