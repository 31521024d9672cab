"""Keep the sessions of a policy server: which are open, whose they are, and what they have done so far."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field, replace

from ..errors import InputError, SessionError
from .batcher import Agent
from .errors import OverloadError
from .requests import Reply, Settings

_MOST_REMEMBERED = 1024
"""Sessions of an owner that are gone and whose names are remembered; those that went first are forgotten."""


@dataclass(eq=False, slots=True)
class ServedSession:
    """A session of a client.

    Attributes:
        owner: of the session: a connection, a demonstration, or `Detached`.
        name: within its owner.
        number: unique in this server.
        seed: of the running sequence of random numbers, which may have begun in an earlier episode.
        next_seed: with which the next step's episode begins a sequence; None to go on with that of the episode before.
        episode_seed: with which the running episode has begun a sequence; None if it went on with the one before.
        agent: that takes its steps.
        lock: held while one of its requests is answered, so that there is one at a time.
        settings: of the running episode, as far as requests have given them.
        opened_window: tokens of context for which the engine's session has pages; None for the model's longest, 0 for
            none: no session of the engine is open.
        last_used: when its last request began or ended, in seconds of `time.monotonic`.
        steps: taken in this episode.
        episodes: begun.
        return_: sum of the rewards in this episode.
        begins: the next step is the first of an episode.
        last_seq: number of the last request that was carried out; None before.
        last_reply: reply to that request; None if it was a reset.
        is_lost: a failure has ended the episode.
        closed: True when no more requests are taken.
        token: secret by which another connection can go on with it; None for a session that ends with its connection.
        unsaved: steps since the last snapshot was begun.
        is_saving: a snapshot is being stored.
        is_discarded: its snapshot is not needed any more.
        saved_seq: number of the last request whose result a stored snapshot has; None for none.
        told_seq: `saved_seq` as its client knows it.
    """

    owner: Hashable
    name: str
    number: int
    settings: Settings
    seed: int = field(default_factory=lambda: secrets.randbits(63))
    next_seed: int | None = None
    episode_seed: int | None = None
    agent: Agent = field(default_factory=Agent)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    opened_window: int | None = 0
    last_used: float = field(default_factory=time.monotonic)
    steps: int = 0
    episodes: int = 0
    return_: float = 0.0
    begins: bool = True
    last_seq: int | None = None
    last_reply: Reply | None = None
    is_lost: bool = False
    closed: bool = False
    token: str | None = None
    unsaved: int = 0
    is_saving: bool = False
    is_discarded: bool = False
    saved_seq: int | None = None
    told_seq: int | None = None

    @property
    def terms(self) -> tuple[Settings, int, int | None]:
        """Settings and seeds, which a request may change and a refused one must not."""
        return self.settings, self.seed, self.next_seed

    @terms.setter
    def terms(self, terms: tuple[Settings, int, int | None]) -> None:
        self.settings, self.seed, self.next_seed = terms

    def begin(self, given: Settings) -> None:
        """Let the next step begin an episode. Doing so twice before that step is as once.

        Args:
            given: settings that differ from those of the episode before. Without a seed the sequence of random numbers
                goes on, unless a failure has ended it.
        """
        self.begins, self.is_lost = True, False
        self.settings = self.settings.updated(given)
        if given.seed is not None:
            self.seed = self.next_seed = given.seed
        elif self.next_seed is None and self.opened_window == 0:
            if self.episodes:
                self.seed = secrets.randbits(63)
            self.next_seed = self.seed

    def note_begin(self) -> None:
        """Note that the first step of an episode has been taken."""
        if self.next_seed is not None or not self._has_pages(self.settings.window):
            self.opened_window = self.settings.window
        self.begins, self.episode_seed, self.next_seed = False, self.next_seed, None
        self.episodes += 1
        self.steps, self.return_ = 0, 0.0

    def note_failure(self) -> None:
        """Note that a failure has ended the episode, and the engine's session with it."""
        self.is_lost, self.opened_window = True, 0

    def settings_of_step(self, given: Settings) -> Settings:
        """Return the settings of a step in the course of an episode. A window holds for this step alone.

        Args:
            given: settings of the request.

        Raises:
            InputError: a setting can only be given at the start of an episode.
            SessionError: a failure has ended the episode.
        """
        if self.is_lost:
            raise SessionError("session: expected the start of an episode, since a failure has ended the last one")
        if given.is_empty:
            return self.settings
        if given.seed is not None and given.seed != self.seed:
            was = "none was given" if self.settings.seed is None else f"it was {self.settings.seed}"
            raise InputError(
                f"seed: expected one at the start of an episode, where {was}, got {given.seed} in its course"
            )
        if given.window is not None and not self._has_pages(given.window):
            raise InputError(
                f"context_window: expected at most {self.opened_window}, for which this session has memory, got "
                f"{given.window}; start a new episode"
            )
        settings = self.settings.updated(given)
        self.settings = replace(settings, window=self.settings.window)
        return settings

    def _has_pages(self, window: int | None) -> bool:
        """Return True if the engine's session has pages for a window; None is the model's longest."""
        opened = self.opened_window
        return opened is None or (window is not None and window <= opened)


