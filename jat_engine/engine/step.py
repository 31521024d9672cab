"""An agent's step: select the tokens to feed, run the backend, commit the result.

The published agent feeds [s_{t-1}, a_{t-1}, s_t, placeholder action] at positions C, C + 1, ... behind its C cached
tokens, reads the prediction at s_t, and drops the last two tokens from the cache again. Nothing attends to the
placeholder, so it is not fed here. While no token has been dropped at the old end, s_{t-1} keeps the position it had in
the previous step: its keys and values, still in the cache behind the kept tokens, are reused, and two tokens are fed.
Once the window is full, s_{t-1} moves to another position and three tokens are fed. Published results depend on that.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from ..action_options import ActionOptions, ActionRule
from ..backends import Backend, Group, LastStep, Result
from ..backends.base import PAGE_SIZE, STEP_TOKENS, QuickStep
from ..config import JatConfig
from ..errors import InputError, SessionError
from ..observation import (
    ActionSpace,
    Limits,
    Observations,
    check_same_episode,
    not_finite,
    parse_action_space,
    parse_observation,
    parse_observations,
)
from .fork_lock import make_lock
from .kv_cache import CachedTokens, CacheStats, PagePool, Pages, keep_newest
from .missions import Missions
from .sampling import Sampler, choose
from .stats import CallTimes

_SINGLE = tuple((number,) for number in range(PAGE_SIZE))
"""Sequences of one small number, shared: a new list per step counts towards a run of Python's garbage collector."""


class EpisodesState(NamedTuple):
    """State of episodes between two steps. Not changed after it is made: a step replaces it as a whole.

    Attributes:
        cached: location of the cached tokens.
        num_again: tokens that the next step feeds before s_t, see `Group`; int64 [N] for N agents.
        last: the previous step; None if no agent has taken one.
        num_draws: draws of random numbers that were used.
        begins: the next step is some agent's first in its episode.
    """

    cached: CachedTokens
    num_again: Any
    last: LastStep | None
    num_draws: int
    begins: bool

    @property
    def context_len(self) -> Any:
        """Tokens in the cache before the first one that the next step feeds."""
        # If one token is fed again, that is a_{t-1}; s_{t-1} is in the cache already, behind the kept tokens.
        return self.cached.num_tokens + (self.num_again == 1)

    def after(self, window: int, page_size: int, last: LastStep, has_drawn: bool) -> EpisodesState:
        """Return the state after a step. All of its tokens are kept, except s_t, which the next step feeds again.

        Args:
            window: how many of the newest cached tokens the next step attends to.
            page_size: tokens per page.
            last: the step.
            has_drawn: a draw of random numbers was used.
        """
        num_tokens = self.cached.num_tokens + 2 * (self.num_again > 0)
        cached, dropped = keep_newest(self.cached, num_tokens, window, page_size)
        return EpisodesState(cached, 1 + dropped, last, self.num_draws + has_drawn, False)


@dataclass(slots=True)
class Request:
    """The checked input of one step of some `Episodes`.

    Attributes:
        episodes: that take the step.
        observations: one for each agent.
        missions: tokens of the missions, [N] of int64 [64]; None without texts.
        space: to choose actions from.
        deterministic: take the most likely choice.
        window: how many of the newest cached tokens the next step attends to.
        rule: by which actions are chosen or clipped; None for the published rule.
    """

    episodes: Episodes
    observations: Observations
    missions: Sequence[np.ndarray] | np.ndarray | None
    space: ActionSpace
    deterministic: bool
    window: int
    rule: ActionRule | None


