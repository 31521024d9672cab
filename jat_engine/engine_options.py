"""`EngineOptions`: how an engine uses the machine."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Any

from .backends import Backend
from .errors import InputError

STEP_TOKENS = 3
"""The most tokens a step computes: s_{t-1}, a_{t-1}, s_t."""

_MAX_THREADS = 1024


@dataclass(frozen=True)
class EngineOptions:
    """How an engine uses the machine.

    Args:
        num_threads: of the native CPU backend; by default the cores this process may use, at most 16.
        max_cached_tokens: room of the KV cache, shared by all sessions; each reserves its context_window plus a few.
            By default that of 64 full windows, or as much as fits into a quarter of the machine's memory.
        max_cache_bytes: the same in bytes; give one of the two.
        spin_us: microseconds that idle threads of the native CPU backend wait actively for the next call.
        instruction_set: of the native CPU backend: "avx512", "avx2", "generic", or "auto" for the best there is.
    """

    num_threads: int | None = None
    max_cached_tokens: int | None = None
    max_cache_bytes: int | None = None
    spin_us: int = 200
    instruction_set: str = "auto"

    def __post_init__(self) -> None:
        for name, least in (("num_threads", 1), ("max_cached_tokens", 1), ("max_cache_bytes", 1), ("spin_us", 0)):
            value = getattr(self, name)
            if value is None and name != "spin_us":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name}: expected an integer >= {least}, got {value!r}")
        if self.num_threads is not None and self.num_threads > _MAX_THREADS:
            raise InputError(f"num_threads: expected at most {_MAX_THREADS}, got {self.num_threads}")
        if self.max_cached_tokens is not None and self.max_cache_bytes is not None:
            raise InputError("max_cached_tokens, max_cache_bytes: expected one of them, got both")

    @classmethod
    def parse(cls, given: dict[str, Any]) -> EngineOptions:
        """From keyword arguments. Raises `InputError` for an unknown one."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise InputError(f"{unknown[0]}: expected an engine option, one of {', '.join(known)}")
        return cls(**given)

    def num_pages(self, backend: Backend, limit: int) -> int:
        """Pages of the KV cache. limit: the most tokens a session keeps."""
        page_size, page_bytes = backend.page_size, backend.page_bytes
        if self.max_cached_tokens is not None:
            return max(1, self.max_cached_tokens // page_size)
        if self.max_cache_bytes is not None:
            if self.max_cache_bytes < page_bytes:
                raise InputError(
                    f"max_cache_bytes: expected at least the {page_bytes} of one page, got {self.max_cache_bytes}"
                )
            return self.max_cache_bytes // page_bytes
        one_session = -(-(limit + STEP_TOKENS + page_size - 1) // page_size)
        quarter = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
        return max(one_session, min(64 * one_session, quarter // page_bytes))
