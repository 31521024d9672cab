"""`EngineOptions`: threads, memory and kernels that an engine uses."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ..errors import InputError
from .base import STEP_TOKENS, Backend

_MAX_THREADS = 1024
_MAX_SPIN_US = 1_000_000


@dataclass(frozen=True)
class EngineOptions:
    """Threads, memory and kernels that an engine uses.

    Args:
        num_threads: threads of the native CPU backend; by default the cores this process may use, within its CPU quota,
            at most 16. More than the process may use cause a warning. Steps of small models run in the calling thread
            alone.
        max_cached_tokens: capacity of the KV cache in tokens, shared by all sessions; each reserves its context window
            plus a few tokens. By default 64 full windows, or fewer if they exceed a quarter of the device's memory.
        max_cache_bytes: the same in bytes, instead of `max_cached_tokens`.
        spin_us: microseconds that idle threads of the native CPU backend spin for the next call before they sleep;
            values below 50 count as 50, since such pauses occur within a step.
        instruction_set: for the native CPU backend: "avx512", "avx2", "generic", or "auto" for the best available.
        one_launch: on a GPU, run a single agent's step as one launch of a persistent kernel: True, False for CUDA
            graphs, or None for the persistent kernel where the GPU supports it.
        fixed_order: on a GPU, sum in a fixed order in the persistent kernel, so that a step is bitwise repeatable;
            slower. CUDA graphs and the native CPU backend always do.

    Raises:
        InputError: a value has an invalid type or range, or two options exclude each other.
    """

    num_threads: int | None = None
    max_cached_tokens: int | None = None
    max_cache_bytes: int | None = None
    spin_us: int = 200
    instruction_set: str = "auto"
    one_launch: bool | None = None
    fixed_order: bool = False

    def __post_init__(self) -> None:
        for name, least in (("num_threads", 1), ("max_cached_tokens", 1), ("max_cache_bytes", 1), ("spin_us", 0)):
            value = getattr(self, name)
            if value is None and name != "spin_us":
                continue
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                raise InputError(f"{name}: expected an integer >= {least}, got {value!r}")
        for name, most in (("num_threads", _MAX_THREADS), ("spin_us", _MAX_SPIN_US)):
            value = getattr(self, name)
            if value is not None and value > most:
                raise InputError(f"{name}: expected at most {most}, got {value}")
        if self.one_launch is not None and not isinstance(self.one_launch, bool):
            raise InputError(f"one_launch: expected True, False or None, got {self.one_launch!r}")
        if not isinstance(self.fixed_order, bool):
            raise InputError(f"fixed_order: expected True or False, got {self.fixed_order!r}")
        if self.max_cached_tokens is not None and self.max_cache_bytes is not None:
            raise InputError("max_cached_tokens, max_cache_bytes: expected one of them, got both")

    @classmethod
    def parse(cls, given: dict[str, Any]) -> EngineOptions:
        """Make options from keyword arguments.

        Raises:
            InputError: a keyword is unknown, or its value is invalid.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise InputError(f"{unknown[0]}: expected an engine option, one of {', '.join(known)}")
        return cls(**given)

    def num_pages(self, backend: Backend, limit: int) -> int:
        """Return how many pages the KV cache has.

        Args:
            backend: that allocates them.
            limit: the most tokens a session keeps.

        Raises:
            InputError: less than one page was requested, or more than the device's memory holds.
        """
        page_size, page_bytes = backend.page_size, backend.page_bytes
        memory = backend.memory_bytes
        one_session = -(-(limit + STEP_TOKENS + page_size - 1) // page_size)
        if self.max_cached_tokens is not None:
            name, pages = "max_cached_tokens", max(1, self.max_cached_tokens // page_size)
        elif self.max_cache_bytes is not None:
            name, pages = "max_cache_bytes", self.max_cache_bytes // page_bytes
        else:
            return max(one_session, min(64 * one_session, memory // 4 // page_bytes))
        if not 1 <= pages <= memory // page_bytes:
            raise InputError(
                f"{name}: expected room for at least one page of {page_bytes} bytes and at most the device's "
                f"{memory} bytes, got {getattr(self, name)}"
            )
        return int(pages)
