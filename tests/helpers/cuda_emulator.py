"""The persistent kernel executed on the CPU: build it, drive it, and compute the expected result."""

from __future__ import annotations

import fcntl
import importlib.util
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from jat_engine.backends.base import PAGE_SIZE, STEP_TOKENS
from jat_engine.backends.cuda.fragments import GROUP, pack_layer
from jat_engine.backends.cuda.persistent import layer_arguments
from jat_engine.reference import BlockWeights, attention, block, encode_continuous, head, key_ages, linear

ROOT = Path(__file__).resolve().parents[2]
Block: TypeAlias = BlockWeights[np.ndarray, np.ndarray]


def missing_tools() -> str:
    """Return the reason why the module cannot be built here; empty if it can."""
    lacking = [tool for tool in ("cmake", "c++") if shutil.which(tool) is None]
    if importlib.util.find_spec("pybind11") is None:
        lacking.append("pybind11")
    return f"needs {', '.join(lacking)}" if lacking else ""


def sanitizer_library() -> str:
    """Return the path of libtsan.so; empty if there is none."""
    if shutil.which("gcc") is None:
        return ""
    path = subprocess.run(["gcc", "-print-file-name=libtsan.so"], capture_output=True, text=True, check=True).stdout
    return path.strip() if Path(path.strip()).is_absolute() else ""


def build(folder: Path, *targets: str) -> list[Path]:
    """Build CMake targets; return the path of each: the folder of a module `_cuda_emulator`, or a program.

    Processes that build in one folder take turns, and what one has built is there for the next.
    """
    import pybind11

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _build(folder, pybind11.get_cmake_dir(), *targets)


def _build(folder: Path, pybind11: str, *targets: str) -> list[Path]:
    options = [
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11}",
        "-DCMAKE_CUDA_COMPILER=",
    ]
    for command in (
        ["cmake", "-S", str(ROOT), "-B", str(folder), *options],
        ["cmake", "--build", str(folder), "--parallel", "2", "--target", *targets],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}\n{done.stderr}"
    return [folder / target for target in targets]


def load(folder: Path) -> ModuleType:
    # pybind11 returns the module that it made first of a name, and there are several builds.
    name = f"{folder.name}._cuda_emulator"
    spec = importlib.util.spec_from_file_location(name, next(folder.glob("_cuda_emulator.*")))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- numbers -------------------------------------------------------------------------------------------------------


def to_bits(x: np.ndarray, dtype: str) -> np.ndarray:
    """Convert float32 to `dtype`; bfloat16 is stored as uint16."""
    x = np.ascontiguousarray(x, np.float32)
    if dtype == "float32":
        return x.copy()
    if dtype == "float16":
        return x.astype(np.float16)
    bits = x.view(np.uint32)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), rounded)


def from_bits(x: np.ndarray) -> np.ndarray:
    """Convert the result of `to_bits` back to float32."""
    if x.dtype == np.uint16:
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float32)


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """Return x in its own type, rounded to `dtype`; float32 means not rounded."""
    return x if dtype == "float32" else from_bits(to_bits(x, dtype)).astype(x.dtype)


# ---- a model -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    hidden: int = 64
    num_heads: int = 4
    inner: int = 256
    windows: tuple[int, ...] = (64, 12)
    max_positions: int = 64
    num_pages: int = 24

    @property
    def head_dim(self) -> int:
        return self.hidden // self.num_heads


class Model:
    """Random weights in `dtype`, norms and biases in float32, a cache full of NaN.

    Attributes:
        layers: weights of each.
        cache: [layers, pages, 2, heads, 16, head_dim].
    """

    def __init__(self, sizes: Sizes, dtype: str, seed: int) -> None:
        self.sizes, self.dtype = sizes, dtype
        random = np.random.default_rng(seed)
        hidden, inner = sizes.hidden, sizes.inner

        def matrix(rows: int, columns: int, gain: float = 1.0) -> np.ndarray:
            return to_bits(random.standard_normal((rows, columns)) * gain / np.sqrt(columns), dtype)

        def norm() -> tuple[np.ndarray, np.ndarray]:
            weight = 1 + 0.1 * random.standard_normal(hidden, np.float32)
            return weight.astype(np.float32), (0.05 * random.standard_normal(hidden)).astype(np.float32)

        def bias(size: int) -> np.ndarray:
            return (0.05 * random.standard_normal(size)).astype(np.float32)

        self.layers: list[Block] = [
            BlockWeights(
                norm1=norm(),
                qkv=matrix(3 * hidden, hidden, 0.8),
                out_proj=matrix(hidden, hidden),
                out_proj_bias=bias(hidden),
                norm2=norm(),
                mlp_in=matrix(inner, hidden),
                mlp_in_bias=bias(inner),
                mlp_out=matrix(hidden, inner),
                mlp_out_bias=bias(hidden),
                window=window,
            )
            for window in sizes.windows
        ]
        self.final_norm = norm()
        self.position_table = (0.5 * random.standard_normal((sizes.max_positions, hidden))).astype(np.float32)
        self.continuous_bias = bias(hidden)
        shape = (len(sizes.windows), sizes.num_pages, 2, sizes.num_heads, PAGE_SIZE, sizes.head_dim)
        self.cache = to_bits(np.full(shape, np.nan, np.float32), dtype)


