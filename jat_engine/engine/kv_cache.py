"""Page tables of the KV cache: the pages that hold each agent's tokens. Backends own the memory.

A page holds `page_size` tokens of all layers. An agent reserves all pages that its window can need when it is opened,
so an open agent never runs out of room. It uses them as a ring: dropping the oldest tokens advances the start offset
and rotates the page table; keys and values are not copied.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..errors import CacheFullError


@dataclass(frozen=True)
class CacheStats:
    """Counters of the KV cache, in pages.

    Attributes:
        total: all pages.
        used: pages that hold tokens.
        free: pages that hold none.
        reserved: pages of open sessions and batches, used or not.
        peak: the most pages that were reserved at once.
        page_size: tokens per page.
        page_bytes: bytes per page, all layers.
    """

    total: int
    used: int
    free: int
    reserved: int
    peak: int
    page_size: int
    page_bytes: int


class PagePool:
    """Pages 0 to `num_pages - 1`, and their holders.

    A page is in use as long as a `Pages` that was not closed has it. Nothing else decides that, so there is no moment
    at which Ctrl-C or a dropped session could lose one.

    Attributes:
        num_pages: all pages.
        page_size: tokens in a page.
        page_bytes: bytes of a page, all layers.
        peak: the most that were held at once.
    """

    def __init__(self, num_pages: int, page_size: int, page_bytes: int) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.page_bytes = page_bytes
        self.peak = 0
        self._holders: list[weakref.ref[Pages]] = []
        self._free = np.arange(num_pages, dtype=np.int32)  # without a holder; `_find_free` finds the rest

    @property
    def num_reserved(self) -> int:
        """Pages that are held."""
        return sum(pages.num_pages for pages in map(_holder, self._holders) if pages)

    def take(self, holder: Pages, num_pages: int) -> np.ndarray:
        """Hand out pages as `holder.held`, int32 [num_pages].

        Raises:
            CacheFullError: fewer than `num_pages` are free.
        """
        open_ones = [ref for ref in self._holders if _holder(ref)]
        if len(open_ones) < len(self._holders) or num_pages > len(self._free):
            self._find_free()
        if num_pages > len(self._free):
            raise CacheFullError(
                f"KV cache: expected room for {num_pages} pages of {self.page_size} tokens, got {len(self._free)} of "
                f"{self.num_pages} that are not promised to open sessions; close sessions, give them a smaller "
                "context_window, or load the engine with a larger max_cached_tokens"
            )
        taken, self._free = self._free[:num_pages], self._free[num_pages:]
        holder.held = taken
        self._holders = [*open_ones, weakref.ref(holder)]
        self.peak = max(self.peak, self.num_reserved)
        return taken

    def _find_free(self) -> None:
        is_free = np.ones(self.num_pages, bool)
        for pages in map(_holder, self._holders):
            if pages:
                is_free[pages.held] = False
        self._free = np.flatnonzero(is_free).astype(np.int32)


def _holder(ref: weakref.ref[Pages]) -> Pages | None:
    """Return the holder of pages, None if it was dropped or closed."""
    pages = ref()
    return pages if pages is not None and pages.num_pages else None


class CachedTokens(NamedTuple):
    """Location of the cached tokens of one agent, or of N agents that step together.

    Attributes:
        table: int32 [P], the agent's pages, oldest first, those without tokens last; int32 [N, P] for N agents.
        start_offset: slots of the first page before the oldest token; int64 [N] for N agents.
        num_tokens: tokens that are kept; int64 [N] for N agents.
    """

    table: np.ndarray
    start_offset: Any
    num_tokens: Any


def keep_newest(cached: CachedTokens, num_tokens: Any, window: int, page_size: int) -> tuple[CachedTokens, Any]:
    """Drop the oldest tokens that do not fit into the window after a step.

    Args:
        cached: location of the tokens before the step; not changed.
        num_tokens: cached tokens after the step, the oldest at `cached.start_offset`; int64 [N] for N agents.
        window: the most tokens to keep.
        page_size: tokens per page.

    Returns:
        The location of the tokens that are kept, and a bool, or bool [N]: were any dropped.
    """
    if cached.table.ndim == 1:
        table, offset, _ = cached
        dropped = num_tokens - window
        if dropped <= 0:
            return CachedTokens(table, offset, num_tokens), False
        whole_pages, offset = divmod(offset + dropped, page_size)
        if whole_pages:
            table = np.concatenate((table[whole_pages:], table[:whole_pages]))
        return CachedTokens(table, offset, window), True

    dropped = np.maximum(num_tokens - window, 0)
    whole_pages, offset = np.divmod(cached.start_offset + dropped, page_size)
    table = cached.table
    moved = np.flatnonzero(whole_pages)
    if moved.size:
        order = (np.arange(table.shape[1]) + whole_pages[moved, None]) % table.shape[1]
        table = table.copy()
        table[moved] = np.take_along_axis(table[moved], order, axis=1)
    return CachedTokens(table, offset, num_tokens - dropped), dropped > 0


class Pages:
    """The pages of one agent, or of N agents that step together.

    Attributes:
        page_size: tokens in a page.
        held: int32, the pages; none once closed.
        empty: the `CachedTokens` of new episodes.
    """

    def __init__(self, pool: PagePool, max_tokens: int, num_agents: int | None = None) -> None:
        """Allocate the pages.

        Args:
            pool: allocator to take them from.
            max_tokens: the most tokens of an agent in the cache at any time, those of the running step included.
            num_agents: N; None for a single agent, whose `CachedTokens` has plain numbers.

        Raises:
            CacheFullError: the pool has too few free pages.
        """
        # The oldest token can lie anywhere in its page.
        num_pages = -(-(max_tokens + pool.page_size - 1) // pool.page_size)
        self.page_size = pool.page_size
        self.held = np.empty(0, np.int32)
        table = pool.take(self, num_pages * (num_agents or 1))
        if num_agents is None:
            self.empty = CachedTokens(table, 0, 0)
        else:
            zeros = np.zeros(num_agents, np.int64)
            self.empty = CachedTokens(table.reshape(num_agents, num_pages), zeros, zeros)

    @property
    def num_pages(self) -> int:
        """Pages that are held."""
        return len(self.held)

    def num_used(self, start_offset: Any, num_tokens: Any) -> int:
        """Return how many pages hold tokens.

        Args:
            start_offset: as in `CachedTokens`, of one agent or of N.
            num_tokens: as in `CachedTokens`, of one agent or of N.
        """
        pages = -(-np.add(start_offset, num_tokens) // self.page_size)
        return int(np.where(np.greater(num_tokens, 0), pages, 0).sum())

    def close(self) -> None:
        """Give all pages back. Closing twice does nothing."""
        self.held = self.held[:0]
