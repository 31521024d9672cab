"""Lifetime of engines and sessions: freed when dropped, closed, pickled, copied, and at the interpreter's exit."""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import gc
import multiprocessing
import pickle
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.engines import BOX8, NATIVE, Load

from jat_engine import BatchError, InputError, JatEngine, JatModel, JatProcessor, SessionError

BACKENDS = ["torch", *(["cpu"] if NATIVE else [])]
GOOD = {"continuous_observation": np.zeros(4, np.float32)}
BAD = {"continuous_observation": np.full(4, np.nan, np.float32)}
TOO_LARGE = {"continuous_observation": np.full(4, 1e36, np.float32)}


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    """Stop the garbage collector, so that only what is not part of a reference cycle is freed."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def use(engine: JatEngine, kind: str) -> None:
    """Call the engine in one of the ways that could leave a reference cycle."""
    if kind == "drop-in":
        engine.get_next_action(**GOOD, action_space=BOX8)
    elif kind == "session":
        engine.open_session().get_next_action(**GOOD, action_space=BOX8)
    elif kind == "batch":
        engine.open_batch(2).get_next_actions(continuous_observations=np.zeros((2, 4)), action_space=BOX8)
    elif kind == "sessions":
        engine.get_next_actions([engine.open_session() for _ in range(2)], [GOOD, GOOD], action_spaces=BOX8)
    elif kind == "warm_up":
        engine.warm_up(**GOOD, action_space=BOX8, num_agents=2)
    elif kind == "refused":
        for bad in (BAD, TOO_LARGE):
            with pytest.raises(InputError):
                engine.open_session().get_next_action(**bad, action_space=BOX8)
            with pytest.raises(InputError):
                engine.get_next_action(**bad, action_space=BOX8)
            with pytest.raises(BatchError):
                engine.get_next_actions([engine.open_session() for _ in range(2)], [GOOD, bad], action_spaces=BOX8)
            with pytest.raises(InputError):
                engine.open_batch(1).get_next_actions(
                    continuous_observations=[bad["continuous_observation"]], action_space=BOX8
                )
        with pytest.raises(InputError):
            engine.warm_up(**TOO_LARGE, action_space=BOX8)
    else:
        assert (engine.stats.calls, engine.cache_stats.used) == (0, 0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["drop-in", "session", "batch", "sessions", "warm_up", "refused", "stats"])
def test_a_dropped_engine_is_freed_at_once(kind: str, backend: str, tiny_folder: Path) -> None:
    engine = JatEngine.from_pretrained(tiny_folder, device="cpu", backend=backend, dtype="float32")
    with no_collector():
        use(engine, kind)
        reserved = engine.cache_stats.reserved
        ref = weakref.ref(engine)
        del engine
        assert ref() is None
    assert (reserved > 0) == (kind in ("drop-in", "refused"))  # of the drop-in agent; the others were dropped


def test_a_dropped_model_is_freed_at_once(tiny_folder: Path, tiny_processor: JatProcessor) -> None:
    model = JatModel.from_pretrained(tiny_folder)
    with no_collector():
        model.get_next_action(tiny_processor, **GOOD, action_space=BOX8)
        model.open_session().get_next_action(tiny_processor, **GOOD, action_space=BOX8)
        ref = weakref.ref(model)
        del model
        assert ref() is None


def test_errors_do_not_keep_sessions(load: Load) -> None:
    """An error inside a `BatchError` that a caller keeps has no frames, which would keep the sessions."""
    engine = load(backend="auto", dtype="float32")
    with no_collector():
        session, other = engine.open_session(), engine.open_session()
        with pytest.raises(BatchError) as caught:
            engine.get_next_actions([session, other], [GOOD, BAD], action_spaces=BOX8)
        error, ref = caught.value.errors[1], weakref.ref(other)
        assert error.__traceback__ is None
        del caught, session, other
        assert ref() is None
    assert engine.cache_stats.reserved == 0


def test_close(tiny_folder: Path) -> None:
    with JatEngine.from_pretrained(tiny_folder, device="cpu", dtype="float32") as engine:
        session, batch = engine.open_session(), engine.open_batch(2)
        engine.get_next_action(**GOOD, action_space=BOX8)
        backend = weakref.ref(engine._backend)
    assert engine.closed
    assert "closed" in repr(engine)
    assert backend() is None  # although the session still refers to the engine's parts
    engine.close()

    assert session.closed
    assert batch.closed
    calls: list[Any] = [
        lambda: engine.get_next_action(**GOOD, action_space=BOX8),
        engine.open_session,
        lambda: engine.open_batch(2),
        lambda: engine.warm_up(**GOOD, action_space=BOX8),
        engine.reset_rl,
        engine.__enter__,
        lambda: engine.num_threads,
        lambda: session.get_next_action(**GOOD, action_space=BOX8),
        session.reset,
        lambda: batch.get_next_actions(continuous_observations=np.zeros((2, 4)), action_space=BOX8),
    ]
    for call in calls:
        with pytest.raises(SessionError, match="expected an open one, got one that was closed"):
            call()
    session.close()
    assert engine.stats.calls == 1


def test_neither_pickled_nor_copied(load: Load) -> None:
    engine = load(backend="auto", dtype="float32")
    with engine.open_session() as session, engine.open_batch(2) as batch:
        for thing, remedy in ((engine, "load one in each process"), (session, "open_session"), (batch, "open_batch")):
            for act in (pickle.dumps, copy.copy, copy.deepcopy):
                with pytest.raises(TypeError, match=f"cannot be pickled or copied; .*{remedy}"):
                    act(thing)
        assert repr(session) == "AgentSession(num_cached_tokens=0, context_window=44)"
        assert repr(batch) == "AgentBatch(num_agents=2, context_window=44)"
    assert repr(session) == "AgentSession(closed, context_window=44)"


REFUSE = """
from jat_engine.errors import BatchError, InputError
raise BatchError([1, None], {1: InputError("continuous_observation: expected finite values")})
"""


def test_batch_error_survives_pickle() -> None:
    with pytest.raises(BatchError) as caught:
        exec(REFUSE)
    caught.value.add_note("of worker 3")
    for act in (lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy):
        again = act(caught.value)
        assert type(again) is BatchError
        assert str(again) == str(caught.value)
        assert (again.actions, str(again.errors[1])) == ([1, None], str(caught.value.errors[1]))
        assert again.__notes__ == ["of worker 3"]


def test_batch_error_crosses_processes() -> None:
    context = multiprocessing.get_context("spawn")
    with (
        concurrent.futures.ProcessPoolExecutor(1, context) as pool,
        pytest.raises(BatchError, match=r"sessions\[1\] of 2: continuous_observation") as caught,
    ):
        pool.submit(exec, REFUSE).result(timeout=60)
    assert caught.value.actions == [1, None]


EXIT = """
import sys, threading, time
sys.path.insert(0, sys.argv[2])
from helpers.engines import EPISODE, play
from jat_engine import JatEngine

_, folder, _, name, backend = sys.argv
engine = JatEngine.from_pretrained(folder, device="cpu", backend=backend, dtype="float32")
started = threading.Event()

def run():
    session = engine.open_session(9)
    while True:
        play(session, EPISODE[name], 0)
        session.reset()
        started.set()

for _ in range(2):
    threading.Thread(target=run, daemon=True).start()
started.wait()
time.sleep(0.02)
print("the end")
"""


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["babyai_sampled", "atari_greedy_full"])
def test_daemon_threads_in_a_step_do_not_abort_the_exit(name: str, backend: str, tiny_folder: Path) -> None:
    script = [sys.executable, "-W", "ignore", "-c", EXIT, str(tiny_folder), str(Path(__file__).parents[1])]
    done = subprocess.run([*script, name, backend], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "the end\n", "")
