"""The native CPU backend: `csrc/cpu`, compiled as `jat_engine._cpu`. One native call computes all layers of a step.

The blocks and the last layers of the image and the discrete encoder are stored in the chosen dtype, with int4 some of
them in int8 (`INT8_IN_INT4`); the small rest (convolutions, continuous encoder and decoder, head rows, norms, position
table) in float32. The residual stream, norms, softmax and sums are float32. Keys and values are float32 or, with other
weights, bfloat16.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
from torch import Tensor

from .. import _cpu
from ..checkpoint.quantized import IMAGE_FC, dtypes_of, to_stored_order
from ..checkpoint.weights import (
    EMBEDDING,
    HEAD,
    PATCH_PROJECTION,
    Weights,
    block_parameters,
    check_heads,
    discrete_features,
    fold_cyclic,
    parameter_shapes,
)
from ..config import FRAME_SHAPE, JatConfig
from ..errors import InputError
from ..machine import allowed_cores, available_cores, cpu_quota
from ..observation import ActionSpace, Modality
from .base import MAX_SIZES, Group, QuickStep, Result, TextRows, machine_memory_bytes
from .rows import encode, lay_out, make_results, patch_rows


@dataclass(frozen=True)
class _TextWeights:
    """Weights that texts need besides the blocks.

    Attributes:
        embedding: of tokens, float32 [vocab_size, H]; the file's own memory if it has this type.
        head: predicts tokens, in the engine's dtype.
        patch_encoder: of images, float32.
    """

    embedding: np.ndarray
    head: _cpu.Linear
    patch_encoder: _cpu.Linear


class CpuBackend:
    """`Backend` with native kernels. Embeddings are float32 [H] arrays. Not thread-safe: the engine holds a lock."""

    name = "cpu"
    page_size: int = _cpu.PAGE_SIZE
    persistent_reason = "the backend is cpu"
    timing = ""
    max_text_rows = 256
    prompt_rows_beside_agents = 16

    def __init__(
        self,
        config: JatConfig,
        weights: Weights,
        dtype: str,
        num_threads: int | None = None,
        spin_us: int = 200,
        instruction_set: str = "auto",
        kv_dtype: str = "auto",
    ) -> None:
        """Pack the weights and start the threads.

        Args:
            config: of the model.
            weights: to pack.
            dtype: one of `CPU_DTYPES`.
            num_threads: threads that share a step; by default the cores this process may use, at most 16. More than
                the process may use cause a warning.
            spin_us: microseconds that idle threads spin for the next call before they sleep; at least 50.
            instruction_set: "avx512", "avx2", "generic", or "auto" for the best available.
            kv_dtype: of cached keys and values: "bfloat16", "int8" with one scale per token and head, or "auto" for
                float32 with float32 weights and bfloat16 with others.

        Raises:
            CheckpointError: a weight is missing or invalid.
            InputError: the processor lacks the instruction set, or the system does not allow so many threads.
        """
        self._config = config
        self._dtype = dtype
        self._weights = weights
        self._shapes = parameter_shapes(config)
        stored = weights.quantization
        self._takes_codes = stored is not None and stored.dtype == dtype
        self._dtypes = stored.kinds if stored is not None and self._takes_codes else dtypes_of(dtype)
        self._linears: list[_cpu.Linear] = []
        if num_threads is not None:
            _check_threads(num_threads)
        threads = num_threads or min(available_cores(), _MAX_DEFAULT_THREADS)
        available = ("auto", *_cpu.instruction_sets())
        if instruction_set not in available:
            raise InputError(
                f"instruction_set: expected one of {', '.join(available)} on this processor, got {instruction_set!r}"
            )
        position_table = _numpy(weights.get("transformer.wpe.weight"))
        if kv_dtype == "auto":
            kv_dtype = "float32" if dtype == "float32" else "bfloat16"
        try:
            self._model = _cpu.Model(
                config.hidden_size, config.num_heads, kv_dtype, position_table, threads, spin_us, instruction_set
            )
        except RuntimeError as error:
            raise InputError(f"num_threads: expected as many as the system allows, got {threads} ({error})") from None

        # Packing releases the GIL, so layers are packed in parallel.
        with ThreadPoolExecutor(threads) as workers:
            features = workers.submit(discrete_features, weights)
            heads = workers.submit(check_heads, weights)
            image_encoder = workers.submit(self._pack_image_encoder)
            for layer in list(workers.map(self._pack_layer, range(config.num_layers))):
                self._model.add_layer(**layer)
            table = features.result().numpy()
            self._image_encoder = image_encoder.result()
            heads.result()
        self._model.set_final_norm(self._array("transformer.ln_f.weight"), self._array("transformer.ln_f.bias"))

        cached = lru_cache(maxsize=MAX_SIZES)
        encoder_weight = weights.get("continuous_encoder.weight").clone()  # else the file stays mapped
        encoder_bias = self._array("continuous_encoder.bias").copy()
        # Functions, not methods: a cache with a reference to `self` would form a cycle and free its memory late.
        self._continuous_encoder: Callable[[int], _cpu.Linear] = cached(partial(_fold, encoder_weight, encoder_bias))
        self._choices: Callable[[int], np.ndarray] = cached(partial(_choices, weights))
        self._head: Callable[[ActionSpace], _cpu.Linear] = cached(partial(_pack_head, weights))
        self._table_bytes = table.nbytes
        self._discrete_encoder = _cpu.DiscreteEncoder(table, self._pack_discrete_mixer())
        self.num_threads: int = self._model.num_threads
        self.page_bytes: int = self._model.page_bytes
        self._pool = np.empty(0, np.uint8)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights, without those that are packed for a size of observation or action."""
        num_bytes = sum(linear.num_bytes for linear in self._linears) + self._table_bytes
        if "_text" in vars(self):
            num_bytes += self._text.embedding.nbytes + self._text.head.num_bytes + self._text.patch_encoder.num_bytes
        return num_bytes

    @property
    def native_seconds(self) -> float:
        """Cumulative seconds in native calls; wall time minus this is Python overhead."""
        return self._model.seconds

    @property
    def memory_bytes(self) -> int:
        """Bytes of the machine's memory."""
        return machine_memory_bytes()

    @property
    def memory(self) -> dict[str, int]:
        """Bytes allocated for "weights" and "cache"."""
        return {"weights": self.weight_bytes, "cache": self._pool.nbytes}

    def allocate_cache(self, num_pages: int) -> None:
        """Reserve address space for the KV cache; the system assigns memory when a page is first written."""
        size = num_pages * self.page_bytes
        memory = np.empty(size + _ALIGNMENT, np.uint8)
        begin = -memory.ctypes.data % _ALIGNMENT
        self._pool = memory[begin : begin + size]
        encoders = self._continuous_encoder, self._discrete_encoder, self._image_encoder
        make = partial(_make_quick_step, self._model, self._pool, encoders, self._choices, self._head)
        self._quick_step: Callable[..., QuickStep] = lru_cache(maxsize=MAX_SIZES)(make)

    def read_pages(self, pages: np.ndarray) -> np.ndarray:
        """Return a copy of pages, uint8 [n, page_bytes], see `Backend.read_pages`."""
        found: np.ndarray = self._pool.reshape(-1, self.page_bytes)[pages]
        return found

    def write_pages(self, pages: np.ndarray, data: np.ndarray) -> None:
        """Write pages, see `Backend.write_pages`."""
        self._pool.reshape(-1, self.page_bytes)[pages] = data

    def read_embedding(self, embeddings: Any) -> np.ndarray:
        """Return the embedding of a single agent's observation, float32 [H]."""
        return np.array(embeddings[0][: self._config.hidden_size])

    def make_embedding(self, embedding: np.ndarray | None) -> list[np.ndarray]:
        """Return the embeddings of a single agent."""
        if embedding is None:
            raise InputError("snapshot: expected the embedding of the last observation, got none")
        return [embedding.copy()]

    # ---- embeddings ------------------------------------------------------------------------------------------------

    def embed_continuous(self, values: np.ndarray, reward: float | None) -> np.ndarray:
        """Encode a continuous observation, float32 [X], with its reward, or a continuous action without one."""
        if reward is None:
            return self._model.embed(self._continuous_encoder(values.size), values)
        return self._model.embed(self._continuous_encoder(values.size + 1), values, reward)

    def embed_choice(self, choice: int, num_choices: int) -> np.ndarray:
        """Return the embedding of a discrete action."""
        row: np.ndarray = self._choices(num_choices)[choice]
        return row

    def embed_discrete(
        self, values: list[np.ndarray], missions: list[np.ndarray | None], rewards: list[float]
    ) -> list[np.ndarray]:
        """Encode discrete observations, see `Encoder.embed_discrete`."""
        return self._discrete_encoder.encode(self._model, values, missions, rewards)

    def embed_images(self, frames: list[np.ndarray]) -> list[np.ndarray]:
        """Encode image observations, uint8 [84, 84, 4] each."""
        return self._image_encoder.encode(self._model, frames)

    # ---- the step --------------------------------------------------------------------------------------------------

    def num_agents_to_warm_up(self, counts: Iterable[int]) -> list[int]:
        """See `Backend`: the largest alone."""
        return [max(counts)]

    def step(self, groups: Sequence[Group]) -> list[Result]:
        """Run one step, see `Backend.step`."""
        encoded = encode(self, groups)
        rows = lay_out(self, groups, encoded)
        heads = [self._head(space) for space in rows.spaces]
        decoded = self._model.decode(
            rows.embeddings,
            rows.num_new,
            rows.context_lens,
            rows.start_offsets,
            rows.page_tables,
            self._pool,
            heads,
        )
        predictions, finite = zip(*decoded, strict=True)
        return make_results(groups, encoded, predictions, finite)

    def quick_step(self, modality: Modality, num_values: int, space: ActionSpace) -> QuickStep:
        """Return a quick step for agents with this kind of observation and this action space.

        Args:
            modality: of the observations.
            num_values: of an observation, without padding.
            space: to choose actions from.
        """
        return self._quick_step(modality, num_values, space)

    # ---- texts -----------------------------------------------------------------------------------------------------

    def embed_picture(self, pixel_values: np.ndarray) -> np.ndarray:
        """Return the embeddings of an image's patches, float32 [P, H], see `Backend.embed_picture`."""
        return self._model.apply(self._text.patch_encoder, patch_rows(pixel_values, self._config.patch_size))

    def run_text(self, texts: Sequence[TextRows]) -> list[np.ndarray]:
        """Compute rows of texts, see `Backend.run_text`."""
        embeddings: list[np.ndarray] = []
        for text in texts:
            embeddings += [] if text.patches is None else list(text.patches)
            embeddings += [self._text.embedding[token] for token in text.tokens.tolist()]
        counts = [text.num_predicted for text in texts]
        logits = self._model.decode_text(
            embeddings,
            [text.num_rows for text in texts],
            [text.context_len for text in texts],
            [text.page_table for text in texts],
            self._pool,
            counts,
            self._text.head,
        )
        return np.split(logits, np.cumsum(counts[:-1]))

    @cached_property
    def _text(self) -> _TextWeights:
        """Pack the weights that texts alone need."""
        projection = self._weights.get(f"{PATCH_PROJECTION}.weight").flatten(1)
        rows, columns = self._shapes[HEAD]
        head = _cpu.Linear(self._dtype, rows, columns, has_bias=False)
        first = 0
        for piece in self._weights.pieces(HEAD):
            head.pack_rows(first, _numpy(piece))
            first += len(piece)
        embedding = _numpy(self._weights.get(EMBEDDING))
        return _TextWeights(embedding, head, _pack(projection, self._array(f"{PATCH_PROJECTION}.bias")))

    # ---- packing ---------------------------------------------------------------------------------------------------

    def _array(self, name: str) -> np.ndarray:
        return _numpy(self._weights.get(name))

    def _pack_rows(self, linear: _cpu.Linear, first: int, name: str) -> None:
        """Pack a matrix into the rows of a layer from `first` on: its codes, if they are stored in the chosen dtype."""
        if not self._takes_codes:
            for piece in self._weights.pieces(name, rows=_ROWS_AT_ONCE):
                linear.pack_rows(first, _numpy(to_stored_order(name, piece)))
                first += len(piece)
            return
        codes = self._weights.codes(name)
        if codes.scales is None or codes.minima is None:
            linear.pack_bytes(first, _numpy(codes.codes), _numpy(codes.row_scales))
        else:
            linear.pack_codes(first, *map(_numpy, (codes.codes, codes.scales, codes.minima, codes.row_scales)))

    def _linear(self, kind: str, names: Sequence[str], bias: str | None) -> _cpu.Linear:
        """Pack the matrices `names`, stacked along their rows, one at a time to save memory."""
        rows, columns = self._shapes[names[0]]
        linear = _cpu.Linear(self._dtypes[kind], rows * len(names), columns, bias is not None)
        for index, name in enumerate(names):
            self._pack_rows(linear, index * rows, name)
        if bias is not None:
            linear.set_bias(self._array(bias))
        self._linears.append(linear)
        return linear

    def _pack_layer(self, index: int) -> dict[str, Any]:
        """Pack a block's weights: the arguments of `_cpu.Model.add_layer`."""
        names = block_parameters(self._config, index)
        (norm1_weight, norm1_bias), (norm2_weight, norm2_bias) = names.norm1, names.norm2
        return {
            "norm1_weight": self._array(norm1_weight),
            "norm1_bias": self._array(norm1_bias),
            "qkv": self._linear("qkv", names.qkv, None),
            "out_proj": self._linear("out_proj", names.out_proj, names.out_proj_bias),
            "norm2_weight": self._array(norm2_weight),
            "norm2_bias": self._array(norm2_bias),
            "mlp_in": self._linear("mlp_in", names.mlp_in, names.mlp_in_bias),
            "mlp_out": self._linear("mlp_out", names.mlp_out, names.mlp_out_bias),
            "window": names.window,
        }

    def _pack_discrete_mixer(self) -> _cpu.Linear:
        """Pack the discrete encoder's last layer with an extra row of zeros, where the reward will be."""
        name = "multi_discrete_encoder.4"
        rows, columns = self._shapes[f"{name}.weight"]
        linear = _cpu.Linear(self._dtypes["discrete_encoder"], rows + 1, columns, has_bias=True)
        self._pack_rows(linear, 0, f"{name}.weight")
        linear.set_bias(np.append(self._array(f"{name}.bias"), np.float32(0)))
        self._linears.append(linear)
        return linear

    def _pack_image_encoder(self) -> _cpu.ImageEncoder:
        """Pack convolutions in float32, and the last layer in the chosen dtype."""
        encoder, size = _cpu.ImageEncoder(), FRAME_SHAPE[0]
        prefix = "image_encoder.module."
        for stage in (1, 2, 3):
            weight = self._array(f"{prefix}conv{stage}.weight")
            gates = [self._array(f"{prefix}att{stage}.fc.{i}.weight") for i in (0, 2)]
            encoder.add_stage(size, weight, *gates)
            size = (size + 1) // 2

        rows, columns = self._shapes[IMAGE_FC]
        linear = _cpu.Linear(self._dtypes["image_encoder"], rows, columns, has_bias=True)
        self._pack_rows(linear, 0, IMAGE_FC)
        linear.set_bias(self._array(f"{prefix}fc.bias"))
        self._linears.append(linear)
        encoder.set_linear(linear)
        return encoder


