"""Take one step of several sessions at once."""

from __future__ import annotations

from typing import Any

from ..action_options import ActionOptions
from ..errors import BatchError, CheckpointError, InputError, SessionError
from ..observation import check_context_window
from .arguments import check_flags, check_observation
from .session import AgentSession, answer
from .step import Request, StepRunner


def step_sessions(
    runner: StepRunner,
    begin_ns: int,
    sessions: list[Any],
    observations: list[Any],
    rewards: list[Any],
    action_spaces: list[Any],
    deterministic: list[Any],
    return_predictions: bool,
    windows: list[Any],
    options: list[ActionOptions | InputError | None],
) -> list[Any]:
    """Take the step of `JatEngine.get_next_actions`, and return its results. The caller holds the lock.

    Args:
        runner: of the engine.
        begin_ns: when the call began, in nanoseconds of `time.perf_counter_ns`.
        sessions: S sessions, which need not be the engine's.
        observations: S of them, not checked.
        rewards: S.
        action_spaces: S.
        deterministic: S, not checked.
        return_predictions: also return predictions.
        windows: S for this step, not checked.
        options: S, or the reasons why they are refused.

    Raises:
        BatchError: the input of some sessions was refused.
    """
    runner.enter()
    requests: dict[int, Request] = {}
    errors: dict[int, Exception] = {}
    for index, session in enumerate(sessions):
        try:
            _check_own(runner, session)
            observation, flag, own = check_observation(observations[index]), deterministic[index], options[index]
            check_flags(deterministic=flag)
            window = _window_of(session, windows[index])
            if isinstance(own, InputError):
                raise own
            inputs = observation, rewards[index], action_spaces[index], flag, window, own
            requests[index] = runner.parse(session.episodes, *inputs)
        except (InputError, SessionError, CheckpointError) as error:
            errors[index] = error.with_traceback(None)  # which would keep this frame, and so the sessions, alive

    actions: list[Any] = [None] * len(sessions)
    outcomes = runner.run(list(requests.values()))
    for (index, request), outcome in zip(requests.items(), outcomes, strict=True):
        if isinstance(outcome, InputError):
            errors[index] = outcome
        else:
            actions[index] = answer(outcome, request.space, return_predictions)
    if errors:
        raise BatchError(actions, errors)
    runner.calls.add(begin_ns)
    return actions


def _window_of(session: AgentSession, context_window: Any) -> int | None:
    """Return a session's window for one step. Raises `InputError` for one beyond its own, which has no pages."""
    window, longest = check_context_window(context_window), session.episodes.window
    if window is None:
        return None
    if min(window, session.runner.max_window) > longest:
        raise InputError(
            f"context_window: expected at most {longest}, the window that the session was opened with, got "
            f"{context_window}"
        )
    return min(window, longest)


def _check_own(runner: StepRunner, session: Any) -> None:
    """Raise `InputError` unless a session is one of the runner's engine."""
    if not isinstance(session, AgentSession) or session.runner is not runner:
        raise InputError(f"session: expected one that this engine opened, got {session!r}")
