"""Read what it is measured on: GPU, driver, clocks (never set), tools, versions."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import torch

from jat_engine.backends.report import collect

from .section import SectionRun

FIELDS = (
    "name",
    "driver_version",
    "pstate",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "temperature.gpu",
    "power.draw",
    "power.limit",
    "memory.total",
    "memory.used",
    "ecc.mode.current",
    "mig.mode.current",
    "compute_mode",
    "clocks_throttle_reasons.active",
)
TOOLS = ("nvcc", "cmake", "ninja", "g++", "ncu", "compute-sanitizer", "cuobjdump", "nvidia-smi")


def run(section: SectionRun) -> None:
    section.guard("engine", collect)
    section.guard("gpu", _torch_device)
    section.guard("nvidia-smi", clocks)
    section.guard("tools", lambda: {tool: _version(tool) for tool in TOOLS})
    section.guard("modules", _modules)
    section.record("memory GB", _memory_gb())


def clocks() -> dict[str, str]:
    """Return what `nvidia-smi --query-gpu` can read, field by field where one is not known."""
    if shutil.which("nvidia-smi") is None:
        return {"not run": "there is no nvidia-smi"}
    values = _query(",".join(FIELDS))
    if values is not None and len(values) == len(FIELDS):
        return dict(zip(FIELDS, values, strict=True))
    found = {}
    for field in FIELDS:
        value = _query(field)
        if value is not None:
            found[field] = ", ".join(value)
    return found or {"not run": "nvidia-smi answers no query"}


def _query(fields: str) -> list[str] | None:
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    if done.returncode != 0 or not done.stdout.strip():
        return None
    return [value.strip() for value in done.stdout.splitlines()[0].split(",")]


def _torch_device() -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {"not run": "torch finds no NVIDIA GPU here"}
    properties = torch.cuda.get_device_properties(0)
    names = ("name", "major", "minor", "multi_processor_count", "total_memory", "L2_cache_size")
    return {
        **{name: getattr(properties, name, None) for name in names},
        "shared_memory_per_block_optin": getattr(properties, "shared_memory_per_block_optin", None),
        "cuda": torch.version.cuda,
        "float32 matmul precision": torch.get_float32_matmul_precision(),
    }


def _version(tool: str) -> str | None:
    path = shutil.which(tool)
    if path is None:
        return None
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=20)
    lines = [line.strip() for line in done.stdout.splitlines() if any(c.isdigit() for c in line)]
    versions = [line for line in lines if "release" in line.lower() or "version" in line.lower()]
    return f"{path}: {(versions or lines or ['?'])[0]}"


def _modules() -> dict[str, str | None]:
    from importlib import metadata

    found: dict[str, str | None] = {}
    for name in (
        "torch",
        "triton",
        "transformers",
        "numpy",
        "pybind11",
        "pytest",
        "hypothesis",
        "gymnasium",
        "matplotlib",
    ):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _memory_gb() -> float:
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
