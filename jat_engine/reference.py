"""Define the arithmetic of a transformer block and of the head, in plain PyTorch and any float dtype.

The torch backend computes with these functions; the startup check and the tests of the kernels compare with them. The
suffix of a tensor's name lists its dimensions:

    T  tokens: the rows of a step         K  keys a token may see: cached ones, then those of the step
    H  hidden_size, N * D                 N  num_heads                 D  head_dim
    M  width inside the MLP               A  outputs of a head         X  numbers of an observation or action
    I  inputs of a linear layer           O  outputs of a linear layer
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

LAYER_NORM_EPSILON = 1e-5
"""The published value of `JatConfig.layer_norm_epsilon`, and the only one that engines take."""

Matrix = TypeVar("Matrix")
Vector = TypeVar("Vector")
NewMatrix = TypeVar("NewMatrix")
NewVector = TypeVar("NewVector")


@dataclass(frozen=True)
class BlockWeights(Generic[Matrix, Vector]):
    """The parameters of one block, in whatever form their owner holds matrices and vectors.

    Attributes:
        norm1: weight and bias [H] of the LayerNorm before attention.
        qkv: [3H, H]: rows of the queries, then of the keys, then of the values; head n has rows n * D.. of each.
        out_proj, out_proj_bias: [H, H] and [H].
        norm2: weight and bias [H] of the LayerNorm before the MLP.
        mlp_in, mlp_in_bias: [M, H] and [M].
        mlp_out, mlp_out_bias: [H, M] and [H].
        window: keys that a query sees, its own included; `max_position_embeddings` in a global layer.
    """

    norm1: tuple[Vector, Vector]
    qkv: Matrix
    out_proj: Matrix
    out_proj_bias: Vector
    norm2: tuple[Vector, Vector]
    mlp_in: Matrix
    mlp_in_bias: Vector
    mlp_out: Matrix
    mlp_out_bias: Vector
    window: int

    @property
    def matrices(self) -> tuple[Matrix, Matrix, Matrix, Matrix]:
        """Return the four matrices, in the order of their use."""
        return self.qkv, self.out_proj, self.mlp_in, self.mlp_out

    def map(
        self, matrix: Callable[[Matrix], NewMatrix], vector: Callable[[Vector], NewVector]
    ) -> BlockWeights[NewMatrix, NewVector]:
        """Return the block with `matrix` applied to each matrix and `vector` to each vector, in the order of fields."""
        return BlockWeights(
            norm1=(vector(self.norm1[0]), vector(self.norm1[1])),
            qkv=matrix(self.qkv),
            out_proj=matrix(self.out_proj),
            out_proj_bias=vector(self.out_proj_bias),
            norm2=(vector(self.norm2[0]), vector(self.norm2[1])),
            mlp_in=matrix(self.mlp_in),
            mlp_in_bias=vector(self.mlp_in_bias),
            mlp_out=matrix(self.mlp_out),
            mlp_out_bias=vector(self.mlp_out_bias),
            window=self.window,
        )


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q_TND, k_TND, v_TND of the step's tokens -> out_TH. It keeps keys and values where its owner wants them."""


def block(
    x_TH: Tensor,
    weights: BlockWeights[Matrix, Tensor],
    num_heads: int,
    attend: Attend,
    linear: Callable[[Tensor, Matrix, Tensor | None], Tensor],
) -> Tensor:
    """Return x_TH after one block: x += attention(LN(x)), then x += MLP(LN(x)).

    Args:
        x_TH: the residual stream.
        weights: the block's parameters.
        num_heads: N.
        attend: attention over cached keys and those of the step, mostly `attention` behind a cache.
        linear: (x_TI, matrix, bias_O or None) -> [T, O], with a matrix as `weights` holds it; for plain tensors the
            function `linear` of this module.
    """
    normed_TH = layer_norm(x_TH, *weights.norm1)
    q_TND, k_TND, v_TND = linear(normed_TH, weights.qkv, None).unflatten(1, (3, num_heads, -1)).unbind(1)
    attended_TH = attend(q_TND, k_TND, v_TND)
    x_TH = x_TH + linear(attended_TH, weights.out_proj, weights.out_proj_bias)

    normed_TH = layer_norm(x_TH, *weights.norm2)
    inner_TM = gelu(linear(normed_TH, weights.mlp_in, weights.mlp_in_bias))
    return x_TH + linear(inner_TM, weights.mlp_out, weights.mlp_out_bias)


