"""Pack weights in the order in which the persistent kernel's tensor cores read them.

A warp multiplies tiles with `mma.sync`, whose operands lie in the registers of its 32 lanes. In units of 32-bit words
(two numbers, or one float32) the places are the same for every type, so all of this is generic over the type. For
lane = 4 g + t and the words of k of a tile, an operand of 8 rows holds row g, words t and t + 4; one of 16 rows holds
rows g and g + 8, the same words. A product does not depend on the order of k, nor on which outputs share a tile, so
both are chosen such that each lane reads 16 adjacent bytes of shared memory:

- `pack_rows`, for many inputs (q, k, v and the MLP's first layer): lane 4 g + t has words 4 t to 4 t + 3 of row g of 8
  rows and 16 words. Words 4 t and 4 t + 1 are a tile's words t and t + 4, the other two those of the next tile.
- `pack_outputs`, for few inputs (the output projection of a head, the MLP's second layer): lane 4 g + t has word t of
  outputs 4 g to 4 g + 3 of 32 outputs and 4 words, half a tile. Outputs 4 g and 4 g + 1 are rows g and g + 8 of one
  tile, the other two of another. So a lane's results are four adjacent outputs, which one instruction adds to memory.

Done once when an engine is made, by views and permutations. Shapes: O outputs, I inputs, H hidden size, M neurons.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import pad

from ...reference import BlockWeights

GROUP = 8
"""Rows that are packed together; neurons are dealt out to blocks by so many."""
_TILE = 32
"""Outputs that are packed together."""
_PAIR_BYTES = 64
"""Bytes of a row in a pair of tiles."""
_HALF_BYTES = 16
"""Bytes of a row in half a tile."""
_WORD_BYTES = 4


@dataclass(frozen=True)
class PackedLayer:
    """Packed matrices of a layer, in the dtype of its weights.

    Attributes:
        qkv: [heads, 3 head_dim / 8 (q, then k, then v), H bytes / 64, 8, 64 bytes].
        out_proj: [heads, H / 32, head_dim bytes / 16, 32 lanes, 16 bytes].
        mlp_in: [M / 8, H bytes / 64, 8, 64 bytes].
        mlp_in_bias: float32 [M].
        mlp_out: [M bytes / 16, H / 32, 32 lanes, 16 bytes].

    All sizes are rounded up, and what is added is zero.
    """

    qkv: Tensor
    out_proj: Tensor
    mlp_in: Tensor
    mlp_in_bias: Tensor
    mlp_out: Tensor

    @property
    def inner(self) -> int:
        """Return the number of neurons, rounded up to a multiple of 8."""
        return self.mlp_in_bias.numel()

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all tensors."""
        tensors = (self.qkv, self.out_proj, self.mlp_in, self.mlp_in_bias, self.mlp_out)
        return sum(tensor.nbytes for tensor in tensors)


def pack_layer(block: BlockWeights[Tensor, Tensor], num_heads: int) -> PackedLayer:
    """Return the matrices of a layer as the persistent kernel reads them.

    Args:
        block: qkv [3 H, H], out_proj [H, H], mlp_in [M, H], mlp_out [H, M]; 2 or 4 bytes a number.
        num_heads: H is num_heads * head_dim, and head_dim a multiple of 8.
    """
    hidden = block.qkv.shape[1]
    by_head = block.qkv.view(3, num_heads, hidden // num_heads, hidden).transpose(0, 1)
    qkv = pack_rows(by_head.reshape(3 * hidden, hidden))
    out_proj = pack_outputs(block.out_proj)

    neurons = -block.mlp_in.shape[0] % GROUP
    mlp_out = pad(block.mlp_out, (0, neurons))
    return PackedLayer(
        qkv=qkv.view(num_heads, -1, *qkv.shape[1:]),
        out_proj=out_proj.view(num_heads, -1, *out_proj.shape[1:]).transpose(1, 2).contiguous(),
        mlp_in=pack_rows(block.mlp_in),
        mlp_in_bias=pad(block.mlp_in_bias, (0, neurons)),
        mlp_out=pack_outputs(mlp_out),
    )


def pack_rows(weight: Tensor) -> Tensor:
    """Return weights [O, I] as [O / 8, I bytes / 64, 8, 64 bytes], padded with zeros."""
    size = _PAIR_BYTES // weight.element_size()
    num_outputs, num_inputs = weight.shape
    padded = pad(weight, (0, -num_inputs % size, 0, -num_outputs % GROUP))
    return padded.view(padded.shape[0] // GROUP, GROUP, -1, size).transpose(1, 2).contiguous()


def pack_outputs(weight: Tensor) -> Tensor:
    """Return weights [O, I] as [I bytes / 16, O / 32, 32 lanes, 16 bytes], outputs padded with zeros.

    I must be a multiple of 16 bytes.
    """
    word, half = _WORD_BYTES // weight.element_size(), _HALF_BYTES // weight.element_size()
    num_outputs, num_inputs = weight.shape
    padded = pad(weight, (0, 0, 0, -num_outputs % _TILE))
    lanes = padded.reshape(-1, 8, 4, num_inputs // half, 4, word)  # tile, g, output of 4, half, t, number
    return lanes.permute(3, 0, 1, 4, 2, 5).reshape(num_inputs // half, -1, 32, half)
