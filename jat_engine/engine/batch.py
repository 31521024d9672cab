"""`AgentBatch`: many agents that step together, as arrays, for vector environments."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from time import perf_counter_ns
from typing import Any, NamedTuple

import numpy as np
import torch

from ..backends import Backend, BatchPlan
from ..errors import InputError, SessionError
from ..observation import ActionSpace, Limits, Observations, check_same_kind, parse_action_space, parse_observations
from .kv_cache import BatchPages
from .missions import Missions
from .stats import CallTimes


class _LastStep(NamedTuple):
    """What the next step feeds again. actions: float32 [N, A] or int64 [N]."""

    observations: Observations
    embeddings: Any
    space: ActionSpace
    actions: np.ndarray


class AgentBatch:
    """N agents that see and do the same kind of thing, one call a step: arrays in, arrays out.

    Made by `JatEngine.open_batch`. Beside sessions of their own, agents of a batch cost next to no Python each. Each
    has its own episode and can be reset by itself. Bad input of one refuses the call and leaves all as they were. Use
    it from one thread at a time.
    """

    def __init__(
        self,
        backend: Backend,
        limits: Limits,
        missions: Missions,
        lock: AbstractContextManager[Any],
        pages: BatchPages,
        limit: int,
        generator: torch.Generator | None,
        finalize: Callable[[BatchPages], object],
        calls: CallTimes,
    ) -> None:
        self.num_agents = len(pages.num_tokens)
        self.closed = False
        self._backend = backend
        self._limits = limits
        self._missions = missions
        self._lock = lock
        self._pages = pages
        self._limit = limit
        self._generator = generator
        self._calls = calls
        self._last: _LastStep | None = None
        self._has_last = np.zeros(self.num_agents, bool)
        self._is_computed = np.zeros(self.num_agents, bool)  # whether s_{t-1}, as the next step needs it, is cached
        self._noise = np.empty((0, 0), np.float32)  # drawn for a step that was refused
        self._finalizer = weakref.finalize(self, finalize, pages)

    @property
    def num_cached_tokens(self) -> np.ndarray:
        """int64 [N]: tokens, two a step, that each agent's next step looks back on."""
        return self._pages.num_tokens.copy()

    def get_next_actions(
        self,
        *,
        continuous_observations: Any = None,
        discrete_observations: Any = None,
        text_observations: Sequence[str] | None = None,
        image_observations: Any = None,
        action_space: Any = None,
        rewards: Any = None,
        deterministic: bool = False,
        return_predictions: bool = False,
    ) -> Any:
        """One step of all agents.

        Args:
            continuous_observations: [N, X] numbers.
            discrete_observations: [N, max_discrete_value] integers; 64 fewer with `text_observations`.
            text_observations: N missions, each truncated to 64 tokens.
            image_observations: uint8 [N, 84, 84, 4].
            action_space: of one agent: `gymnasium.spaces.Box` of shape (A,), or `Discrete(n)`.
            rewards: [N], of the previous actions; None counts as zeros.
            deterministic: take the most likely of discrete actions instead of sampling.
            return_predictions: also return what the actions were chosen from.

        Returns:
            float32 [N, A], never clipped, or int64 [N]. With `return_predictions`, `(actions, predictions)`, the
            latter float32 [N, A], or float32 [N, n], the logits.

        Raises:
            InputError: a field is not what the model takes. No agent has taken a step.
            SessionError: the call does not fit the episodes so far; `reset()` starts new ones.
        """
        begin_ns = perf_counter_ns()
        for name, value in (("deterministic", deterministic), ("return_predictions", return_predictions)):
            if not isinstance(value, bool | np.bool_):
                raise InputError(f"{name}: expected True or False, got {value!r}")
        observations = parse_observations(
            self._limits,
            self.num_agents,
            continuous_observations=continuous_observations,
            discrete_observations=discrete_observations,
            text_observations=text_observations,
            image_observations=image_observations,
            rewards=rewards,
        )
        space = parse_action_space(self._limits, action_space)
        missions = None
        if observations.texts is not None:
            missions = np.stack([self._missions.encode(text) for text in observations.texts])
        with self._lock:
            self._check_open()
            last = self._last if self._has_last.any() else None
            if last is not None:
                check_same_kind(last.observations, last.space, observations, space)
            plan = self._plan(observations, missions, space, last, deterministic)
            values, choices, embeddings = self._backend.decode_batch(plan)
            finite = np.isfinite(values).all(axis=1)
            if not finite.all():
                bad = np.flatnonzero(~finite)
                raise InputError(
                    f"{observations.fields}: expected values of a size the model can compute with, got predictions "
                    f"that are not finite for agents {bad[:8].tolist()}"
                )
            actions = values if space.kind == "continuous" else choices
            if plan.noise is not None:
                self._noise = np.empty((0, 0), np.float32)
            self._advance(_LastStep(observations, embeddings, space, actions))
            self._calls.add(begin_ns)
        actions = actions.copy()  # the batch keeps its own
        return (actions, values.copy()) if return_predictions else actions

    def reset(self, which: Any = None) -> None:
        """Start new episodes: of all agents, or of those that a bool mask [N] or a sequence of indices names."""
        if which is None:
            which = np.ones(self.num_agents, bool)
        try:
            index = np.asarray(which)
        except ValueError:  # ragged
            index = np.empty((), object)
        if index.dtype == bool and index.shape == (self.num_agents,):
            mask = index
        elif index.ndim == 1 and (
            index.size == 0
            or (index.dtype.kind in "iu" and int(index.min()) >= 0 and int(index.max()) < self.num_agents)
        ):
            mask = np.zeros(self.num_agents, bool)
            mask[index.astype(np.int64)] = True
        else:
            raise InputError(
                f"which: expected None, a bool mask of {self.num_agents}, or indices below that, got {which!r}"
            )
        with self._lock:
            self._check_open()
            self._pages.clear(mask)
            self._has_last &= ~mask
            self._is_computed &= ~mask

    def close(self) -> None:
        """Give the batch's room in the KV cache back. Closing twice does nothing."""
        with self._lock:
            if not self.closed:
                self._finalizer.detach()
                self._pages.close()
                self.closed, self._last = True, None

    def __enter__(self) -> AgentBatch:
        self._check_open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self.closed:
            raise SessionError("batch: expected an open one, got one that was closed")

    def _plan(
        self,
        observations: Observations,
        missions: np.ndarray | None,
        space: ActionSpace,
        last: _LastStep | None,
        deterministic: bool,
    ) -> BatchPlan:
        """Each agent's new tokens: [s_0], or [s_{t-1}, a_{t-1}, s_t] less what is computed already."""
        pages, computed = self._pages, self._has_last & self._is_computed
        noise = None
        if space.kind == "discrete" and not deterministic:
            if self._noise.shape[1] != space.size:
                drawn = torch.empty(self.num_agents, space.size).exponential_(generator=self._generator)
                self._noise = drawn.log_().numpy()
            noise = self._noise
        return BatchPlan(
            context_lens=pages.num_tokens + computed,
            start_offsets=pages.start_offsets,
            page_table=pages.table,
            modality=observations.modality,
            values=observations.values,
            missions=missions,
            rewards=observations.rewards,
            space=space,
            noise=noise,
            feeds_observation=self._has_last & ~self._is_computed,
            feeds_action=self._has_last,
            last_embeddings=last.embeddings if last else None,
            last_actions=last.actions if last else np.zeros(0),
            last_space=last.space if last else space,
        )

    def _advance(self, step: _LastStep) -> None:
        """Take the step's tokens in. s_t is not one of them: it is fed again, with its action."""
        dropped = self._pages.keep(self._pages.num_tokens + 2 * self._has_last, self._limit)
        # s_t lies behind the kept tokens. It is what the next step would compute unless its position changes.
        self._is_computed = ~dropped
        self._has_last = np.ones(self.num_agents, bool)
        self._last = step
