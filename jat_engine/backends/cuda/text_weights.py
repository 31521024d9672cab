"""Hold the weights that texts alone need on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...checkpoint.weights import EMBEDDING, HEAD, PATCH_PROJECTION, Weights
from .packing import Matrix, pack


@dataclass(frozen=True)
class TextWeights:
    """Weights of tokens and pictures.

    Attributes:
        embedding: of tokens, float32 [vocab, H].
        head: predicts tokens, [vocab, H] in the engine's dtype.
        patches: encodes patches of pictures, float32 [H, C * patch_size^2], and
        patch_bias: float32 [H].
    """

    embedding: Tensor
    head: Matrix
    patches: Matrix
    patch_bias: Tensor

    @property
    def num_bytes(self) -> int:
        """Return the bytes on the device."""
        matrices = self.head.num_bytes + self.patches.num_bytes
        return self.embedding.nbytes + matrices + self.patch_bias.nbytes


def read_text_weights(weights: Weights, dtype: str, device: torch.device) -> TextWeights:
    """Read a checkpoint's weights of texts onto the device, the large ones a piece at a time."""
    embedding = torch.cat([piece.to(device) for piece in weights.pieces(EMBEDDING)])
    pieces = [pack(piece, dtype, device) for piece in weights.pieces(HEAD)]
    scales = [piece.scale for piece in pieces if piece.scale is not None]
    head = Matrix(torch.cat([piece.weight for piece in pieces]), torch.cat(scales) if scales else None)
    patches = pack(weights.get(f"{PATCH_PROJECTION}.weight").flatten(1), "float32", device)
    bias = weights.get(f"{PATCH_PROJECTION}.bias")
    return TextWeights(embedding, head, patches, torch.empty_like(bias, device=device).copy_(bias))
