"""`AgentSession`: one agent of a `JatEngine`, with its own episode."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import SessionError
from ..observation import ActionSpace, Observation
from .kv_cache import Pages
from .sampling import Sampler

if TYPE_CHECKING:
    from ..backends import Embedding
    from .engine import JatEngine


class LastStep(NamedTuple):
    """What the next step feeds again: the last observation's embedding, and the action that was chosen.

    `action` is a choice, or float32 [A].
    """

    observation: Observation
    embedding: Embedding
    space: ActionSpace
    action: Any


class AgentSession:
    """One agent: its pages of the KV cache, its last step, its window and its random numbers.

    Made by `JatEngine.open_session`. Bad input leaves it as it was. Use it from one thread at a time; sessions of one
    engine may be used from several.
    """

    def __init__(self, engine: JatEngine, pages: Pages, limit: int, sampler: Sampler) -> None:
        self.engine = engine
        self.pages = pages
        self.limit = limit
        self.sampler = sampler
        self.last: LastStep | None = None
        self.is_computed = False  # whether s_{t-1}'s keys and values, as the next step needs them, are in the cache
        self.closed = False
        self.finalizer: weakref.finalize[..., AgentSession] | None = None

    @property
    def num_cached_tokens(self) -> int:
        """Tokens, two a step, that the next step looks back on."""
        return self.pages.num_tokens

    def get_next_action(
        self,
        *,
        continuous_observation: Any = None,
        discrete_observation: Any = None,
        text_observation: str | None = None,
        image_observation: Any = None,
        action_space: Any = None,
        reward: float | None = None,
        deterministic: bool = False,
        return_prediction: bool = False,
    ) -> Any:
        """Choose the action for one observation. Arguments, result and errors: see `JatEngine.get_next_action`."""
        return self.engine.step_one(
            self,
            continuous_observation,
            discrete_observation,
            text_observation,
            image_observation,
            action_space,
            reward,
            deterministic,
            return_prediction,
        )

    def force_action(self, action: Any) -> None:
        """Let the next step follow on `action` instead of the one that was chosen, so that runs stay comparable.

        Args:
            action: a choice, or A numbers, as the last step's action space has them.

        Raises:
            SessionError: before the first step of an episode.
        """
        if self.last is None:
            raise SessionError("force_action: expected a step before it, got a new episode")
        taken = int(action) if self.last.space.kind == "discrete" else np.asarray(action, np.float32)
        self.last = self.last._replace(action=taken)

    def reset(self) -> None:
        """Start a new episode. Random numbers go on where they were. Raises `SessionError` on a closed session."""
        self.engine.reset_session(self)

    def close(self) -> None:
        """Give the session's room in the KV cache back. Closing twice does nothing."""
        self.engine.close_session(self)

    def __enter__(self) -> AgentSession:
        if self.closed:
            raise SessionError("session: expected an open one, got one that was closed")
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
