"""The agent's side of a run: a session for each running episode, and actions for any number of them at once."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from ..backends.base import STEP_TOKENS
from ..engine.engine import JatEngine
from ..envs import Task
from ..errors import BatchError
from .slots import Observed

if TYPE_CHECKING:
    from ..model.modeling import JatModel
    from ..model.processing import JatProcessor


@dataclass(frozen=True)
class ActOptions:
    """Options of the choice of actions; see `JatEngine.get_next_action`.

    Attributes:
        deterministic: take the most likely discrete action instead of sampling.
        temperature, top_k: of sampling discrete actions.
        action_clip: "box" to clip continuous actions.
    """

    deterministic: bool = False
    temperature: float | None = None
    top_k: int | None = None
    action_clip: str | None = None


class Agents(Protocol):
    """Interface of `EngineAgents` and `ModelAgents`.

    Attributes:
        seconds: spent in `act`.
        steps: actions that were chosen.
    """

    seconds: float
    steps: int

    def room(self, tasks: Iterable[Task]) -> int | None:
        """Return how many episodes of any of these tasks can be open at a time; None if there is no limit."""
        ...

    def open(self, key: Hashable, task: Task, seed: int) -> None:
        """Begin an episode, with random numbers of its own from `seed` (sampling)."""
        ...

    def close(self, key: Hashable) -> None:
        """Forget an episode. One that is not open is ignored."""
        ...

    def act(self, keys: Sequence[Hashable], observed: Sequence[Observed]) -> list[Any]:
        """Return an action for each episode, or the exception for those that none can be chosen for."""
        ...


@dataclass(frozen=True)
class LoadedAgents:
    """The agent's side of a run on one machine.

    Attributes:
        agents: choose the actions.
        settings: of a run, as far as they are the machine's and the agent's: instruction set, versions, backend, ...
        device: description of its device, for people.
    """

    agents: Agents
    settings: Mapping[str, Any]
    device: str


class EngineAgents:
    """Sessions of an engine. All actions are chosen in one pass over the weights, each as if its session were alone.

    Args:
        engine: with room for a session for each episode that runs at a time.
        options: of the choice of actions.
    """

    def __init__(self, engine: JatEngine, options: ActOptions) -> None:
        self.seconds, self.steps = 0.0, 0
        self._engine, self._options = engine, options
        self._sessions: dict[Hashable, Any] = {}
        self._spaces: dict[Hashable, Any] = {}

    def room(self, tasks: Iterable[Task]) -> int | None:
        """Return how many sessions the KV cache has room for."""
        cache = self._engine.cache_stats
        window = min(self._engine.config.max_context_tokens, max(task.context_window for task in tasks))
        pages = math.ceil((window + STEP_TOKENS + cache.page_size - 1) / cache.page_size)
        return (cache.total - cache.reserved) // pages

    def open(self, key: Hashable, task: Task, seed: int) -> None:
        """Open a session with the task's window. Raises `CacheFullError` if the KV cache has no room for it."""
        self.close(key)
        self._sessions[key] = self._engine.open_session(task.context_window, seed)

    def close(self, key: Hashable) -> None:
        """Close the session of an episode."""
        session = self._sessions.pop(key, None)
        if session is not None:
            session.close()

    def act(self, keys: Sequence[Hashable], observed: Sequence[Observed]) -> list[Any]:
        """Return an action for each episode, or the exception for those that none can be chosen for."""
        began = time.perf_counter()
        for key, one in zip(keys, observed, strict=True):
            if one.action_space is not None:
                self._spaces[key] = one.action_space
        options = self._options
        masks = [one.action_mask for one in observed]
        try:
            actions = self._engine.get_next_actions(
                [self._sessions[key] for key in keys],
                [one.observation for one in observed],
                [one.reward for one in observed],
                [self._spaces[key] for key in keys],
                options.deterministic,
                action_masks=None if all(mask is None for mask in masks) else masks,
                temperature=options.temperature,
                top_k=options.top_k,
                action_clip=options.action_clip,
            )
        except BatchError as error:
            actions = [error.errors.get(index, action) for index, action in enumerate(error.actions)]
        self.seconds += time.perf_counter() - began
        self.steps += len(keys)
        return actions


class ModelAgents:
    """Episodes of a `JatModel`, which takes their steps one after the other.

    Args:
        model: the model.
        processor: its processor.
        options: of the choice of actions.
    """

    def __init__(self, model: JatModel, processor: JatProcessor, options: ActOptions) -> None:
        self.seconds, self.steps = 0.0, 0
        self._model, self._processor, self._options = model, processor, options
        self._sessions: dict[Hashable, Any] = {}
        self._spaces: dict[Hashable, Any] = {}
        self._windows: dict[Hashable, int] = {}
        self._random_states: dict[Hashable, torch.Tensor] = {}

    def room(self, tasks: Iterable[Task]) -> int | None:
        """Return None: each episode has a cache of its own."""
        return None

    def open(self, key: Hashable, task: Task, seed: int) -> None:
        """Begin an episode with the task's window."""
        from ..model.session import ModelSession

        self._sessions[key], self._windows[key] = ModelSession(self._model), task.context_window
        self._random_states[key] = torch.Generator().manual_seed(seed).get_state()

    def close(self, key: Hashable) -> None:
        """Forget an episode."""
        self._sessions.pop(key, None)

    def act(self, keys: Sequence[Hashable], observed: Sequence[Observed]) -> list[Any]:
        """Return an action for each episode, or the exception for those that none can be chosen for."""
        began = time.perf_counter()
        actions = []
        for key, one in zip(keys, observed, strict=True):
            if one.action_space is not None:
                self._spaces[key] = one.action_space
            try:
                actions.append(self._act(key, one))
            except ValueError as error:  # InputError, SessionError
                actions.append(error)
        self.seconds += time.perf_counter() - began
        self.steps += len(keys)
        return actions

    def _act(self, key: Hashable, one: Observed) -> Any:
        """Choose an action, with the episode's own random numbers in place of torch's global ones."""
        space, options = self._spaces[key], self._options
        given: Mapping[str, Any] = (
            {"temperature": options.temperature, "top_k": options.top_k, "action_mask": one.action_mask}
            if hasattr(space, "n")
            else {"action_clip": options.action_clip}
        )
        before = torch.get_rng_state()
        torch.set_rng_state(self._random_states[key])
        try:
            return self._sessions[key].get_next_action(
                self._processor,
                **one.observation,
                reward=one.reward,
                action_space=space,
                deterministic=options.deterministic,
                context_window=self._windows[key],
                **given,
            )
        finally:
            self._random_states[key] = torch.get_rng_state()
            torch.set_rng_state(before)
