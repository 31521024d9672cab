"""Run a step of several sessions as Triton kernels, captured once in a CUDA graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...kernels.attention import paged_attention
from ...kernels.discrete_encoder import encode_discrete
from ...kernels.embedding import embed
from ...kernels.head import head
from ...kernels.image_encoder import encode_images
from ...kernels.image_weights import ImageScratch, make_image_scratch
from ...kernels.linear import linear_residual, norm_linear, norm_qkv
from ...kernels.splits import Splits
from ...kernels.tiles import most_partial_rows, num_partials
from ..base import PAGE_SIZE, STEP_TOKENS
from .capture import CapturedGraph, retry_without_pdl
from .inputs import StepInputs, StepShape
from .kv_pages import KVPages

if TYPE_CHECKING:
    from .packing import Block, Matrix
    from .weights import CudaWeights

_MAX_SPLITS = 4
"""More would read keys in shorter ranges; but every program of the next kernel reads all partial sums."""

_ATTENTION_WARPS = 16
"""Programs of one warp, of the attention for float8, that a multiprocessor runs at once: as many as splits are for."""

_MOST_DEPENDENT = 256
"""Sessions up to which kernels start while the one before still runs. With more, the programs that wait take room from
those that work: 5 to 13 % of a linear kernel, read at 1024 sessions on an H200."""


class Scratch:
    """Memory between the kernels of a step; all graphs share it, since one step runs at a time.

    Rows of no session hold finite numbers, at first zeros.

    Attributes:
        x, q: the residual stream and the queries, float32 [rows, H].
        normed, attended: [rows, H], and
        inner: [rows, M], in the dtype of the activations.
        new_kv: [ceil(rows / 16), 2, heads, 16, head_dim], keys and values that are not quantised yet; None if the cache
            is not quantised, and so are
        row_numbers: int32 [rows], and
        splits: of the keys of as many sessions as are split, see `Splits`.
        unadded: sums of linear layers that the next kernel adds to x, float32.
    """

    def __init__(self, weights: CudaWeights, sessions: int) -> None:
        config, device = weights.config, weights.device
        hidden, heads = config.hidden_size, config.num_heads
        rows = sessions * STEP_TOKENS
        self.sessions = sessions

        self.x = torch.zeros(rows, hidden, device=device, dtype=torch.float32)
        self.q = torch.zeros(rows, hidden, device=device, dtype=torch.float32)
        self.normed = torch.zeros(rows, hidden, device=device, dtype=weights.activation_dtype)
        self.attended = torch.zeros(rows, hidden, device=device, dtype=weights.activation_dtype)
        self.inner = torch.zeros(rows, weights.inner_size, device=device, dtype=weights.activation_dtype)

        self.unadded = torch.zeros(most_partial_rows(rows) * hidden, device=device, dtype=torch.float32)
        self._images: ImageScratch | None = None

        self.new_kv: Tensor | None = None
        self.row_numbers: Tensor | None = None
        self.splits: Splits | None = None
        if weights.is_kv_quantized:
            shape = -(-rows // PAGE_SIZE), 2, heads, PAGE_SIZE, hidden // heads
            self.new_kv = torch.zeros(shape, device=device, dtype=weights.activation_dtype)
            self.row_numbers = torch.arange(rows, device=device, dtype=torch.int32)

            # All splits of all rows, of the numbers of sessions that are split.
            programs = min(_MAX_SPLITS * sessions * heads, _ATTENTION_WARPS * weights.num_multiprocessors)
            split_rows = -(-programs // heads) * STEP_TOKENS
            self.splits = Splits(
                torch.zeros(split_rows * hidden, device=device, dtype=torch.float32),
                torch.zeros(split_rows * heads, device=device, dtype=torch.float32),
                torch.zeros(split_rows * heads, device=device, dtype=torch.float32),
                torch.zeros(sessions * heads, device=device, dtype=torch.int32),
            )

    def for_images(self, weights: CudaWeights) -> ImageScratch:
        """Return the image encoder's memory, allocated when the first graph needs it."""
        if self._images is None:
            self._images = make_image_scratch(self.sessions, weights.images)
        return self._images

    @property
    def num_bytes(self) -> int:
        """Return the bytes on the device."""
        tensors = [value for value in (*vars(self).values(), *(self.splits or ())) if isinstance(value, Tensor)]
        return sum(tensor.nbytes for tensor in tensors) + (self._images.num_bytes if self._images else 0)


