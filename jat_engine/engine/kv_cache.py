"""The paged KV cache: which pages hold which tokens of which session. No kernels, no memory of its own.

A page holds `page_size` tokens of all layers. A session's tokens lie in the slots of its pages, oldest first; dropping
the oldest moves the start offset and gives whole pages back. Nothing is ever copied.

Room is promised when a session opens: `Pages` reserves what the session's window can ever need, or raises
`CacheFullError`. A session that is open never runs out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import CacheFullError


@dataclass(frozen=True)
class CacheStats:
    """Counters of a `PagePool`, in pages.

    Attributes:
        total: pages there are.
        used: pages that hold tokens.
        free: pages that hold none.
        reserved: pages promised to open sessions, used or not.
        peak: the most that were used at once.
        page_size: tokens in a page.
        page_bytes: bytes of a page, all layers.
    """

    total: int
    used: int
    free: int
    reserved: int
    peak: int
    page_size: int
    page_bytes: int


class PagePool:
    """Pages 0 to `num_pages - 1`, handed out and taken back."""

    def __init__(self, num_pages: int, page_size: int, page_bytes: int) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.page_bytes = page_bytes
        self._free = list(range(num_pages - 1, -1, -1))
        self._reserved = 0
        self._peak = 0

    @property
    def stats(self) -> CacheStats:
        return CacheStats(
            total=self.num_pages,
            used=self.num_pages - len(self._free),
            free=len(self._free),
            reserved=self._reserved,
            peak=self._peak,
            page_size=self.page_size,
            page_bytes=self.page_bytes,
        )

    def reserve(self, num_pages: int) -> None:
        """Promise pages to a session. Raises `CacheFullError`."""
        left = self.num_pages - self._reserved
        if num_pages > left:
            raise CacheFullError(
                f"KV cache: expected room for {num_pages} pages of {self.page_size} tokens, got {left} of "
                f"{self.num_pages} that are not promised to open sessions; close sessions, give them a smaller "
                "context_window, or load the engine with a larger max_cached_tokens"
            )
        self._reserved += num_pages

    def unreserve(self, num_pages: int) -> None:
        self._reserved -= num_pages

    def take(self) -> int:
        page = self._free.pop()
        self._peak = max(self._peak, self.num_pages - len(self._free))
        return page

    def give(self, page: int) -> None:
        self._free.append(page)


class Pages:
    """One session's pages.

    Attributes:
        table: int32 [max_pages], the first `num_pages` are this session's, oldest first.
        start_offset: slots of the first page before the oldest token.
        num_tokens: tokens that are kept.
    """

    def __init__(self, pool: PagePool, max_tokens: int) -> None:
        """Reserve room for `max_tokens`, those of the running step included. Raises `CacheFullError`."""
        # The oldest token can lie anywhere in its page.
        self.max_pages = -(-(max_tokens + pool.page_size - 1) // pool.page_size)
        pool.reserve(self.max_pages)
        self._pool = pool
        self.table = np.zeros(self.max_pages, np.int32)
        self.num_pages = 0
        self.start_offset = 0
        self.num_tokens = 0

    def make_room(self, num_tokens: int) -> None:
        """Have pages for the `num_tokens` that are kept or about to be written."""
        needed = -(-(self.start_offset + num_tokens) // self._pool.page_size)
        assert needed <= self.max_pages, f"session of {self.max_pages} pages asks for {needed}"
        while self.num_pages < needed:
            self.table[self.num_pages] = self._pool.take()
            self.num_pages += 1

    def keep(self, num_tokens: int, limit: int) -> bool:
        """Keep the first `num_tokens`, and of those the newest `limit`. Returns whether any were dropped."""
        dropped = max(0, num_tokens - limit)
        self.num_tokens = num_tokens - dropped
        self.start_offset += dropped
        whole_pages, self.start_offset = divmod(self.start_offset, self._pool.page_size)
        if whole_pages:
            for page in self.table[:whole_pages]:
                self._pool.give(int(page))
            self.table[: self.num_pages - whole_pages] = self.table[whole_pages : self.num_pages]
            self.num_pages -= whole_pages
        return dropped > 0

    def clear(self) -> None:
        """Give all pages back; the reservation stays."""
        for page in self.table[: self.num_pages]:
            self._pool.give(int(page))
        self.num_pages = self.start_offset = self.num_tokens = 0

    def close(self) -> None:
        """Give pages and reservation back."""
        self.clear()
        self._pool.unreserve(self.max_pages)
        self.max_pages = 0


class BatchPages:
    """The pages of many agents that step together, as arrays. Each agent has all it can ever need, used as a ring.

    Attributes:
        table: int32 [N, max_pages], an agent's pages, oldest first; of the last ones nothing may be in use yet.
        start_offsets: int64 [N], slots of an agent's first page before the oldest token.
        num_tokens: int64 [N], tokens that are kept.
    """

    def __init__(self, pool: PagePool, num_agents: int, max_tokens: int) -> None:
        """Take room for `max_tokens` an agent, those of the running step included. Raises `CacheFullError`."""
        self.max_pages = -(-(max_tokens + pool.page_size - 1) // pool.page_size)
        pool.reserve(num_agents * self.max_pages)
        self._pool = pool
        pages = [pool.take() for _ in range(num_agents * self.max_pages)]
        self.table = np.array(pages, np.int32).reshape(num_agents, self.max_pages)
        self.start_offsets = np.zeros(num_agents, np.int64)
        self.num_tokens = np.zeros(num_agents, np.int64)

    def keep(self, num_tokens: np.ndarray, limit: int) -> np.ndarray:
        """Keep each agent's first `num_tokens` [N], and of those the newest `limit`. Returns which dropped any, [N]."""
        dropped = np.maximum(num_tokens - limit, 0)
        self.num_tokens = num_tokens - dropped
        whole_pages, self.start_offsets = np.divmod(self.start_offsets + dropped, self._pool.page_size)
        moved = np.flatnonzero(whole_pages)
        if moved.size:
            order = (np.arange(self.max_pages) + whole_pages[moved, None]) % self.max_pages
            self.table[moved] = np.take_along_axis(self.table[moved], order, axis=1)
        any_dropped: np.ndarray = dropped > 0
        return any_dropped

    def clear(self, which: np.ndarray) -> None:
        """Forget the tokens of some agents: bool [N]."""
        self.num_tokens[which] = self.start_offsets[which] = 0

    def close(self) -> None:
        """Give everything back."""
        for page in self.table.ravel():
            self._pool.give(int(page))
        self._pool.unreserve(self.table.size)
        self.table = self.table[:0]
