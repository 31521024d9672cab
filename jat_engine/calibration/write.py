"""Write a quantised checkpoint: codes, the other tensors and files as they are in the original."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save

from ..atomic_io import naming, write_bytes, write_json
from ..checkpoint import trained_tasks
from ..checkpoint.quantized import Codes, Quantization
from ..checkpoint.reader import find_weight_files
from ..checkpoint.weights import CheckpointWeights, checkpoint_shapes
from ..checkpoint_files import PROCESSOR_FILES, find_file, read_json
from ..config import QUANTIZATION_FIELD, JatConfig

_COPIED = (
    *PROCESSOR_FILES,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    trained_tasks.FILE_NAME,
)
"""Files beside the weights that a checkpoint may have."""


def bits_per_weight(codes: Mapping[str, Codes]) -> float:
    """Return the mean number of bits that a weight of the quantised matrices takes, scales included."""
    tensors = [tensor for name, one in codes.items() for tensor in one.tensors(name).values()]
    return 8 * sum(tensor.nbytes for tensor in tensors) / sum(one.codes.numel() for one in codes.values())


def write_checkpoint(
    source: str | os.PathLike[str],
    hub: dict[str, Any],
    folder: Path,
    config: JatConfig,
    codes: Mapping[str, Codes],
    quantization: Quantization,
) -> None:
    """Write a quantised checkpoint.

    Args:
        source: the original: a folder, or a repository id on the hub.
        hub: options for finding its files, out of `HUB_OPTIONS`.
        folder: where to; made if it does not exist.
        config: of the original.
        codes: of each matrix that `quantization` describes.
        quantization: what is written to `config.json`.

    Raises:
        OSError: a file cannot be written. `config.json` is written last, so the folder is then no checkpoint.
    """
    original = CheckpointWeights(find_weight_files(source, None, hub), config)
    tensors = {name: original.stored(name).contiguous() for name in checkpoint_shapes(config) if name not in codes}
    for name, one in codes.items():
        tensors |= {part: tensor.contiguous() for part, tensor in one.tensors(name).items()}

    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))
    for name in _COPIED:
        if (found := find_file(source, name, hub)) is not None:
            write_bytes(folder / name, found.read_bytes())
    found = find_file(source, "config.json", hub, required=True)
    assert found is not None  # required
    # A `JatModel` of the codes needs float32: its weights are no numbers of 16 bits.
    fields = read_json(found) | {"dtype": "float32", QUANTIZATION_FIELD: quantization.to_json(bits_per_weight(codes))}
    fields.pop("torch_dtype", None)
    write_json(folder / "config.json", fields, indent=2)
