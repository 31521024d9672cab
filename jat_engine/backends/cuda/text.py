"""Run steps of texts as Triton kernels, captured in a CUDA graph for each bucket of rows."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...kernels.attention import paged_attention
from ...kernels.embedding import embed
from ...kernels.linear import linear_residual, norm_linear
from ..base import TextRows
from ..rows import patch_rows
from .blocks import BlockScratch, run_blocks
from .capture import CapturedGraph, retry_without_pdl
from .driver import is_out_of_memory
from .kv_pages import KVPages
from .text_check import text_disagreement
from .text_staging import TextShape, make_inputs, stage_text, text_shape
from .text_weights import TextWeights
from .weights import CudaWeights

MAX_TEXT_ROWS = 256
"""The most rows of a step. Agents wait for one: with more, longer than for a step of as many agents."""

_MAX_GRAPHS = 32


class TextScratch(BlockScratch):
    """Memory between the kernels of a step of texts; all graphs share it, since one step runs at a time.

    Attributes:
        predicted_x, predicted_unadded: `x` and `unadded` of the rows that are predicted from.
        logits: float32 [predictions, vocab].
    """

    def __init__(self, weights: CudaWeights, predictions: int) -> None:
        super().__init__(weights, MAX_TEXT_ROWS)
        self.predicted_x = torch.zeros_like(self.x)
        self.predicted_unadded = torch.zeros_like(self.unadded)
        vocab_size = weights.config.vocab_size
        self.logits = torch.zeros(predictions, vocab_size, device=weights.device, dtype=torch.float32)


class TextStep:
    """The inputs and captured kernels of one `TextShape`. On a CPU the kernels are interpreted each time.

    Attributes:
        shape: that it was made for.
        inputs: written before `launch`.
    """

    def __init__(
        self,
        weights: CudaWeights,
        text_weights: TextWeights,
        cache: KVPages,
        scratch: TextScratch,
        shape: TextShape,
        max_pages: int,
    ) -> None:
        """Allocate inputs and, on a GPU, capture the kernels; where that fails, warn and launch them one by one."""
        self.shape = shape
        self.inputs = make_inputs(shape, max_pages, weights.device)
        self._weights = weights
        self._text_weights = text_weights
        self._cache = cache
        self._scratch = scratch
        self._graph = self._capture() if weights.device.type == "cuda" else None

    def launch(self) -> None:
        """Start the step on the current stream."""
        if self._graph is None:
            self._run()
        else:
            self._graph.launch()

    def _capture(self) -> CapturedGraph | None:
        """Run the step and capture it. With no rows in the inputs it changes nothing but scratch memory."""
        device = self._weights.device
        try:
            return retry_without_pdl(self._weights, lambda: CapturedGraph(device, self._run))
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            warnings.warn(f"kernels of texts are launched one by one: {error}", RuntimeWarning, stacklevel=2)
            return None

    def _run(self) -> None:
        """Launch the step on the current stream: one copy in, and the kernels."""
        weights, scratch, given, pdl = self._weights, self._scratch, self.inputs.device, self._weights.pdl
        self.inputs.copy()
        x = scratch.x[: self.shape.rows]
        embed(
            x,
            given["source_ptrs"],
            given["source_sizes"],
            given["value_starts"],
            scratch.logits[0],  # numbers of continuous tokens, of which a text has none
            weights.continuous_bias,
            weights.position_table,
            given["positions"],
            pdl=False,  # it waits for the copy, which cannot let it start early
        )
        unadded = run_blocks(weights, self._cache, scratch, x, given["slot_mapping"], self._attend, pdl=pdl)

        count = self.shape.predictions
        if not count:
            return
        if count < self.shape.rows:
            x, unadded = self._select(x, unadded)
        norm_linear(
            x,
            *weights.final_norm,
            *self._text_weights.head.tensors,
            None,
            scratch.logits[:count],
            gelu=False,
            normed=scratch.normed[:count],
            partial=unadded,
            pdl=pdl,
        )

    def _select(self, x: Tensor, unadded: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return what `run_blocks` left in the rows that are predicted from."""
        rows, scratch = self.inputs.device["predicted"], self._scratch
        selected = scratch.predicted_x[: len(rows)]
        torch.index_select(x, 0, rows, out=selected)
        if unadded is None:
            return selected, None
        parts, _, hidden = unadded.shape
        more = scratch.predicted_unadded[: parts * len(rows) * hidden].view(parts, len(rows), hidden)
        torch.index_select(unadded, 1, rows, out=more)
        return selected, more

    def _attend(
        self, q: Tensor, pages: Tensor, window: int, out: Tensor, scales: Tensor | None, new_kv: Tensor | None
    ) -> None:
        """Compute the attention of all parts, round after round, see `Attend`."""
        given, parts = self.inputs.device, self.shape.parts
        for begin in range(0, parts * self.shape.rounds, parts):
            sessions = slice(begin, begin + parts)
            paged_attention(
                q,
                pages,
                given["page_table"][sessions],
                given["query_start"][begin : begin + parts + 1],
                given["context_lens"][sessions],
                given["start_offsets"][sessions],
                window,
                out,
                max_queries=self.shape.queries,
                scales=scales,
                new_kv=new_kv,
                pdl=self._weights.pdl,
            )


