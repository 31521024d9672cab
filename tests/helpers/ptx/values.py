"""Number formats of PTX as numpy arrays: registers hold unsigned integers, viewed as what an instruction says."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, Any]

BITS = {
    **{f"{kind}{bits}": bits for kind in "bsu" for bits in (8, 16, 32, 64)},
    "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "f16x2": 32, "bf16x2": 32,
    "s16x2": 32, "u16x2": 32, "tf32": 32,
    "e4m3": 8, "e5m2": 8, "e4m3x2": 16, "e5m2x2": 16,
}  # fmt: skip
"""Bits of a type."""

UNSIGNED: dict[int, Any] = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED: dict[int, Any] = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}


def bfloat16_to_float(bits: Array) -> Array:
    """Widen bfloat16, given as its bits, to float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def float_to_bfloat16(values: Array) -> Array:
    """Round float32 to bfloat16, to nearest even, and return its bits, uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint64(16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), rounded.astype(np.uint16))


@lru_cache
def _fp8_table(kind: str) -> Array:
    codes = torch.arange(256, dtype=torch.int16).to(torch.uint8)
    return codes.view(_FP8[kind]).float().numpy()


_FP8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
_FP8_MAX = {"e4m3": 448.0, "e5m2": 57344.0}


def to_float(bits: Array, kind: str) -> Array:
    """Widen numbers of `kind`, given as their bits, to float32."""
    if kind == "bf16":
        return bfloat16_to_float(bits)
    if kind == "f16":
        return bits.astype(np.uint16).view(np.float16).astype(np.float32)
    if kind in _FP8:
        return _fp8_table(kind)[bits.astype(np.uint8)]
    if kind in ("f32", "tf32"):
        return np.ascontiguousarray(bits, np.uint32).view(np.float32)
    if kind in ("s8", "u8"):
        return bits.astype(np.uint8).view(SIGNED[8] if kind == "s8" else np.uint8).astype(np.float32)
    raise NotImplementedError(f"numbers of type {kind}")


def from_float(values: Array, kind: str) -> Array:
    """Round float32 to nearest even in `kind`, and return the bits; fp8 saturates."""
    if kind == "bf16":
        return float_to_bfloat16(values)
    if kind == "f16":
        return values.astype(np.float16).view(np.uint16)
    if kind in _FP8:
        limit = _FP8_MAX[kind]
        clamped = torch.from_numpy(np.clip(np.ascontiguousarray(values, np.float32), -limit, limit))
        return clamped.to(_FP8[kind]).view(torch.uint8).numpy()
    if kind in ("f32", "tf32"):
        return np.ascontiguousarray(values, np.float32).view(np.uint32)
    raise NotImplementedError(f"numbers of type {kind}")
