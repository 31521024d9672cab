"""The interface between an engine and its backends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from ..observation import ActionSpace, Observations

STEP_TOKENS = 3
"""Most tokens that an agent feeds in a step: s_{t-1}, a_{t-1}, s_t."""

PAGE_SIZE = 16
"""Tokens per page of the KV cache. csrc/ and kernels/ define it again; a test compares the definitions."""

MAX_SIZES = 64
"""Sizes of observations and actions whose packed weights a backend caches; the least recently used are dropped."""


@contextlib.contextmanager
def without_autocast(device: torch.device) -> Iterator[None]:
    """Compute in the dtypes that tensors have, also where the caller's thread runs under `torch.autocast`."""
    with contextlib.ExitStack() as stack:
        for name in {"cpu", device.type}:
            if torch.amp.is_autocast_available(name):
                stack.enter_context(torch.autocast(name, enabled=False))
        yield


def machine_memory_bytes() -> int:
    """Return the bytes of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class QuickStep(Protocol):
    """A step of one agent with one kind of observation and one action space, for the usual input.

    `_cpu.QuickStep` is the one there is; `_cpu.pyi` documents it.
    """

    def read(
        self, continuous: object, discrete: object, text: object, image: object, reward: object, last_text: str | None
    ) -> bool:
        """Check an observation and keep it for `run`; False for what is not usual, valid or not."""
        ...

    def run(
        self, state: Any, mission: np.ndarray | None, noise: np.ndarray | None, window: int
    ) -> tuple[list[float] | int, np.ndarray, Any] | None:
        """Take the step that was read. Return action, prediction and next state; None if that is not finite."""
        ...


class LastStep(NamedTuple):
    """The previous step of N agents, whose tokens the next step feeds again.

    Attributes:
        observations: s_{t-1}; after a quick step those of an earlier step, of the same kind, size and texts.
        embeddings: of s_{t-1}, [N], as the backend returned them.
        space: the action space that the actions were chosen from.
        actions: a_{t-1}: float32 [N, A], or [N] integers.
        quick_step: for a next step of the same kind; None if it has not been looked for, or there is none.
    """

    observations: Observations
    embeddings: Any
    space: ActionSpace
    actions: Any
    quick_step: QuickStep | None = None


@dataclass(slots=True)
class Group:
    """One step of N agents with the same modality and action space.

    Agent i feeds `1 + num_again[i]` tokens, [s_{t-1}, a_{t-1}, s_t], [a_{t-1}, s_t] or [s_t], at positions
    `context_lens[i]`, ... Fields with an entry per agent are lists or tuples if N is 1, else arrays.

    Attributes:
        num_agents: N.
        observations: s_t, with rewards.
        missions: tokens, int64 [N, 64], if the modality has texts; else None.
        space: the action space to predict for.
        noise: float32 [N, n], subtracted from the logits before the argmax; None for the argmax of the logits.
        num_again: [N], tokens fed before s_t: 2, 1 or, in an episode's first step, 0.
        context_lens: [N], tokens in the cache before the first one fed.
        start_offsets: [N], slots of the first page before the oldest cached token.
        page_table: int32 [N, P], pages, oldest first; entries behind the last page needed are not read.
        last: the previous step; None if no agent has taken one.
    """

    num_agents: int
    observations: Observations
    missions: Sequence[np.ndarray] | np.ndarray | None
    space: ActionSpace
    noise: np.ndarray | None
    num_again: Sequence[int] | np.ndarray
    context_lens: Sequence[int] | np.ndarray
    start_offsets: Sequence[int] | np.ndarray
    page_table: Sequence[np.ndarray] | np.ndarray
    last: LastStep | None


@dataclass(slots=True)
class Result:
    """The result of a group's step.

    Attributes:
        values: the action vectors, float32 [N, A], or the logits, float32 [N, n]; a list of one row if N is 1.
        finite: [N], True where all values of an agent are finite.
        choices: [N] integers, argmax(logits - noise); None for continuous actions.
        embeddings: of s_t, [N]; only the backend knows their form, and gets them back in `LastStep`. None for
            continuous observations on the CUDA backend, whose first kernel encodes their numbers again.
    """

    values: Sequence[np.ndarray] | np.ndarray
    finite: Sequence[bool] | np.ndarray
    choices: Sequence[int] | np.ndarray | None
    embeddings: Any


@dataclass(slots=True)
class TextRows:
    """One text's part of a step: rows that follow its cached ones, first image patches and then tokens.

    Attributes:
        patches: embeddings of image patches, [P, H], a slice of what `Backend.embed_picture` returned; None for none.
        tokens: int64 [S], of the vocabulary.
        context_len: rows in the cache before these; also the position of the first one.
        page_table: int32 [pages], oldest first; entries behind the last page needed are not read.
        num_predicted: the last so many rows are predicted from: 0 in the middle of a prompt, 1 where a token is to be
            chosen, more to score a text.
    """

    patches: Any
    tokens: np.ndarray
    context_len: int
    page_table: np.ndarray
    num_predicted: int

    @property
    def num_rows(self) -> int:
        """Return the number of rows, patches and tokens."""
        return len(self.tokens) + (0 if self.patches is None else len(self.patches))


class Backend(Protocol):
    """Packed weights, the memory of the KV cache, and a step's arithmetic. Callers have checked all inputs.

    Attributes:
        name: as `backend=` takes it.
        page_size: tokens per page of the KV cache.
        num_threads: threads that compute a step on a CPU.
        persistent_reason: reason why a single agent's step does not run in the persistent kernel; "" if it does.
        max_text_rows: the most rows of a call of `run_text`.
        prompt_rows_beside_agents: rows of prompts in a call while agents act, which wait for it: as many as take about
            as long as an agent's step.
    """

    name: str
    page_size: int
    num_threads: int
    persistent_reason: str
    max_text_rows: int
    prompt_rows_beside_agents: int

    @property
    def timing(self) -> str:
        """Phrase with the times that decided between ways of computing a step; "" if nothing was timed."""
        ...

    @property
    def page_bytes(self) -> int:
        """Bytes per page of the KV cache, all layers."""
        ...

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights."""
        ...

    @property
    def memory_bytes(self) -> int:
        """Bytes of device memory that a KV cache could use."""
        ...

    @property
    def memory(self) -> dict[str, int]:
        """Bytes allocated on the device, by purpose: "weights", "cache" and, on some backends, more."""
        ...

    def allocate_cache(self, num_pages: int) -> None:
        """Allocate the KV cache's pages. Called once."""
        ...

    def read_pages(self, pages: np.ndarray) -> np.ndarray:
        """Return a copy of pages of the KV cache, uint8 [n, page_bytes], of page numbers int32 [n]."""
        ...

    def write_pages(self, pages: np.ndarray, data: np.ndarray) -> None:
        """Write pages that `read_pages` has returned, of a backend of the same kind."""
        ...

    def read_embedding(self, embeddings: Any) -> np.ndarray | None:
        """Return the embedding of a single agent's observation, float32 [H]; None if `Result` has none."""
        ...

    def make_embedding(self, embedding: np.ndarray | None) -> Any:
        """Return the embeddings of a single agent, as `Result` has them, from what `read_embedding` returned.

        Raises:
            InputError: there is none, which this backend does not return.
        """
        ...

    def num_agents_to_warm_up(self, counts: Iterable[int]) -> list[int]:
        """Return the numbers of agents, among `counts`, whose steps prepare all that steps of the others need."""
        ...

    def step(self, groups: Sequence[Group]) -> list[Result]:
        """Run one step: encode observations, compute the tokens, write keys and values, predict and choose actions.

        An agent's result does not depend on the other agents of the step: on a CPU bit for bit, on a GPU within
        rounding. A step that fails has written only to slots of the cache that hold none of the kept tokens.

        Args:
            groups: at least one; each agent is in one group, once.

        Returns:
            One result per group.
        """
        ...

    def embed_picture(self, pixel_values: np.ndarray) -> Any:
        """Return the embeddings of an image's patches, [P, H], in a form that only the backend knows.

        Args:
            pixel_values: float32 [num_channels, image_size, image_size], normalised.
        """
        ...

    def run_text(self, texts: Sequence[TextRows]) -> list[np.ndarray]:
        """Compute the rows of texts, write their keys and values, and predict the next tokens.

        A text's result does not depend on the others, nor on how its rows are divided over calls: on the native CPU
        backend bit for bit, elsewhere within rounding. The weights that texts alone need are packed by the first call.

        Args:
            texts: at least one, with at least one row each and `max_text_rows` together; each text is there once.

        Returns:
            For each text the logits, float32 [num_predicted, vocab_size].
        """
        ...
