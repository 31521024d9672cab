"""The commit at the end of a step: an exception at any moment leaves a session before the step or after it."""

from __future__ import annotations

import gc
import linecache
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from helpers.engines import BOX8, EPISODE, Load, play

import jat_engine
from jat_engine import AgentSession, InputError, SessionError

PACKAGE = str(Path(jat_engine.__file__).parent)


def interrupt(call: Callable[[], Any], at: int) -> bool:
    """Raise `KeyboardInterrupt` at the `at`-th moment; return whether there was one.

    A moment is before a line of this package, or after a function in C that it calls: a signal that comes while such a
    function runs is handled then.
    """
    seen = 0

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen == at:
            raise KeyboardInterrupt

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event == "c_return" and frame.f_code.co_filename.startswith(PACKAGE):
            count()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        # Leaving a `with` counts as its line, but no signal handler runs between a block's end and the lock's release.
        if event == "line" and not linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith(
            "with "
        ):
            count()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    sys.setprofile(profile)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
        sys.settrace(before)
    return False


@pytest.mark.parametrize("name", ["continuous_cw9", "babyai_sampled"])
def test_an_exception_at_any_moment(name: str, load: Load) -> None:
    engine, episode = load(backend="auto", dtype="float32"), EPISODE[name]
    steps = 8  # the window of 9 tokens is full after five

    with engine.open_session(9, seed=3) as session:
        expected = [play(session, episode, t) for t in range(steps + 2)]

    at, was_before, was_after = 1, 0, 0
    while True:
        with engine.open_session(9, seed=3) as session:
            for t in range(steps):
                play(session, episode, t)
            last = session.episodes.state.last
            if not interrupt(lambda session=session: play(session, episode, steps), at):  # type: ignore[misc]
                break
            is_after = session.episodes.state.last is not last
            was_before, was_after = was_before + (not is_after), was_after + is_after

            # Another thread steps it on: the engine's lock is free.
            t = steps + is_after
            with ThreadPoolExecutor(1) as other:
                action, prediction = other.submit(play, session, episode, t).result(timeout=60)
            assert action == expected[t][0], f"moment {at}"
            assert np.array_equal(prediction, expected[t][1]), f"moment {at}"
        at += 1
    assert min(was_before, was_after) > 0
    assert engine.cache_stats.used == 0


def test_no_page_is_lost(load: Load) -> None:
    """Whenever Ctrl-C comes while a session or a batch is opened and closed."""
    engine = load(backend="auto", dtype="float32")
    gc.collect()
    before = engine.cache_stats.reserved

    def open_and_close() -> None:
        engine.open_session(9).close()
        engine.open_batch(2, 9).close()

    at = 1
    while interrupt(open_and_close, at):
        gc.collect()
        assert engine.cache_stats.reserved == before, f"moment {at}"
        at += 1
    assert at > 50


def test_a_closed_session_looks_back_on_nothing(load: Load) -> None:
    episode = EPISODE["continuous_cw9"]
    session = load(backend="auto", dtype="float32").open_session(9)
    for t in range(3):
        play(session, episode, t)
    assert session.num_cached_tokens == 4
    session.close()
    assert session.num_cached_tokens == 0


def test_force_action(load: Load) -> None:
    """The next step sees the forced action; invalid actions are refused and change nothing."""
    engine = load(backend="auto", dtype="float32")
    episode = EPISODE["continuous_cw9"]
    with engine.open_session(9) as session, engine.open_session(9) as other:
        with pytest.raises(SessionError, match="expected after a step"):
            session.force_action(np.zeros(BOX8.shape[0]))
        for one in (session, other):
            play(one, episode, 0)
        session.force_action([0.5] * episode.space.shape[0])
        bad: Any
        for bad in (np.zeros(3), "left", np.full(episode.space.shape, np.nan), None, [10**400] * 8):
            with pytest.raises(InputError, match="action: expected"):
                session.force_action(bad)
        assert not np.array_equal(play(session, episode, 1)[1], play(other, episode, 1)[1])
    with pytest.raises(SessionError, match="closed"):
        session.force_action([0.0] * episode.space.shape[0])

    babyai = EPISODE["babyai_greedy_full"]
    with engine.open_session() as session:
        play(session, babyai, 0)
        for bad in (-1, babyai.space.n, 1.5, True):
            with pytest.raises(InputError, match=rf"action: expected an integer in \[0, {babyai.space.n}\)"):
                session.force_action(bad)
        session.force_action(np.int64(1))
        assert isinstance(session, AgentSession)
        play(session, babyai, 1)
