"""`EngineOptions`: threads, memory and kernels that an engine uses."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from ..checkpoint_files import HUB_OPTIONS
from ..dtypes import KV_DTYPES
from ..errors import InputError
from ..keywords import refuse_unknown
from .base import STEP_TOKENS, Backend

_MAX_THREADS = 1024
_MAX_SPIN_US = 1_000_000


_WITHOUT_EFFECT: dict[str, tuple[tuple[Any, ...], str]] = {
    "use_safetensors": ((None, True), "an engine reads safetensors only"),
    "weights_only": ((None, True), "nothing is unpickled"),
    "low_cpu_mem_usage": ((None, True, False), "weights are read one by one"),
    "attn_implementation": ((None, "eager", "sdpa"), "an engine has its own attention"),
    "output_loading_info": ((None, False), "a parameter that is missing or unknown is an error"),
    "quantization_config": ((None,), 'pass dtype="int8"'),
    "load_in_8bit": ((None, False), 'pass dtype="int8"'),
    "load_in_4bit": ((None, False), 'pass dtype="int4"'),
    "max_memory": ((None,), "an engine runs on one device; pass max_cache_bytes to limit its cache"),
    "offload_folder": ((None,), "an engine runs on one device"),
}
"""Options of transformers' `from_pretrained` that hold anyway: accepted values, and why others are refused."""


def take_transformers_options(given: dict[str, Any], device: Any, dtype: Any) -> tuple[Any, Any]:
    """Remove the options of transformers' `from_pretrained` from `given`, and return the device and dtype with them.

    Args:
        given: keyword arguments; `torch_dtype`, `device_map` and those that hold for every engine are removed.
        device: as passed by its own name, which must not contradict `device_map`.
        dtype: as passed by its own name, which must not contradict `torch_dtype`.

    Raises:
        InputError: an option has a value that an engine does not have; the message says what to pass.
    """
    device, dtype = "auto" if device is None else device, "auto" if dtype is None else dtype
    for name, (accepted, reason) in _WITHOUT_EFFECT.items():
        if name in given:
            value = given.pop(name)
            if not any(value is one or (isinstance(one, str) and value == one) for one in accepted):
                raise InputError(f"{name}: expected {accepted[-1]!r} or nothing, got {value!r:.80}; {reason}")

    torch_dtype = given.pop("torch_dtype", None)
    if torch_dtype is not None:
        names = {str(value).removeprefix("torch.") for value in (dtype, torch_dtype)}
        if len(names - {"auto"}) > 1:
            raise InputError(
                f"torch_dtype: expected the value of dtype, {dtype!r}, got {torch_dtype!r}; pass one of them"
            )
        dtype = torch_dtype if dtype == "auto" else dtype

    device_map = given.pop("device_map", None)
    if isinstance(device_map, dict):
        places = {str(place): place for place in device_map.values()}
        device_map = next(iter(places.values())) if len(places) == 1 else device_map
    if isinstance(device_map, int) and not isinstance(device_map, bool):
        device_map = f"cuda:{device_map}"
    if device_map is not None and device_map != "auto":
        if not isinstance(device_map, str | torch.device) or device_map in ("balanced", "balanced_low_0", "sequential"):
            raise InputError(
                f'device_map: expected one device, got {device_map!r:.80}; pass device="cuda", "cuda:1" or "cpu"'
            )
        if device != "auto" and str(device) != str(device_map):
            raise InputError(
                f"device_map: expected the value of device, {device!r}, got {device_map!r}; pass one of them"
            )
        device = device_map
    return device, dtype


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
        persistent: on a GPU, run a single agent's step as one launch of a persistent kernel: True, False for CUDA
            graphs, or None for the faster of the two. That is timed when the engine is made, so that two engines may
            choose differently, and their results then differ by rounding; with False they are bitwise equal.
        kv_dtype: of the KV cache: "auto" for that of the activations. On the native CPU backend also "bfloat16", which
            differs from "auto" with float32 weights, and "int8" for half the bytes of bfloat16. On a GPU also
            "float8_e4m3", for half the bytes and a faster step of many agents (compute capability 8.9 and newer; CUDA
            graphs only). int8 and float8_e4m3 have one scale per token and head, for keys and for values.
        prefill_chunk: tokens and image patches of prompts that a step of texts reads at most. Agents that share the
            engine wait for one such step. By default, while agents act, as many as take about as long as an agent's
            step: 16 on a CPU; and else as many as the backend takes, 256.

    Raises:
        InputError: a value has an invalid type or range, or two options exclude each other.
    """

    num_threads: int | None = None
    max_cached_tokens: int | None = None
    max_cache_bytes: int | None = None
    spin_us: int = 200
    instruction_set: str = "auto"
    persistent: bool | None = None
    kv_dtype: str = "auto"
    prefill_chunk: int | None = None

    def __post_init__(self) -> None:
        counts = "num_threads", "max_cached_tokens", "max_cache_bytes", "prefill_chunk"
        for name, least in (*((name, 1) for name in counts), ("spin_us", 0)):
            value = getattr(self, name)
            if value is None and name != "spin_us":
                continue
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                raise InputError(f"{name}: expected an integer >= {least}, got {value!r}")
        for name, most in (("num_threads", _MAX_THREADS), ("spin_us", _MAX_SPIN_US)):
            value = getattr(self, name)
            if value is not None and value > most:
                raise InputError(f"{name}: expected at most {most}, got {value}")
        if self.persistent is not None and not isinstance(self.persistent, bool):
            raise InputError(f"persistent: expected True, False or None, got {self.persistent!r}")
        names = list(dict.fromkeys(name for backend in KV_DTYPES.values() for name in backend))
        if not isinstance(self.kv_dtype, str) or self.kv_dtype not in names:
            raise InputError(f"kv_dtype: expected one of {', '.join(names)}, got {self.kv_dtype!r}")
        if self.max_cached_tokens is not None and self.max_cache_bytes is not None:
            raise InputError("max_cached_tokens, max_cache_bytes: expected one of them, got both")

    @classmethod
    def parse(cls, given: dict[str, Any]) -> EngineOptions:
        """Make options from keyword arguments.

        Raises:
            InputError: a keyword is unknown, or its value is invalid.
        """
        refuse_unknown(given, (*(field.name for field in fields(cls)), *HUB_OPTIONS, "variant"), "an engine option")
        return cls(**given)

    def check_kv_dtype(self, backend: str, reason: str) -> None:
        """Check that a backend has this type of keys and values.

        Args:
            backend: name of the backend.
            reason: why it was selected, for the message.

        Raises:
            InputError: it has not.
        """
        if self.kv_dtype not in KV_DTYPES[backend]:
            owner = next(name for name, kv_dtypes in KV_DTYPES.items() if self.kv_dtype in kv_dtypes)
            raise InputError(
                f"kv_dtype: expected {' or '.join(map(repr, KV_DTYPES[backend]))} on the {backend} backend, got "
                f"{self.kv_dtype!r}, which the {owner} backend has; {reason}"
            )

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
