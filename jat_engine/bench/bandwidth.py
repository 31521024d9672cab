"""Measure the physical limit: bytes a second that the memory gives, sampled between the rounds of a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..backends.select import native_module
from ..machine import available_cores

_READ_BYTES = 1 << 28
_COPY_BYTES = 1 << 30


class Bandwidth:
    """Read memory between rounds, with all cores (on a GPU, copies it).

    Args:
        device: whose memory.
    """

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._measure()  # its pages are new
        self._samples = [self._measure()]

    def sample(self, number: int = 0) -> float:
        """Measure once more, and return the bytes a second. `number`, of a round, is not used."""
        self._samples.append(self._measure())
        return self._samples[-1]

    def _measure(self) -> float:
        if self._device.type == "cuda":
            return copy_bandwidth(self._device, repeats=8)
        native, _ = native_module()
        if native is None:
            return _numpy_bandwidth(np.ones(_READ_BYTES // 8))
        return float(native.read_bandwidth(_READ_BYTES, available_cores(), 3))

    @property
    def is_limit(self) -> bool:
        """True where all cores read; without the native extension one does, and more than that can be had."""
        return self._device.type == "cuda" or native_module()[0] is not None

    @property
    def median(self) -> float:
        """Bytes a second."""
        return float(np.median(self._samples))

    def facts(self) -> dict[str, float]:
        """Return the samples' median and spread, in GB/s."""
        p10, p50, p90 = np.percentile(self._samples, [10, 50, 90]) / 1e9
        return {"p10": float(p10), "median": float(p50), "p90": float(p90), "samples": len(self._samples)}


def last_level_cache_bytes() -> int:
    """Return the largest cache of the first core, 32 MiB where the system does not say."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 0)
        if unit and text[:-1].isdigit():
            sizes.append(int(text[:-1]) * unit)
    return max(sizes, default=32 << 20)


def copy_bandwidth(device: torch.device, num_bytes: int = _COPY_BYTES, repeats: int = 30) -> float:
    """Return the bytes a second, read and written, of a copy within a device's memory.

    Args:
        num_bytes: of the copy; more than the caches hold.
        repeats: copies, of which the median counts.
    """
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / float(np.median(device_seconds(lambda: target.copy_(source), repeats, device)))


def device_seconds(call: Callable[[], Any], repeats: int, device: torch.device) -> list[float]:
    """Return the seconds of each of `repeats` calls behind an untimed one: by events on a GPU, else by the clock."""
    call()
    if device.type != "cuda":
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        return times

    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for begin_event, end_event in pairs:
        begin_event.record()
        call()
        end_event.record()
    torch.cuda.synchronize(device)
    return [float(begin_event.elapsed_time(end_event)) * 1e-3 for begin_event, end_event in pairs]


def _numpy_bandwidth(values: np.ndarray) -> float:
    """Return the bytes a second that one thread reads: what there is without the native extension."""
    begin = time.perf_counter()
    values.sum()
    return values.nbytes / (time.perf_counter() - begin)