class GraphStep:
    """Inputs, outputs and the captured kernels of one `StepShape`. On a CPU the kernels are interpreted each time.

    Attributes:
        shape: that it was made for.
        inputs: written before `launch`.
        predictions: float32 [sessions, capacity], rows: its rows, and
        choices, finite: int32 [sessions], after `wait`; on the host.
    """

    def __init__(
        self,
        weights: CudaWeights,
        cache: KVPages,
        scratch: Scratch,
        shape: StepShape,
        max_pages: int,
    ) -> None:
        """Allocate inputs and outputs and, on a GPU, capture the kernels.

        Args:
            weights: on the device.
            cache: that the step reads and appends to.
            scratch: of at least `shape.sessions`.
            shape: of the steps to come.
            max_pages: of a session.
        """
        self.shape = shape
        self._weights = weights
        self._cache = cache
        self._scratch = scratch
        self._num_splits = 1
        if weights.is_kv_quantized:
            programs = _ATTENTION_WARPS * weights.num_multiprocessors
            self._num_splits = num_splits(programs, weights.config.num_heads, shape.sessions)
        device = weights.device
        self.inputs = StepInputs(shape, max_pages, weights.config.max_discrete_value, device)
        on_gpu = device.type == "cuda"

        # Of a session: its choice, whether all is finite, then the prediction, as one array that is copied at once.
        numbers = shape.sessions * (2 + shape.capacity)
        self._out = torch.empty(numbers, device=device, dtype=torch.float32)
        self._host_out = torch.empty(numbers, device="cpu", dtype=torch.float32, pin_memory=on_gpu)
        split = [shape.sessions * shape.capacity, shape.sessions, shape.sessions]
        out, choices, finite = self._out.split(split)
        self._device_out = out.view(shape.sessions, shape.capacity), choices.view(torch.int32), finite.view(torch.int32)
        out, choices, finite = self._host_out.split(split)
        self.predictions = out.view(shape.sessions, shape.capacity).numpy()
        self.rows = list(self.predictions)
        self.choices, self.finite = choices.view(torch.int32).numpy(), finite.view(torch.int32).numpy()

        self._images = scratch.for_images(weights) if shape.frames else None
        self._graph = self._capture() if on_gpu else None
        self._stream: torch.cuda.Stream | None = None  # that the graph runs on

    @property
    def num_bytes(self) -> int:
        """Return the bytes on the device; kernels write to memory that all graphs share."""
        return self.inputs.num_bytes + self._out.nbytes

    @property
    def _pdl(self) -> bool:
        return self._weights.pdl and self.shape.sessions <= _MOST_DEPENDENT

    def launch(self) -> None:
        """Start the step on the current stream."""
        if self._graph is None:
            self._run()
        else:
            self._stream = self._graph.launch()

    def wait(self) -> None:
        """Block until the step that was launched is done."""
        if self._stream is not None:
            self._stream.synchronize()
            self._stream = None

    def _capture(self) -> CapturedGraph:
        """Run the step and capture it. With no rows in the inputs it changes nothing but scratch memory."""
        device = self._weights.device
        return retry_without_pdl(self._weights, lambda: CapturedGraph(device, self._run))

    def _run(self) -> None:
        """Launch the step on the current stream: one copy in, the kernels, one copy out."""
        weights, scratch, shape = self._weights, self._scratch, self.shape
        self.inputs.copy()
        pdl = False  # the first kernel waits for the copy, which is none and cannot let it start early
        given = self.inputs.device
        if shape.integers:
            encode_discrete(
                given["tokens"],
                given["rewards"],
                given["token_targets"],
                weights.discrete_table,
                *weights.discrete_mixer.tensors,
                weights.discrete_bias,
                pdl=pdl,
            )
            pdl = self._pdl
        if self._images is not None:
            encode_images(given["frames"], given["frame_targets"], weights.images, self._images, pdl=pdl)
        if shape.capacity:
            self._decode(scratch.x[: shape.sessions * STEP_TOKENS])

    def _decode(self, x: Tensor) -> None:
        """Embed, run the blocks, and predict."""
        weights, given, pdl = self._weights, self.inputs.device, self._pdl
        is_first = not (self.shape.frames or self.shape.integers)
        embed(
            x,
            given["source_ptrs"],
            given["source_sizes"],
            given["value_starts"],
            given["values"],
            weights.continuous_bias,
            weights.position_table,
            given["positions"],
            pdl=pdl and not is_first,
        )

        unadded = None
        for layer, (pages, scales) in zip(weights.layers, self._cache, strict=True):
            unadded = self._layer(layer, pages, scales, x, unadded)

        out, choices, finite = self._device_out
        head(
            x,
            *weights.final_norm,
            given["query_start"],
            given["head_ptrs"],
            given["head_bias_ptrs"],
            given["head_sizes"],
            given["log_noise"],
            given["has_noise"],
            out,
            choices,
            finite,
            partial=unadded,
            pdl=pdl,
        )
        self._host_out.copy_(self._out, non_blocking=True)

    def _layer(
        self, layer: Block, pages: Tensor, scales: Tensor | None, x: Tensor, unadded: Tensor | None
    ) -> Tensor | None:
        """Run one block.

        Args:
            layer: its weights.
            pages: [num_pages, 2, heads, 16, head_dim].
            scales: of quantised pages, uint8 [num_pages, heads, 2, 16].
            x: float32 [rows, H]; updated.
            unadded: float32 [P, rows, H], what of x the previous block left to be added; or None.

        Returns:
            What this block leaves to be added.
        """
        scratch, given, pdl = self._scratch, self.inputs.device, self._pdl
        rows = len(x)
        q, attended, inner = scratch.q[:rows], scratch.attended[:rows], scratch.inner[:rows]
        normed = scratch.normed[:rows]
        new_kv, kv_target, slots = None, pages, given["slot_mapping"]
        if scratch.new_kv is not None and scratch.row_numbers is not None:
            # The attention quantises them into their pages: its programs have whole heads of a token.
            new_kv = kv_target = scratch.new_kv[: -(-rows // PAGE_SIZE)]
            slots = scratch.row_numbers[:rows]
        qkv = layer.qkv.tensors
        norm_qkv(x, *layer.norm1, *qkv, q, kv_target, slots, normed=normed, partial=unadded, pdl=pdl)

        paged_attention(
            q,
            pages,
            given["page_table"],
            given["query_start"],
            given["context_lens"],
            given["start_offsets"],
            layer.window,
            attended,
            max_queries=STEP_TOKENS,
            scales=scales,
            new_kv=new_kv,
            splits=self._splits_of(rows),
            pdl=pdl,
        )
        unadded = self._add_linear(attended, layer.out_proj, layer.out_proj_bias, x)

        mlp_in = layer.mlp_in.tensors
        norm_linear(
            x, *layer.norm2, *mlp_in, layer.mlp_in_bias, inner, gelu=True, normed=normed, partial=unadded, pdl=pdl
        )
        return self._add_linear(inner, layer.mlp_out, layer.mlp_out_bias, x)

    def _splits_of(self, rows: int) -> Splits | None:
        memory, config = self._scratch.splits, self._weights.config
        if memory is None or self._num_splits == 1:
            return None
        count, heads, hidden = self._num_splits, config.num_heads, config.hidden_size
        by_head = count, rows, heads
        return Splits(
            memory.partial[: count * rows * hidden].view(*by_head, hidden // heads),
            memory.partial_max[: count * rows * heads].view(by_head),
            memory.partial_sum[: count * rows * heads].view(by_head),
            memory.arrivals[: rows // STEP_TOKENS * heads],
        )

    def _add_linear(self, a: Tensor, matrix: Matrix, bias: Tensor, x: Tensor) -> Tensor | None:
        """Add a linear layer of a to x, and return None; or return what remains to be added, float32 [P, rows, H]."""
        rows, hidden = x.shape
        parts = num_partials(rows, hidden, a.shape[1], matrix.weight.dtype)
        unadded = self._scratch.unadded[: parts * rows * hidden].view(parts, rows, hidden) if parts > 1 else None
        linear_residual(a, *matrix.tensors, bias, x, partial=unadded, pdl=self._pdl)
        return unadded


def num_splits(num_programs: int, num_heads: int, sessions: int) -> int:
    """Return the number of programs that share the keys of a (session, head): as many as it takes to fill the GPU.

    Args:
        num_programs: that the GPU runs at once.
        num_heads: heads of a layer.
        sessions: of a step.
    """
    return max(1, min(_MAX_SPLITS, num_programs // (sessions * num_heads)))
