"""The physical limit: bytes a step must read over the bytes a second that the memory gives, measured as it goes."""

from __future__ import annotations

import time

import numpy as np
import torch

from ..backends.select import native_module
from ..machine import available_cores

_READ_BYTES = 1 << 28


class Bandwidth:
    """Reads memory between rounds, with all cores (on a GPU, copies it).

    Args:
        device: whose memory.
    """

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._measure()  # its pages are new
        self._samples = [self._measure()]

    def sample(self, number: int = 0) -> None:
        self._samples.append(self._measure())

    def _measure(self) -> float:
        if self._device.type == "cuda":
            return _copy_bandwidth(self._device)
        native, _ = native_module()
        if native is None:
            return _numpy_bandwidth(np.ones(_READ_BYTES // 8))
        return float(native.read_bandwidth(_READ_BYTES, available_cores(), 3))

    @property
    def is_limit(self) -> bool:
        """Whether all cores read; without the native extension one does, and more than that can be had."""
        return self._device.type == "cuda" or native_module()[0] is not None

    @property
    def median(self) -> float:
        """Bytes a second."""
        return float(np.median(self._samples))

    def facts(self) -> dict[str, float]:
        p10, p50, p90 = np.percentile(self._samples, [10, 50, 90]) / 1e9
        return {"p10": float(p10), "median": float(p50), "p90": float(p90), "samples": len(self._samples)}


def _numpy_bandwidth(values: np.ndarray) -> float:
    """By one thread: what there is without the native extension."""
    begin = time.perf_counter()
    values.sum()
    return values.nbytes / (time.perf_counter() - begin)


def _copy_bandwidth(device: torch.device) -> float:
    source = torch.ones(_READ_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(8):
        target.copy_(source)
    end.record()
    end.synchronize()
    return 8 * 2 * _READ_BYTES / (float(begin.elapsed_time(end)) * 1e-3)
