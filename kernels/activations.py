"""Device functions: sigmoid, gelu_new (`jat_engine.reference.gelu`), and those of the image encoder's stages.

The stages are those of image_encoder.py: InstanceNorm, leaky_relu, and gates of C channels.
"""

from __future__ import annotations

import triton
import triton.language as tl

_INSTANCE_NORM_EPSILON = tl.constexpr(1e-5)


@triton.jit
def sigmoid(x):
    """Return 1 / (1 + exp(-x)), elementwise."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def gelu_new(x):
    """Return 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), elementwise."""
    # 0.5 (1 + tanh(u)) = sigmoid(2 u): one exponential, and exact where tanh saturates.
    return x * sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit
def load_gate(squeeze_ptr, excite_ptr, C: tl.constexpr):
    """Return the weights of a gate, squeeze [C / 8, C] and excite [C, C / 8]."""
    c, j = tl.arange(0, C), tl.arange(0, C // 8)
    return tl.load(squeeze_ptr + j[:, None] * C + c[None, :]), tl.load(excite_ptr + c[:, None] * (C // 8) + j[None, :])


@triton.jit
def gates(means, squeeze, excite):
    """Return a frame's gates, sigmoid(excite relu(squeeze means)), from the channels' means; float32 [C]."""
    inner = tl.maximum(tl.sum(squeeze * means[None, :], 1), 0.0)
    return sigmoid(tl.sum(excite * inner[None, :], 1))


@triton.jit
def instance_norm(x, in_frame, PIXELS: tl.constexpr):
    """Return leaky_relu(InstanceNorm(x)) of a whole frame, float32 [pixels, C].

    in_frame: [pixels, 1]; where it is false x is 0.
    """
    mean = tl.sum(x, 0) / PIXELS
    x = tl.where(in_frame, x - mean[None, :], 0.0)
    x *= tl.rsqrt(tl.sum(x * x, 0) / PIXELS + _INSTANCE_NORM_EPSILON)[None, :]
    return tl.maximum(x, 0.01 * x)
