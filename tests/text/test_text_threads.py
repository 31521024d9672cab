"""Texts of several threads: errors, closing, Ctrl-C, forks and the collection of garbage at any moment."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.engines import Load
from helpers.text_steps import GreedyText, finish

from jat_engine import JatEngine, SessionError

OPTIONS: dict[str, Any] = {"max_new_tokens": 8, "eos_token_id": None}


@pytest.fixture
def engine(load: Load) -> JatEngine:
    return load(backend="torch", dtype="float32")


class Calling(GreedyText):
    """Calls something with each token."""

    call: Callable[[], Any]

    def accept(self, logits: np.ndarray) -> int | None:
        self.call()
        return super().accept(logits)


class Paused(Calling):
    """Waits in the middle of what follows a step, until it is told to go on."""

    def __init__(self) -> None:
        super().__init__(np.arange(4), 1)
        self.reached, self.go_on = threading.Event(), threading.Event()

    def call(self) -> None:
        self.reached.set()
        assert self.go_on.wait(60)


@pytest.fixture
def paused(engine: JatEngine) -> Iterator[Paused]:
    """A text of another thread that has just been computed."""
    text = Paused()
    thread = threading.Thread(target=finish, args=(engine, [text]))
    thread.start()
    assert text.reached.wait(60)
    yield text
    text.go_on.set()
    thread.join()


def test_an_error_in_the_step_of_another_call_is_told(engine: JatEngine) -> None:
    def fail(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if ids[0, 0] == 7 and ids.shape[1] == 5:
            raise OSError("no")
        return scores

    reasons = []
    for token in engine.generate_stream(input_ids=[[1, 2, 3], [7, 8, 9]], logits_processor=[fail], **OPTIONS):
        reasons.append((token.index, token.finish_reason))
        if len(reasons) == 4:  # two tokens of each, and the next of the second one fails
            engine.generate(input_ids=[[5]], max_new_tokens=1)
    assert (1, "error") in reasons
    assert (0, "length") in reasons


def test_an_engine_that_is_closed_before_a_step_says_so(tiny_folder: Path) -> None:
    engine = JatEngine.from_pretrained(tiny_folder, device="cpu", backend="torch", dtype="float32")

    class Closing(GreedyText):
        @property
        def finished(self) -> bool:
            engine.close()
            return False

        @finished.setter
        def finished(self, value: bool) -> None:
            return

    text = Closing(np.arange(4), 2)
    engine._texts.add(text)
    with pytest.raises(SessionError, match="closed"):
        engine._texts.advance([text])


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no timer signals")
def test_ctrl_c_while_another_thread_holds_the_lock(engine: JatEngine) -> None:
    """Twice: where finished texts are removed, and where the turn is given to another thread."""
    expected = engine.generate(input_ids=[[1, 2]], **OPTIONS)
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with engine._runner.lock:
            held.set()
            assert let_go.wait(60)

    interrupts: list[int] = []

    def interrupt(*_: Any) -> None:
        interrupts.append(1)
        if len(interrupts) == 2:
            signal.setitimer(signal.ITIMER_REAL, 0)
            let_go.set()
        raise KeyboardInterrupt

    holder = threading.Thread(target=hold)
    text = Calling(np.arange(4), 3)

    def wait_for_the_lock() -> None:
        holder.start()
        assert held.wait(60)
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)

    text.call = wait_for_the_lock
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            finish(engine, [text])
    finally:
        signal.signal(signal.SIGALRM, before)
    holder.join()
    engine._texts.remove([text])
    assert torch.equal(engine.generate(input_ids=[[1, 2]], **OPTIONS)[0], expected[0])
    assert engine.cache_stats.reserved == 0


def test_ctrl_c_does_not_reach_other_threads_texts(engine: JatEngine) -> None:
    """The text that it meets cannot go on; it ends with an error of its own."""
    texts = [Calling(np.arange(4), 3), GreedyText(np.arange(5), 3)]

    def interrupt() -> None:
        raise KeyboardInterrupt

    texts[0].call = interrupt  # type: ignore[attr-defined]
    for text in texts:
        engine._texts.add(text)
    with pytest.raises(KeyboardInterrupt):
        engine._texts.advance(texts[1:])
    assert isinstance(texts[0].error, SessionError)
    while not texts[1].finished:
        engine._texts.advance(texts[1:])
    assert texts[1].error is None
    assert engine.cache_stats.reserved == 0


def test_another_threads_exit_is_its_own(engine: JatEngine) -> None:
    texts = [Calling(np.arange(4), 3), GreedyText(np.arange(5), 1)]

    def leave() -> None:
        raise SystemExit(3)

    texts[0].call = leave  # type: ignore[attr-defined]
    for text in texts:
        engine._texts.add(text)
    engine._texts.advance(texts[1:])
    assert isinstance(texts[0].error, SystemExit)
    assert texts[1].finished


def test_a_stream_that_is_dropped_in_an_agents_step(engine: JatEngine, paused: Paused) -> None:
    """The collection of garbage may close it there. The step keeps its lock, whatever another thread's text does."""
    dropped, runner, entered = GreedyText(np.arange(4), 3), engine._runner, []
    engine._texts.add(dropped)
    with runner.lock, runner.one_step():
        engine._texts.remove([dropped])
        other = threading.Thread(target=lambda: entered.append(runner.lock.acquire(blocking=False)))
        other.start()
        other.join()
    assert dropped.finished
    assert entered == [False]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_fork_beside_a_threads_text(engine: JatEngine, paused: Paused) -> None:
    process = os.fork()
    if process == 0:
        signal.alarm(60)
        try:
            text = GreedyText(np.arange(6), 3)
            finish(engine, [text])
            os._exit(0 if text.error is None and engine.cache_stats.reserved == 0 else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
