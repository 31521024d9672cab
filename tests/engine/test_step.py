"""The commit at the end of a step: an exception at any moment leaves a session before the step or after it."""

from __future__ import annotations

import gc
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from helpers.batches import observations
from helpers.engines import BOX8, EPISODE, Load, play

import jat_engine
from jat_engine import AgentSession, InputError, JatEngine, JatModel, JatProcessor, SessionError
from jat_engine.testing import golden

PACKAGE = str(Path(jat_engine.__file__).parent)


def press() -> None:
    """Raise what Ctrl-C raises."""
    raise KeyboardInterrupt


def interrupt(call: Callable[[], Any], at: int, files: str = PACKAGE, handler: Callable[[], Any] = press) -> bool:
    """Call a handler at the `at`-th moment; return whether there was one.

    A moment is before a line of the files whose paths begin so, at a function's return, or after a function in C that
    it calls: a signal that comes while such a function runs is handled then.
    """
    seen = 0

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen == at:
            handler()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event == "c_return" and frame.f_code.co_filename.startswith(files):
            count()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(files):
            return None
        if event in ("line", "return"):
            count()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    sys.setprofile(profile)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(None)
        sys.settrace(before)
    return seen >= at


class Agents:
    """Agents of one kind that step together, and what a test needs to know of each."""

    def __init__(self, kind: str, engine: JatEngine, model: JatModel, processor: JatProcessor) -> None:
        self._kind, self._engine, self._processor = kind, engine, processor
        if kind == "drop-in":
            engine.reset_rl()
            self._agents: list[Any] = [engine]
        elif kind == "batch":
            self._agents = [engine.open_batch(2, WINDOW, seed=3)]
        elif kind == "model":
            self._agents = [model.open_session()]
        else:
            self._agents = [engine.open_session(WINDOW, seed=3) for _ in range(2 if kind == "sessions" else 1)]

    def step(self, episode: golden.Episode, t: int) -> None:
        """Let all agents step together."""
        if self._kind == "sessions":
            inputs = [[episode.observation(t)] * 2, [episode.reward(t)] * 2, episode.space, episode.deterministic]
            self._engine.get_next_actions(self._agents, *inputs)
        else:
            self.step_one(0, episode, t)

    def step_one(self, index: int, episode: golden.Episode, t: int) -> Any:
        """Let one agent, or one batch, step alone, and return its predictions."""
        agent, options = self._agents[index], {"action_space": episode.space, "deterministic": episode.deterministic}
        if self._kind == "batch":
            rewards = None if episode.reward(t) is None else [episode.reward(t)] * 2
            step = observations(episode, [t, t])
            return agent.get_next_actions(**step, **options, rewards=rewards, return_predictions=True)[1]
        given: list[Any] = []
        if self._kind in ("drop-in", "model"):
            options["context_window"], given = WINDOW, [self._processor]
        options |= {"reward": episode.reward(t), "return_prediction": True}
        return agent.get_next_action(*given, **episode.observation(t), **options)[1]

    def states(self) -> list[Any]:
        """Return an object for each agent, or batch, that a step replaces."""
        agents = [self._engine._drop_in] if self._kind == "drop-in" else self._agents
        return [agent._episode.state if self._kind == "model" else agent.episodes.state for agent in agents]

    def close(self) -> None:
        if self._kind in ("session", "sessions", "batch"):
            for agent in self._agents:
                agent.close()


WINDOW = 9
STEPS = 6
"""More than fill the window."""


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("session", "continuous_cw9"),
        ("session", "babyai_sampled"),
        ("sessions", "continuous_cw9"),
        ("batch", "babyai_sampled"),
        ("drop-in", "continuous_cw9"),
        ("model", "babyai_greedy_full"),
    ],
)
def test_an_exception_at_any_moment(
    kind: str, name: str, load: Load, tiny_model: JatModel, tiny_processor: JatProcessor
) -> None:
    engine, episode = load(backend="auto", dtype="float32"), EPISODE[name]
    steps, files = STEPS, PACKAGE
    if kind == "model":  # its modules keep no state, and have thousands of moments
        steps, files = 2, str(Path(PACKAGE, "model", "session.py"))

    agents = Agents(kind, engine, tiny_model, tiny_processor)
    expected = [agents.step_one(0, episode, t) for t in range(steps + 2)]
    agents.close()

    at, was_before, was_after = 1, 0, 0
    while True:
        torch.manual_seed(0)
        agents = Agents(kind, engine, tiny_model, tiny_processor)
        for t in range(steps):
            agents.step(episode, t)
        before = agents.states()
        if not interrupt(lambda agents=agents: agents.step(episode, steps), at, files):  # type: ignore[misc]
            break

        for index, (old, new) in enumerate(zip(before, agents.states(), strict=True)):
            is_after = new is not old
            was_before, was_after = was_before + (not is_after), was_after + is_after
            t = steps + is_after
            with ThreadPoolExecutor(1) as other:  # another thread can step it on: the engine's lock is free
                prediction = other.submit(agents.step_one, index, episode, t).result(timeout=60)
            assert np.array_equal(prediction, expected[t]), f"moment {at}, agent {index}"
        agents.close()
        at += 1
    agents.close()
    assert min(was_before, was_after) > 0
    engine.reset_rl()
    assert engine.cache_stats.used == 0


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no interval timers")
def test_alarms_at_random_moments(load: Load) -> None:
    """A handler of SIGALRM raises, as a caller's own timeout does; no page is lost, and no later step is wrong."""
    engine, episode = load(backend="auto", dtype="float32"), EPISODE["babyai_sampled"]
    expected, seconds = [], []
    with engine.open_session(WINDOW, seed=3) as session:
        for t in range(12):
            begin = time.perf_counter()
            expected.append(play(session, episode, t)[1])
            seconds.append(time.perf_counter() - begin)

    def expire(*_: Any) -> None:
        raise TimeoutError

    rng, counts = np.random.default_rng(0), [0, 0, 0]  # steps that were: not interrupted, not taken, taken
    handler = signal.signal(signal.SIGALRM, expire)
    try:
        for _ in range(200):
            session, t, tries = engine.open_session(WINDOW, seed=3), 0, 0
            while t < len(expected):
                state = session.episodes.state
                tries += 1  # more time for each try: on a busy machine a step may take many times as long
                try:
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.02, 3) * seconds[t] * (1 + tries / 20))
                    prediction = play(session, episode, t)[1]
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    assert np.array_equal(prediction, expected[t]), f"step {t} after {counts}"
                    counts[0] += 1
                    t, tries = t + 1, 0
                except TimeoutError:
                    is_after = session.episodes.state is not state
                    counts[1 + is_after] += 1
                    if is_after:
                        t, tries = t + 1, 0
            session.close()
            assert engine.cache_stats.used == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert min(counts[:2]) > 20


