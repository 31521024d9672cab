"""Replay of a record: run its observations through an engine, and find the first step of each episode that differs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from ..engine.engine import JatEngine
from ..engine.session import AgentSession
from ..errors import DataError, InputError, SessionError
from .batcher import Agent, Start
from .record_format import SUFFIX, Part, RecordedStep, options_of_settings, read_part, space_of_settings

_NAME = re.compile(r"(?P<run>.+)-s(?P<session>\d{6,})-e(?P<episode>\d{6,})-p(?P<part>\d{4,})" + re.escape(SUFFIX))


@dataclass(frozen=True, order=True)
class LogFile:
    """File of a record.

    Attributes:
        run: name of the server's run.
        session: number of the session.
        episode: of the session, from 1.
        part: of the episode, from 0.
        path: of the file.
    """

    run: str
    session: int
    episode: int
    part: int
    path: Path


@dataclass(frozen=True)
class Replayed:
    """An episode, or the rest of one that has begun in another server, that was played again.

    Attributes:
        session: number of its session.
        episode: its number in the session, from 1.
        task: its task's name, if it has one.
        num_steps: of the record.
        step: the first step, from 1 at the episode's beginning, whose action differs; None if all of them are equal.
        recorded: action of the record there, as it was chosen.
        now: what it is now.
        reason: why it could not be compared; "" if it was.
        begin: steps before those that were compared, which are in a snapshot.
    """

    session: int
    episode: int
    task: str | None
    num_steps: int
    step: int | None = None
    recorded: Any = None
    now: Any = None
    reason: str = ""
    begin: int = 0

    @property
    def is_equal(self) -> bool:
        """True if every action is equal."""
        return self.step is None and not self.reason

    def __str__(self) -> str:
        """Return a line about the episode."""
        name = f"session {self.session} episode {self.episode}" + (f" ({self.task})" if self.task else "")
        if self.reason:
            return f"{name}: {self.reason}"
        if self.step is None:
            return f"{name}: equal"
        return f"{name}: step {self.step} differs first: action {_short(self.now)}, recorded {_short(self.recorded)}"


def find_log(path: Path) -> list[LogFile]:
    """Return the files of a record in their order.

    Args:
        path: the folder of a record; or a file, which stands for its session.

    Raises:
        DataError: there are none.
    """
    wanted = _parse_name(path) if path.is_file() else None
    if path.is_file() and wanted is None:
        raise DataError(f"{path}: expected a file of `jat-engine serve --record`, got another name; do not rename them")
    folder = path.parent if wanted is not None else path
    found = sorted(file for item in folder.glob(f"*{SUFFIX}") if (file := _parse_name(item)) is not None)
    if wanted is not None:
        found = [file for file in found if (file.run, file.session) == (wanted.run, wanted.session)]
    if not found:
        raise DataError(f"{path}: expected a record of `jat-engine serve --record`, got no files of one")
    return found


def replay(engine: JatEngine, log: Sequence[LogFile]) -> Iterator[Replayed]:
    """Play the episodes of a record again, one after another.

    The record's own observations and rewards are given, whatever the actions are now; and actions that clients have
    given in place of the chosen ones. A session that was restored goes on from its snapshot, which the record has.

    Args:
        engine: that plays.
        log: as `find_log` returns it.

    Yields:
        Each episode.

    Raises:
        DataError: a file is damaged.
    """
    for _, files in groupby(log, lambda file: (file.run, file.session)):
        yield from _Session(engine).replay(files)


class _Session:
    """A recorded session."""

    def __init__(self, engine: JatEngine) -> None:
        self._engine = engine
        self._agent = Agent()
        self._last: int | None = None

    def replay(self, files: Iterator[LogFile]) -> Iterator[Replayed]:
        try:
            for _, parts in groupby(files, lambda file: file.episode):
                replayed = self._episode([read_part(file.path) for file in parts])
                if replayed.num_steps:  # a session that was restored may have begun its next episode at once
                    yield replayed
        finally:
            self._agent.close()

    def _episode(self, parts: list[Part]) -> Replayed:
        about = parts[0].about
        steps = [step for part in parts for step in part.steps]
        name = about["session"], about["episode"], about["task"], len(steps)
        follows = self._last is not None and about["episode"] == self._last + 1
        self._last = None  # until this episode has been played to its end
        if about["number"] != 0:
            return Replayed(*name, reason="cannot be compared: its beginning is not in the record")

        if parts[0].snapshot is None and about["seed"] is None and not follows:
            reason = "cannot be compared: its random numbers follow those of an episode that is not in the record"
            return Replayed(*name, reason=reason)
        try:
            session = self._begin(parts[0])
        except InputError as error:  # of another backend, for instance
            return Replayed(*name, reason=f"cannot be compared: its beginning is refused; {error}")

        difference: tuple[int, Any, Any] | None = None
        number = begin = about["first"]
        for part in parts:
            if part.about["first"] != number:
                break
            for step in part.steps:
                number += 1
                now = _act(session, step)
                if now != step.action and difference is None:
                    difference = number, step.action, now
        if difference is not None:
            self._last = about["episode"]  # each step takes one random number, so that the next episode has its own
            return Replayed(*name, *difference, begin=begin)
        if number != begin + len(steps):
            return Replayed(*name, reason=f"cannot be compared from step {number + 1} on, which is not in the record")
        self._last = about["episode"]
        return Replayed(*name, begin=begin)

    def _begin(self, part: Part) -> AgentSession:
        """Return a session as it was before the first step of a part. Raises `InputError`."""
        agent, start = self._agent, None
        if part.snapshot is not None:
            agent.restore(self._engine, part.snapshot)
        else:
            start = Start(part.about["seed"], part.about["window"])
        session = agent.prepare(self._engine, start)
        agent.started()
        return session


def _act(session: AgentSession, step: RecordedStep) -> Any:
    """Take a step, with the client's action if it gave one. Return the chosen action, or the line of the error."""
    settings, window = step.settings, step.settings["window"]
    longest = session.episodes.window
    shorter = window if window is not None and window < longest else None
    try:
        chosen = session.step(
            step.observation,
            step.reward,
            space_of_settings(settings),
            settings["deterministic"],
            False,
            shorter,
            options_of_settings(settings),
        )
        if step.forced is not None:
            session.force_action(step.forced)
    except (InputError, SessionError) as error:
        return f"({error})"
    return chosen


def _parse_name(path: Path) -> LogFile | None:
    found = _NAME.fullmatch(path.name)
    if found is None:
        return None
    return LogFile(found["run"], int(found["session"]), int(found["episode"]), int(found["part"]), path)


def _short(action: Any) -> str:
    """Return an action as text, with all digits of as many numbers as fit."""
    text = f"[{', '.join(map(repr, action))}]" if isinstance(action, list) else str(action)
    return text if len(text) <= 160 else f"{text[:157]}..."
