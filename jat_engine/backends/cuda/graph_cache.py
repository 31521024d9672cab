"""Hold the CUDA graphs of the buckets that occur, within bounds of number and memory."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .driver import is_out_of_memory
from .graph import GraphStep, Scratch
from .inputs import StepShape
from .kv_pages import KVPages
from .weights import CudaWeights

_MAX_GRAPHS = 48
_MAX_GRAPH_BYTES = 1 << 29
"""Of inputs and outputs; one graph more may come on top."""


class GraphCache:
    """Graphs by bucket, captured when one first occurs; the least recently used make room for others."""

    def __init__(self, weights: CudaWeights, cache: KVPages, max_pages: int) -> None:
        self._weights = weights
        self._cache = cache
        self._max_pages = max_pages
        self._graphs: dict[StepShape, GraphStep] = {}
        self._scratch = Scratch(weights, 1)

    def __len__(self) -> int:
        return len(self._graphs)

    @property
    def scratch_bytes(self) -> int:
        """Return the bytes that the graphs share."""
        return self._scratch.num_bytes

    @property
    def graph_bytes(self) -> int:
        """Return the bytes of inputs and outputs."""
        return sum(graph.num_bytes for graph in self._graphs.values())

    def get(self, shape: StepShape, verify: Callable[[GraphStep], None] | None = None) -> GraphStep:
        """Return the graph of a bucket.

        Args:
            shape: of the bucket.
            verify: called with a new graph before it is kept.

        Raises:
            torch.OutOfMemoryError: there is no memory for it, even without all other graphs.
            RuntimeError, a Triton compile error: kernels cannot be launched. And what `verify` raises.
        """
        graph = self._graphs.pop(shape, None)
        if graph is None:
            try:
                graph = self._make(shape, verify)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                graph = None
            if graph is None:  # outside the handler, which keeps what the failed attempt has allocated
                self._graphs.clear()
                self._scratch = Scratch(self._weights, 1)
                if self._weights.device.type == "cuda":
                    torch.cuda.empty_cache()  # the driver needs memory that torch does not know of
                graph = self._make(shape, verify)
        self._graphs[shape] = graph  # the last is the most recently used
        return graph

    def _make(self, shape: StepShape, verify: Callable[[GraphStep], None] | None) -> GraphStep:
        weights = self._weights
        scratch = self._scratch
        if shape.sessions > scratch.sessions:
            self._graphs.clear()  # captured graphs hold addresses of the scratch memory they were captured with
            scratch = Scratch(weights, shape.sessions)
        while len(self._graphs) >= _MAX_GRAPHS or self.graph_bytes > _MAX_GRAPH_BYTES:
            del self._graphs[next(iter(self._graphs))]

        graph = GraphStep(weights, self._cache, scratch, shape, self._max_pages)
        if verify is not None:
            verify(graph)
        self._scratch = scratch  # not where that failed: smaller steps would lack its memory
        return graph
