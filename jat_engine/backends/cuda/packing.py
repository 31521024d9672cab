"""Pack a checkpoint's weights as the GPU's kernels read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ...checkpoint.weights import Weights, block_parameters
from ...config import JatConfig
from ...reference import BlockWeights, dequantize


@dataclass(frozen=True)
class Matrix:
    """Weights of O outputs and I inputs.

    Attributes:
        weight: [O, I], float32, bfloat16, float16 or int8.
        scale: of each output, float32 [O]; for int8 alone.
    """

    weight: Tensor
    scale: Tensor | None

    @property
    def tensors(self) -> tuple[Tensor, Tensor | None]:
        """Return weight and scale, two arguments in a row of every kernel that multiplies."""
        return self.weight, self.scale

    @property
    def num_bytes(self) -> int:
        """Return the bytes of both tensors."""
        return self.weight.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def to_float(self) -> Tensor:
        """Return the weights as float32 [O, I]."""
        return dequantize(self.weight, self.scale, torch.float32)


Block: TypeAlias = BlockWeights[Matrix, Tensor]
"""A block on the device; vectors are float32."""


def pack(weight: Tensor, dtype: str, device: torch.device) -> Matrix:
    """Return float32 weights [O, I] in `dtype` on the device.

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


def pad_features(table: Tensor, weight: Tensor, least: int = 16) -> tuple[Tensor, Tensor]:
    """Pad tokens' features with zeros to a power of two, so that rows of table and weights lie aligned.

    Args:
        table: [vocab, F], features of tokens.
        weight: [O, L * F], of a layer whose inputs are the features of L tokens.
        least: features to have at least.

    Returns:
        The table [vocab, P], and the weights [O, L * P].
    """
    features = table.shape[1]
    missing = max(least, 1 << (features - 1).bit_length()) - features
    padded = torch.nn.functional.pad(weight.view(len(weight), -1, features), (0, missing))
    return torch.nn.functional.pad(table, (0, missing)), padded.flatten(1)


def pack_block(config: JatConfig, weights: Weights, index: int, dtype: str, device: torch.device) -> Block:
    """Return block `index` of a checkpoint on the device."""

    def matrix(names: tuple[str, ...]) -> Matrix:
        return pack(torch.cat([weights.get(name) for name in names]), dtype, device)

    def vector(name: str) -> Tensor:
        return weights.get(name).clone().to(device)

    return block_parameters(config, index).map(matrix, vector)
