"""Time the persistent kernel with other numbers and sizes of clusters than the one it chooses."""

from __future__ import annotations

import os
from typing import Any

from jat_engine.bench.workload import step_arguments

from .checkpoints import checkpoint
from .device_time import of_step
from .paths import engine_of, open_path
from .section import SectionRun, describe

PATH = "persistent bfloat16"
VARIABLE = "JAT_CUDA_GEOMETRY"
GEOMETRIES = ("16x8", "15x8", "14x8", "12x8", "30x4", "32x4", "8x16", "7x16", "64x2", "120x1")
"""Clusters x blocks of a cluster, most likely ones first."""
WINDOW = 256


def run(section: SectionRun) -> None:
    if PATH in section.failed_paths:
        section.record("not run", section.failed_paths[PATH][-300:])
        return
    rows: list[dict[str, Any]] = []
    for geometry in ("", *GEOMETRIES):
        if section.time_left() < 5:
            break
        # The module reads it when an engine is made.
        os.environ[VARIABLE] = geometry
        if not geometry:
            del os.environ[VARIABLE]
        try:
            row = _measure(section)
        except Exception as error:
            row = {"error": describe(error, 3)}
        rows.append({"clusters x size": geometry or "as chosen", **row})
        section.record("geometries", rows)


def _measure(section: SectionRun) -> dict[str, Any]:
    peer = open_path(PATH, checkpoint(section), section.device)
    agent = peer.open(WINDOW)
    for step in range(WINDOW // 2 + 8):
        agent.get_next_action(**step_arguments("continuous", step))
    engine = engine_of(peer)
    found = of_step(lambda: agent.get_next_action(**step_arguments("continuous", 1)), repeats=50)
    return {**({} if engine is None else engine.persistent_geometry), "device us": found["launch"]["alone p50 us"]}
