"""The engine's thread: whatever requests are ready when a step ends form the next one.

Requests of any connection, task and modality share a step; each session's answer is the one it would have had alone.
All calls of the engine are made in this thread, so that the event loop never waits for a step.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch

from ..action_options import parse_options
from ..engine.engine import JatEngine
from ..engine.session import AgentSession
from ..engine.snapshot import Captured
from ..errors import BatchError, CacheFullError, InputError, SessionError
from ..observation import Limits, parse_action, parse_action_space
from .errors import OverloadError, ServerError
from .requests import NO_OPTIONS, Options, Reply
from .spaces import Space

logger = logging.getLogger(__name__)
T = TypeVar("T")

_END_SECONDS = 20.0
"""Longest that `stop` waits for the thread to end."""


class Start(NamedTuple):
    """Beginning of an episode.

    Attributes:
        seed: of sampling; None to go on with the random numbers of the last episode.
        window: most tokens that a step of the episode attends to; None for the model's longest.
    """

    seed: int | None
    window: int | None


class Agent:
    """A served session's agent. Only the engine's thread calls its methods.

    Attributes:
        session: of the engine; None before the first step, and after a failure.
    """

    def __init__(self) -> None:
        self.session: AgentSession | None = None
        self._closed = False
        self._is_starting = False
        self._generator: torch.Generator | None = None
        """Of the last episode, from which an episode that is starting goes on if it has no seed."""

    def prepare(self, engine: JatEngine, start: Start | None) -> AgentSession:
        """Return the session for a step. A start holds once `started` has been called.

        Args:
            engine: that the session belongs to.
            start: of the episode that begins with the step; None in its course.

        Raises:
            CacheFullError: the KV cache has too few free pages.
            SessionError: the session was closed, or a failure has ended its episode and this is not a start.
        """
        if self._closed:
            raise SessionError("session: expected an open one, got one that was closed")
        if start is not None:
            self._start(engine, start)
        if self.session is None:
            raise SessionError("session: expected the start of an episode, since a failure has ended the last one")
        return self.session

    def _start(self, engine: JatEngine, start: Start) -> None:
        """Begin an episode, in the same session of the engine if it has pages and random numbers for it."""
        session, is_again = self.session, self._is_starting
        if session is not None and not is_again:
            self._generator = session.generator
        self._is_starting = True
        longest = engine.config.max_context_tokens
        window = longest if start.window is None else min(start.window, longest)
        if session is not None and not is_again and start.seed is None and window <= session.episodes.window:
            session.reset()
            return
        self.forget()
        self.session = engine.open_session(start.window, self._generator if start.seed is None else start.seed)

    def started(self) -> None:
        """Note that the first step of an episode has been taken, so that no other start takes its place."""
        self._is_starting = False

    def restore(self, engine: JatEngine, snapshot: bytes) -> None:
        """Go on from a session's snapshot. Raises what `JatEngine.restore` raises."""
        self.forget()
        self._is_starting = False
        self.session = engine.restore(snapshot)

    def capture(self) -> Captured:
        """Return a copy of the session's state. Raises `SessionError` if there is none."""
        if self.session is None:
            raise SessionError("session: expected an open one, got one that was closed")
        return self.session.capture()

    def forget(self) -> None:
        """Close the engine's session, if there is one: its pages of the KV cache are free again."""
        session, self.session = self.session, None
        if session is not None:
            session.close()

    def close(self) -> None:
        """Close the engine's session, and refuse further steps."""
        self._closed = True
        self.forget()


@dataclass(slots=True)
class Step:
    """A step to take.

    Attributes:
        agent: that takes it.
        observation: by `OBSERVATION_KEYS`.
        reward: of the action before; None for none.
        space: to choose from.
        deterministic: take the most likely choice.
        window: most tokens that this step attends to; None for as many as the session's.
        options: of the choice.
        start: of an episode that begins with it; None in its course.
        forced: action that takes the place of the chosen one in the agent's history; None to leave it.
        wants_prediction: also reply with the prediction.
    """

    agent: Agent
    observation: Mapping[str, Any]
    reward: Any
    space: Space
    deterministic: bool
    window: int | None
    options: Options
    start: Start | None
    forced: Any = None
    wants_prediction: bool = False


class _Waiting(NamedTuple):
    """A step that waits, since a time of `time.perf_counter` in seconds."""

    step: Step
    future: asyncio.Future[Reply]
    since: float


class _Call(NamedTuple):
    """A function that waits to be called."""

    function: Callable[[], Any]
    future: asyncio.Future[Any]