_ROWS_AT_ONCE = 256
"""Rows of a matrix that are read and packed at a time: 16 MB of the largest, that of the image encoder."""

_MAX_DEFAULT_THREADS = 16
"""More threads gain nothing: fewer than this saturate the memory."""


def _check_threads(num_threads: int) -> None:
    """Warn if there are more threads than the system will run at a time."""
    cores, quota = allowed_cores(), cpu_quota()
    if num_threads > cores:
        message = (
            f"expected at most the cores this process may run on, {cores}, got {num_threads}; they will take turns"
        )
    elif quota is not None and num_threads > quota:
        message = (
            f"expected at most the CPU quota of this process, {quota:g} cores, got {num_threads}; the system will "
            "stop all of them for milliseconds when it is used up"
        )
    else:
        return
    warnings.warn(f"num_threads: {message}", RuntimeWarning, stacklevel=2)


_ALIGNMENT = 64  # a cache line, so that no load of a vector crosses two


def _pack(weight: Tensor, bias: np.ndarray | None) -> _cpu.Linear:
    """Pack a small layer in float32."""
    linear = _cpu.Linear("float32", weight.shape[0], weight.shape[1], bias is not None)
    linear.pack_rows(0, _numpy(weight))
    if bias is not None:
        linear.set_bias(bias)
    return linear


