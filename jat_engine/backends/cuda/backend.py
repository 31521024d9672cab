"""Compute a step on an NVIDIA GPU: one CUDA graph of Triton kernels or, for a single agent, one persistent kernel."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...checkpoint.weights import Weights
from ...config import JatConfig
from ...errors import InputError
from ...observation import all_finite
from ..base import PAGE_SIZE, STEP_TOKENS, Group, Result, TextRows, machine_memory_bytes
from ..rows import choose
from . import encoders, parts
from .buckets import bucket, bucket_below, count_agents, shape_of
from .capture import synchronize
from .driver import is_out_of_memory
from .graph import GraphStep
from .graph_cache import GraphCache
from .inputs import StepShape
from .kv_pages import KVPages, fill, page_bytes
from .path_choice import Clock, PathTimes, time_paths
from .persistent import PersistentStep, load_module
from .staging import stage, stage_encoder
from .startup_check import NUM_PAGES, StartupCheck, make_group
from .text import MAX_TEXT_ROWS, TextRunner
from .weights import CudaWeights

_RESERVED_BYTES = 3 << 29
"""Bytes that the KV cache leaves to scratch memory, graphs and kernels, but at most a quarter of what is free."""

_OLDEST_FLOAT8 = (8, 9)
"""Compute capability that converts float8 e4m3."""

_FINITE, _NOT_FINITE = (True,), (False,)

_TIMED_TOKENS = 256
"""Tokens of the step that is timed to choose a path: as many as a robot's window has."""


class FaultyKernelsError(RuntimeError):
    """Kernels of a bucket compute something else than plain torch, or cannot be compiled, launched or captured.

    Attributes:
        modality: of the observations that show it, or of the encoder to do without first.
    """

    def __init__(self, modality: str, failure: str) -> None:
        super().__init__(failure)
        self.modality = modality


class PersistentKernelError(RuntimeError):
    """A launch of the persistent kernel did not end well."""