def head(x_TH: Tensor, norm: tuple[Tensor, Tensor], rows_AH: Tensor, bias_A: Tensor | None = None) -> Tensor:
    """Return the predictions LN(x) W^T + b, [T, A], of the residual stream after the last block."""
    return linear(layer_norm(x_TH, *norm), rows_AH, bias_A)


def layer_norm(x_TH: Tensor, weight_H: Tensor, bias_H: Tensor) -> Tensor:
    """Return (x - mean) / sqrt(variance + epsilon) * weight + bias, rows of NaN where the variance overflows."""
    normed_TH = F.layer_norm(x_TH, x_TH.shape[-1:], weight_H, bias_H, LAYER_NORM_EPSILON)
    # A variance that overflowed would make every row its bias, finite and wrong: 0 * inf makes it NaN.
    wide_TH = x_TH.to(torch.promote_types(x_TH.dtype, torch.float32))
    return normed_TH + (0 * wide_TH.square().sum(dim=-1, keepdim=True)).to(x_TH.dtype)


def attention(q_TND: Tensor, k_KND: Tensor, v_KND: Tensor, age_TK: Tensor, window: int) -> Tensor:
    """Return softmax(q . k) v over the keys of an age from 0 to window - 1, [T, H].

    Args:
        q_TND: queries. The scores and the softmax have their dtype.
        k_KND: keys, in the same dtype.
        v_KND: values; the softmax is rounded to their dtype for the product with them.
        age_TK: how many tokens before the query each key lies; negative for a key that comes after it.
        window: keys that a query sees, its own included.
    """
    hidden_TK = (age_TK < 0) | (age_TK >= window)
    # No 1 / sqrt(head_dim): GPT-Neo omits it.
    scores_NTK = torch.einsum("thd,khd->htk", q_TND, k_KND).masked_fill(hidden_TK, -torch.inf)
    shares_NTK = scores_NTK.softmax(dim=-1).to(v_KND.dtype)
    return torch.einsum("htk,khd->thd", shares_NTK, v_KND).flatten(1)


def key_ages(num_tokens: int, num_keys: int, device: torch.device) -> Tensor:
    """Return the ages [T, K] that `attention` takes, where the queries are those of the newest T of K tokens."""
    index_K = torch.arange(num_keys, device=device)
    return index_K[num_keys - num_tokens :, None] - index_K


def gelu(x: Tensor) -> Tensor:
    """Return 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    return F.gelu(x, approximate="tanh")


def linear(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Return x W^T + b, [T, O]."""
    return F.linear(x_TI, weight_OI, bias_O)


def encode_continuous(values_X: Tensor, encoder_XH: Tensor, bias_H: Tensor) -> Tensor:
    """Return the embedding [H] of X numbers. encoder_XH: the weights for that size (`fold_cyclic`), transposed."""
    return bias_H + values_X @ encoder_XH


def dequantize(weight_OI: Tensor, scale_O: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return weights in `dtype`: int8 ones times the scale of their output, others as they are."""
    weight_OI = weight_OI.to(dtype)
    return weight_OI if scale_O is None else weight_OI * scale_O.to(dtype)[:, None]


def quantize_int8(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Return whole numbers from -127 to 127, int8 [O, I], and a scale for each output, float32 [O], of float32 weights.

    The same numbers, bit for bit, as the native module packs.
    """
    largest_O = weight_OI.abs().amax(dim=1)
    quotient_O = torch.full_like(largest_O, 127).div(largest_O)  # 127 / x is x.reciprocal() * 127, rounded twice
    inverse_O = torch.where(largest_O > 1e-30, quotient_O, 0)
    return (weight_OI * inverse_O[:, None]).round().to(torch.int8), largest_O / 127
