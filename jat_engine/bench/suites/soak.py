"""Run many steps of sessions that come and go: memory must stay flat, and every page of the cache come back."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ... import JatEngine
from ...config import JatConfig
from ..peers.jat import EnginePeer
from ..results import make_row
from ..runner import Context
from ..workload import REWARD, SPACES, longest_window, observation, open_checkpoint, step_arguments

SUITE = "soak"

SESSIONS = 8
"""Open at once."""

_RESERVE = 32
"""Tokens of room for a session beyond its window: the step's own, and the ends of its pages."""

_WINDOWS = (None, 256, 32, 7)
_OBSERVATIONS = 50
"""Different ones of each kind; making new ones for each step would take longer than the step."""

_SETTLED = 0.2
"""Share of the steps after which memory should not grow any more."""


def run(context: Context) -> None:
    options = context.options
    model, dtype = options.models[0], options.dtypes[-1]
    context.note(f"soak: {options.agent_steps} steps of {SESSIONS} sessions ...")
    with open_checkpoint(model) as folder:
        room = longest_window(JatConfig.from_pretrained(folder)) + _RESERVE
        engine = EnginePeer.load(folder, dtype, options.device, max_cached_tokens=SESSIONS * room).engine
    touch_pages(engine)

    seconds, steps, sizes = play(engine, options.agent_steps)
    stats = engine.cache_stats
    row = make_row(
        SUITE,
        {"model": model, "sessions": SESSIONS, "agent-steps": options.agent_steps},
        f"JatEngine {engine.choice.dtype}",
        seconds,
        error=float(stats.used + stats.reserved),  # pages that did not come back
        tolerance=0.0,
    )
    row.facts["pages peak"] = stats.peak
    if sizes:
        settled = np.asarray(steps) >= _SETTLED * options.agent_steps
        later, resident = np.asarray(steps)[settled], np.asarray(sizes, float)[settled]
        row.facts["resident MB"] = float(resident[-1]) / 1e6
        row.facts["bytes more per agent-step"] = float(np.polyfit(later, resident, 1)[0]) if len(later) > 1 else 0.0
    context.results.rows.append(row)
    context.save()


def touch_pages(engine: JatEngine) -> None:
    """Fill every session's window once, so that what grows later is no page that is used for the first time."""
    sessions = [engine.open_session(seed=0) for _ in range(SESSIONS)]
    for step in range(longest_window(engine.config) // 2 + 1):
        for session in sessions:
            session.get_next_action(**step_arguments("continuous", step))
    for session in sessions:
        session.close()


def play(engine: JatEngine, agent_steps: int) -> tuple[list[list[float]], list[int], list[int]]:
    """Step sessions of all kinds and windows that join, reset and leave at random, and close them.

    Returns:
        Seconds per call in ten rounds; the agent-steps done at each sample of memory, and the resident bytes then.
    """
    rng = np.random.default_rng(0)
    kinds = list(SPACES)
    observations = {kind: [observation(kind, step) for step in range(_OBSERVATIONS)] for kind in kinds}
    running: list[tuple[Any, str]] = []
    joining = newcomers(engine, kinds, rng)
    seconds: list[list[float]] = []
    steps: list[int] = []
    sizes: list[int] = []

    done = 0
    while done < agent_steps:
        while len(running) < SESSIONS:
            running.append(next(joining))
        group = [pair for pair in running if rng.random() < 0.8] or running[:1]
        seen = [observations[kind][rng.integers(_OBSERVATIONS)] for _, kind in group]
        begin = time.perf_counter()
        engine.get_next_actions(
            [session for session, _ in group], seen, [REWARD] * len(group), [SPACES[kind] for _, kind in group]
        )
        if len(seconds) <= 10 * done // agent_steps:
            seconds.append([])
        seconds[-1].append(time.perf_counter() - begin)
        done += len(group)

        if rng.random() < 0.02:
            running[rng.integers(len(running))][0].reset()
        if rng.random() < 0.02:
            running.pop(rng.integers(len(running)))[0].close()
        if not steps or done - steps[-1] >= agent_steps // 100:
            steps.append(done)
            sizes += resident_bytes()
    for session, _ in running:
        session.close()
    return seconds, steps, sizes


def newcomers(engine: JatEngine, kinds: list[str], rng: np.random.Generator) -> Iterator[tuple[Any, str]]:
    """Open sessions without end, of each kind in turn."""
    number = 0
    while True:
        window = _WINDOWS[rng.integers(len(_WINDOWS))]
        yield engine.open_session(window, seed=number), kinds[number % len(kinds)]
        number += 1


def resident_bytes() -> list[int]:
    """Return this process's memory, as a list of one; an empty one where the system does not tell."""
    statm = Path("/proc/self/statm")
    return [int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")] if statm.exists() else []
