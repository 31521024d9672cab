"""A checkpoint's weights as the GPU's kernels read them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...checkpoint.weights import Weights
from ...config import JatConfig


@dataclass(frozen=True)
class Matrix:
    """Weights in their dtype; int8 with a float32 scale for each output."""

    weight: Tensor
    scale: Tensor | None

    @property
    def num_bytes(self) -> int:
        return self.weight.nbytes + (0 if self.scale is None else self.scale.nbytes)


def pack(weight: Tensor, dtype: str, device: torch.device) -> Matrix:
    """weight: float32 [N, K] -> `Matrix` [N, K].

    int8 rounds to weight * 127 / max|row|. It is weight-only: activations stay bfloat16.
    """
    scale = None
    if dtype == "int8":
        scale = weight.abs().amax(dim=1).clamp(min=1e-30) / 127
        weight = (weight / scale[:, None]).round()
        scale = scale.to(device)
    # Memory of its own, which is aligned: what is read of a file lies anywhere.
    packed = torch.empty(weight.shape, dtype=getattr(torch, dtype), device=device)
    return Matrix(packed.copy_(weight), scale)


def transpose(matrix: Matrix) -> Matrix:
    """[N, K] -> [K, N]; the scales stay those of the N outputs."""
    return Matrix(matrix.weight.t().contiguous(), matrix.scale)


@dataclass(frozen=True)
class Layer:
    """One block. window: how many keys a query sees, its own included.

    norm1, norm2: weight and bias, float32 [H]. qkv: [3H, H]. out: [H, H]. fc: [inner, H]. proj: transposed, [inner, H].
    """

    norm1: tuple[Tensor, Tensor]
    qkv: Matrix
    out: Matrix
    out_bias: Tensor
    norm2: tuple[Tensor, Tensor]
    fc: Matrix
    fc_bias: Tensor
    proj: Matrix
    proj_bias: Tensor
    window: int

    @property
    def num_bytes(self) -> int:
        return sum(matrix.num_bytes for matrix in (self.qkv, self.out, self.fc, self.proj))


def pack_layer(config: JatConfig, weights: Weights, index: int, dtype: str, device: torch.device) -> Layer:
    block = f"transformer.h.{index}."
    attention = f"{block}attn.attention."

    def vector(name: str) -> Tensor:
        return weights.get(block + name).clone().to(device)

    qkv = torch.cat([weights.get(f"{attention}{name}_proj.weight") for name in "qkv"])
    is_local = config.attention_layers[index] == "local"
    return Layer(
        norm1=(vector("ln_1.weight"), vector("ln_1.bias")),
        qkv=pack(qkv, dtype, device),
        out=pack(weights.get(f"{attention}out_proj.weight"), dtype, device),
        out_bias=vector("attn.attention.out_proj.bias"),
        norm2=(vector("ln_2.weight"), vector("ln_2.bias")),
        fc=pack(weights.get(f"{block}mlp.c_fc.weight"), dtype, device),
        fc_bias=vector("mlp.c_fc.bias"),
        proj=transpose(pack(weights.get(f"{block}mlp.c_proj.weight"), dtype, device)),
        proj_bias=vector("mlp.c_proj.bias"),
        window=config.window_size if is_local else config.max_position_embeddings,
    )