class Episodes:
    """The running episode of one agent, or those of N agents that step together.

    A step is atomic: `commit` ends it with a single assignment. An exception before that, Ctrl-C included, leaves the
    episodes as they were before the step; an exception after it, as they are after the step.

    Attributes:
        pages: of the KV cache.
        window: how many of the newest cached tokens a step attends to, unless the call gives another window.
        num_agents: N; None for a single agent, whose state has plain numbers.
        uses_first_reward: use the reward that comes with an episode's first observation.
        state: between two steps.
        closed: True if no more steps can be taken.
    """

    def __init__(
        self,
        pages: Pages,
        generator: torch.Generator | None,
        window: int,
        num_agents: int | None,
        uses_first_reward: bool = False,
    ) -> None:
        """Begin episodes without tokens.

        Args:
            pages: of the KV cache, of one agent or of N.
            generator: for sampling discrete actions; None for torch's global generator.
            window: how many of the newest cached tokens a step attends to.
            num_agents: N, or None for a single agent.
            uses_first_reward: as the attribute.
        """
        self.pages = pages
        self.window = window
        self.num_agents = num_agents
        self.uses_first_reward = uses_first_reward
        self.closed = False
        self._sampler = Sampler(generator, num_agents or 1)
        none_yet: Any = 0 if num_agents is None else np.zeros(num_agents, np.int64)
        self.state = EpisodesState(pages.empty, none_yet, None, 0, begins=True)

    @property
    def num_used_pages(self) -> int:
        """Pages that hold tokens: the kept ones, and s_{t-1} behind them."""
        cached, num_again, *_ = self.state
        return self.pages.num_used(cached.start_offset, cached.num_tokens + (num_again > 0))

    def check_open(self) -> None:
        """Check that steps can be taken.

        Raises:
            SessionError: the episodes are closed.
        """
        if self.closed:
            what = "session" if self.num_agents is None else "batch"
            raise SessionError(f"{what}: expected an open one, got one that was closed")

    def plan(self, request: Request) -> Group:
        """Return the backend's input for a step. Changes no state."""
        state = self.state
        (table, start_offset, _), num_again, last, _, _ = state
        noise = self.draw(state, request.space, request.deterministic)
        context_len = state.context_len
        fed: tuple[Any, Any, Any, Any] = num_again, context_len, start_offset, table
        if self.num_agents is None:
            fed = _SINGLE[num_again], [context_len], _SINGLE[start_offset], [table]
        return Group(self.num_agents or 1, request.observations, request.missions, request.space, noise, *fed, last)

    def draw(self, state: EpisodesState, space: ActionSpace, deterministic: bool) -> np.ndarray | None:
        """Return the noise of a step, float32 [N, n]; None if its actions are not sampled."""
        if space.kind == "continuous" or deterministic:
            return None
        return self._sampler.draw(state.num_draws, space.size)

    def generator_state(self) -> np.ndarray | None:
        """Return the state of the generator that the next step draws from, uint8; None for torch's global generator."""
        return self._sampler.state_before(self.state.num_draws)

    def commit(self, request: Request, group: Group, result: Result) -> Any:
        """Complete a step.

        Returns:
            The actions: float32 [N, A], or [N] integers.

        Raises:
            SessionError: a signal handler has closed the episodes within the step.
        """
        if self.closed:
            self.check_open()
        actions = result.values if result.choices is None else result.choices
        if request.rule is not None:
            is_discrete, rule = result.choices is not None, request.rule
            actions = choose(result.values, group.noise, rule) if is_discrete else rule.clip(result.values)
        last = LastStep(request.observations, result.embeddings, request.space, actions)
        self.state = self.state.after(request.window, self.pages.page_size, last, group.noise is not None)
        return actions

    def clear(self, which: np.ndarray | None = None) -> None:
        """Begin new episodes. The sequence of random numbers continues.

        Args:
            which: bool [N], the agents that begin; None for all.
        """
        cached, num_again, last, num_draws, begins = self.state
        if which is None or which.all():
            self.state = EpisodesState(
                self.pages.empty._replace(table=cached.table), num_again * 0, None, num_draws, True
            )
            return

        kept = ~which
        cached = CachedTokens(cached.table, cached.start_offset * kept, cached.num_tokens * kept)
        num_again = num_again * kept
        last = last if num_again.any() else None
        self.state = EpisodesState(cached, num_again, last, num_draws, begins or bool(which.any()))

    def last_step(self) -> LastStep:
        """Return the previous step.

        Raises:
            SessionError: no step has been taken in these episodes, or they are closed.
        """
        self.check_open()
        if self.state.last is None:
            raise SessionError("action: expected after a step, got it at the beginning of an episode")
        return self.state.last

    def force(self, actions: Any) -> None:
        """Replace the actions of the previous step.

        Args:
            actions: float32 [N, A], or [N] integers.

        Raises:
            SessionError: see `last_step`.
        """
        last = self.last_step()
        self.state = self.state._replace(last=last._replace(actions=actions))

    def close(self) -> None:
        """Forget the episodes and give the pages back. Closing twice does nothing."""
        self.closed = True
        self.clear()
        self.pages.close()


_CLOSED = "engine: expected an open one, got one that was closed"

_WAY_SECONDS = 20e-6
"""Sleep of a text's thread between two looks at whether agents wait."""

_LONGEST_WAY = 0.1
"""Seconds after which a text's thread goes on although agents seem to wait."""


