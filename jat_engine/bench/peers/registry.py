"""Open peers by name, and keep account of those that cannot run."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .base import Peer, Unavailable

ENGINE, MODEL, PUBLISHED = "JatEngine", "JatModel", "published"

LLAMA = "llama.cpp"
"""Takes part where texts are written, and nowhere else; see `writers`."""

REFERENCE = f"{MODEL} float32"
"""Baseline for outputs and speed-ups."""

DTYPES = ("float32", "bfloat16", "int8", "int4")


@dataclass(frozen=True)
class Exported:
    """A peer that runs an exported step.

    Attributes:
        module: of this package.
        dtypes: that it can do.
        options: of the module's `open_peer`.
    """

    module: str
    dtypes: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)


_LARGE_GROUPS = {"group_size": 128}
"""4.1 bits a weight instead of 4.5: faster, and further from the weights."""

EXPORTED = {
    "torch.compile": Exported("torch_compile", ("float32", "bfloat16")),
    "onnxruntime": Exported("onnxruntime", ("float32", "int8", "int4")),
    "onnxruntime-g128": Exported("onnxruntime", ("int4",), _LARGE_GROUPS),
    "openvino": Exported("openvino", ("float32", "bfloat16", "int8", "int4")),
    "openvino-g128": Exported("openvino", ("int4",), _LARGE_GROUPS),
}
"""Peers that run an exported step, by name."""

NAMES = (PUBLISHED, MODEL, *EXPORTED, LLAMA)
"""Peers that can be asked for; the engine and the reference always take part."""


CPU_ONLY = "measured on CPUs only; for GPUs see the repository's benchmarks/gpu_report.py"
"""Why a suite or a peer does not take part on a GPU."""


def open_peer(
    name: str, folder: Path, dtype: str, device: str = "cpu", *, upstream: str | None = None, **engine_options: Any
) -> Peer:
    """Open a checkpoint with the peer of a name.

    Args:
        name: `ENGINE` or one of `NAMES`.
        folder: of the checkpoint.
        dtype: one of `DTYPES`.
        device: "cpu" or "cuda".
        upstream: a Python with the published package; for "published".
        engine_options: of the engine.

    Raises:
        Unavailable: the peer cannot run here; the message says why, and what to install.
        ValueError: there is no peer of this name.
    """
    if name == ENGINE:
        from .jat import EnginePeer

        return EnginePeer.load(folder, dtype, device, **engine_options)
    if name == MODEL:
        from .jat import ModelPeer

        return ModelPeer.load(folder, dtype, device)
    if name == PUBLISHED:
        return _open_published(folder, device, upstream)
    if name == LLAMA:
        raise Unavailable("llama.cpp writes texts; it has no agents")
    if name not in EXPORTED:
        raise ValueError(f"peer: expected one of {', '.join((ENGINE, *NAMES))}, got {name!r}")
    if device != "cpu":
        raise Unavailable(CPU_ONLY)
    found = EXPORTED[name]
    peer: Peer = importlib.import_module(f".{found.module}", __package__).open_peer(folder, dtype, **found.options)
    return peer


def _open_published(folder: Path, device: str, upstream: str | None) -> Peer:
    if device != "cpu":
        raise Unavailable(CPU_ONLY)
    if upstream is None:
        raise Unavailable("--upstream names no Python with the published package")
    from .published import PublishedPeer

    return PublishedPeer(upstream, folder)


@dataclass
class Peers:
    """Peers that take part, and why others do not.

    Attributes:
        found: name with dtype -> peer, the reference first.
        skipped: name with dtype -> why not, or why no longer.
    """

    found: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, make: Callable[[], Any]) -> None:
        """Add what `make` returns under `name`; if it fails, the reason."""
        try:
            peer = make()
        except Exception as error:  # whatever another's software does, the others are measured
            self.skipped[name] = reason(error)
        else:
            self.found[name] = peer

    def drop(self, name: str, error: Exception) -> None:
        """Close a peer that has failed; the others go on."""
        self.skipped[name] = reason(error)
        self.found.pop(name).close()

    def close(self) -> None:
        """Close all peers."""
        for peer in self.found.values():
            peer.close()
        self.found.clear()


def reason(error: Exception) -> str:
    """Return one line of why a peer does not take part."""
    text = str(error).strip().splitlines() or [""]
    return text[0] if isinstance(error, Unavailable) else f"{type(error).__name__}: {text[0]}"


def load(
    folder: Path,
    dtypes: Iterable[str],
    names: Iterable[str],
    device: str,
    upstream: str | None,
    note: Callable[[str], object],
    *,
    has_engine: bool = True,
    **engine_options: Any,
) -> Peers:
    """Open the engine at every dtype, the reference, and the peers asked for.

    Args:
        dtypes: of the engine and of peers.
        names: of `NAMES`.
        upstream: a Python with the published package, or None.
        note: told, in words, what is loaded.
        has_engine: whether the engine is opened, too.
        engine_options: of the engine.
    """
    names, dtypes = list(names), list(dtypes)
    peers = Peers()
    peers.found[REFERENCE] = open_peer(MODEL, folder, "float32", device)  # without it there is nothing to measure
    if MODEL in names and "bfloat16" in dtypes:
        peers.add(f"{MODEL} bfloat16", lambda: open_peer(MODEL, folder, "bfloat16", device))
    if PUBLISHED in names:
        peers.add("published package float32", lambda: _open_published(folder, device, upstream))
    for name in [name for name in names if name in EXPORTED]:
        for dtype in [dtype for dtype in EXPORTED[name].dtypes if dtype in dtypes]:
            note(f"loading {name} {dtype} ...")
            peers.add(f"{name} {dtype}", lambda name=name, dtype=dtype: open_peer(name, folder, dtype, device))  # type: ignore[misc]
    for dtype in dtypes if has_engine else ():
        peers.add(
            f"{ENGINE} {dtype}",
            lambda dtype=dtype: open_peer(ENGINE, folder, dtype, device, **engine_options),  # type: ignore[misc]
        )
    return peers
