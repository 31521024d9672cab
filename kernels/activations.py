"""Device functions: sigmoid, and gelu_new (`jat_engine.reference.gelu`)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """Return 1 / (1 + exp(-x)), elementwise."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def gelu_new(x):
    """Return 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), elementwise."""
    # 0.5 (1 + tanh(u)) = sigmoid(2 u): one exponential, and exact where tanh saturates.
    return x * sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
