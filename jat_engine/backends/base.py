"""The interface between an engine and what computes for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..observation import ActionSpace

Embedding = Any
"""One token's embedding without position, [H], as the backend likes it; opaque to everyone else."""


@dataclass(frozen=True)
class Plan:
    """Which tokens of which sessions a step computes. Token i of session s has position `context_lens[s] + i`.

    Attributes:
        first_token: int32 [S + 1]. Session s has the tokens `first_token[s]` to `first_token[s + 1] - 1`, 1 to 3.
        context_lens: int32 [S], tokens of the session in the cache.
        start_offsets: int32 [S], slots of its first page before the oldest of them.
        page_table: int32 [S, P], its pages, oldest first; what lies behind its last page is not read.
        spaces: [S], what to predict at each session's last token.
    """

    first_token: np.ndarray
    context_lens: np.ndarray
    start_offsets: np.ndarray
    page_table: np.ndarray
    spaces: Sequence[ActionSpace]


class Backend(Protocol):
    """Weights, the memory of the KV cache, and the arithmetic. Inputs are checked already."""

    name: str
    page_size: int

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

    def embed_continuous(self, values: np.ndarray) -> Embedding:
        """An observation with its reward, or an action: float32 [X]."""
        ...

    def embed_choice(self, choice: int, num_choices: int) -> Embedding:
        """A discrete action."""
        ...

    def embed_discrete(self, values: np.ndarray, rewards: np.ndarray) -> Sequence[Embedding]:
        """Discrete observations: int64 [B, max_discrete_value], float32 [B]."""
        ...

    def embed_images(self, frames: np.ndarray) -> Sequence[Embedding]:
        """Image observations: uint8 [B, 84, 84, 4]."""
        ...

    def decode(self, plan: Plan, embeddings: Sequence[Embedding]) -> Sequence[np.ndarray]:
        """Compute the plan's tokens, leave their keys and values in the cache, and predict.

        Args:
            embeddings: [T], in the plan's order.

        Returns:
            For each session float32 [A], the action vector, or float32 [n], the logits.
        """
        ...