class TextRunner:
    """Steps of texts on the pages of an engine. Its weights are read when it is made: by the first text."""

    def __init__(self, weights: CudaWeights, cache: KVPages, max_pages: int, *, verifies: bool) -> None:
        """Read the weights of texts onto the device.

        Args:
            weights: of the engine.
            cache: that steps read and append to.
            max_pages: of a text.
            verifies: compare the first predictions of each bucket with plain torch.
        """
        self._weights = weights
        self._text_weights = weights.read_text()
        self._cache = cache
        self._max_pages = max_pages
        self._verifies = verifies
        self._steps: dict[TextShape, TextStep] = {}
        self._scratch = TextScratch(weights, 1)
        self._host_logits = torch.empty(0, dtype=torch.float32, device="cpu")

    @property
    def weight_bytes(self) -> int:
        """Return the bytes of the weights."""
        return self._text_weights.num_bytes

    @property
    def scratch_bytes(self) -> int:
        """Return the bytes that the graphs share."""
        return self._scratch.num_bytes

    @property
    def graph_bytes(self) -> int:
        """Return the bytes of inputs."""
        return sum(step.inputs.num_bytes for step in self._steps.values())

    def embed_picture(self, pixel_values: np.ndarray) -> Tensor:
        """Return the embeddings of an image's patches, float32 [P, H] on the device, see `Backend.embed_picture`."""
        weights, device = self._text_weights, self._weights.device
        patches = torch.from_numpy(patch_rows(pixel_values, self._weights.config.patch_size)).to(device)
        out = torch.zeros(len(patches), self._weights.hidden_size, dtype=torch.float32, device=device)
        linear_residual(patches, *weights.patches.tensors, weights.patch_bias, out)
        return out

    def run(self, texts: Sequence[TextRows]) -> list[np.ndarray]:
        """Compute rows of texts, see `Backend.run_text`.

        Raises:
            torch.OutOfMemoryError: there is no memory for it, even without the graphs of other steps.
            RuntimeError: kernels cannot be launched, or do not compute what plain torch does.
        """
        shape = text_shape(texts, self._weights.is_kv_quantized)
        is_new = shape not in self._steps
        step = self._step(shape)
        embedding = self._text_weights.embedding
        rows = stage_text(step.inputs, step.shape, texts, embedding.data_ptr(), self._weights.row_bytes)
        step.launch()

        # To the host, and into arrays of the caller's own.
        count = int(rows.max(initial=-1)) + 1
        logits = self._on_host(count)
        logits.copy_(self._scratch.logits[:count], non_blocking=True)
        if self._weights.device.type == "cuda":
            torch.cuda.current_stream(self._weights.device).synchronize()
        found, begin = [], 0
        for text in texts:
            found.append(logits.numpy()[rows[begin : begin + text.num_predicted]])
            begin += text.num_predicted
        if is_new and self._verifies and shape.predictions:
            failure = text_disagreement(self._weights, self._text_weights, self._cache, texts, found)
            if failure:
                del self._steps[shape]
                raise RuntimeError(f"text: {failure}")
        return found

    def _on_host(self, count: int) -> Tensor:
        """Return memory for the logits of so many rows, pinned where there is a GPU."""
        if len(self._host_logits) < count:
            shape = self._scratch.logits.shape
            self._host_logits = torch.empty(
                shape, dtype=torch.float32, device="cpu", pin_memory=self._weights.device.type == "cuda"
            )
        return self._host_logits[:count]

    def _step(self, shape: TextShape) -> TextStep:
        """Return the step of a bucket."""
        step = self._steps.pop(shape, None)
        if step is None:
            try:
                step = self._make(shape)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            if step is None:  # outside the handler, which keeps what the failed attempt has allocated
                self._steps.clear()
                self._scratch = TextScratch(self._weights, 1)
                if self._weights.device.type == "cuda":
                    torch.cuda.empty_cache()  # the driver needs memory that torch does not know of
                step = self._make(shape)
        self._steps[shape] = step  # the last is the most recently used
        return step

    def _make(self, shape: TextShape) -> TextStep:
        if shape.predictions > len(self._scratch.logits):
            self._steps.clear()  # captured graphs hold addresses of the scratch memory they were captured with
            self._scratch = TextScratch(self._weights, shape.predictions)
        while len(self._steps) >= _MAX_GRAPHS:
            del self._steps[next(iter(self._steps))]
        return TextStep(self._weights, self._text_weights, self._cache, self._scratch, shape, self._max_pages)
