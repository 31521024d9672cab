"""Weights for an engine, from a checkpoint or a model in memory: checked, in float32, one parameter at a time.

Acting needs about 100 M of the 192.7 M published parameters: the blocks, the encoders, and the rows of the embedding
and of the heads that an action space uses. Texts need the whole embedding and its head as well, 77 M, which are read
with the first text. The other parameters are checked but not kept in memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..config import QUANTIZATION_FIELD, JatConfig
from ..errors import CheckpointError, InputError
from ..reference import BlockWeights
from .quantized import (
    LARGEST_SAFE_SCALE,
    STORED_PARTS,
    Codes,
    Quantization,
    from_stored_order,
    matrix_kinds,
    stored_parts,
)
from .reader import check_finite, check_header

EMBEDDING = "transformer.wte.weight"
EMBEDDING_ALIASES = ("single_discrete_encoder.weight", "multi_discrete_encoder.0.weight")
"""Other names of the embedding matrix in published files."""

HEAD = "single_discrete_decoder.weight"
PATCH_PROJECTION = "vit_encoder.projection"
_READ_LATER = (
    EMBEDDING,
    HEAD,
    "continuous_decoder.weight",
    "continuous_decoder.bias",
    f"{PATCH_PROJECTION}.weight",
    f"{PATCH_PROJECTION}.bias",
)
"""Parameters that are read when they are first used: the rows that an action space needs, and all that texts need."""

_ATTENTION_BUFFER = re.compile(r"transformer\.h\.([0-9]{1,4})\.attn\.attention\.(?:bias|masked_bias)")
"""Causal masks, which older files store like parameters."""

_DTYPES = ("F64", "F32", "F16", "BF16")


class Weights(Protocol):
    """Interface for reading parameters by name: float32, contiguous, on the CPU."""

    @property
    def quantization(self) -> Quantization | None:
        """Return how the matrices are stored; None if all are floating-point numbers."""
        ...

    def codes(self, name: str) -> Codes:
        """Return a matrix that `quantization` says is quantised, its columns in the order of the stored codes."""
        ...

    def get(self, name: str) -> Tensor:
        """Return a whole parameter."""
        ...

    def pieces(self, name: str, rows: int = 2048) -> Iterator[Tensor]:
        """Yield a matrix in blocks of up to `rows` rows, so that a large one is never in memory as a whole."""
        ...

    def rows(self, name: str, count: int) -> Tensor:
        """Return the first `count` rows of a matrix."""
        ...


def block_parameters(config: JatConfig, index: int) -> BlockWeights[tuple[str, ...], str]:
    """Return the names of the parameters of block `index`: a matrix consists of several, one below the other."""
    block = f"transformer.h.{index}."
    attention = f"{block}attn.attention."
    is_local = config.attention_layers[index] == "local"
    return BlockWeights(
        norm1=(f"{block}ln_1.weight", f"{block}ln_1.bias"),
        qkv=(f"{attention}q_proj.weight", f"{attention}k_proj.weight", f"{attention}v_proj.weight"),
        out_proj=(f"{attention}out_proj.weight",),
        out_proj_bias=f"{attention}out_proj.bias",
        norm2=(f"{block}ln_2.weight", f"{block}ln_2.bias"),
        mlp_in=(f"{block}mlp.c_fc.weight",),
        mlp_in_bias=f"{block}mlp.c_fc.bias",
        mlp_out=(f"{block}mlp.c_proj.weight",),
        mlp_out_bias=f"{block}mlp.c_proj.bias",
        window=config.window_size if is_local else config.max_position_embeddings,
    )


def identifying_parameters(config: JatConfig) -> list[str]:
    """Return the names of small parameters which every training changes: the LayerNorms' and the biases of blocks."""
    blocks = [block_parameters(config, index) for index in range(config.num_layers)]
    vectors = [name for b in blocks for name in (*b.norm1, b.out_proj_bias, *b.norm2, b.mlp_in_bias, b.mlp_out_bias)]
    return [*vectors, "transformer.ln_f.weight", "transformer.ln_f.bias"]


