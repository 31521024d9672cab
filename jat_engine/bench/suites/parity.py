"""Measure how far results are from float32: of the engine on every backend, and of `JatModel` in bfloat16.

On the recorded episodes of the published implementation, and on a checkpoint. Each step follows on the recorded action,
or the one that `JatModel` takes in float32.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...config import JatConfig
from ...testing import golden
from ..parity import EAGER_LIMIT, LIMITS, Followed, follow, follow_episode, predict
from ..peers import ENGINE, MODEL, Peers, open_peer
from ..peers.jat import EnginePeer
from ..results import make_row
from ..runner import Context
from ..workload import fitting_windows, open_checkpoint, step_arguments

SUITE = "parity"

RECORDED = "recorded episodes"
"""In place of a model's name."""

STEPS, WINDOW = 60, 32


def run(context: Context) -> None:
    options = context.options
    with tempfile.TemporaryDirectory(prefix="jat-engine-recorded-") as folder:
        context.note(f"parity: {RECORDED} ...")
        checkpoint = golden.write_checkpoint(Path(folder))
        measure(context, RECORDED, open_peers(context, checkpoint), follow_recorded)
    for model in options.models:
        context.note(f"parity: {model} ...")
        with open_checkpoint(model) as checkpoint:
            (window,) = fitting_windows([WINDOW], JatConfig.from_pretrained(checkpoint))
            reference = open_peer(MODEL, checkpoint, "float32", options.device)
            arguments = {kind: [step_arguments(kind, step) for step in range(STEPS)] for kind in options.observations}
            expected = {kind: predict(reference.open(window), arguments[kind]) for kind in arguments}
            reference.close()

            def follow_all(peer: Any) -> Followed:
                found = Followed()
                for kind in arguments:  # noqa: B023
                    found += follow(peer.open(window), arguments[kind], expected[kind])  # noqa: B023
                return found

            measure(context, model, open_peers(context, checkpoint), follow_all)


def open_peers(context: Context, folder: Path) -> Peers:
    """Open the engine with every backend of the device at every dtype, and `JatModel` in bfloat16."""
    options = context.options
    peers = Peers()
    if "bfloat16" in options.dtypes:
        peers.add(f"{MODEL} bfloat16", lambda: open_peer(MODEL, folder, "bfloat16", options.device))
    for backend in ("cuda" if options.device == "cuda" else "cpu", "torch"):
        for dtype in options.dtypes:
            peers.add(
                f"{ENGINE} {backend} {dtype}",
                lambda backend=backend, dtype=dtype: EnginePeer.load(  # type: ignore[misc]
                    folder, dtype, options.device, backend=backend
                ),
            )
    return peers


def follow_recorded(peer: Any) -> Followed:
    """Play all recorded episodes."""
    found = Followed()
    for episode in golden.EPISODES:
        found += follow_episode(peer.open(episode.context_window), episode)
    return found


def measure(context: Context, model: str, peers: Peers, follow_all: Callable[[Any], Followed]) -> None:
    """Add a row for each peer, and close all."""
    for name in list(peers.found):
        peer = peers.found[name]
        try:
            found = follow_all(peer)
        except Exception as failure:
            peers.drop(name, failure)
            continue

        row = make_row(
            SUITE,
            {"model": model},
            name,
            [found.seconds],
            error=found.relative_error,
            tolerance=EAGER_LIMIT if name.startswith(MODEL) else LIMITS[peer.dtype],
        )
        row.facts["steps"] = len(found.seconds)
        if found.agreement is not None:
            row.facts["greedy actions that agree %"] = 100 * found.agreement
            row.facts["of"] = len(found.agreed)

        context.results.rows.append(row)
    context.results.skipped.update({f"parity, {model}, {name}": reason for name, reason in peers.skipped.items()})
    context.save()
    peers.close()
    gc.collect()
