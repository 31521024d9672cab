"""Run the blocks of a step of agents or texts: the kernels of a layer, and the memory between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ...kernels.linear import linear_residual, norm_linear, norm_qkv
from ...kernels.tiles import most_partial_rows, num_partials
from ..base import PAGE_SIZE
from .kv_pages import KVPages

if TYPE_CHECKING:
    from .packing import Block, Matrix
    from .weights import CudaWeights


class Attend(Protocol):
    """Attention of a step's rows over the pages of a layer, which has what the step's inputs say of sessions."""

    def __call__(
        self, q: Tensor, pages: Tensor, window: int, out: Tensor, scales: Tensor | None, new_kv: Tensor | None
    ) -> None:
        """Write the attention of all rows.

        Args:
            q: float32 [rows, H].
            pages: [num_pages, 2, heads, 16, head_dim].
            window: keys that a query sees, its own included.
            out: [rows, H]; written.
            scales: of quantised pages, uint8 [num_pages, heads, 2, 16], and
            new_kv: the rows' keys and values, see `paged_attention`.
        """
        ...


class BlockScratch:
    """Memory between the kernels of the blocks, for up to so many rows.

    Rows of no session hold finite numbers, at first zeros.

    Attributes:
        x, q: the residual stream and the queries, float32 [rows, H].
        normed, attended: [rows, H], and
        inner: [rows, M], in the dtype of the activations.
        new_kv: [ceil(rows / 16), 2, heads, 16, head_dim], keys and values that are not quantised yet; None if the cache
            is not quantised, and so is
        row_numbers: int32 [rows].
        unadded: sums of linear layers that the next kernel adds to x, float32.
    """

    def __init__(self, weights: CudaWeights, rows: int) -> None:
        config, device = weights.config, weights.device
        hidden, heads = config.hidden_size, config.num_heads

        self.x = torch.zeros(rows, hidden, device=device, dtype=torch.float32)
        self.q = torch.zeros(rows, hidden, device=device, dtype=torch.float32)
        self.normed = torch.zeros(rows, hidden, device=device, dtype=weights.activation_dtype)
        self.attended = torch.zeros(rows, hidden, device=device, dtype=weights.activation_dtype)
        self.inner = torch.zeros(rows, weights.inner_size, device=device, dtype=weights.activation_dtype)

        self.unadded = torch.zeros(most_partial_rows(rows) * hidden, device=device, dtype=torch.float32)

        self.new_kv: Tensor | None = None
        self.row_numbers: Tensor | None = None
        if weights.is_kv_quantized:
            shape = -(-rows // PAGE_SIZE), 2, heads, PAGE_SIZE, hidden // heads
            self.new_kv = torch.zeros(shape, device=device, dtype=weights.activation_dtype)
            self.row_numbers = torch.arange(rows, device=device, dtype=torch.int32)

    @property
    def num_bytes(self) -> int:
        """Return the bytes on the device."""
        return sum(tensor.nbytes for tensor in vars(self).values() if isinstance(tensor, Tensor))


def run_blocks(
    weights: CudaWeights,
    cache: KVPages,
    scratch: BlockScratch,
    x: Tensor,
    slot_mapping: Tensor,
    attend: Attend,
    *,
    pdl: bool,
) -> Tensor | None:
    """Launch the kernels of all blocks on the current stream.

    Args:
        weights: of the blocks.
        cache: that the rows' keys and values are written to.
        scratch: of at least as many rows.
        x: float32 [rows, H], the embeddings; updated.
        slot_mapping: int32 [rows], of the rows in the pages; -1 to write nothing.
        attend: the attention.
        pdl: programmatic dependent launch.

    Returns:
        What remains to be added to x, float32 [P, rows, H]; or None.
    """
    unadded = None
    for layer, (pages, scales) in zip(weights.layers, cache, strict=True):
        unadded = _run_block(layer, pages, scales, scratch, x, unadded, slot_mapping, attend, pdl)
    return unadded


def _run_block(
    layer: Block,
    pages: Tensor,
    scales: Tensor | None,
    scratch: BlockScratch,
    x: Tensor,
    unadded: Tensor | None,
    slot_mapping: Tensor,
    attend: Attend,
    pdl: bool,
) -> Tensor | None:
    """Run one block.

    Args:
        layer: its weights.
        pages: [num_pages, 2, heads, 16, head_dim].
        scales: of quantised pages, uint8 [num_pages, heads, 2, 16].
        scratch: see `run_blocks`.
        x: float32 [rows, H]; updated.
        unadded: float32 [P, rows, H], what of x the previous block left to be added; or None.
        slot_mapping: see `run_blocks`.
        attend: see `run_blocks`.
        pdl: programmatic dependent launch.

    Returns:
        What this block leaves to be added.
    """
    rows = len(x)
    q, attended, inner = scratch.q[:rows], scratch.attended[:rows], scratch.inner[:rows]
    normed = scratch.normed[:rows]
    new_kv, kv_target, slots = None, pages, slot_mapping
    if scratch.new_kv is not None and scratch.row_numbers is not None:
        # The attention quantises them into their pages: its programs have whole heads of a token.
        new_kv = kv_target = scratch.new_kv[: -(-rows // PAGE_SIZE)]
        slots = scratch.row_numbers[:rows]
    qkv = layer.qkv.tensors
    norm_qkv(x, *layer.norm1, *qkv, q, kv_target, slots, normed=normed, partial=unadded, pdl=pdl)

    attend(q, pages, layer.window, attended, scales, new_kv)
    unadded = _add_linear(attended, layer.out_proj, layer.out_proj_bias, scratch, x, pdl)

    mlp_in = layer.mlp_in.tensors
    norm_linear(x, *layer.norm2, *mlp_in, layer.mlp_in_bias, inner, gelu=True, normed=normed, partial=unadded, pdl=pdl)
    return _add_linear(inner, layer.mlp_out, layer.mlp_out_bias, scratch, x, pdl)


def _add_linear(a: Tensor, matrix: Matrix, bias: Tensor, scratch: BlockScratch, x: Tensor, pdl: bool) -> Tensor | None:
    """Add a linear layer of a to x, and return None; or return what remains to be added, float32 [P, rows, H]."""
    rows, hidden = x.shape
    parts = num_partials(rows, hidden, a.shape[1], matrix.weight.dtype)
    unadded = scratch.unadded[: parts * rows * hidden].view(parts, rows, hidden) if parts > 1 else None
    linear_residual(a, *matrix.tensors, bias, x, partial=unadded, pdl=pdl)
    return unadded
