"""Put the clock's predictions, which need no GPU, next to a report's readings.

The table is benchmarks/results/kernel_cycles.json; of it this reads `predictions`, a list of {"gpu", "path", "agents",
"us"}, and where given "what" ("step" or "images"; of images "agents" counts frames).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parents[1] / "results" / "kernel_cycles.json"
TOLERANCE = 1 / 3
"""Part of a prediction by which a reading may differ without a reason being given."""


def predictions(path: Path = TABLE) -> list[dict[str, Any]]:
    """Return the committed predictions; none if there is no table."""
    try:
        found = json.loads(path.read_text()).get("predictions", [])
    except (OSError, ValueError, AttributeError):
        return []
    return [row for row in found if isinstance(row, dict) and {"gpu", "path", "agents", "us"} <= row.keys()]


def comparison(data: dict[str, Any], told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each prediction of the report's GPU with the reading, and whether they agree."""
    results = {name: section["result"] for name, section in data["sections"].items()}
    name = str(results.get("machine", {}).get("gpu", {}).get("name", ""))
    rows = []
    for row in told:
        if str(row["gpu"]) not in name:
            continue
        reading = _reading(results, str(row.get("what", "step")), str(row["path"]), int(row["agents"]))
        verdict = "no reading"
        if reading is not None:
            ratio = reading / row["us"]
            verdict = "as predicted" if abs(ratio - 1) <= TOLERANCE else f"off by {ratio - 1:+.0%}"
        rows.append(
            {
                "what": row.get("what", "step"),
                "path": row["path"],
                "agents": row["agents"],
                "predicted us": row["us"],
                "read us": "" if reading is None else reading,
                "verdict": verdict,
            }
        )
    return rows


def _reading(results: dict[str, Any], what: str, path: str, agents: int) -> float | None:
    """Return microseconds on the device of a step, or of encoding images."""
    if what == "images":
        for row in results.get("kernels", {}).get("kernels", []):
            if row.get("kernel") == "encode_images" and row.get("sessions") == agents and "us with pdl" in row:
                return float(row["us with pdl"])
        return None
    if agents == 1:
        for row in results.get("latency", {}).get("steps", []):
            if row.get("agent") == path and row.get("observation") == "continuous" and "device us" in row:
                return float(row["device us"])
    for row in results.get("throughput", {}).get("agents", []):
        if path.startswith("graphs") and row.get("agents") == agents and "graphs ms" in row:
            return float(row["graphs ms"]) * 1e3
    return None
