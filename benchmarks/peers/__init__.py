"""What a user would run instead of the engine: the same step, written for a compiler, on a runtime of others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jat_engine.bench.peer import Peer

from . import compiled, onnx_runtime, openvino_runtime

PEERS: dict[str, Callable[[Path, str], Peer]] = {
    "torch.compile": compiled.open_peer,
    "onnxruntime": onnx_runtime.open_peer,
    "openvino": openvino_runtime.open_peer,
}
"""Name -> a function of the checkpoint's folder and the dtype. It raises `Unavailable` if the peer cannot run here."""