@dataclass(frozen=True, slots=True)
class Detached:
    """Owner of a session whose connection has gone, until another connection takes it.

    Attributes:
        token: of the session.
        since: when the connection went, in seconds of `time.monotonic`.
    """

    token: str
    since: float


class SessionRegistry:
    """The open sessions. Used by the event loop only.

    Attributes:
        max_sessions: most that are open at once.
        refuses_new: no more are opened, since the server ends.
    """

    def __init__(self, max_sessions: int) -> None:
        self.max_sessions = max_sessions
        self.refuses_new = False
        self._open: dict[Hashable, dict[str, ServedSession]] = {}
        self._why_gone: dict[Hashable, dict[str, str]] = {}
        """Owner -> name of a session that it has no more -> reason."""
        self._by_token: dict[str, ServedSession] = {}
        self._count = 0
        self._last_number = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[ServedSession]:
        return (session for own in list(self._open.values()) for session in list(own.values()))

    @property
    def has_room(self) -> bool:
        """True if a session can be opened, in place of a detached one if need be."""
        if self.refuses_new:
            return False
        return self._count < self.max_sessions or any(not session.lock.locked() for session in self.detached)

    @property
    def detached(self) -> list[ServedSession]:
        """Sessions whose connection has gone, those that went first in front."""
        found = [(s.owner.since, s.number, s) for s in self._by_token.values() if isinstance(s.owner, Detached)]
        return [session for _, _, session in sorted(found)]

    def find_token(self, token: str) -> ServedSession | None:
        """Return the open session of a token; None if there is none."""
        return self._by_token.get(token)

    def of(self, owner: Hashable) -> list[ServedSession]:
        """Return the sessions of an owner."""
        return list(self._open.get(owner, {}).values())

    def find(self, owner: Hashable, name: str) -> ServedSession | None:
        """Return an open session; None if there is none of this name."""
        own = self._open.get(owner)
        return None if own is None else own.get(name)

    def open(self, owner: Hashable, name: str, settings: Settings, is_start: bool) -> ServedSession:
        """Open a session.

        Args:
            owner: of the session.
            name: within the owner.
            settings: of its episodes as far as requests give none.
            is_start: the request begins an episode. Another one is refused if the owner's session of this name has
                gone, since it would go on with that one's episode.

        Raises:
            OverloadError: there is no room, or the server ends.
            SessionError: a session of this name was closed since it was idle, or taken over.
        """
        if self.refuses_new:
            raise OverloadError("server: expected no new session, since it ends; connect to another")
        if self._count >= self.max_sessions:
            raise OverloadError(
                f"server: expected at most {self.max_sessions} sessions (--max_sessions), got one more; repeat it later"
            )
        why_gone = self._why_gone.get(owner, {})
        if name in why_gone and not is_start:
            raise SessionError(
                f"session_id: expected a session that is open, got {name!r}, which {why_gone[name]}; start a new "
                "episode"
            )
        why_gone.pop(name, None)
        self._last_number += 1
        self._count += 1
        session = ServedSession(owner, name, self._last_number, settings)
        self._open.setdefault(owner, {})[name] = session
        return session

    def set_token(self, session: ServedSession, token: str) -> None:
        """Give an open session a token, which no other open one has."""
        session.token = token
        self._by_token[token] = session

    def move(self, session: ServedSession, owner: Hashable, name: str) -> None:
        """Give an open session to another owner, who has none of this name."""
        self._take_from_owner(session)
        if not isinstance(owner, Detached):
            self._remember(session, "another connection has taken over")
        session.owner, session.name = owner, name
        self._open.setdefault(owner, {})[name] = session

    def remove(self, session: ServedSession, is_expired: bool = False) -> None:
        """Remove a session, which is then closed. Removing twice does nothing.

        Args:
            session: to remove.
            is_expired: it was idle for too long; its owner is told so if it names the session again.
        """
        if session.closed:
            return
        session.closed = True
        self._count -= 1
        self._take_from_owner(session)
        if session.token is not None:
            del self._by_token[session.token]
        if is_expired:
            self._remember(session, "was closed since it was idle")

    def _take_from_owner(self, session: ServedSession) -> None:
        own = self._open[session.owner]
        del own[session.name]
        if not own:
            del self._open[session.owner]

    def _remember(self, session: ServedSession, reason: str) -> None:
        """Remember why an owner has a session no more, until `forget`; not if the owner has gone itself."""
        if isinstance(session.owner, Detached):
            return
        names = self._why_gone.setdefault(session.owner, {})
        names[session.name] = reason
        if len(names) > _MOST_REMEMBERED:
            del names[next(iter(names))]

    def forget(self, owner: Hashable) -> None:
        """Forget why an owner has some sessions no more. It is called when the owner has gone."""
        self._why_gone.pop(owner, None)

    def idle(self, seconds: float) -> list[ServedSession]:
        """Return the sessions that have had no request for some seconds, and answer none now."""
        before = time.monotonic() - seconds
        return [session for session in self if session.last_used < before and not session.lock.locked()]
