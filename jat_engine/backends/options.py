"""`EngineOptions`: how an engine uses the machine."""

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
    """Options for how an engine uses the machine.

    Args:
        num_threads: of the native CPU backend; by default the cores this process may use, within its CPU quota, at most
            16. More than that are warned of. Steps of small models are computed by the caller alone all the same.
        max_cached_tokens: room of the KV cache, shared by all sessions; each reserves its context_window plus a few.
            By default that of 64 full windows, or as much as fits into a quarter of the machine's memory.
        max_cache_bytes: the same in bytes; give one of the two.
        spin_us: microseconds that idle threads of the native CPU backend wait actively for the next call; less than 50
            count as 50, which lie within a step.
        instruction_set: of the native CPU backend: "avx512", "avx2", "generic", or "auto" for the best there is.
        one_launch: on a GPU, whether a single agent's step is one launch of a persistent kernel; None for where the
            GPU can, False for CUDA graphs always.
        fixed_order: on a GPU, sum in a fixed order in the one launch as well, so that a step is bitwise repeatable;
            slower. CUDA graphs and the native CPU backend always are.
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
        """Make options of keyword arguments. Raises `InputError` for an unknown one."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise InputError(f"{unknown[0]}: expected an engine option, one of {', '.join(known)}")
        return cls(**given)

    def num_pages(self, backend: Backend, limit: int) -> int:
        """Return the number of pages of the KV cache. limit: the most tokens a session keeps."""
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
