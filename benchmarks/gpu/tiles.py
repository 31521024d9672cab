"""Sweep tile sizes of the products with weights, offline: what is fastest here can be committed as the kernels' table.

Engines never tune when they run. The rows name product, rows, tile and time; tiles.json in the report's folder has the
same, fastest first, for kernels/tiles.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

from jat_engine import JatConfig
from jat_engine.backends.base import STEP_TOKENS

from .kernels import CONTEXT_LEN, cases, measure
from .section import SectionRun, describe

DTYPE = "bfloat16"
SESSIONS = (1, 1024, 64, 8)
PRODUCTS = ("norm_qkv", "norm_linear, fc", "linear_residual, proj", "linear_residual, out_proj")


def candidates(rows: int, inputs: int) -> Iterator[Any]:
    """Yield tiles for a product of so many rows and inputs, the present table's kind first."""
    from jat_engine.kernels.tiles import Tile

    if rows <= 32:
        height = 4 if rows <= 4 else 8 if rows <= 8 else 16 if rows <= 16 else 32
        for columns, parts, warps in itertools.product((8, 16, 32), (8, 16, 4), (4, 8, 2)):
            part = 1 << (-(-inputs // parts) - 1).bit_length()
            if part >= 16:
                yield Tile(max(height, 8) if columns < 32 else height, columns, part, parts, warps, 1, whole=True)
        return
    for height, columns, depth, stages in itertools.product((64, 128), (64, 128, 32), (64, 128), (3, 4, 5)):
        if (height + columns) * depth * 2 * stages <= 200 * 1024:
            yield Tile(height, columns, depth, 1, 8 if height * columns > 64 * 64 else 4, stages)


def run(section: SectionRun) -> None:
    from jat_engine.kernels import linear

    config, device = JatConfig.from_preset("small"), torch.device(section.device)
    found: list[dict[str, Any]] = []
    for sessions in SESSIONS:
        for case in cases(config, sessions, DTYPE, device, CONTEXT_LEN):
            if case.name not in PRODUCTS:
                continue
            rows = sessions * STEP_TOKENS
            inputs = 4 * config.hidden_size if case.name.endswith(" proj") else config.hidden_size
            for tile in (None, *candidates(rows, inputs)):
                if section.time_left() < 4:
                    return
                row: dict[str, Any] = {"product": case.name, "rows": rows, "tile": "the table's"}
                try:
                    if tile is None:
                        row["us"] = measure(case, pdl=True)
                    else:
                        row["tile"] = str(tuple(tile))
                        with mock.patch.object(linear, "tile_of", lambda *_, tile=tile, **__: tile):
                            row["us"] = measure(case, pdl=True)
                except Exception as error:  # more registers or shared memory than there are
                    row["error"] = describe(error, 1)
                found.append(row)
                section.record("tiles", fastest_first(found))


def fastest_first(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort rows by product and number of rows, then by time; those without one last."""
    return sorted(rows, key=lambda row: (row["product"], row["rows"], row.get("us", float("inf"))))