@dataclass
class Token:
    """Source of a row: a finished embedding [H], or an encoder [X, H] and its values [X]."""

    source: np.ndarray
    values: np.ndarray | None = None


@dataclass
class Plan:
    context_len: int
    start_offset: int
    pages: list[int]
    tokens: list[Token]
    head: np.ndarray  # [n, H]
    head_bias: np.ndarray | None
    kept: list[bool] | None = None  # whether a row's key and value are appended; all by default

    def slot(self, index: int) -> int:
        place = index + self.start_offset
        return self.pages[place // PAGE_SIZE] * PAGE_SIZE + place % PAGE_SIZE


class Driver:
    """A `Step` that works on a `Model`'s memory."""

    def __init__(self, module: ModuleType, model: Model, capacity: int = 24, **options: Any) -> None:
        sizes = model.sizes
        self.model = model
        self.input = {
            "query_start": np.zeros(2, np.int32),
            "context_lens": np.zeros(1, np.int32),
            "start_offsets": np.zeros(1, np.int32),
            "page_table": np.full(sizes.max_positions // PAGE_SIZE + 2, 2**30, np.int32),
            "positions": np.zeros(STEP_TOKENS, np.int32),
            "slot_mapping": np.full(STEP_TOKENS, -1, np.int32),
            "source_ptrs": np.zeros(STEP_TOKENS, np.int64),
            "source_sizes": np.zeros(STEP_TOKENS, np.int32),
            "value_starts": np.zeros(STEP_TOKENS, np.int32),
            "values": np.full(1152, np.nan, np.float32),
            "head_ptrs": np.zeros(1, np.int64),
            "head_bias_ptrs": np.zeros(1, np.int64),
            "head_sizes": np.zeros(1, np.int32),
        }
        self.output = np.full(capacity, np.nan, np.float32)
        layers = [layer.map(_tensor, _tensor) for layer in model.layers]
        self._packed = [pack_layer(layer, sizes.num_heads) for layer in layers]
        arguments: dict[str, Any] = {
            "hidden": sizes.hidden,
            "num_heads": sizes.num_heads,
            "head_dim": sizes.head_dim,
            "inner": -(-sizes.inner // GROUP) * GROUP,
            "num_layers": len(sizes.windows),
            "max_positions": sizes.max_positions,
            "weight_dtype": model.dtype,
            "layers": [layer_arguments(*layer) for layer in zip(layers, self._packed, strict=True)],
            "final_norm_weight": model.final_norm[0].ctypes.data,
            "final_norm_bias": model.final_norm[1].ctypes.data,
            "position_table": model.position_table.ctypes.data,
            "continuous_bias": model.continuous_bias.ctypes.data,
            "kv_cache": model.cache.ctypes.data,
            "num_pages": sizes.num_pages,
            "input": {name: x.ctypes.data for name, x in self.input.items()},
            "output": self.output.ctypes.data,
            "capacity": capacity,
            "timeout_us": 30_000_000,
        }
        self.step = module.Step(**(arguments | options))

    def prepare(self, plan: Plan) -> None:
        """Write the step's inputs."""
        inputs, count = self.input, len(plan.tokens)
        inputs["query_start"][1] = count
        inputs["context_lens"][0] = plan.context_len
        inputs["start_offsets"][0] = plan.start_offset
        inputs["page_table"][:] = 2**30
        inputs["page_table"][: len(plan.pages)] = plan.pages
        start = 5
        for row, token in enumerate(plan.tokens):
            index = plan.context_len + row
            inputs["positions"][row] = index
            inputs["slot_mapping"][row] = plan.slot(index) if plan.kept is None or plan.kept[row] else -1
            inputs["source_ptrs"][row] = token.source.ctypes.data
            size = 0 if token.values is None else token.values.size
            inputs["source_sizes"][row] = size
            inputs["value_starts"][row] = start
            if token.values is not None:
                inputs["values"][start : start + size] = token.values
            start += size + 3
        inputs["head_ptrs"][0] = plan.head.ctypes.data
        inputs["head_bias_ptrs"][0] = 0 if plan.head_bias is None else plan.head_bias.ctypes.data
        inputs["head_sizes"][0] = len(plan.head)
        self.output[:] = np.nan

    def run(self, plan: Plan) -> np.ndarray:
        """Return the prediction [n]. Raises RuntimeError with the step's reason."""
        self.prepare(plan)
        reason = self.step.run(0)
        if reason:
            raise RuntimeError(reason)
        assert np.isnan(self.output[len(plan.head) :]).all(), "wrote behind the head's rows"
        return self.output[: len(plan.head)].copy()


def _tensor(array: np.ndarray) -> Tensor:
    """Return the array as a tensor in the same memory; of uint16 only the bits count."""
    return torch.from_numpy(array.view(np.int16) if array.dtype == np.uint16 else array)


# ---- what it should compute ----------------------------------------------------------------------------------------


def reference(model: Model, plan: Plan, cache: np.ndarray, dtype: str = "float32") -> np.ndarray:
    """Return the step's prediction in float64, activations rounded to `dtype` before products; updates the cache."""
    context, count = plan.context_len, len(plan.tokens)
    rows = [
        _double(token.source)
        if token.values is None
        else encode_continuous(_double(token.values), _double(token.source), _double(model.continuous_bias))
        for token in plan.tokens
    ]
    x = torch.stack(rows) + _double(model.position_table[context : context + count])

    def apply(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        return linear(torch.from_numpy(rounded(x_TI.numpy(), dtype)), weight_OI, bias_O)

    for layer, pages in zip(model.layers, cache, strict=True):
        weights = layer.map(_double, _double)
        attend = partial(_attend, model.dtype, plan, pages, layer.window)
        x = block(x, weights, model.sizes.num_heads, attend, apply)
    norm_weight, norm_bias = model.final_norm
    bias = None if plan.head_bias is None else _double(plan.head_bias)
    return head(x[-1], (_double(norm_weight), _double(norm_bias)), _double(plan.head), bias).numpy()


def _attend(
    dtype: str, plan: Plan, pages: np.ndarray, window: int, q_TND: Tensor, k_TND: Tensor, v_TND: Tensor
) -> Tensor:
    """Attend over keys and values rounded to `dtype`, and write those of kept rows to the pages of a layer."""
    context, count = plan.context_len, len(plan.tokens)
    page, place = np.divmod([plan.slot(index) for index in range(context + count)], PAGE_SIZE)
    kept = np.array(plan.kept if plan.kept is not None else [True] * count)
    joined = []
    for part, new in enumerate((k_TND.numpy(), v_TND.numpy())):
        cached = from_bits(pages[page[:context], part, :, place[:context]]).astype(np.float64)
        joined.append(torch.from_numpy(np.concatenate((cached, rounded(new, dtype)))))
        pages[page[context:][kept], part, :, place[context:][kept]] = to_bits(new, dtype)[kept]
    return attention(q_TND, *joined, key_ages(count, context + count, q_TND.device), window)


def _double(array: np.ndarray) -> Tensor:
    """Return what `to_bits` holds, or any other array of floats, in float64."""
    return torch.from_numpy(from_bits(array).astype(np.float64))


# ---- random plans --------------------------------------------------------------------------------------------------


def random_plan(model: Model, random: np.random.Generator, context: int, count: int, offset: int = 0) -> Plan:
    """Return a step's input with shuffled pages and both kinds of embeddings."""
    sizes = model.sizes
    needed = (offset + context + count + PAGE_SIZE - 1) // PAGE_SIZE
    pages = random.permutation(sizes.num_pages)[:needed].tolist()
    tokens = []
    for row in range(count):
        if row % 2 == 1:
            tokens.append(Token(random.standard_normal(sizes.hidden, np.float32)))
        else:
            size = int(random.integers(1, 40))
            tokens.append(
                Token(
                    random.standard_normal((size, sizes.hidden), np.float32) / np.float32(np.sqrt(size)),
                    random.standard_normal(size, np.float32),
                )
            )
    num_outputs = int(random.integers(1, 19))
    head = random.standard_normal((num_outputs, sizes.hidden), np.float32)
    bias = random.standard_normal(num_outputs, np.float32) if num_outputs % 2 else None
    return Plan(context, offset, pages, tokens, head, bias)


def fill_context(model: Model, random: np.random.Generator, plan: Plan) -> None:
    """Write random keys and values of the cached tokens; every other slot stays NaN."""
    slots = np.array([plan.slot(index) for index in range(plan.context_len)], np.int64)
    shape = (len(model.layers), len(slots), 2, model.sizes.num_heads, model.sizes.head_dim)
    model.cache[:, slots // PAGE_SIZE, :, :, slots % PAGE_SIZE] = to_bits(
        random.standard_normal(shape).transpose(1, 0, 2, 3, 4), model.dtype
    )
