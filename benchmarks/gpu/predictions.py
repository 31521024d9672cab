"""Put the clock's predictions, which need no GPU, next to a report's readings.

The table is benchmarks/results/kernel_cycles.json, by `benchmarks.kernel_cycles`: a list of "graphs" and one of
"persistent", each entry with a name such as "graphs, 8 agents" or "images, 1024 frames", and "us" by GPU.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

TABLE = Path(__file__).parents[1] / "results" / "kernel_cycles.json"
TOLERANCE = 1 / 3
"""Part of a prediction by which a reading may differ without a reason being given."""


class Prediction(NamedTuple):
    """A step, or the encoding of images, on one GPU.

    Attributes:
        kind: "graphs", "persistent" or "images".
        count: of agents or frames.
        gpu: part of its name.
        us: microseconds on the device.
    """

    kind: str
    count: int
    gpu: str
    us: float


def predictions(path: Path = TABLE) -> list[Prediction]:
    """Return the committed predictions; none if there is no table."""
    try:
        table = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    found = []
    for entry in (*table.get("persistent", []), *table.get("graphs", [])):
        # A name that says more, such as another geometry, is no plain step.
        name = re.fullmatch(r"(graphs|persistent|images), (\d+) (?:agents?|frames?)", str(entry.get("name")))
        if name is not None and isinstance(entry.get("us"), dict):
            found += [Prediction(name[1], int(name[2]), gpu, float(us)) for gpu, us in entry["us"].items()]
    return found


def comparison(data: dict[str, Any], told: list[Prediction]) -> list[dict[str, Any]]:
    """Return a row for each prediction of the report's GPU with the reading, and whether they agree."""
    results = {name: section["result"] for name, section in data["sections"].items()}
    gpu = str(results.get("machine", {}).get("gpu", {}).get("name", ""))
    rows = []
    for prediction in told:
        if prediction.gpu not in gpu:
            continue
        row: dict[str, Any] = {"what": prediction.kind, "agents or frames": prediction.count}
        row["predicted us"] = prediction.us
        reading = _reading(results, prediction.kind, prediction.count)
        if reading is None:
            rows.append({**row, "read us": "", "verdict": "no reading"})
            continue
        ratio = reading / prediction.us
        verdict = "as predicted" if abs(ratio - 1) <= TOLERANCE else f"off by {ratio - 1:+.0%}"
        rows.append({**row, "read us": reading, "verdict": verdict})
    return rows


def _reading(results: dict[str, Any], kind: str, count: int) -> float | None:
    """Return the microseconds on the device that sections have read in bfloat16, if any has."""
    if kind == "images":
        for row in results.get("kernels", {}).get("kernels", []):
            if row.get("kernel") == "encode_images" and row.get("sessions") == count and "us with pdl" in row:
                return float(row["us with pdl"])
        return None
    if count == 1:
        for row in results.get("latency", {}).get("steps", []):
            is_it = row.get("agent") == f"{kind} bfloat16" and row.get("observation") == "continuous"
            if is_it and "device us" in row:
                return float(row["device us"])
    for row in results.get("throughput", {}).get("agents", []):
        if kind == "graphs" and row.get("agents") == count and "graphs ms" in row:
            return float(row["graphs ms"]) * 1e3
    return None
