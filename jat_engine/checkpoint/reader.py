"""Location and checks of safetensors files. Nothing is unpickled, and no code from a checkpoint is run."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint_files import check_not_pointer, describe_folder, find_file, read_json
from ..errors import CheckpointError

_MAX_HEADER_BYTES = 100_000_000


def find_weight_files(source: str | os.PathLike[str], variant: str | None, hub: dict[str, Any]) -> list[Path]:
    """Return the safetensors files of a checkpoint: `model.safetensors`, or the shards that its index names.

    Args:
        source: a folder, or a repository id on the hub.
        variant: part of the file names, as in `model.<variant>.safetensors`.
        hub: options for finding files, out of `HUB_OPTIONS`.

    Raises:
        CheckpointError: there is neither a file nor an index, there are both, or a shard is missing.
    """
    suffix = f".{variant}" if variant else ""
    single, index = f"model{suffix}.safetensors", f"model.safetensors.index{suffix}.json"
    adapter = find_file(source, "adapter_config.json", hub)
    if adapter is not None:
        raise CheckpointError(
            f"{adapter}: expected whole weights, got an adapter; merge it into the model before saving (PEFT: "
            "merge_and_unload)"
        )

    path, index_path = find_file(source, single, hub), find_file(source, index, hub)
    if path is not None and index_path is not None:
        raise CheckpointError(
            f"{source}: expected {single} or {index}, got both, and one may be left from an earlier save; remove the "
            "one that is out of date"
        )
    if path is not None:
        return [path]
    if index_path is not None:
        return _shards(source, index_path, hub)

    for pickled in ("pytorch_model.bin", "pytorch_model.bin.index.json"):
        file = find_file(source, pickled, hub)
        if file is not None:
            raise CheckpointError(
                f"{source}: expected {single}, got only {pickled}; pickled weights are not read, because loading them "
                f"can run code. Convert them once: {_how_to_convert(source, file)}"
            )
    folder = Path(source) / (hub.get("subfolder") or "")
    raise CheckpointError(f"{source}: expected {single} or {index}, got neither{_describe_weights(folder, variant)}")


def _how_to_convert(source: str | os.PathLike[str], pickled: Path) -> str:
    """Return a command line that writes `model.safetensors` next to pickled weights."""
    folder, download = str(pickled.parent), ""
    if not Path(source).is_dir():
        folder = str(source).rpartition("/")[2]
        download = f"hf download {source} --local-dir {shlex.quote(folder)} && "
    code = (
        f"import glob, torch, safetensors.torch; d = {json.dumps(folder)}; t = {{k: v.clone().contiguous() for f in "
        'glob.glob(glob.escape(d) + "/pytorch_model*.bin") for k, v in torch.load(f, map_location="cpu", '
        'weights_only=True).items()}; safetensors.torch.save_file(t, d + "/model.safetensors", {"format": "pt"})'
    )
    return f"{download}python -c {shlex.quote(code)}" + (f", and load {folder}" if download else "")


def _describe_weights(folder: Path, variant: str | None) -> str:
    """Return what a folder without weights has instead, with the remedy, as the rest of a sentence."""
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    variants = sorted({name.split(".")[1] for name in names if re.fullmatch(r"model\.[^.]+\.safetensors", name)})
    if any(re.fullmatch(r"model-\d+-of-\d+(\.[^.]+)?\.safetensors", name) for name in names):
        return f"; there are shards ({names[0]}) without their index: copy model.safetensors.index.json, too"
    if variants:
        return f"; there is {names[0]}: pass variant={variants[0]!r}"
    if variant is not None and "model.safetensors" in names:
        return "; there is model.safetensors: leave variant out"
    if len(names) == 1:
        return f"; there is {names[0]}: if it holds the whole model, rename it to model.safetensors"
    return describe_folder(folder) if folder.is_dir() else ""


def _shards(source: str | os.PathLike[str], index: Path, hub: dict[str, Any]) -> list[Path]:
    try:
        weight_map = dict(read_json(index)["weight_map"])
        names = sorted(set(weight_map.values()))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{index}: expected JSON with a weight_map, got {error!r}") from None
    if not names:
        raise CheckpointError(f"{index}: expected a weight_map that names files, got an empty one")
    shards = []
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index}: expected names of .safetensors files in its folder, got {name!r}")
        path = find_file(source, name, hub)
        if path is None:
            where = Path(source) / (hub.get("subfolder") or "")
            more = describe_folder(where) if where.is_dir() else ""
            raise CheckpointError(f"{index}: names the shard {name}, which is missing{more}")
        _check_shard(index, path, {parameter for parameter, shard in weight_map.items() if shard == name})
        shards.append(path)
    return shards


def _check_shard(index: Path, shard: Path, expected: set[str]) -> None:
    """Check that a shard holds what the index says; if not, one of the two is from another save."""
    wrong = sorted(check_header(shard) ^ expected)
    if wrong:
        raise CheckpointError(
            f"{index}: {wrong[0]}: expected in {shard.name} and in the weight_map, or in neither; save the checkpoint "
            "again into an empty folder"
        )


def check_finite(where: str, tensor: Tensor) -> None:
    """Check that a floating-point tensor has no NaN and no infinity.

    Args:
        where: name of the tensor for the error message.
        tensor: on the CPU.

    Raises:
        CheckpointError: it has one.
    """
    # Minimum and maximum of a tensor with a NaN are NaN. numpy's functions stay on the calling thread, which matters
    # because engines read with several threads at once.
    if tensor.dtype == torch.float32:
        low, high = float(tensor.numpy().min()), float(tensor.numpy().max())
    else:
        low, high = (float(x) for x in torch.aminmax(tensor))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise CheckpointError(f"{where}: expected finite values, got NaN or infinity")


def check_header(file: Path) -> set[str]:
    """Check the header of a safetensors file, and return the names of its parameters.

    The safetensors library accepts files with a duplicate name, and reports truncated ones with an unclear message.

    Raises:
        CheckpointError: the file is truncated or damaged, or a name occurs twice.
    """

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
        check_not_pointer(file, length_bytes + stream.read(64))
        stream.seek(8)
        length = struct.unpack("<Q", length_bytes)[0] if len(length_bytes) == 8 else 0
        if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
            raise CheckpointError(f"{file}: truncated or not a safetensors file ({size} bytes)")
        raw = stream.read(length)

    try:
        header = json.loads(raw, object_pairs_hook=no_duplicates)
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        needed = 8 + length + end
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{file}: not a safetensors file: its header is damaged ({error!r})") from None
    if needed != size:
        raise CheckpointError(f"{file}: expected {needed} bytes, got {size}; the file is truncated or damaged")
    return set(header) - {"__metadata__"}
