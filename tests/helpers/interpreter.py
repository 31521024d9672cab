"""Make Triton's interpreter compute with bfloat16 and fp8 as a GPU does.

The interpreter holds these numbers as integers. It multiplies bfloat16 as those integers, truncates where a GPU rounds
to nearest even, and turns an integer into the bits of a bfloat16. Here operands of a product are widened to float32,
conversions round to nearest even, and other arithmetic on these formats is refused. Written for Triton 3.6 to 3.9.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from .ptx.values import from_float, to_float

_FORMATS = {tl.bfloat16: "bf16", tl.float8e4nv: "e4m3", tl.float8e5: "e5m2"}
"""Formats that the interpreter holds as unsigned integers."""

_NUMPY = {
    tl.float16: np.float16, tl.float32: np.float32, tl.float64: np.float64, tl.int8: np.int8, tl.int16: np.int16,
    tl.int32: np.int32, tl.int64: np.int64, tl.uint8: np.uint8, tl.uint16: np.uint16, tl.uint32: np.uint32,
    tl.uint64: np.uint64, tl.int1: np.bool_,
}  # fmt: skip


def install() -> None:
    """Replace what is wrong in the interpreter of this process."""
    if getattr(InterpreterBuilder, "computes_bfloat16", False):
        return
    cast, fp_to_fp = InterpreterBuilder.cast_impl, InterpreterBuilder.create_fp_to_fp
    dot, binary = InterpreterBuilder.create_dot, InterpreterBuilder.binary_op

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        before, after = source.dtype.scalar, target.scalar
        if before == after or not (before in _FORMATS or after in _FORMATS):
            return cast(self, source, target)
        values = to_float(source.data, _FORMATS[before]) if before in _FORMATS else source.data
        if after in _FORMATS:
            return TensorHandle(from_float(values.astype(np.float32), _FORMATS[after]), after)
        return TensorHandle(values.astype(_NUMPY[after]), after)

    def create_fp_to_fp(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        if source.dtype.scalar in _FORMATS or target.scalar in _FORMATS:
            return cast_impl(self, source, target)
        return fp_to_fp(self, source, target, rounding)

    def create_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        return dot(self, _widened(a), _widened(b), d, *options)

    def binary_op(self: Any, a: Any, b: Any, operation: Any) -> Any:
        if a.dtype.scalar in _FORMATS or b.dtype.scalar in _FORMATS:
            raise NotImplementedError(f"{operation.__name__} of {a.dtype} and {b.dtype}: expected float32 operands")
        return binary(self, a, b, operation)

    InterpreterBuilder.cast_impl, InterpreterBuilder.create_fp_to_fp = cast_impl, create_fp_to_fp
    InterpreterBuilder.create_dot, InterpreterBuilder.binary_op = create_dot, binary_op
    InterpreterBuilder.computes_bfloat16 = True


def _widened(operand: Any) -> Any:
    """Return an operand of a product as float32, which holds all numbers of these formats."""
    kind = _FORMATS.get(operand.dtype.scalar)
    return operand if kind is None else TensorHandle(to_float(operand.data, kind), tl.float32)