class StepRunner:
    """Checks inputs and runs steps for all sessions and batches of an engine.

    Attributes:
        backend: computes the steps.
        limits: sizes that inputs may have.
        max_window: the most tokens an agent keeps.
        lock: held during a step, and while counters are read. A statement that holds it for a step is one line: then no
            line follows the step at which an exception, if a tracer raises one, would leave it locked. The same thread
            can take it again: a signal handler may run within a step; see `one_step`.
        calls: counters for `JatEngine.stats`.
        closed: True if nothing can be opened any more.
        waiting: an entry for each agent's call that waits for the lock: appended before, removed once it has the lock.
    """

    def __init__(self, config: JatConfig, backend: Backend, num_pages: int, missions: Missions) -> None:
        self.config = config
        self.backend = backend
        self.limits = Limits.of(config)
        self.max_window = config.max_context_tokens
        self.lock = make_lock()
        self.calls = CallTimes()
        self.closed = False
        self.waiting: deque[None] = deque()
        self._step_lock = threading.Lock()
        self._missions = missions
        self._pool = PagePool(num_pages, backend.page_size, backend.page_bytes)
        self._open: weakref.WeakSet[Episodes] = weakref.WeakSet()
        self._text_pages: weakref.WeakSet[Pages] = weakref.WeakSet()

    def open_text(self, max_tokens: int) -> Pages:
        """Allocate the pages of a text. The caller holds the lock.

        Args:
            max_tokens: the most tokens and image patches that it has in the cache.

        Raises:
            CacheFullError: the KV cache has too few free pages.
        """
        pages = Pages(self._pool, max_tokens)
        self._text_pages.add(pages)
        return pages

    def enter(self) -> None:
        """Remove an entry of `waiting`. The caller holds the lock."""
        try:
            self.waiting.pop()
        except IndexError:  # `give_way` has given up on it
            return

    def give_way(self) -> None:
        """Wait until no agent's call waits for the lock, which it would not get between two steps of a text.

        A lock goes to whoever asks first after its release: the thread that has released it, not one that has to wake.
        """
        waiting, end = self.waiting, time.monotonic() + _LONGEST_WAY
        while waiting:
            time.sleep(_WAY_SECONDS)
            if time.monotonic() > end:  # a call ended before it had the lock, or cannot run
                waiting.clear()

    def open(
        self,
        window: int,
        generator: torch.Generator | None,
        num_agents: int | None = None,
        uses_first_reward: bool = False,
    ) -> Episodes:
        """Allocate pages and begin episodes. Episodes dropped without `close` give their pages back as well.

        Args:
            window: how many of the newest cached tokens a step attends to.
            generator: for sampling discrete actions; None for torch's global generator.
            num_agents: N, or None for a single agent.
            uses_first_reward: use the reward that comes with an episode's first observation.

        Raises:
            CacheFullError: the KV cache has too few free pages.
            SessionError: the engine is closed.
        """
        with self.lock:
            self.check_open()
            pages = Pages(self._pool, window + STEP_TOKENS, num_agents)
            episodes = Episodes(pages, generator, window, num_agents, uses_first_reward)
            self._open.add(episodes)
        return episodes

    def check_open(self) -> None:
        """Check that the engine is open.

        Raises:
            SessionError: it is closed.
        """
        if self.closed:
            raise SessionError(_CLOSED)

    @property
    def is_stepping(self) -> bool:
        """True within a step: one of this thread, which holds `lock`. The caller holds it."""
        return self._step_lock.locked()

    def check_idle(self) -> None:
        """Check that this call does not come from within a step of the engine. The caller holds the lock.

        A step that a signal handler took within another would leave tokens in the cache that the other one overwrites.

        Raises:
            SessionError: it does.
        """
        if self.is_stepping:
            raise SessionError(
                "engine: expected one step at a time, got a call from within a step, such as a signal handler's; let "
                "the handler set a flag, and call the engine after the step"
            )

    def one_step(self) -> threading.Lock:
        """Return a lock to be held, behind `lock`, during a step.

        Raises:
            SessionError: see `check_idle`.
        """
        lock = self._step_lock
        if lock.locked():
            self.check_idle()
        return lock

    def close(self) -> None:
        """Close all sessions and batches, and refuse new ones. Closing twice does nothing."""
        with self.lock:
            self.closed = True
            for episodes in list(self._open):
                episodes.close()
            if hasattr(self, "backend"):
                del self.backend  # its memory and threads, also if somebody keeps a session

    def cache_stats(self) -> CacheStats:
        """Return the KV cache's counters. Call it under the lock."""
        used = sum(episodes.num_used_pages for episodes in self._open if not episodes.closed)
        used += sum(pages.num_pages for pages in self._text_pages)
        pool = self._pool
        return CacheStats(
            total=pool.num_pages,
            used=used,
            free=pool.num_pages - used,
            reserved=pool.num_reserved,
            peak=pool.peak,
            page_size=pool.page_size,
            page_bytes=pool.page_bytes,
        )

    def parse(
        self,
        episodes: Episodes,
        observation: Mapping[str, Any],
        reward: Any,
        action_space: Any,
        deterministic: bool,
        window: int | None = None,
        options: ActionOptions | None = None,
    ) -> Request:
        """Check the input of a step. The caller holds the lock.

        Args:
            episodes: that take the step.
            observation: values by `OBSERVATION_KEYS` for one agent, arrays by `OBSERVATIONS_KEYS` for N.
            reward: of the previous action; [N] for N agents.
            action_space: of one agent.
            deterministic: take the most likely choice.
            window: how many of the newest cached tokens the next step attends to; None for the episodes' own.
            options: that restrict the choice of actions.

        Raises:
            InputError, SessionError: see `JatEngine.get_next_action`.
        """
        if episodes.closed:
            episodes.check_open()
        state = episodes.state
        if episodes.num_agents is None:
            observations = parse_observation(self.limits, observation, reward)
        else:
            observations = parse_observations(self.limits, episodes.num_agents, observation, reward)
        if state.begins and not episodes.uses_first_reward:
            # Nothing has been rewarded yet. A vector environment that starts episodes by itself returns the first
            # observation together with the last reward of the episode before.
            rewards = np.where(np.atleast_1d(state.num_again) > 0, observations.rewards, np.float32(0))
            observations = replace(observations, rewards=rewards)
        space = parse_action_space(self.limits, action_space)
        last = state.last
        if last is not None:
            check_same_episode(last.observations, last.space, observations, space)

        missions = None
        if observations.texts is not None:
            missions = [self._missions.encode(text) for text in observations.texts]
        if window is None:
            window = episodes.window
        rule = None
        if options is not None:
            rule = options.bind(space, action_space, episodes.num_agents)
            deterministic = deterministic or rule.is_greedy
        return Request(episodes, observations, missions, space, deterministic, window, rule)

    def run_quick(
        self,
        episodes: Episodes,
        observation: Mapping[str, Any],
        reward: Any,
        action_space: Any,
        deterministic: bool,
        window: int | None,
    ) -> tuple[Any, np.ndarray] | None:
        """Take the usual step of one agent: a native call reads the observation, another computes and chooses.

        Its results are those of `parse` and `run`, bit for bit. What is not usual, errors of the observation included,
        is left to those: then nothing has changed, and the random numbers of the step are still to be used.

        Args:
            episodes: of a single agent.
            observation: see `parse`, as the next four.
            reward: as above.
            action_space: as above.
            deterministic: as above.
            window: as above.

        Returns:
            The action, a list of floats or an int, and the prediction; None if the step has not been taken.

        Raises:
            InputError: the action space is not one; the observation is right.
            SessionError: a signal handler has closed the session within the step.
        """
        state = episodes.state
        last = state.last
        if last is None:  # of a closed session, too
            return None
        quick = last.quick_step
        if quick is None:
            quick = self.find_quick_step(last)
            if quick is None:
                return None
            last = last._replace(quick_step=quick)
            state = state._replace(last=last)
        get, texts = observation.get, last.observations.texts
        fields = get("continuous_observation"), get("discrete_observation"), get("text_observation")
        text = None if texts is None else texts[0]
        if not quick.read(*fields, get("image_observation"), reward, text):
            return None
        space = parse_action_space(self.limits, action_space)
        if space != last.space:
            return None
        mission = None if text is None else self._missions.encode(text)
        noise = episodes.draw(state, space, deterministic)

        outcome = quick.run(state, mission, noise, episodes.window if window is None else window)
        if outcome is None:
            return None
        if episodes.closed:
            episodes.check_open()
        episodes.state = outcome[2]
        return outcome[:2]

    def find_quick_step(self, last: LastStep) -> QuickStep | None:
        """Return what takes steps of the same kind as the last one, None if the backend has no such thing."""
        find = getattr(getattr(self, "backend", None), "quick_step", None)
        if find is None:
            return None
        quick: QuickStep = find(last.observations.modality, last.observations.num_values, last.space)
        return quick

    def run(self, requests: Sequence[Request]) -> list[tuple[Any, Any] | InputError]:
        """Take one step for every request, all in one pass over the weights. The caller holds the lock.

        Returns:
            For each request `(actions, predictions)`; predictions are the action vectors, float32 [N, A], or the
            logits, float32 [N, n]. If predictions are not finite, an error instead; that request's agents have then
            not taken their step.

        Raises:
            SessionError: a signal handler has closed the engine, or one of the sessions.
        """
        if not requests:
            return []
        backend: Backend | None = getattr(self, "backend", None)
        if backend is None:
            raise SessionError(_CLOSED)
        groups = [request.episodes.plan(request) for request in requests]
        outcomes: list[tuple[Any, Any] | InputError] = []
        for request, group, result in zip(requests, groups, backend.step(groups), strict=True):
            finite = result.finite
            if finite.all() if isinstance(finite, np.ndarray) else all(finite):
                outcomes.append((request.episodes.commit(request, group, result), result.values))
            else:
                outcomes.append(not_finite(request.observations, result.finite))
        return outcomes
