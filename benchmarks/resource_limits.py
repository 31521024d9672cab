"""Limit what a kernel may use, on every architecture the engine serves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

ARCHITECTURES = (80, 87, 90, 100, 120)
"""Compute capabilities: A100, Jetson Orin, H100 and H200, B200, RTX 50."""
SHARED_LIMIT = {80: 163 * 1024, 87: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
"""Shared memory one block may use, bytes."""
REGISTER_LIMIT = 255

_WHOLE_FRAMES = {"image_norm": 48, "image_conv": 40}
"""Bytes for kernels that hold a whole frame in registers; none of it is in a loop. Only sm_87 takes more than 24 for
image_conv."""

_MANY_ROWS = {"linear_residual": 136}
"""Bytes for tiles of 128 x 128 with 128 registers on sm_90, so that two programs fit on a multiprocessor: addresses and
sums of what follows the loop."""

_MANY_ROWS_ELSEWHERE = {"linear_residual": 352, "linear": 112, "qkv": 240}
"""The same for other architectures: the tiles were chosen for sm_90."""

Row = dict[str, Any]


def spill_limit(row: Row) -> int:
    """Bytes a thread of this kernel may keep in local memory: none in half precision and int8, but for images.

    `step` has 13 warps a multiprocessor, so 128 registers a thread; on sm_100 and sm_120 it wants a few more.
    """
    if row["kernel"] == "step":
        return 0 if row["arch"] <= 90 else 80
    if row["weights"] == "float32":
        return 128
    many_rows = _MANY_ROWS if row["arch"] == 90 else _MANY_ROWS_ELSEWHERE
    limits = _WHOLE_FRAMES | (many_rows if row["for"] == "512 agents" else {})
    return limits.get(row["kernel"], 0)


def violations(table: Iterable[Row]) -> list[str]:
    """Return what in a table is over its limit, in words."""
    wrong = []
    for row in table:
        compiler = f", Triton {row['triton']}" if "triton" in row else ""
        name = f"{row['kernel']} ({row['weights']}, {row['for']}, sm_{row['arch']}{compiler})"
        limits = {
            "registers": REGISTER_LIMIT,
            "spill_bytes": spill_limit(row),
            "shared_bytes": SHARED_LIMIT[row["arch"]],
        }
        wrong += [
            f"{name}: expected at most {limit} {what}, got {row[what]}"
            for what, limit in limits.items()
            if row[what] > limit
        ]
    return wrong
