"""Open the ways to compute a step that the report compares, by name, as peers of `jat_engine.bench`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jat_engine import JatEngine
from jat_engine.bench.parity import EAGER_LIMIT, LIMITS
from jat_engine.bench.peers import MODEL, open_peer
from jat_engine.bench.peers.jat import EnginePeer


@dataclass(frozen=True)
class Variant:
    """A way to compute a step.

    Attributes:
        dtype: of the weights.
        options: of the engine; None for what is no engine.
        limit: relative error of predictions that rounding explains.
        needs_gpu: whether it can only be run on one.
    """

    dtype: str
    options: dict[str, Any] | None
    limit: float
    needs_gpu: bool = True


_GRAPHS = {"backend": "cuda", "persistent": False}
_PERSISTENT = {"backend": "cuda", "persistent": True}

PATHS: dict[str, Variant] = {
    "JatModel bfloat16": Variant("bfloat16", None, EAGER_LIMIT, needs_gpu=False),
    "compiled torch bfloat16": Variant("bfloat16", None, EAGER_LIMIT),
    "torch float32": Variant("float32", {"backend": "torch"}, LIMITS["float32"], needs_gpu=False),
    "torch bfloat16": Variant("bfloat16", {"backend": "torch"}, LIMITS["bfloat16"]),
    "graphs float32": Variant("float32", _GRAPHS, LIMITS["float32"], needs_gpu=False),
    "graphs bfloat16": Variant("bfloat16", _GRAPHS, LIMITS["bfloat16"]),
    "graphs float16": Variant("float16", _GRAPHS, LIMITS["float16"]),
    "graphs int8": Variant("int8", _GRAPHS, LIMITS["int8"]),
    "persistent bfloat16": Variant("bfloat16", _PERSISTENT, LIMITS["bfloat16"]),
}
"""Without a GPU "graphs float32" means the Triton kernels in the interpreter (TRITON_INTERPRET=1)."""


def is_persistent(name: str) -> bool:
    """Tell if a path is the persistent kernel."""
    return name.startswith("persistent")


def file_name(name: str) -> str:
    """Return a path's name as part of a file's."""
    return name.replace(",", "").replace(" ", "-")


def open_path(name: str, folder: Path, device: str, **options: Any) -> Any:
    """Open a checkpoint with the path of a name.

    Args:
        name: of `PATHS`.
        folder: of the checkpoint.
        device: "cpu" or "cuda".
        options: of the engine, where it is one.

    Returns:
        A peer, as `jat_engine.bench.peers` has them.

    Raises:
        RuntimeError: the persistent kernel is not in use.
    """
    path = PATHS[name]
    if path.options is not None:
        peer = EnginePeer.load(folder, path.dtype, device, **path.options, **options)
        if reason := fallen_back(name, peer):
            raise RuntimeError(f"the persistent kernel is not in use: {reason}")
        return peer
    if name.startswith("compiled"):
        from .compiled_peer import CompiledPeer

        return CompiledPeer(folder, path.dtype, device)
    return open_peer(MODEL, folder, path.dtype, device)


def engine_of(peer: Any) -> JatEngine | None:
    """Return a peer's engine; None where it is none."""
    return peer.engine if isinstance(peer, EnginePeer) else None


def fallen_back(name: str, peer: Any) -> str:
    """Return why a persistent path takes the graphs instead; "" if it does not."""
    engine = engine_of(peer)
    return engine.persistent_reason if engine is not None and is_persistent(name) else ""


def facts(engine: JatEngine) -> dict[str, Any]:
    """Return what an engine says of itself."""
    choice = engine.choice
    return {
        "backend": choice.backend,
        "dtype": choice.dtype,
        "reason": choice.reason,
        "weight_bytes": engine.weight_bytes,
        "memory": engine.memory,
        "persistent_reason": engine.persistent_reason,
        "persistent": engine.persistent_geometry or None,
    }