class Batcher:
    """Run an engine in a thread of its own, for one event loop.

    Attributes:
        engine: None until it is loaded, and after `stop`.
        on_step: called in the engine's thread after each step, with the number of sessions in it and its seconds.
    """

    def __init__(self, load: Callable[[], JatEngine], max_queue: int, max_wait_s: float = 0.0) -> None:
        """Describe the engine; `start` loads it.

        Args:
            load: returns the engine; called in its thread. The engine is closed at the end.
            max_queue: most steps that wait; `submit` refuses further ones.
            max_wait_s: seconds that a step waits for others if none is running; 0 begins at once.
        """
        self.engine: JatEngine | None = None
        self.on_step: Callable[[int, float], None] = lambda batch, seconds: None
        self._load, self._max_queue, self._max_wait_s = load, max_queue, max_wait_s
        self._queue: queue.SimpleQueue[_Waiting | _Call | None] = queue.SimpleQueue()  # None: the last one
        self._num_queued = self._num_taken = 0  # steps; each is written by one thread
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="jat-engine steps", daemon=True)

    @property
    def queue_length(self) -> int:
        """Steps that wait."""
        return self._num_queued - self._num_taken

    async def start(self) -> None:
        """Load the engine. Raises what its loading raises."""
        self._loop = asyncio.get_running_loop()
        self._loaded: asyncio.Future[None] = self._loop.create_future()
        self._thread.start()
        await self._loaded

    def submit(self, step: Step) -> asyncio.Future[Reply]:
        """Queue a step, and return the future of its reply. At most one step of an agent may wait at a time.

        The future's error is InputError or SessionError if the engine refuses the input, OverloadError if the cache is
        full, ServerError if the engine fails.

        Raises:
            OverloadError: too many steps wait, or `stop` was called.
        """
        if self.queue_length >= self._max_queue:
            raise OverloadError(
                f"server: expected at most {self._max_queue} waiting requests, got more; repeat it later"
            )
        future: asyncio.Future[Reply] = self._loop.create_future()
        self._put(_Waiting(step, future, time.perf_counter()))
        self._num_queued += 1
        return future

    def call(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Run a function in the engine's thread, between two steps, and return the future of its result or exception.

        Raises:
            OverloadError: `stop` was called.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._put(_Call(function, future))
        return future

    async def stop(self) -> None:
        """Take the steps that wait, close the engine and end the thread. A step that hangs is left to itself."""
        if not self._stopping:
            self._stopping = True
            self._queue.put(None)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join, _END_SECONDS)

    def _put(self, item: _Waiting | _Call) -> None:
        if self._stopping:
            raise OverloadError("server: expected a request before it ends, got one after; connect to another")
        self._queue.put(item)

    # ---- the engine's thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            engine = self.engine = self._load()
        except BaseException as error:
            self._deliver([(self._loaded, error)])
            return
        self._deliver([(self._loaded, None)])

        try:
            is_last = False
            while not is_last:
                calls, steps, is_last = self._take_all()
                if calls:
                    self._deliver([(call.future, _outcome(call.function)) for call in calls])
                if steps:
                    try:
                        self._step(engine, steps)
                    except Exception:  # of this module or an observer: the thread must go on
                        self._deliver([(item.future, self._fail(item)) for item in steps])
        finally:
            self.engine = None
            engine.close()

    def _take_all(self) -> tuple[list[_Call], list[_Waiting], bool]:
        """Return the calls and steps that are queued, of which there is one at least, and True at the end."""
        calls: list[_Call] = []
        steps: list[_Waiting] = []
        is_last, end = False, 0.0
        item = self._queue.get()
        while True:
            if isinstance(item, _Waiting):
                steps.append(item)
                end = end or time.perf_counter() + self._max_wait_s
            elif isinstance(item, _Call):
                calls.append(item)
            else:
                is_last = True
            try:
                left = end - time.perf_counter() if self._max_wait_s and steps and not is_last else 0.0
                item = self._queue.get(timeout=left) if left > 0 else self._queue.get_nowait()
            except queue.Empty:
                self._num_taken += len(steps)
                return calls, steps, is_last

    def _deliver(self, outcomes: list[tuple[asyncio.Future[Any], Any]]) -> None:
        try:
            self._loop.call_soon_threadsafe(_settle, outcomes)
        except RuntimeError:  # the loop has been closed, so no request waits
            return

    def _step(self, engine: JatEngine, waiting: list[_Waiting]) -> None:
        """Take one step of all agents, and deliver a reply or an error for each."""
        begin = time.perf_counter()
        outcomes: list[tuple[asyncio.Future[Any], Any]] = []
        ready: list[tuple[_Waiting, AgentSession]] = []
        for item in waiting:
            if item.future.done():  # cancelled: its client has gone
                continue
            step = item.step
            try:
                if step.forced is not None:
                    parse_action(parse_action_space(Limits.of(engine.config), step.space), step.forced)
                ready.append((item, step.agent.prepare(engine, step.start)))
            except CacheFullError as error:
                outcomes.append((item.future, OverloadError(*error.args)))
            except (InputError, SessionError) as error:
                outcomes.append((item.future, error.with_traceback(None)))
            except Exception:
                outcomes.append((item.future, self._fail(item)))

        try:
            actions = _take(engine, [(item.step, session) for item, session in ready]) if ready else []
        except Exception:
            self._deliver([*outcomes, *((item.future, self._fail(item)) for item, _ in ready)])
            return
        seconds = time.perf_counter() - begin
        num_taken = sum(not isinstance(taken, Exception) for taken in actions)
        for (item, session), taken in zip(ready, actions, strict=True):
            if isinstance(taken, Exception):
                outcomes.append((item.future, taken))
                continue
            action, prediction = taken
            reply = Reply(action, begin - item.since, seconds, num_taken)
            if item.step.wants_prediction:
                reply = replace(reply, prediction=prediction)
            if item.step.start is not None:
                item.step.agent.started()
            if item.step.forced is not None:
                session.force_action(item.step.forced)
            outcomes.append((item.future, reply))
        self._deliver(outcomes)
        if num_taken:
            self.on_step(num_taken, seconds)

    def _fail(self, item: _Waiting) -> ServerError:
        """Return the error for a step that has failed, with its traceback in the log, and drop the episode."""
        logger.exception("a step failed")
        try:
            item.step.agent.forget()
        except Exception:  # of the same engine: the agent is lost anyway
            logger.exception("a session could not be closed")
        return ServerError("server: internal error; its log has the traceback; start a new episode")


