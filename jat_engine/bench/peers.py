"""Which peers take part, and why others do not."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .peer import Peer, Unavailable

REFERENCE = "JatModel float32"
"""Outputs are held against its, and times put in relation to its."""

DTYPES = ("float32", "bfloat16", "int8")

EXPORTED = {
    "torch.compile": ("float32", "bfloat16"),
    "onnxruntime": ("float32", "int8"),
    "openvino": ("float32", "bfloat16", "int8"),
}
"""Peers in the repository's benchmarks/peers, by name."""

NAMES = ("published", "JatModel", *EXPORTED)


def reason(error: Exception) -> str:
    """One line of why a peer does not take part."""
    text = str(error).strip().splitlines() or [""]
    return text[0] if isinstance(error, Unavailable) else f"{type(error).__name__}: {text[0]}"


@dataclass
class Peers:
    """Attributes:
    found: name with dtype -> peer, the reference first.
    skipped: name with dtype -> why not, or why no longer.
    """

    found: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, make: Callable[[], Peer]) -> None:
        try:
            peer = make()
        except Exception as error:  # whatever another's software does, the others are measured
            self.skipped[name] = reason(error)
        else:
            self.found[name] = peer

    def drop(self, name: str, error: Exception) -> None:
        """It has failed; the others go on."""
        self.skipped[name] = reason(error)
        self.found.pop(name).close()

    def close(self) -> None:
        for peer in self.found.values():
            peer.close()
        self.found.clear()


def load(
    folder: Path,
    dtypes: Iterable[str],
    names: Iterable[str],
    device: str,
    upstream: str | None,
    note: Callable[[str], object],
    **engine_options: Any,
) -> Peers:
    """The engine at every dtype, the reference, and the peers asked for.

    Args:
        dtypes: of the engine and of peers.
        names: of `NAMES`.
        upstream: a Python with the published package, or None.
        engine_options: of the engine.
    """
    from .own import EnginePeer, ModelPeer

    names, dtypes = list(names), list(dtypes)
    peers = Peers()
    peers.found[REFERENCE] = ModelPeer.load(folder, "float32", device)  # without it there is nothing to measure
    if "JatModel" in names and "bfloat16" in dtypes:
        peers.add("JatModel bfloat16", lambda: ModelPeer.load(folder, "bfloat16", device))
    if "published" in names:
        peers.add("published package float32", lambda: _published(upstream, folder, device))
    for name in names:
        for dtype in (dtype for dtype in EXPORTED.get(name, ()) if dtype in dtypes):
            note(f"loading {name} {dtype} ...")
            peers.add(f"{name} {dtype}", lambda name=name, dtype=dtype: exported(name, folder, dtype, device))  # type: ignore[misc]
    for dtype in dtypes:
        peers.add(f"JatEngine {dtype}", lambda dtype=dtype: EnginePeer.load(folder, dtype, device, **engine_options))  # type: ignore[misc]
    return peers


def _published(upstream: str | None, folder: Path, device: str) -> Peer:
    if device != "cpu":
        raise Unavailable("measured on CPUs only")
    if upstream is None:
        raise Unavailable("--upstream names no Python with the published package")
    from .published import PublishedPeer

    return PublishedPeer(upstream, folder)


def exported(name: str, folder: Path, dtype: str, device: str) -> Peer:
    """From benchmarks/peers of the checkout that this package is imported from. Raises `Unavailable`."""
    if device != "cpu":
        raise Unavailable("measured on CPUs only; for GPUs see benchmarks/gpu_report.py")
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / "benchmarks/peers/__init__.py").exists():
        raise Unavailable("its export is in the repository's benchmarks/, and this is no checkout")
    if str(checkout) not in sys.path:
        sys.path.append(str(checkout))
    module = importlib.import_module("benchmarks.peers")
    peer: Peer = module.PEERS[name](folder, dtype)
    return peer
