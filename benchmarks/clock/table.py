"""Make the committed table of the clock: every size of a step by graphs, the images, the persistent kernel, goals."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton

from jat_engine.backends.options import EngineOptions

from . import hardware
from .graphs import FIXED_US, Node, clock_step, kernels_us
from .hardware import BAND, GPUS
from .launches import image_launches, record, step_launches, text_launches
from .persistent import PersistentStep, clock_persistent

ROOT = Path(__file__).parents[2]
AGENTS = (1, 8, 64, 1024)
FRAMES = (1, 1024)
CONTEXT = 505
"""Cached tokens of each agent: with the three new ones, 508 keys."""
FP8 = "float8_e4m3"
GOALS = {
    "persistent, 1 agent": 110.0,
    "graphs, 1 agent": 160.0,
    "graphs, 8 agents": 230.0,
    "graphs, 64 agents": 500.0,
    "graphs, 1024 agents": 5000.0,
    "graphs, 1024 agents, fp8 keys and values": 3400.0,
    "images, 1024 frames": 700.0,
}
"""Microseconds of a step on an H200, by a reading where there is one, else by the band's upper end."""
TEXTS = {
    "1 written": ((1,), 400),
    "8 written": ((1,) * 8, 400),
    "64 written": ((1,) * 64, 400),
    "256 rows read": ((256,), 144),
}
"""Steps of texts: rows of each text, and cached ones before them."""
READINGS = ROOT / "benchmarks" / "results" / "gpu_readings.json"
"""Readings of steps on a GPU, on the device alone, by the names of `GOALS`, with commits and conditions."""

Table = dict[str, Any]


def sources() -> list[Path]:
    """Return the files that decide what the clock finds."""
    backend = ROOT / "jat_engine/backends/cuda"
    kernels = [*sorted((ROOT / "kernels").glob("*.py")), backend / "blocks.py", backend / "graph.py"]
    native = [path for path in (ROOT / "csrc/cuda").rglob("*") if path.suffix in (".cuh", ".h", ".cpp")]
    step = [path for path in native if path.parent.name in ("cuda", "phases") and "runner" not in path.name]
    step = [path for path in step if path.name not in ("bindings.cpp", "device.h", "dispatch.h")]
    clock = [path for path in Path(__file__).parent.iterdir() if path.suffix in (".py", ".cpp", ".cu")]
    clock = [path for path in clock if path.stem not in ("limits", "profile", "report")]  # what reads the results
    launches = [ROOT / "benchmarks" / f"{name}.py" for name in ("kernel_variants", "no_kernels", "triton_launches")]
    return kernels + sorted(step) + sorted(clock) + launches


def source_hash() -> str:
    """Return a hash of `sources` that comments, docstrings and layout do not change."""
    digest = hashlib.sha256()
    for path in sources():
        text = path.read_text()
        digest.update(path.name.encode() + b"\0")
        digest.update((_python(text) if path.suffix == ".py" else _native(text)).encode())
    return digest.hexdigest()


def _python(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body:
            node.body = [item for item in body if not _is_docstring(item)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _native(text: str) -> str:
    return re.sub(r"\s+", "", re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.S))


def kernel_row(node: Node) -> Table:
    """Return a kernel of a step as it stands in the table."""
    bounds = {f"us_{gpu.name}": round(node.us(gpu), 3) for gpu in GPUS}
    by = {f"bound_{gpu.name}": node.bound(gpu) for gpu in GPUS}
    return {
        **dataclasses.asdict(node.clocked), "launches": node.launches, "device_bytes": node.device_bytes,
        "has_pdl": node.has_pdl, "is_hidden": node.is_hidden, "chain_cycles": node.chain_cycles(), **bounds, **by,
    }  # fmt: skip


def step_row(name: str, nodes: list[Node], fixed_us: float) -> Table:
    """Return a step by graphs as it stands in the table."""
    return {
        "name": name,
        "kernels": [kernel_row(node) for node in nodes],
        "fixed_us": fixed_us,
        "us": {gpu.name: round(kernels_us(nodes, gpu) + fixed_us, 1) for gpu in GPUS},
    }


def graph_steps() -> Iterator[Table]:
    """Yield the steps by graphs, and what encodes images."""
    options: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [("", {}, AGENTS)]
    if "kv_dtype" in {field.name for field in dataclasses.fields(EngineOptions)}:
        options.append((", fp8 keys and values", {"kv_dtype": FP8}, (1024,)))
    for label, more, sizes in options:
        with step_launches(max(sizes), **more) as (engine, noted):
            for agents in sizes:
                nodes = clock_step(record(engine, noted, agents, CONTEXT), CONTEXT)
                yield step_row(f"graphs, {agents} agent{'s' * (agents > 1)}{label}", nodes, FIXED_US)
    for name, (counts, context) in TEXTS.items():
        yield step_row(f"texts, {name}", clock_step(text_launches(counts, context), context), FIXED_US)
    for frames in FRAMES:
        nodes = clock_step(image_launches(frames), CONTEXT)
        yield step_row(f"images, {frames} frame{'s' * (frames > 1)}", nodes, 0.0)


def persistent_row(step: PersistentStep) -> Table:
    """Return the persistent kernel as it stands in the table."""
    return {
        "name": f"persistent, 1 agent{'' if step.num_blocks == 120 else f', {step.num_blocks} blocks'}",
        **dataclasses.asdict(step),
        "compute_us": round(step.compute_us, 2),
        "waits_us": round(step.waits_us, 2),
        "launch_us": hardware.PERSISTENT_LAUNCH_US,
        "stream_us": {gpu.name: round(step.stream_us(gpu), 1) for gpu in GPUS},
        "us": {gpu.name: round(step.total_us(gpu), 1) for gpu in GPUS},
    }


def judge(steps: list[Table]) -> list[Table]:
    """Return the goals with what was computed for an H200, and read on one, which decides where it was."""
    found = {step["name"]: step["us"]["H200"] for step in steps}
    readings = json.loads(READINGS.read_text())["us"]
    rows = []
    for name, goal in GOALS.items():
        computed, read = found.get(name), readings.get(name)
        upper = None if computed is None else round(computed * (1 + BAND), 1)
        judged = upper if read is None else read
        rows.append({
            "name": name, "goal_us": goal, "us": computed, "upper_us": upper, "read_us": read,
            "is_met": judged is not None and judged <= goal,
        })  # fmt: skip
    return rows


def assumptions() -> Table:
    """Return the numbers of hardware.py that the predictions use."""
    return {name: value for name, value in vars(hardware).items() if name.isupper() and isinstance(value, float)}


def make_table() -> Table:
    """Clock everything, some minutes."""
    graphs = list(graph_steps())
    persistent = [persistent_row(clock_persistent(blocks, 8, CONTEXT)) for blocks in (120, 128)]
    return {
        "source_hash": source_hash(),
        "triton": triton.__version__,
        "context": CONTEXT,
        "assumptions": assumptions(),
        "goals": judge(persistent + graphs),
        "persistent": persistent,
        "graphs": graphs,
    }
