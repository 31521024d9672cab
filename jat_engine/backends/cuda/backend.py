"""Compute a step on an NVIDIA GPU: one CUDA graph of Triton kernels or, for a single agent, one persistent kernel."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch

from ...checkpoint.weights import Weights
from ...config import JatConfig
from ...errors import InputError
from ..base import PAGE_SIZE, Group, Result, machine_memory_bytes
from ..rows import choose
from .graph import GraphStep, Scratch
from .inputs import StepShape
from .persistent import PersistentStep, load_module
from .staging import num_values, stage
from .startup_check import disagreement, make_group, reference
from .weights import CudaWeights

_MAX_GRAPHS = 48
_MAX_GRAPH_BYTES = 1 << 30
"""Of inputs, outputs and activations of images; one graph more may come on top."""

_MIN_VALUES = 64
"""Least `StepShape.values` of an agent; with `_MIN_CAPACITY` it keeps small sizes in one bucket."""

_MIN_CAPACITY = 32
"""Least `StepShape.capacity`."""


class CudaBackend:
    """See `Backend`. Not to be called by two threads at once.

    On device "cpu" the kernels run in Triton's interpreter: for tests, where there is no GPU.

    Attributes:
        persistent_reason: why single agents run through graphs; "" if they do not.
    """

    name = "cuda"
    page_size = PAGE_SIZE

    def __init__(
        self,
        config: JatConfig,
        weights: Weights,
        dtype: str,
        device: torch.device,
        persistent: bool | None = None,
        fixed_order: bool = False,
    ) -> None:
        """Pack the weights onto the device.

        Args:
            config: of the checkpoint.
            weights: of the checkpoint.
            dtype: "float32", "bfloat16", "float16", or "int8", weight-only.
            device: a GPU, or the CPU for Triton's interpreter.
            persistent: whether a single agent's step is one launch; None for where that is possible.
            fixed_order: sum in a fixed order also in the persistent kernel, so that results are bitwise repeatable.
        """
        self.device = device
        self.num_threads = torch.get_num_threads()
        self._config = config
        self._weights = CudaWeights(config, weights, dtype, device)
        self._max_pages = -(-(config.max_position_embeddings + self.page_size - 1) // self.page_size)
        self._scratch = Scratch(self._weights, 1)
        self._graphs: dict[StepShape, GraphStep] = {}
        self._fixed_order = fixed_order
        self._persistent: PersistentStep | None = None
        self.persistent_reason = "" if persistent is not False else "it is switched off"
        self._is_persistent_asked = bool(persistent)
        self._cache = torch.empty(0)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights."""
        return self._weights.num_bytes

    @property
    def persistent_geometry(self) -> dict[str, int]:
        """Launch geometry of the persistent kernel, for reports; empty if it is not in use."""
        return {} if self._persistent is None else self._persistent.geometry

    @property
    def page_bytes(self) -> int:
        """Bytes of a page of the KV cache, all layers."""
        config = self._config
        return config.num_layers * 2 * self.page_size * config.hidden_size * self._weights.kv_dtype.itemsize

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory that a KV cache could take at most."""
        return torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else machine_memory_bytes()

    @property
    def memory(self) -> dict[str, int]:
        """Bytes on the device by purpose."""
        return {
            "weights": self.weight_bytes,
            "cache": self._cache.nbytes,
            "scratch": self._scratch.num_bytes,
            "graphs": sum(graph.num_bytes for graph in self._graphs.values()),
            "persistent": self._persistent.num_bytes if self._persistent else 0,
        }

    def allocate_cache(self, num_pages: int) -> None:
        """Allocate memory for the KV cache's pages, and run the startup check."""
        config = self._config
        head_dim = config.hidden_size // config.num_heads
        shape = config.num_layers, num_pages, 2, config.num_heads, self.page_size, head_dim
        self._cache = torch.empty(shape, dtype=self._weights.kv_dtype, device=self.device)
        self._prepare_persistent()
        self._check()

    def _check(self) -> None:
        """Run the startup check: a step on each path, compared with plain torch.

        Raises:
            RuntimeError: the graph's prediction differs.
            InputError: the persistent kernel's differs, and `persistent=True` was asked for.
        """
        group = make_group(self._weights, self._cache)
        expected = reference(self._weights, self._cache, group)
        failure = disagreement(self._weights, self._step_graph([group])[0].values[0], expected)
        if failure:
            raise RuntimeError(failure)
        if self._persistent is None:
            return
        failure = disagreement(self._weights, self._step_persistent(self._persistent, group)[0].values[0], expected)
        if failure:
            self._persistent, self.persistent_reason = None, failure
            self._insist_on_persistent()
            warnings.warn(f"the persistent kernel is not used: {failure}", RuntimeWarning, stacklevel=2)

    # ---- the step --------------------------------------------------------------------------------------------------

    def step(self, groups: Sequence[Group]) -> list[Result]:
        """See `Backend.step`."""
        persistent = self._persistent
        if persistent is not None and len(groups) == 1 and groups[0].num_agents == 1 and persistent.fits(groups[0]):
            return self._step_persistent(persistent, groups[0])
        return self._step_graph(groups)

    def _step_graph(self, groups: Sequence[Group]) -> list[Result]:
        graph = self._graph(_shape(groups))
        staged = stage(graph.inputs, self._weights, groups)
        graph.launch()
        graph.wait()

        results, begin = [], 0
        for group, embeddings in zip(groups, staged.embeddings, strict=True):
            place = slice(begin, begin + group.num_agents)
            begin += group.num_agents
            values = graph.predictions[place, : group.space.size].copy()
            choices = graph.choices[place].astype(np.int64) if group.space.kind == "discrete" else None
            results.append(Result(values, graph.finite[place].astype(bool), choices, embeddings))
        return results

    def _step_persistent(self, step: PersistentStep, group: Group) -> list[Result]:
        """Run the persistent kernel; a graph in front of it, on the same stream, encodes an image or integers."""
        shape = _shape([group])
        embeddings = None
        if shape.frames or shape.integers:
            # Capacity 0: the graph encodes and does not predict, so it has no room for noise either.
            encoder = self._graph(shape._replace(capacity=0))
            embeddings = stage(encoder.inputs, self._weights, [group._replace(noise=None)]).embeddings
            encoder.launch()
        staged = stage(step.inputs, self._weights, [group], embeddings)
        failure = step.run()
        if failure:
            # Nothing is lost: the graph writes the same keys and values to the same slots.
            warnings.warn(f"the persistent kernel is given up for CUDA graphs: {failure}", RuntimeWarning, stacklevel=2)
            self._persistent, self.persistent_reason = None, failure
            return self._step_graph([group])
        values = step.predictions[: group.space.size].copy()
        finite = [bool(np.isfinite(values).all())]
        choices = choose([values], group.noise) if group.space.kind == "discrete" else None
        return [Result([values], finite, choices, staged.embeddings[0])]

    def _graph(self, shape: StepShape) -> GraphStep:
        graph = self._graphs.pop(shape, None)
        if graph is None:
            if shape.sessions > self._scratch.sessions:
                # Captured graphs hold addresses of the scratch they were captured with.
                self._graphs.clear()
                self._scratch = Scratch(self._weights, shape.sessions)
            while len(self._graphs) >= _MAX_GRAPHS or self.memory["graphs"] > _MAX_GRAPH_BYTES:
                del self._graphs[next(iter(self._graphs))]
            try:
                graph = self._new_graph(shape)
            except torch.OutOfMemoryError:
                self._graphs.clear()
                graph = self._new_graph(shape)
        self._graphs[shape] = graph  # the last is the most recently used
        return graph

    def _new_graph(self, shape: StepShape) -> GraphStep:
        return GraphStep(self._weights, self._cache, self._scratch, shape, self._max_pages)

    def _prepare_persistent(self) -> None:
        if not self.persistent_reason:
            try:
                self._persistent = self._make_persistent()
            except (ImportError, RuntimeError, ValueError) as error:
                self.persistent_reason = str(error)
        self._insist_on_persistent()

    def _insist_on_persistent(self) -> None:
        if self.persistent_reason and self._is_persistent_asked:
            raise InputError(f"persistent: expected what can be done here, got True; {self.persistent_reason}")

    def _make_persistent(self) -> PersistentStep:
        if self._weights.dtype == "int8":
            raise ValueError("it takes float32, bfloat16 and float16 weights, these are int8")
        module = load_module()
        if self.device.type != module.DEVICE:
            raise RuntimeError(f"its module is for device {module.DEVICE}")
        return PersistentStep(self._weights, self._cache, self._max_pages, self._fixed_order, module)


def _shape(groups: Sequence[Group]) -> StepShape:
    """Return the bucket of a step. Few distinct ones, since each is captured once."""
    sessions = _bucket(sum(group.num_agents for group in groups))
    modalities = [group.observations.modality for group in groups]
    return StepShape(
        sessions=sessions,
        values=sessions * _next_power(-(-num_values(groups) // sessions), _MIN_VALUES),
        capacity=_next_power(max(group.space.size for group in groups), _MIN_CAPACITY),
        frames="image" in modalities,
        integers=any(modality.startswith("discrete") for modality in modalities),
    )


def _bucket(sessions: int) -> int:
    """1, 2, 4, 8, then multiples of 16 up to 256, then of 64: at most a third of the rows is padding."""
    if sessions <= 8:
        return _next_power(sessions, 1)
    step = 16 if sessions <= 256 else 64
    return -(-sessions // step) * step


def _next_power(count: int, least: int) -> int:
    return max(least, 1 << (count - 1).bit_length())
