"""The interface between an engine and what computes for it."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np

from ..observation import ActionSpace

Embedding = Any
"""One token's embedding without position, [H], as the backend likes it; opaque to everyone else."""


_MAX_REMEMBERED = 64


def remember(made: dict[Any, Any], key: Any, value: Any) -> None:
    """Keep what a size of observation or action needs; the oldest is given up when there are too many."""
    if len(made) >= _MAX_REMEMBERED:
        del made[next(iter(made))]
    made[key] = value


class Plan(NamedTuple):
    """Which tokens of which sessions a step computes. Token i of session s has position `context_lens[s] + i`.

    Attributes:
        num_new: [S], tokens of each session, 1 to 3.
        context_lens: [S], tokens of the session in the cache before these.
        start_offsets: [S], slots of its first page before the oldest of them.
        page_tables: [S], int32, its pages, oldest first; what lies behind its last page is not read.
        spaces: [S], what to predict at each session's last token.
        embeddings: of all new tokens, a session's in a row.
    """

    num_new: list[int]
    context_lens: list[int]
    start_offsets: list[int]
    page_tables: list[np.ndarray]
    spaces: list[ActionSpace]
    embeddings: list[Embedding]


class Backend(Protocol):
    """Weights, the memory of the KV cache, and the arithmetic. Inputs are checked already."""

    name: str
    page_size: int
    num_threads: int

    @property
    def page_bytes(self) -> int:
        """Bytes of a page of the KV cache, all layers."""
        ...

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights."""
        ...

    def allocate_cache(self, num_pages: int) -> None:
        """Memory for the KV cache's pages. Called once."""
        ...

    def wake(self) -> None:
        """A step is about to come. What sleeps can wake while its input is parsed."""
        ...

    def embed_continuous(self, values: np.ndarray, reward: float | None) -> Embedding:
        """An observation with its reward, or an action without: float32 [X]."""
        ...

    def embed_choice(self, choice: int, num_choices: int) -> Embedding:
        """A discrete action."""
        ...

    def embed_discrete(
        self, values: list[np.ndarray], missions: list[np.ndarray | None], rewards: list[float]
    ) -> list[Embedding]:
        """Discrete observations: int64, with the tokens of a mission max_discrete_value of them."""
        ...

    def embed_images(self, frames: list[np.ndarray]) -> list[Embedding]:
        """Image observations: uint8 [84, 84, 4] each."""
        ...

    def decode(self, plan: Plan) -> list[tuple[np.ndarray, bool]]:
        """Compute the plan's tokens, leave their keys and values in the cache, and predict.

        Returns:
            For each session float32 [A], the action vector, or float32 [n], the logits; and whether all are finite.
        """
        ...
