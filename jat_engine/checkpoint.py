"""Reading a checkpoint: safetensors only, checked against the configuration before a model sees them.

Nothing is unpickled and no code of a checkpoint is run.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .checkpoint_files import HUB_OPTIONS, find_file
from .config import JatConfig
from .errors import CheckpointError

if TYPE_CHECKING:
    from transformers import GenerationConfig

EMBEDDING = "transformer.wte.weight"
EMBEDDING_ALIASES = ("single_discrete_encoder.weight", "multi_discrete_encoder.0.weight")
"""Other names under which published files hold the one embedding matrix."""

_ATTENTION_BUFFER = re.compile(r"transformer\.h\.\d+\.attn\.attention\.(bias|masked_bias)")
"""Causal masks that older files hold beside the parameters."""

_MAX_HEADER_BYTES = 100_000_000


def load_checkpoint(
    model_class: type, source: str | os.PathLike[str], config: Any, options: dict[str, Any]
) -> tuple[JatConfig, dict[str, Tensor], GenerationConfig | None]:
    """Read a folder or hub repository.

    Args:
        model_class: built without storage from the configuration, to learn the parameters' names and shapes.
        source: a folder, or a repository id on the hub.
        config: a `JatConfig`, or None to read `config.json`.
        options: transformers' `from_pretrained` options; those that say where to look are taken out.

    Returns:
        The configuration, the parameters by name (memory-mapped), and the generation configuration if there is one.

    Raises:
        CheckpointError: names the file and the parameter.
    """
    hub = take_hub_options(options)
    variant = options.pop("variant", None)
    if options.pop("use_safetensors", None) is False:
        raise CheckpointError("use_safetensors: expected True, got False; only safetensors files are read")
    options.pop("weights_only", None)
    if not isinstance(config, JatConfig):
        config = read_config(source if config is None else config, hub, options)
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in model_class(config).named_parameters()}
    weights = read_weights(find_weight_files(source, variant, hub), expected)
    from transformers import GenerationConfig  # slow to import, and acting does not need it

    path = find_file(source, "generation_config.json", hub)
    generation_config = GenerationConfig.from_pretrained(path.parent) if path else None
    return config, weights, generation_config


def take_hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those of `options` that say where to look; they are taken out of it."""
    return {key: options.pop(key) for key in HUB_OPTIONS if key in options}


def read_config(source: str | os.PathLike[str], hub: dict[str, Any], options: dict[str, Any]) -> JatConfig:
    """`config.json`, with the fields in `options` replaced and taken out of there."""
    path = find_file(source, "config.json", hub, required=True)
    assert path is not None  # required
    try:
        fields = json.loads(path.read_text())
        model_type = fields.get("model_type")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: expected a JSON object, got {error}") from None
    if model_type != "jat":
        raise CheckpointError(f"{path}: model_type: expected 'jat', got {model_type!r}")
    try:
        config, unused = JatConfig.from_dict(fields, return_unused_kwargs=True, **options)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    for key in set(options) - set(unused):
        del options[key]
    assert isinstance(config, JatConfig)
    return config


def find_weight_files(source: str | os.PathLike[str], variant: str | None, hub: dict[str, Any]) -> list[Path]:
    """The safetensors files of a checkpoint: `model.safetensors`, or the shards its index names."""
    suffix = f".{variant}" if variant else ""
    single, index = f"model{suffix}.safetensors", f"model.safetensors.index{suffix}.json"
    path = find_file(source, single, hub)
    if path is not None:
        return [path]
    index_path = find_file(source, index, hub)
    if index_path is not None:
        return _shards(source, index_path, hub)
    for pickled in ("pytorch_model.bin", "pytorch_model.bin.index.json"):
        if find_file(source, pickled, hub) is not None:
            raise CheckpointError(
                f"{source}: expected {single}, got only {pickled}; pickled weights are not read, because loading "
                "them can run code. Convert them once with transformers' save_pretrained"
            )
    raise CheckpointError(f"{source}: expected {single} or {index}, got neither")


def _shards(source: str | os.PathLike[str], index: Path, hub: dict[str, Any]) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: expected JSON with a weight_map, got {error!r}") from None
    shards = []
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index}: expected names of .safetensors files beside it, got {name!r}")
        path = find_file(source, name, hub)
        if path is None:
            raise CheckpointError(f"{index}: names the shard {name}, which is missing")
        shards.append(path)
    return shards


def read_weights(files: list[Path], expected: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The parameters in `files` by name, each checked: present once, of the expected shape, floating, finite.

    Args:
        files: safetensors files that together hold one model.
        expected: parameter name -> shape.
    """
    weights: dict[str, Tensor] = {}
    origin: dict[str, str] = {}  # parameter -> where it came from, for messages
    for file in files:
        check_header(file)
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a dict)
                    if _ATTENTION_BUFFER.fullmatch(name):
                        continue
                    target = EMBEDDING if name in EMBEDDING_ALIASES else name
                    if target not in expected:
                        raise CheckpointError(f"{file}: unexpected parameter {name}")
                    tensor = tensors.get_tensor(name)
                    check_tensor(f"{file}: {name}", tensor, expected[target])
                    if target not in weights:
                        weights[target], origin[target] = tensor, f"{name} in {file}"
                    elif name == target and origin[target].startswith(f"{name} in "):
                        raise CheckpointError(f"{file}: {name} is also in another shard ({origin[target]})")
                    elif not torch.equal(weights[target], tensor):
                        raise CheckpointError(
                            f"{file}: {name} differs from {origin[target]}; both name the one embedding matrix"
                        )
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: not a readable safetensors file: {error}") from None
    missing = sorted(set(expected) - set(weights))
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CheckpointError(f"{', '.join(map(str, files))}: missing parameter {', '.join(missing[:3])}{more}")
    return weights


def check_tensor(where: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raise `CheckpointError` unless it is of a floating type, of this shape, and finite."""
    if not tensor.is_floating_point():
        raise CheckpointError(f"{where}: expected a floating-point type, got {tensor.dtype}")
    if tuple(tensor.shape) != shape:
        raise CheckpointError(f"{where}: expected shape {list(shape)}, got {list(tensor.shape)}")
    # NaN propagates through both. numpy's stay on the calling thread: engines read with several at once.
    if tensor.dtype == torch.float32:
        low, high = float(tensor.numpy().min()), float(tensor.numpy().max())
    else:
        low, high = (float(x) for x in torch.aminmax(tensor))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise CheckpointError(f"{where}: expected finite values, got NaN or infinity")


def check_header(file: Path) -> None:
    """Refuse what the safetensors library lets pass, or calls by an obscure name: wrong length, a name twice."""

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(pairs)
        if len(keys) != len(pairs):
            seen = [key for key, _ in pairs]
            twice = next(key for key in seen if seen.count(key) > 1)
            raise CheckpointError(f"{file}: {twice} occurs twice in the header")
        return keys

    size = file.stat().st_size
    with file.open("rb") as stream:
        length_bytes = stream.read(8)
        length = struct.unpack("<Q", length_bytes)[0] if len(length_bytes) == 8 else 0
        if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
            raise CheckpointError(f"{file}: truncated or not a safetensors file ({size} bytes)")
        raw = stream.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=no_duplicates)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{file}: not a safetensors file: its header is damaged ({error!r})") from None
    needed = 8 + length + max(ends, default=0)
    if needed != size:
        raise CheckpointError(f"{file}: expected {needed} bytes, got {size}; the file is truncated or damaged")
