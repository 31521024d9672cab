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
from ...kernels.splits import Splits
from ..base import STEP_TOKENS
from .blocks import BlockScratch, run_blocks
from .capture import CapturedGraph, retry_without_pdl
from .inputs import StepInputs, StepShape
from .kv_pages import KVPages

if TYPE_CHECKING:
    from .weights import CudaWeights

_MAX_SPLITS = 4
"""More would read keys in shorter ranges; but every program of the next kernel reads all partial sums."""

_ATTENTION_WARPS = 16
"""Programs of one warp, of the attention for float8, that a multiprocessor runs at once: as many as splits are for."""

_MOST_DEPENDENT = 256
"""Sessions up to which kernels start while the one before still runs. With more, the programs that wait take room from
those that work: 5 to 13 % of a linear kernel, read at 1024 sessions on an H200."""


class Scratch(BlockScratch):
    """Memory between the kernels of a step; all graphs share it, since one step runs at a time.

    Attributes:
        sessions: that there is memory for, with STEP_TOKENS rows each.
        splits: of the keys of as many sessions as are split, see `Splits`; None if the cache is not quantised.
    """

    def __init__(self, weights: CudaWeights, sessions: int) -> None:
        super().__init__(weights, sessions * STEP_TOKENS)
        self.sessions = sessions
        self._images: ImageScratch | None = None

        self.splits: Splits | None = None
        if weights.is_kv_quantized:
            # All splits of all rows, of the numbers of sessions that are split.
            config, device = weights.config, weights.device
            hidden, heads = config.hidden_size, config.num_heads
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
        splits = sum(tensor.nbytes for tensor in self.splits or ())
        return super().num_bytes + splits + (self._images.num_bytes if self._images else 0)


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

        unadded = run_blocks(weights, self._cache, self._scratch, x, given["slot_mapping"], self._attend, pdl=pdl)

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

    def _attend(
        self, q: Tensor, pages: Tensor, window: int, out: Tensor, scales: Tensor | None, new_kv: Tensor | None
    ) -> None:
        """Compute the attention of all sessions' rows, see `Attend`."""
        given = self.inputs.device
        paged_attention(
            q,
            pages,
            given["page_table"],
            given["query_start"],
            given["context_lens"],
            given["start_offsets"],
            window,
            out,
            max_queries=STEP_TOKENS,
            scales=scales,
            new_kv=new_kv,
            splits=self._splits_of(len(q)),
            pdl=self._pdl,
        )

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


def num_splits(num_programs: int, num_heads: int, sessions: int) -> int:
    """Return the number of programs that share the keys of a (session, head): as many as it takes to fill the GPU.

    Args:
        num_programs: that the GPU runs at once.
        num_heads: heads of a layer.
        sessions: of a step.
    """
    return max(1, min(_MAX_SPLITS, num_programs // (sessions * num_heads)))