def parameter_shapes(config: JatConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every parameter that acting needs."""
    hidden = config.hidden_size
    inner = config.intermediate_size or 4 * hidden
    features = config.discrete_feature_size
    shapes: dict[str, tuple[int, ...]] = {
        EMBEDDING: (config.vocab_size, hidden),
        "transformer.wpe.weight": (config.max_position_embeddings, hidden),
        "transformer.ln_f.weight": (hidden,),
        "transformer.ln_f.bias": (hidden,),
        "continuous_encoder.weight": (hidden, config.max_continuous_size),
        "continuous_encoder.bias": (hidden,),
        "multi_discrete_encoder.1.weight": (features, hidden),
        "multi_discrete_encoder.1.bias": (features,),
        "multi_discrete_encoder.4.weight": (hidden - 1, config.max_discrete_value * features),
        "multi_discrete_encoder.4.bias": (hidden - 1,),
        "image_encoder.module.fc.weight": (hidden, 128 * 11 * 11),
        "image_encoder.module.fc.bias": (hidden,),
        "continuous_decoder.weight": (config.max_continuous_size, hidden),
        "continuous_decoder.bias": (config.max_continuous_size,),
        HEAD: (config.vocab_size, hidden),
    }

    for stage, (in_channels, out_channels) in enumerate(((4, 32), (32, 64), (64, 128)), start=1):
        shapes[f"image_encoder.module.conv{stage}.weight"] = (out_channels, in_channels, 3, 3)
        shapes[f"image_encoder.module.conv{stage}.bias"] = (out_channels,)
        shapes[f"image_encoder.module.att{stage}.fc.0.weight"] = (out_channels // 8, out_channels)
        shapes[f"image_encoder.module.att{stage}.fc.2.weight"] = (out_channels, out_channels // 8)

    for index in range(config.num_layers):
        block = block_parameters(config, index)
        shapes |= dict.fromkeys((*block.qkv, *block.out_proj), (hidden, hidden))
        shapes |= dict.fromkeys(block.mlp_in, (inner, hidden))
        shapes |= dict.fromkeys(block.mlp_out, (hidden, inner))
        shapes |= dict.fromkeys((*block.norm1, block.out_proj_bias, *block.norm2, block.mlp_out_bias), (hidden,))
        shapes[block.mlp_in_bias] = (inner,)
    return shapes


def checkpoint_shapes(config: JatConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every parameter of a `JatModel`, also those for training and text only."""
    hidden, patch, features = config.hidden_size, config.patch_size, config.discrete_feature_size
    shapes = {
        **parameter_shapes(config),
        "vit_encoder.projection.weight": (hidden, config.num_channels, patch, patch),
        "vit_encoder.projection.bias": (hidden,),
        "multi_discrete_decoder.0.weight": (config.max_discrete_value * features, hidden),
        "multi_discrete_decoder.0.bias": (config.max_discrete_value * features,),
        "multi_discrete_decoder.3.weight": (hidden, features),
        "multi_discrete_decoder.3.bias": (hidden,),
        "multi_discrete_decoder.5.weight": (8, hidden),
        "image_decoder.module.fc.weight": (128 * 11 * 11, hidden),
        "image_decoder.module.fc.bias": (128 * 11 * 11,),
    }

    for stage, (in_channels, out_channels) in enumerate(((128, 64), (64, 32), (32, 4)), start=1):
        shapes[f"image_decoder.module.deconv{stage}.weight"] = (in_channels, out_channels, 3, 3)
        shapes[f"image_decoder.module.deconv{stage}.bias"] = (out_channels,)
    for stage, channels in enumerate((64, 32), start=1):
        shapes[f"image_decoder.module.att{stage}.fc.0.weight"] = (channels // 8, channels)
        shapes[f"image_decoder.module.att{stage}.fc.2.weight"] = (channels, channels // 8)
    return shapes


class CheckpointWeights:
    """Parameters in safetensors files, memory-mapped. The files stay open, so replacing them later has no effect.

    Both `JatModel` and engines read checkpoints through this class, so they reject the same files: those with a
    parameter that is missing, unknown, duplicate, or not of the configured shape and type.

    Args:
        files: safetensors files that together hold all parameters.
        config: configuration of the checkpoint.
        quantization: of its matrices, as `read_quantization` returns it.

    Raises:
        CheckpointError: a file is wrong; the message names the file and the parameter.
    """

    def __init__(self, files: list[Path], config: JatConfig, quantization: Quantization | None = None) -> None:
        self.quantization = quantization
        self._shapes, self._needed = checkpoint_shapes(config), parameter_shapes(config)
        self._quantized: dict[str, str] = {}  # parameter -> "int4" or "int8"
        if quantization is not None:
            self._quantized = {name: quantization.kinds[kind] for name, kind in matrix_kinds(config).items()}
        self._stored: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {}  # tensor -> shape, types
        for name, shape in self._shapes.items():
            if name not in self._quantized:
                self._stored[name] = shape, _DTYPES
                continue
            parts = stored_parts(name, shape, self._quantized[name])
            self._stored |= {part: (shape, (dtype,)) for part, (shape, dtype) in parts.items()}
        self._num_layers = config.num_layers
        self._files: dict[str, Path] = {}  # parameter -> file
        self._names: dict[str, str] = {}  # parameter -> its name there
        self._open: dict[Path, Any] = {}
        for file in files:
            check_header(file)
            try:
                self._open[file] = safe_open(file, framework="pt").__enter__()
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{file}: not a readable safetensors file: {error}") from None
            for name in self._open[file].keys():  # noqa: SIM118 (not a dict)
                self._add(file, name)

        missing = sorted(set(self._stored) - set(self._files))
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise CheckpointError(f"{', '.join(map(str, files))}: missing parameter {', '.join(missing[:3])}{more}")

    def _add(self, file: Path, name: str) -> None:
        buffer = _ATTENTION_BUFFER.fullmatch(name)
        if buffer is not None and int(buffer[1]) < self._num_layers:
            return
        target = EMBEDDING if name in EMBEDDING_ALIASES else name
        if target not in self._stored:
            raise CheckpointError(f"{file}: unexpected parameter {name}; {self._hint(name)}")
        shape, dtypes = self._stored[target]
        stored = self._open[file].get_slice(name)
        if tuple(stored.get_shape()) != shape:
            raise CheckpointError(f"{file}: {name}: expected shape {list(shape)}, got {stored.get_shape()}")
        if stored.get_dtype() not in dtypes:
            expected = "a floating-point type of 16 bits or more" if dtypes == _DTYPES else dtypes[0]
            raise CheckpointError(f"{file}: {name}: expected {expected}, got {stored.get_dtype()}")

        if target not in self._files:
            self._files[target], self._names[target] = file, name
        elif name == self._names[target]:
            raise CheckpointError(f"{file}: {name} is also in another shard, {self._files[target]}")
        elif not torch.equal(self._read(target), self._read_as(file, name)):
            raise CheckpointError(
                f"{file}: {name} differs from {self._names[target]} in {self._files[target]}; both name the one "
                "embedding matrix"
            )

    def _hint(self, name: str) -> str:
        matrix = name.rpartition(".")[0] if name.endswith(STORED_PARTS) else name
        if matrix in self._quantized:
            dtype = self._quantized[matrix]
            return f"config.json says that {dtype} codes are stored for it: copy the config.json of the weights"
        return _hint(name)

    def _read(self, name: str) -> Tensor:
        return self._read_as(self._files[name], self._names[name])

    def _read_as(self, file: Path, name: str) -> Tensor:
        # A separate mapping per tensor, freed with it: otherwise all pages read so far would stay in memory.
        with safe_open(file, framework="pt") as tensors:
            tensor: Tensor = tensors.get_tensor(name)
        return tensor

    def codes(self, name: str) -> Codes:
        """Return a quantised matrix, see `Weights`."""
        parts = stored_parts(name, self._shapes[name], self._quantized[name])
        tensors = {part.rpartition(".")[2]: self._read(part) for part in parts}
        file = self._files[f"{name}.row_scales"]
        check_finite(f"{file}: {name}.row_scales", tensors["row_scales"])
        if self._quantized[name] == "int8" and int(tensors["codes"].min()) < -127:
            raise CheckpointError(f"{self._files[f'{name}.codes']}: {name}.codes: expected -127 to 127, got -128")
        codes = Codes.from_tensors(tensors, self._shapes[name][1])
        if codes.row_scales.abs().max() > LARGEST_SAFE_SCALE:
            check_finite(f"{file}: {name}: weights of its codes", codes.weight())
        return codes

    def stored(self, name: str) -> Tensor:
        """Return a parameter in the file's own type, memory-mapped and checked to be finite; float32 for codes."""
        if name in self._quantized:
            return from_stored_order(name, self.codes(name).weight()).contiguous()
        tensor = self._read(name)
        check_finite(f"{self._files[name]}: {self._names[name]}", tensor)
        return tensor

    def all_stored(self) -> dict[str, Tensor]:
        """Return all parameters by name, each in its file's own type."""
        return {name: self.stored(name) for name in self._shapes}

    def get(self, name: str) -> Tensor:
        """Return a whole parameter, float32."""
        return self.stored(name).float().contiguous()

    def check_unread(self) -> None:
        """Check the parameters that acting does not need, so that engines reject the same damage as `JatModel`."""
        for name in sorted(set(self._shapes) - set(self._needed)):
            self.stored(name)

    def pieces(self, name: str, rows: int = 2048) -> Iterator[Tensor]:
        """Yield a matrix in blocks of up to `rows` rows, float32."""
        if name in self._quantized:
            yield from self.get(name).split(rows)
            return
        file, stored, shape = self._files[name], self._names[name], self._shapes[name]
        for first in range(0, shape[0], rows):
            # safetensors puts a slice on torch's default device, whatever `device` it is given.
            with safe_open(file, framework="pt") as tensors, torch.device("cpu"):
                piece: Tensor = tensors.get_slice(stored)[first : first + rows]
            check_finite(f"{file}: {stored}", piece)
            yield piece.float().contiguous()

    def rows(self, name: str, count: int) -> Tensor:
        """Return the first `count` rows of a matrix, float32."""
        file, stored = self._files[name], self._names[name]
        with torch.device("cpu"):
            tensor: Tensor = self._open[file].get_slice(stored)[:count]
        check_finite(f"{file}: {stored}", tensor)
        return tensor.float().contiguous()


class ModelWeights:
    """Parameters of a model in memory, for an engine that is made from it.

    Raises:
        InputError: `model` is not a `JatModel` of this configuration; the message names the parameter.
    """

    quantization = None

    def __init__(self, model: nn.Module, config: JatConfig) -> None:
        self._parameters = dict(model.named_parameters(remove_duplicate=False))  # tied ones under each name
        shapes = checkpoint_shapes(config)
        for name, parameter in self._parameters.items():
            if name not in shapes:
                raise InputError(f"model: unexpected parameter {name}; {_hint(name)}")
            if tuple(parameter.shape) != shapes[name]:
                raise InputError(
                    f"model: {name}: expected shape {list(shapes[name])}, as configured, got {list(parameter.shape)}"
                )
        if missing := sorted(set(shapes) - set(self._parameters)):
            raise InputError(f"model: expected a JatModel, got one without the parameter {missing[0]}")

        # These are read later, in parts. Copies, so that further training of the model does not change the engine.
        self._kept = {name: self._parameters[name].detach().clone() for name in _READ_LATER}

    def codes(self, name: str) -> Codes:
        """Raise an error: a model's weights are floating-point numbers."""
        raise ValueError(f"{name}: expected a quantised matrix, got one of a model in memory")

    def get(self, name: str) -> Tensor:
        """Return a copy of a whole parameter, float32 on the CPU."""
        tensor = self._kept.get(name, self._parameters[name]).detach().to("cpu", torch.float32, copy=True).contiguous()
        check_finite(name, tensor)
        return tensor

    def pieces(self, name: str, rows: int = 2048) -> Iterator[Tensor]:
        """Yield a matrix in blocks of up to `rows` rows, float32 on the CPU."""
        yield from self.get(name).split(rows)

    def rows(self, name: str, count: int) -> Tensor:
        """Return the first `count` rows of a matrix, float32 on the CPU."""
        return self._kept[name][:count].cpu().float().contiguous()


def _hint(name: str) -> str:
    if "lora_" in name or ".base_layer." in name:
        return "merge the adapter into the model before saving it (PEFT: merge_and_unload)"
    if wrapper := re.search(r"(?:^|\.)(_orig_mod|module|model|base_model)\.(?!fc|conv|deconv|att)", name):
        return f"{wrapper[1]} is a wrapper of the model or a part of it; take or save the model inside it"
    if name.endswith(STORED_PARTS):
        return f"these are codes, and config.json lacks {QUANTIZATION_FIELD}: copy the config.json of these weights"
    if re.match(r"transformer\.h\.\d+\.", name):
        return "config.json has fewer layers than the file, or it is another model's"
    return "a JAT checkpoint has no such parameter"


def fold_cyclic(weight: Tensor, size: int) -> Tensor:
    """Return weights for `size` inputs that equal `weight` applied to the inputs repeated cyclically.

    `weight @ repeat(x) == fold_cyclic(weight, len(x)) @ x`: column j of the result is the sum of columns j, j + size,
    j + 2 * size, ...

    Args:
        weight: [H, max_continuous_size].
        size: number of inputs, at most max_continuous_size.

    Returns:
        [H, size], float32; summed in float64.
    """
    folded = weight.new_zeros(weight.shape[0], size, dtype=torch.float64)
    columns = torch.arange(weight.shape[1], device=weight.device) % size
    return folded.index_add_(1, columns, weight.double()).float()


def discrete_features(weights: Weights) -> Tensor:
    """Return relu(W wte[v] + b) for every token v, [vocab_size, H // 50]: the discrete encoder's features of v."""
    # Copies are aligned. In a file a tensor lies anywhere, and the order of a library's sums depends on that.
    reduce, bias = weights.get("multi_discrete_encoder.1.weight").clone(), weights.get("multi_discrete_encoder.1.bias")
    return torch.cat([torch.relu(piece.clone() @ reduce.T + bias) for piece in weights.pieces(EMBEDDING)])


def check_heads(weights: Weights) -> None:
    """Check the parameters that are later read in parts, so that damage is reported when an engine is made.

    Raises:
        CheckpointError: a value is NaN or infinite.
    """
    for name in (HEAD, "continuous_decoder.weight", "continuous_decoder.bias"):
        for _ in weights.pieces(name):
            pass
