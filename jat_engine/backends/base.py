"""Define the interface between an engine and its backend: `Group` in, `Result` out, and the protocol `Backend`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..observation import ActionSpace, Observations

STEP_TOKENS = 3
"""The most tokens an agent feeds in a step: s_{t-1}, a_{t-1}, s_t."""

PAGE_SIZE = 16
"""Tokens in a page of the KV cache. csrc/ and kernels/ state it again, and a test compares them."""

MAX_SIZES = 64
"""Sizes of observations and actions whose packed weights a backend keeps; the least recently used are given up."""


def machine_memory_bytes() -> int:
    """Return the bytes of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class LastStep(NamedTuple):
    """The step before, of which the next one feeds tokens again.

    Attributes:
        observations: of N agents.
        embeddings: of s_{t-1}, [N], as the backend returned them in `Result.embeddings`.
        space: that actions were chosen from.
        actions: a_{t-1}: float32 [N, A], or [N] integers.
    """

    observations: Observations
    embeddings: Any
    space: ActionSpace
    actions: Any


class Group(NamedTuple):
    """One step of N agents that see and do the same kind of thing.

    Agent i feeds `1 + num_again[i]` tokens: [s_{t-1}, a_{t-1}, s_t], [a_{t-1}, s_t] or [s_t], at positions
    `context_lens[i]`, ... Fields with an entry for each agent are lists where N is 1, else arrays.

    Attributes:
        observations: s_t, with rewards.
        missions: of "discrete+text", int64 [N, 64]; else None.
        space: what to predict.
        noise: float32 [N, n], to subtract from the logits before the largest is taken; None for nothing.
        num_again: [N], tokens before s_t: 2, 1 or, in an episode's first step, 0.
        context_lens: [N], tokens in the cache before these.
        start_offsets: [N], slots of the first page before the oldest of them.
        page_table: int32 [N, P], pages, oldest first; those behind the last one needed are not read.
        last: the step before; None if no agent has one.
    """

    observations: Observations
    missions: Sequence[np.ndarray] | np.ndarray | None
    space: ActionSpace
    noise: np.ndarray | None
    num_again: Sequence[int] | np.ndarray
    context_lens: Sequence[int] | np.ndarray
    start_offsets: Sequence[int] | np.ndarray
    page_table: Sequence[np.ndarray] | np.ndarray
    last: LastStep | None

    @property
    def num_agents(self) -> int:
        """N."""
        return len(self.num_again)


class Result(NamedTuple):
    """The outcome of a group's step.

    Attributes:
        values: float32 [N, A], the action vectors, or float32 [N, n], the logits; of a single agent also a list of one.
        finite: [N], whether all values of an agent are finite.
        choices: [N] integers, the index of the largest of the logits less the noise; None for continuous actions.
        embeddings: of s_t, [N]; only the backend knows their form. It gets them back in `LastStep`. The CUDA backend
            keeps the numbers of continuous observations instead, which its first kernel encodes again.
    """

    values: Sequence[np.ndarray] | np.ndarray
    finite: Sequence[bool] | np.ndarray
    choices: Sequence[int] | np.ndarray | None
    embeddings: Any


class Backend(Protocol):
    """Weights, the memory of the KV cache, and the arithmetic. Inputs are checked already.

    Attributes:
        name: as `backend=` takes it.
        page_size: tokens in a page of the KV cache.
        num_threads: that compute a step on a CPU.
        one_launch_reason: why a single agent's step is not one launch of a persistent kernel; "" where it is.
    """

    name: str
    page_size: int
    num_threads: int
    one_launch_reason: str

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
        """Bytes taken on the device, by purpose: "weights", "cache" and what else there is."""
        ...

    def allocate_cache(self, num_pages: int) -> None:
        """Allocate memory for the KV cache's pages. Called once."""
        ...

    def step(self, groups: Sequence[Group]) -> list[Result]:
        """Encode observations, compute all tokens, leave their keys and values in the cache, predict and choose.

        An agent's result does not depend on the other agents of the step: on a CPU bit for bit, on a GPU within
        rounding. Nothing but the cache's slots behind the kept tokens is written before the step has succeeded.

        Args:
            groups: at least one; each agent takes part once.

        Returns:
            A result for each group.
        """
        ...