def _fold(weight: Tensor, bias: np.ndarray, size: int) -> _cpu.Linear:
    """Pack the continuous encoder for `size` numbers."""
    return _pack(fold_cyclic(weight, size), bias)


def _choices(weights: Weights, num_choices: int) -> np.ndarray:
    """Return the embeddings of discrete actions: float32 [num_choices, H]."""
    return weights.rows(EMBEDDING, num_choices).numpy()


def _pack_head(weights: Weights, space: ActionSpace) -> _cpu.Linear:
    """Pack the rows of the head that an action space needs, in float32."""
    if space.kind == "continuous":
        weight = weights.rows("continuous_decoder.weight", space.size)
        return _pack(weight, weights.rows("continuous_decoder.bias", space.size).numpy())
    return _pack(weights.rows(HEAD, space.size), None)


def _make_quick_step(
    model: _cpu.Model,
    pool: np.ndarray,
    encoders: tuple[Callable[[int], _cpu.Linear], _cpu.DiscreteEncoder, _cpu.ImageEncoder],
    choices: Callable[[int], np.ndarray],
    head: Callable[[ActionSpace], _cpu.Linear],
    modality: Modality,
    num_values: int,
    space: ActionSpace,
) -> QuickStep:
    continuous, discrete, image = encoders
    encoder: _cpu.Linear | _cpu.DiscreteEncoder | _cpu.ImageEncoder = discrete
    if modality == "continuous":
        encoder = continuous(num_values + 1)
    elif modality == "image":
        encoder = image
    action_encoder = choices(space.size) if space.kind == "discrete" else continuous(space.size)
    has_mission = modality == "discrete+text"
    return _cpu.QuickStep(model, encoder, action_encoder, head(space), pool, num_values, has_mission)


def _numpy(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.numpy())