HANDLERS = [("session", name) for name in ("step", "reset", "force_action", "close")]
HANDLERS += [("model", name) for name in ("step", "reset", "force_action")]


@pytest.mark.parametrize(("kind", "name"), HANDLERS)
def test_a_handler_that_calls_the_agent(
    kind: str, name: str, load: Load, tiny_model: JatModel, tiny_processor: JatProcessor
) -> None:
    """Within its own step, at every moment: one of the two calls is refused, or they count one after the other."""
    engine, episode = load(backend="auto", dtype="float32"), EPISODE["continuous_cw9"]
    steps, files = (STEPS, PACKAGE) if kind == "session" else (2, str(Path(PACKAGE, "model", "session.py")))
    forced = np.full(episode.space.shape, 3.0, np.float32)

    def play_on(agents: Agents, before: list[str]) -> np.ndarray:
        """Call an agent after its first steps, and return what it then predicts."""
        for each in before:
            call(agents, each)
        prediction: np.ndarray = agents.step_one(0, episode, steps)
        return prediction

    def call(agents: Agents, what: str) -> None:
        if what == "step":
            agents.step(episode, steps)
        else:
            method = getattr(agents._agents[0], what)
            method(*[forced] * (what == "force_action"))

    def begin() -> Agents:
        agents = Agents(kind, engine, tiny_model, tiny_processor)
        for t in range(steps):
            agents.step(episode, t)
        return agents

    orders = [["step"], [name], [name, "step"], ["step", name]] if name != "close" else []
    allowed = [play_on(begin(), order) for order in orders]

    at, num_refused, is_over = 1, 0, False
    while not is_over:
        agents, refused = begin(), []

        def handle(agents: Agents = agents, refused: list[str] = refused) -> None:
            try:
                call(agents, name)
            except SessionError:
                refused.append(name)

        try:
            is_over = not interrupt(lambda agents=agents: agents.step(episode, steps), at, files, handle)  # type: ignore[misc]
        except SessionError:
            refused.append("step")
        assert len(refused) < 2
        num_refused += len(refused)
        if name == "close" and not is_over:
            assert engine.cache_stats.used == 0
        elif name != "close":
            prediction = play_on(agents, [])
            assert any(np.array_equal(prediction, each) for each in allowed), f"moment {at}"
        agents.close()
        at += 1
    assert num_refused > 5


def test_only_errors_of_the_input_are_collected(load: Load) -> None:
    """`get_next_actions` lets exceptions of others through; no session has then taken a step."""
    engine = load(backend="auto", dtype="float32")
    sessions = [engine.open_session(WINDOW) for _ in range(2)]

    class CancelledError(Exception):
        pass

    class Numbers:
        def __init__(self, error: BaseException) -> None:
            self.error = error

        def __array__(self, *_: Any, **__: Any) -> np.ndarray:
            raise self.error

    good = {"continuous_observation": np.zeros(4, np.float32)}
    for error in (CancelledError(), TimeoutError(), KeyboardInterrupt(), SystemExit(), OSError()):
        bad = {"continuous_observation": Numbers(error)}
        with pytest.raises(type(error)) as caught:
            engine.get_next_actions(sessions, [good, bad], action_spaces=BOX8)
        assert caught.value is error
        assert [session.num_cached_tokens for session in sessions] == [0, 0]
        assert all(session.episodes.state.last is None for session in sessions)
    for session in sessions:
        session.close()


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
