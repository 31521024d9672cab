"""Open writers by name, and keep account of those that cannot run."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from pathlib import Path

from ..peers import CPU_ONLY, ENGINE, MODEL, REFERENCE, Peers, Unavailable
from ..peers.registry import LLAMA, Exported
from .base import Writer
from .jat import EngineWriter, ModelWriter

_LARGE_GROUPS = {"group_size": 128}
"""4.1 bits a weight instead of 4.5, and of ONNX Runtime 8.1 instead of its products of whole rows."""

RUNTIMES = {
    "onnxruntime": Exported("onnxruntime", ("float32", "int8", "int4")),
    "onnxruntime-g128": Exported("onnxruntime", ("int8", "int4"), _LARGE_GROUPS),
    "openvino": Exported("openvino", ("float32", "bfloat16", "int8", "int4")),
    "openvino-g128": Exported("openvino", ("int4",), _LARGE_GROUPS),
    LLAMA: Exported("llama_cpp", ("float32", "bfloat16", "int8", "int4")),
}
"""Runtimes that write texts, by name; modules of this package."""


def open_writer(name: str, folder: Path, dtype: str, device: str = "cpu") -> Writer:
    """Open a checkpoint with the writer of a name.

    Args:
        name: `ENGINE`, `MODEL` or one of `RUNTIMES`.
        folder: of the checkpoint.
        dtype: one of `peers.DTYPES`.
        device: "cpu" or "cuda".

    Raises:
        Unavailable: it cannot run here; the message says why, and what to install.
    """
    if name == ENGINE:
        return EngineWriter.load(folder, dtype, device)
    if name == MODEL:
        return ModelWriter.load(folder, dtype, device)
    if device != "cpu":
        raise Unavailable(CPU_ONLY)
    runtime = RUNTIMES[name]
    module = importlib.import_module(f".{runtime.module}", __package__)
    found: Writer = module.open_writer(folder, dtype, **runtime.options)
    return found


def load(
    folder: Path, dtypes: Iterable[str], names: Iterable[str], device: str, note: Callable[[str], object]
) -> Peers:
    """Open the engine at every dtype, the reference, and those of `names` that write.

    Args:
        folder: of the checkpoint.
        dtypes: of the engine and of runtimes.
        names: of `peers.NAMES`.
        device: "cpu" or "cuda".
        note: told, in words, what is loaded.
    """
    names, dtypes = list(names), list(dtypes)
    writers = Peers()
    writers.found[REFERENCE] = open_writer(MODEL, folder, "float32", device)
    wanted = [(ENGINE, dtype) for dtype in dtypes]
    if MODEL in names and "bfloat16" in dtypes:
        wanted.append((MODEL, "bfloat16"))
    for name in [name for name in names if name in RUNTIMES]:
        wanted += [(name, dtype) for dtype in RUNTIMES[name].dtypes if dtype in dtypes]
    for name, dtype in wanted:
        note(f"loading {name} {dtype} ...")
        writers.add(f"{name} {dtype}", lambda name=name, dtype=dtype: open_writer(name, folder, dtype, device))  # type: ignore[misc]
    return writers
