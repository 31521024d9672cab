"""Run a step of several sessions as Triton kernels, captured once in a CUDA graph."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...kernels.attention import paged_attention
from ...kernels.attention_output import combine_out_proj
from ...kernels.discrete_encoder import encode_discrete
from ...kernels.embedding import embed
from ...kernels.head import head
from ...kernels.image_encoder import encode_images
from ...kernels.image_weights import make_image_scratch
from ...kernels.linear import linear_residual, norm_linear, norm_qkv
from ...kernels.tiles import SMALL_ROWS
from ..base import STEP_TOKENS
from .inputs import StepInputs, StepShape

if TYPE_CHECKING:
    from .packing import Block
    from .weights import CudaWeights

_MAX_SPLITS = 4
"""More would read keys in shorter ranges; but every program of the next kernel reads all partial sums."""

_ATTENTION_PROGRAMS = 4
"""Programs of the attention that a multiprocessor runs at once: as many as splits are made for."""


class Scratch:
    """Memory between the kernels of a step; all graphs share it, since one step runs at a time.

    Rows of no session hold finite numbers, at first zeros.

    Attributes:
        x, q: the residual stream and the queries, float32 [rows, H].
        normed, attended: [rows, H], and
        inner: [rows, M], in the dtype of the activations.
        partial, partial_max, partial_sum: of split keys, float32.
        arrivals: int32 [sessions * heads], zeros between kernels: splits that are done.
    """

    def __init__(self, weights: CudaWeights, sessions: int) -> None:
        config, device = weights.config, weights.device
        hidden, heads = config.hidden_size, config.num_heads
        rows = sessions * STEP_TOKENS
        self.sessions = sessions

        self.x = torch.zeros(rows, hidden, device=device)
        self.q = torch.zeros(rows, hidden, device=device)
        self.normed = torch.zeros(rows, hidden, device=device, dtype=weights.activation_dtype)
        self.attended = torch.zeros(rows, hidden, device=device, dtype=weights.activation_dtype)
        self.inner = torch.zeros(rows, weights.inner_size, device=device, dtype=weights.activation_dtype)

        # All splits of all rows, of the numbers of sessions that are split.
        programs = min(_MAX_SPLITS * sessions * heads, _ATTENTION_PROGRAMS * weights.num_multiprocessors)
        split_rows = -(-programs // heads) * STEP_TOKENS
        self.partial = torch.zeros(split_rows * hidden, device=device)
        self.partial_max = torch.zeros(split_rows * heads, device=device)
        self.partial_sum = torch.zeros(split_rows * heads, device=device)
        self.arrivals = torch.zeros(sessions * heads, device=device, dtype=torch.int32)

    @property
    def num_bytes(self) -> int:
        """Return the bytes on the device."""
        tensors = [value for value in vars(self).values() if isinstance(value, Tensor)]
        return sum(tensor.nbytes for tensor in tensors)


class GraphStep:
    """Inputs, outputs and the captured kernels of one `StepShape`. On a CPU the kernels are interpreted each time.

    Attributes:
        inputs: written before `launch`.
        predictions: float32 [sessions, capacity], and
        choices, finite: int32 [sessions], after `wait`; on the host.
    """

    def __init__(self, weights: CudaWeights, cache: Tensor, scratch: Scratch, shape: StepShape, max_pages: int) -> None:
        self._weights = weights
        self._cache = cache
        self._scratch = scratch
        self._shape = shape
        self._splits = num_splits(weights.num_multiprocessors, weights.config.num_heads, shape.sessions)
        device = weights.device
        self.inputs = StepInputs(shape, max_pages, weights.config.max_discrete_value, device)
        on_gpu = device.type == "cuda"

        # Of a session: its choice, whether all is finite, then the prediction, as one array that is copied at once.
        self._out = torch.empty(shape.sessions * (2 + shape.capacity), device=device)
        self._host_out = torch.empty(self._out.shape, pin_memory=on_gpu)
        split = [shape.sessions * shape.capacity, shape.sessions, shape.sessions]
        out, choices, finite = self._out.split(split)
        self._device_out = out.view(shape.sessions, shape.capacity), choices.view(torch.int32), finite.view(torch.int32)
        out, choices, finite = self._host_out.split(split)
        self.predictions = out.view(shape.sessions, shape.capacity).numpy()
        self.choices, self.finite = choices.view(torch.int32).numpy(), finite.view(torch.int32).numpy()

        hidden = weights.config.hidden_size
        self._images = make_image_scratch(shape.sessions, hidden, device) if shape.frames else None
        self._graph = self._capture() if on_gpu else None

    @property
    def num_bytes(self) -> int:
        """Return the bytes on the device. Most kernels write to memory that all graphs share."""
        images = [] if self._images is None else [*self._images.activations, *self._images.means, self._images.partial]
        return self.inputs.num_bytes + self._out.nbytes + sum(tensor.nbytes for tensor in images)

    def launch(self) -> None:
        """Start the step on the current stream."""
        if self._graph is None:
            self._run()
        else:
            self._graph.replay()

    def wait(self) -> None:
        """Block until the step is done."""
        if self._graph is not None:
            torch.cuda.current_stream(self._weights.device).synchronize()

    def _capture(self) -> torch.cuda.CUDAGraph:
        try:
            return self._captured()
        except RuntimeError as error:
            if not self._weights.pdl:
                raise
            self._weights.pdl = False
            warnings.warn(
                f"kernels are launched one after the other: programmatic dependent launch fails ({error})",
                RuntimeWarning,
                stacklevel=2,
            )
            return self._captured()

    def _captured(self) -> torch.cuda.CUDAGraph:
        device = self._weights.device
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device):
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                self._run()  # compiles what is not compiled yet; with no rows in the inputs it changes nothing
            stream.synchronize()
            # Other threads may go on using the GPU, say for training.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self._run()
        return graph

    def _run(self) -> None:
        """Launch the step on the current stream: one copy in, the kernels, one copy out."""
        weights, scratch, shape = self._weights, self._scratch, self._shape
        pdl = weights.pdl
        self.inputs.copy()
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
        if self._images is not None:
            encode_images(given["frames"], given["frame_targets"], weights.images, self._images, pdl=pdl)
        if shape.capacity:
            self._decode(scratch.x[: shape.sessions * STEP_TOKENS])

    def _decode(self, x: Tensor) -> None:
        """Embed, run the blocks, and predict."""
        weights, given, pdl = self._weights, self.inputs.device, self._weights.pdl
        embed(
            x,
            given["source_ptrs"],
            given["source_sizes"],
            given["value_starts"],
            given["values"],
            weights.continuous_bias,
            weights.position_table,
            given["positions"],
            pdl=pdl,
        )

        for layer, pages in zip(weights.layers, self._cache, strict=True):
            self._layer(layer, pages, x)

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
            pdl=pdl,
        )
        self._host_out.copy_(self._out, non_blocking=True)

    def _layer(self, layer: Block, pages: Tensor, x: Tensor) -> None:
        """Run one block on x, float32 [rows, H], which is updated. pages: [num_pages, 2, heads, 16, head_dim]."""
        scratch, given, pdl = self._scratch, self.inputs.device, self._weights.pdl
        rows, hidden = x.shape
        q, attended, inner = scratch.q[:rows], scratch.attended[:rows], scratch.inner[:rows]
        # Few rows are normed where they are multiplied, many once.
        normed = scratch.normed[:rows] if rows > SMALL_ROWS else None
        norm_qkv(x, *layer.norm1, *layer.qkv.tensors, q, pages, given["slot_mapping"], normed=normed, pdl=pdl)

        splits, heads = self._splits, pages.shape[2]
        by_head = splits, rows, heads
        partial = partial_max = partial_sum = arrivals = None
        if splits > 1:
            # Few rows are combined by the output projection as it reads them.
            arrivals = scratch.arrivals[: len(given["context_lens"]) * heads] if rows > SMALL_ROWS else None
            partial = scratch.partial[: splits * rows * hidden].view(*by_head, hidden // heads)
            partial_max = scratch.partial_max[: splits * rows * heads].view(by_head)
            partial_sum = scratch.partial_sum[: splits * rows * heads].view(by_head)
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
            num_splits=splits,
            partial=partial,
            partial_max=partial_max,
            partial_sum=partial_sum,
            arrivals=arrivals,
            pdl=pdl,
        )
        out_proj = layer.out_proj.tensors
        if arrivals is None and partial is not None and partial_max is not None and partial_sum is not None:
            combine_out_proj(partial, partial_max, partial_sum, *out_proj, layer.out_proj_bias, x, pdl=pdl)
        else:
            linear_residual(attended, *out_proj, layer.out_proj_bias, x, transposed=False, pdl=pdl)

        mlp_in, mlp_out = layer.mlp_in.tensors, layer.mlp_out.tensors
        norm_linear(x, *layer.norm2, *mlp_in, layer.mlp_in_bias, inner, gelu=True, normed=normed, pdl=pdl)
        linear_residual(inner, *mlp_out, layer.mlp_out_bias, x, transposed=layer.mlp_out.is_transposed, pdl=pdl)


def num_splits(num_multiprocessors: int, num_heads: int, sessions: int) -> int:
    """Return the number of programs that share the keys of a (session, head): as many as it takes to fill the GPU."""
    return max(1, min(_MAX_SPLITS, _ATTENTION_PROGRAMS * num_multiprocessors // (sessions * num_heads)))
