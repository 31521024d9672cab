"""The interface between an engine and what computes for it."""

from __future__ import annotations

import os
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..observation import ActionSpace, Modality

Embedding = Any
"""One token's embedding without position, [H], as the backend likes it; opaque to everyone else."""


_MAX_REMEMBERED = 64


def remember(made: dict[Any, Any], key: Any, value: Any) -> None:
    """Keep what a size of observation or action needs; the oldest is given up when there are too many."""
    if len(made) >= _MAX_REMEMBERED:
        del made[next(iter(made))]
    made[key] = value


def machine_memory_bytes() -> int:
    """Bytes of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Plan(NamedTuple):
    """Which tokens of which sessions a step computes. Token i of session s has position `context_lens[s] + i`.

    Attributes:
        num_new: [S], tokens of each session, 1 to 3.
        context_lens: [S], tokens of the session in the cache before these.
        start_offsets: [S], slots of its first page before the oldest of them.
        page_tables: [S], int32, its pages, oldest first; what lies behind its last page is not read.
        spaces: [S], what to predict at each session's last token.
        noise: [S], what to subtract from the logits before the largest is taken, float32 [n]; None for nothing.
        embeddings: of all new tokens, a session's in a row.
    """

    num_new: list[int]
    context_lens: list[int]
    start_offsets: list[int]
    page_tables: list[np.ndarray]
    spaces: list[ActionSpace]
    noise: list[np.ndarray | None]
    embeddings: list[Embedding]


class Prediction(NamedTuple):
    """What a step gives for a session.

    Attributes:
        values: float32 [A], the action vector, or float32 [n], the logits.
        is_finite: whether all are.
        choice: where the backend makes it, the index of the largest of the logits less the plan's noise.
    """

    values: np.ndarray
    is_finite: bool
    choice: int | None = None


class BatchPlan(NamedTuple):
    """A step of N agents that see and do the same kind of thing, as arrays. Tokens are those of `Plan`.

    Attributes:
        context_lens: int64 [N], tokens of each agent in the cache before these.
        start_offsets: int64 [N], slots of its first page before the oldest of them.
        page_table: int32 [N, max_pages], its pages, oldest first; what lies behind its last page is not read.
        modality: of the observations.
        values: float32 [N, X], int64 [N, X] or uint8 [N, 84, 84, 4].
        missions: of "discrete+text", int64 [N, 64].
        rewards: float32 [N].
        space: what to predict.
        noise: float32 [N, n], to subtract from the logits before the largest is taken; None for nothing.
        feeds_observation: bool [N], whose s_{t-1} is computed again.
        feeds_action: bool [N], who has an a_{t-1}.
        last_embeddings: of s_{t-1}, from the `BatchPrediction` before; None if nobody has one.
        last_actions: float32 [N, A] or int64 [N].
        last_space: what they were chosen from.
    """

    context_lens: np.ndarray
    start_offsets: np.ndarray
    page_table: np.ndarray
    modality: Modality
    values: np.ndarray
    missions: np.ndarray | None
    rewards: np.ndarray
    space: ActionSpace
    noise: np.ndarray | None
    feeds_observation: np.ndarray
    feeds_action: np.ndarray
    last_embeddings: Any
    last_actions: np.ndarray
    last_space: ActionSpace


class BatchPrediction(NamedTuple):
    """What a step gives for N agents.

    Attributes:
        values: float32 [N, A], the action vectors, or float32 [N, n], the logits.
        choices: int64 [N], the index of the largest of the logits less the plan's noise.
        embeddings: of the observations; opaque to everyone but the backend.
    """

    values: np.ndarray
    choices: np.ndarray
    embeddings: Any


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

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory that a KV cache could take at most."""
        ...

    @property
    def memory(self) -> dict[str, int]:
        """Bytes taken on the device, by what they are for: "weights", "cache" and what else there is."""
        ...

    def allocate_cache(self, num_pages: int) -> None:
        """Memory for the KV cache's pages. Called once."""
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

    def decode(self, plan: Plan) -> list[Prediction]:
        """Compute the plan's tokens, leave their keys and values in the cache, and predict, for each session."""
        ...

    def decode_batch(self, plan: BatchPlan) -> BatchPrediction:
        """The same for a batch of one kind."""
        ...