def _take(engine: JatEngine, steps: list[tuple[Step, AgentSession]]) -> list[Any]:
    """Take a step of some sessions, and return an action with its prediction (None if no step wants it) or an error."""
    wants_predictions = any(step.wants_prediction for step, _ in steps)
    if len(steps) == 1:  # a session alone has the quick way
        ((step, session),) = steps
        try:
            own = None if step.options is NO_OPTIONS else parse_options(*step.options)
            inputs = step.observation, step.reward, step.space, step.deterministic, wants_predictions
            taken = session.step(*inputs, _window(step, session), own)
            return [taken if wants_predictions else (taken, None)]
        except (InputError, SessionError) as error:
            return [error.with_traceback(None)]

    has_options = any(step.options is not NO_OPTIONS for step, _ in steps)
    options: dict[str, Any] = _columns([step.options for step, _ in steps]) if has_options else {}
    try:
        taken = engine.get_next_actions(
            [session for _, session in steps],
            [step.observation for step, _ in steps],
            [step.reward for step, _ in steps],
            [step.space for step, _ in steps],
            [step.deterministic for step, _ in steps],
            wants_predictions,
            context_windows=[_window(step, session) for step, session in steps],
            **options,
        )
    except BatchError as error:
        taken = [error.errors.get(index, action) for index, action in enumerate(error.actions)]
    if wants_predictions:
        return taken
    return [action if isinstance(action, Exception) else (action, None) for action in taken]


def _window(step: Step, session: AgentSession) -> int | None:
    """Return the window of a step; None for the session's own, which is the longest."""
    longest = session.episodes.window
    return None if step.window is None or step.window >= longest else step.window


def _columns(options: list[Options]) -> dict[str, list[Any]]:
    """Return the options of some steps as arguments of `JatEngine.get_next_actions`: lists with a value for each."""
    masks, *others = (list(column) for column in zip(*options, strict=True))
    return {"action_masks": masks, **dict(zip(("temperature", "top_k", "action_clip"), others, strict=True))}


def _outcome(function: Callable[[], Any]) -> Any:
    """Return the result of a call, or the error that it raised."""
    try:
        return function()
    except Exception as error:
        return error


def _settle(outcomes: list[tuple[asyncio.Future[Any], Any]]) -> None:
    """Give futures their outcomes. Runs in the event loop."""
    for future, outcome in outcomes:
        if future.done():  # cancelled
            continue
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