class CudaBackend:
    """See `Backend`. Not to be called by two threads at once.

    On device "cpu" the kernels run in Triton's interpreter: for tests, where there is no GPU.

    Attributes:
        persistent_reason: why single agents run through graphs; "" if they do not.
        path_times: of the two paths of a single agent's step, if they were timed.
    """

    name = "cuda"
    page_size = PAGE_SIZE
    max_text_rows = MAX_TEXT_ROWS
    prompt_rows_beside_agents = MAX_TEXT_ROWS

    def __init__(
        self,
        config: JatConfig,
        weights: Weights,
        dtype: str,
        device: torch.device,
        persistent: bool | None = None,
        clock: Clock | None = None,
        kv_dtype: str = "auto",
    ) -> None:
        """Pack the weights onto the device.

        Args:
            config: of the checkpoint.
            weights: of the checkpoint.
            dtype: "float32", "bfloat16", "float16", or "int8", weight-only.
            device: a GPU, or the CPU for Triton's interpreter.
            persistent: whether a single agent's step is one launch; None for where that is possible and, on a GPU,
                faster.
            clock: times both paths if `persistent` is None. By default the machine's on a GPU, and none on a CPU, where
                the persistent kernel is used if it is possible.
            kv_dtype: of cached keys and values: "auto" for that of the activations, or "float8_e4m3".

        Raises:
            InputError: the GPU cannot convert to this `kv_dtype`.
        """
        if kv_dtype != "auto" and device.type == "cuda" and torch.cuda.get_device_capability(device) < _OLDEST_FLOAT8:
            has = ".".join(map(str, torch.cuda.get_device_capability(device)))
            raise InputError(
                f"kv_dtype: expected 'auto' on this GPU, got {kv_dtype!r}; float8 needs compute capability "
                f"{'.'.join(map(str, _OLDEST_FLOAT8))}, {torch.cuda.get_device_name(device)} has {has}"
            )
        self.device = device
        self.num_threads = torch.get_num_threads()
        self.path_times: PathTimes | None = None
        self._config = config
        self._weights = CudaWeights(config, weights, dtype, device, kv_dtype)
        self._max_pages = -(-(config.max_position_embeddings + self.page_size - 1) // self.page_size)
        self._clock = clock or (time.perf_counter if device.type == "cuda" else None)
        self._persistent: PersistentStep | None = None
        self.persistent_reason = "" if persistent is not False else "it is switched off"
        self._is_persistent_asked = bool(persistent)

        self._cache = KVPages(config, 0, self._weights.kv_dtype, device)
        self._graphs = GraphCache(self._weights, self._cache, self._max_pages)
        self._texts: TextRunner | None = None
        self._check: StartupCheck | None = None
        self._num_pages = 0
        self._most_agents: int | None = None
        self._encoded_by_torch: set[str] = set()
        self._is_running = False
        # Interpreted, a step takes half a second, and faults of a GPU or its compiler cannot show.
        self._verifies_graphs = device.type == "cuda"

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights: with those of texts as soon as there has been one."""
        return self._weights.num_bytes + (self._texts.weight_bytes if self._texts else 0)

    @property
    def timing(self) -> str:
        """Phrase with the times of a single agent's step on both paths; "" if they were not timed."""
        if self.path_times is None:
            return ""
        return f"{self.path_times}, {'which is used' if self._persistent is not None else 'and graphs are used'}"

    @property
    def persistent_geometry(self) -> dict[str, int]:
        """Launch geometry of the persistent kernel, for reports; empty if it is not in use."""
        return {} if self._persistent is None else self._persistent.geometry

    @property
    def page_bytes(self) -> int:
        """Bytes of a page of the KV cache, all layers."""
        return page_bytes(self._config, self._weights.kv_dtype)

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory that a KV cache could take at most: what is free, but for what steps need besides it."""
        if self.device.type != "cuda":
            return machine_memory_bytes()
        return cache_room(torch.cuda.mem_get_info(self.device)[0])

    @property
    def memory(self) -> dict[str, int]:
        """Bytes on the device by purpose. Pages of the startup check count as scratch."""
        cache_bytes = self._num_pages * self.page_bytes
        users: list[GraphCache | TextRunner] = [self._graphs, self._texts] if self._texts else [self._graphs]
        return {
            "weights": self.weight_bytes,
            "cache": cache_bytes,
            "scratch": sum(user.scratch_bytes for user in users) + self._cache.nbytes - cache_bytes,
            "graphs": sum(user.graph_bytes for user in users),
            "persistent": self._persistent.num_bytes if self._persistent else 0,
        }

    def allocate_cache(self, num_pages: int) -> None:
        """Allocate memory for the KV cache's pages, run the startup check, and choose the faster path."""
        self._num_pages = num_pages
        self._cache = KVPages(self._config, num_pages + NUM_PAGES, self._weights.kv_dtype, self.device)
        self._graphs = GraphCache(self._weights, self._cache, self._max_pages)
        self._check = StartupCheck(self._weights, self._cache)

        self._prepare_persistent()
        self._check_paths(self._check)
        self._choose_path()

    def read_pages(self, pages: np.ndarray) -> np.ndarray:
        """Return a copy of pages, uint8 [n, page_bytes], see `Backend.read_pages`."""
        return self._cache.to_bytes(torch.from_numpy(pages.astype(np.int64)))

    def write_pages(self, pages: np.ndarray, data: np.ndarray) -> None:
        """Write pages, see `Backend.write_pages`."""
        self._cache.from_bytes(torch.from_numpy(pages.astype(np.int64)), data)

    def read_embedding(self, embeddings: Any) -> np.ndarray | None:
        """Return the embedding of a single agent's observation, float32 [H]; None for continuous ones."""
        return None if embeddings is None else embeddings[0].cpu().numpy()

    def make_embedding(self, embedding: np.ndarray | None) -> Tensor | None:
        """Return the embeddings of a single agent."""
        return None if embedding is None else torch.from_numpy(embedding[None].copy()).to(self.device)

    # ---- the step --------------------------------------------------------------------------------------------------

    def step(self, groups: Sequence[Group]) -> list[Result]:
        """See `Backend.step`.

        Raises:
            torch.OutOfMemoryError: there is no memory even for one agent by itself.
            RuntimeError: not even one agent's kernels can be used, or the GPU has failed.
        """
        self._begin()
        persistent = self._persistent
        if persistent is not None and len(groups) == 1 and groups[0].num_agents == 1 and persistent.fits(groups[0]):
            try:
                results = self._step_persistent(persistent, groups[0])
            except PersistentKernelError as error:
                # Nothing is lost: the graph writes the same keys and values to the same slots.
                self._give_up_persistent(f"the persistent kernel is given up for CUDA graphs: {error}", str(error))
                results = self._step_in_parts(groups)
            except FaultyKernelsError:
                results = self._step_in_parts(groups)  # which does without the encoder that is faulty
        else:
            results = self._step_in_parts(groups)
        self._is_running = False
        return results

    def num_agents_to_warm_up(self, counts: Iterable[int]) -> list[int]:
        """See `Backend`: the largest number of each bucket, in descending order, so that scratch memory grows once."""
        return sorted({bucket(count): count for count in sorted(counts)}.values(), reverse=True)

    def _begin(self) -> None:
        """Begin a step. It ends when `_is_running` is set to False."""
        if self._is_running and self.device.type == "cuda":
            # An exception, such as Ctrl-C's, has ended a step before the GPU has: its inputs are still read.
            synchronize(self.device)
        self._is_running = True

    def _step_in_parts(self, groups: Sequence[Group]) -> list[Result]:
        """Run a step by graphs: at once or, where memory or kernels do not allow it, in parts of fewer agents."""
        while True:
            most = self._most_agents
            if most is not None and count_agents(groups) > most:
                divided = parts.split(groups, most)
                return parts.join(groups, [result for part in divided for result in self._step_in_parts(part)])
            try:
                return self._step_graph(groups)
            except FaultyKernelsError as error:
                self._avoid(error, count_agents(groups))
            except RuntimeError as error:
                count = count_agents(groups)
                if not is_out_of_memory(error) or count == 1:
                    raise
                self._take_fewer(count, str(error).partition("\n")[0])

    def _step_graph(self, groups: Sequence[Group]) -> list[Result]:
        shape, encoded = self._encode_by_torch(groups)
        graph = self._graph(shape)
        embeddings, _in_use = stage(graph.inputs, self._weights, groups, encoded)
        graph.launch()
        graph.wait()

        results, begin = [], 0
        for group, rows in zip(groups, embeddings, strict=True):
            results.append(_read_result(graph, group, begin, rows))
            begin += group.num_agents
        return results

    def _step_persistent(self, step: PersistentStep, group: Group) -> list[Result]:
        """Run the persistent kernel; a graph in front of it, on the same stream, encodes an image or integers."""
        encoded: list[Tensor | None] | None = None
        if group.observations.modality != "continuous":
            shape, encoded = self._encode_by_torch([group])
            if encoded is None:
                # Capacity 0: the graph encodes and does not predict.
                encoder = self._graph(shape._replace(capacity=0))
                encoded = [stage_encoder(encoder.inputs, self._weights, group)]
                encoder.launch()

        embeddings, _in_use = stage(step.inputs, self._weights, [group], encoded)
        failure = step.run()
        if failure:
            raise PersistentKernelError(failure)
        values = step.predictions[: group.space.size].copy()
        choices = choose([values], group.noise) if group.space.kind == "discrete" else None
        return [Result([values], [all_finite(values)], choices, embeddings[0])]

    def _graph(self, shape: StepShape) -> GraphStep:
        """Return the graph of a bucket.

        Raises:
            torch.OutOfMemoryError: there is no memory for it.
            FaultyKernelsError: its kernels cannot be used.
        """
        try:
            return self._graphs.get(shape, self._verify if self._verifies_graphs else None)
        except FaultyKernelsError:
            raise
        except Exception as error:  # compilers raise any class
            if is_out_of_memory(error):
                raise
            encoder = "image" if shape.frames else "discrete" if shape.integers else "continuous"
            raise FaultyKernelsError(encoder, str(error).partition("\n")[0] or type(error).__name__) from error

    # ---- texts -----------------------------------------------------------------------------------------------------

    def embed_picture(self, pixel_values: np.ndarray) -> Tensor:
        """See `Backend.embed_picture`."""
        return self._text_runner().embed_picture(pixel_values)

    def run_text(self, texts: Sequence[TextRows]) -> list[np.ndarray]:
        """See `Backend.run_text`.

        Raises:
            torch.OutOfMemoryError: there is no memory for it.
            RuntimeError: the kernels of texts cannot be used, or the GPU has failed.
        """
        self._begin()
        logits = self._text_runner().run(texts)
        self._is_running = False
        return logits

    def _text_runner(self) -> TextRunner:
        if self._texts is None:
            self._texts = TextRunner(self._weights, self._cache, self._max_pages, verifies=self._verifies_graphs)
        return self._texts

    # ---- what does not work ----------------------------------------------------------------------------------------

    def _take_fewer(self, count: int, reason: str) -> None:
        """Take steps of this many agents in parts of a smaller bucket from here on."""
        self._most_agents = bucket_below(count)
        warnings.warn(
            f"steps of more than {self._most_agents} agents are computed in parts: {reason}",
            RuntimeWarning,
            stacklevel=2,
        )

    def _avoid(self, error: FaultyKernelsError, count: int) -> None:
        """Do without kernels that cannot be used. Raises the error where nothing is left."""
        if error.modality != "continuous":
            self._encoded_by_torch.add(error.modality)
            what = "images are" if error.modality == "image" else "integers are"
            warnings.warn(f"{what} encoded in plain torch: {error}", RuntimeWarning, stacklevel=2)
        elif count == 1:
            raise error
        else:
            self._take_fewer(count, str(error))

    def _encode_by_torch(self, groups: Sequence[Group]) -> tuple[StepShape, list[Tensor | None] | None]:
        """Encode what kernels encode wrongly. Returns the bucket of the rest, and the embeddings of each group."""
        shape = shape_of(groups)
        if not self._encoded_by_torch:
            return shape, None
        by_torch = [_encoder_of(group) in self._encoded_by_torch for group in groups]
        if not any(by_torch):
            return shape, None
        encoded = [
            encoders.encode(self._weights, group) if is_by_torch else None
            for group, is_by_torch in zip(groups, by_torch, strict=True)
        ]
        left = {_encoder_of(group) for group in groups} - self._encoded_by_torch
        return shape._replace(frames="image" in left, integers="discrete" in left), encoded

    # ---- what is decided when an engine is made ----------------------------------------------------------------------

    def _check_paths(self, check: StartupCheck) -> None:
        """Run the startup check: a step on each path, compared with plain torch.

        Raises:
            FaultyKernelsError: the graph cannot be captured, or its prediction differs.
            InputError: the persistent kernel's differs, and `persistent=True` was asked for.
        """
        group = check.group(1)
        graph = self._graph(shape_of([group]))
        if not self._verifies_graphs and self._weights.dtype != "bfloat16":  # which the interpreter multiplies wrongly
            self._verify(graph)

        if self._persistent is None:
            return
        try:
            prediction = self._step_persistent(self._persistent, group)[0].values
            failure = check.disagreement(np.asarray(prediction))
        except PersistentKernelError as error:
            failure = str(error)
        if failure:
            self.persistent_reason = failure
            self._insist_on_persistent()
            self._give_up_persistent(f"the persistent kernel is not used: {failure}", failure)

    def _verify(self, graph: GraphStep) -> None:
        """Compare a step of a graph with plain torch, for each modality that it takes.

        Raises:
            FaultyKernelsError: it differs.
        """
        check, shape = self._check, graph.shape
        assert check is not None, "the cache is allocated"
        if shape.frames:
            self._verify_encoder(graph, check.images(shape.sessions))
        if shape.integers:
            self._verify_encoder(graph, check.integers(shape.sessions))
        if shape.capacity:
            group = check.group(shape.sessions)
            _in_use = stage(graph.inputs, self._weights, [group])  # keeps what the step reads alive
            graph.launch()
            graph.wait()
            failure = check.disagreement(graph.predictions[: group.num_agents, : group.space.size])
            if failure:
                raise FaultyKernelsError("continuous", failure)

    def _verify_encoder(self, graph: GraphStep, group: Group) -> None:
        check = self._check
        assert check is not None, "the cache is allocated"
        (embeddings,), _in_use = stage(graph.inputs, self._weights, [group])
        graph.launch()
        graph.wait()
        assert embeddings is not None, "the group has no continuous observations"
        failure = check.encoder_disagreement(group, embeddings)
        if failure:
            raise FaultyKernelsError(_encoder_of(group), failure)

    def _choose_path(self) -> None:
        """Time a step on both paths, if the choice between them was left to the backend, and keep the faster."""
        step, clock = self._persistent, self._clock
        if step is None or clock is None or self._is_persistent_asked:
            return
        pages = min(_TIMED_TOKENS // self.page_size, self._num_pages, self._max_pages)
        context = min(pages * self.page_size, self._config.max_position_embeddings) - STEP_TOKENS
        page_table = np.arange(pages, dtype=np.int32)[None]  # no agent has any yet
        fill(self._cache, page_table[0])
        group = make_group(self._weights, page_table, context)
        try:
            self.path_times = time_paths(
                lambda: self._step_graph([group]),
                lambda: self._step_persistent(step, group),
                context + STEP_TOKENS,
                clock,
            )
        except PersistentKernelError as error:
            self._give_up_persistent(f"the persistent kernel is not used: {error}", str(error))
            return
        if not self.path_times.is_persistent_faster:
            self._persistent = None
            self.persistent_reason = f"it was not faster when the engine was made: {self.path_times}"

    def _give_up_persistent(self, warning: str, reason: str) -> None:
        self._persistent, self.persistent_reason = None, reason
        warnings.warn(warning, RuntimeWarning, stacklevel=3)

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
        if self._weights.is_kv_quantized:
            raise ValueError("it reads keys and values of the weights' dtype, these are float8_e4m3")
        module = load_module()
        if self.device.type != module.DEVICE:
            raise RuntimeError(f"its module is for device {module.DEVICE}")
        return PersistentStep(self._weights, self._cache.pages, self._max_pages, module)


def cache_room(free_bytes: int) -> int:
    """Return how many of a GPU's free bytes a KV cache may take, so that steps find memory for what they need."""
    return free_bytes - min(_RESERVED_BYTES, free_bytes // 4)


def _read_result(graph: GraphStep, group: Group, begin: int, embeddings: Any) -> Result:
    """Return the result of a group whose agents are the sessions `begin`, ... of a graph that has run."""
    size, is_discrete = group.space.size, group.space.kind == "discrete"
    if group.num_agents == 1:
        values = [graph.rows[begin][:size].copy()]
        choices = [graph.choices.item(begin)] if is_discrete else None
        return Result(values, _FINITE if graph.finite.item(begin) else _NOT_FINITE, choices, embeddings)
    place = slice(begin, begin + group.num_agents)
    choices = graph.choices[place].astype(np.int64) if is_discrete else None
    return Result(graph.predictions[place, :size].copy(), graph.finite[place].astype(bool), choices, embeddings)


def _encoder_of(group: Group) -> str:
    """Return the encoder of a group's observations: "continuous", "image" or "discrete"."""
    return group.observations.modality.partition("+")[0]
