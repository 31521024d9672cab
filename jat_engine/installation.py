"""Description of this installation: versions, device, CPU, compiled extensions, simulators."""

from __future__ import annotations

import importlib
import platform
from importlib import metadata, util
from pathlib import Path
from typing import Any

from .machine import allowed_cores, cpu_quota

PACKAGES = (
    "torch",
    "transformers",
    "huggingface-hub",
    "safetensors",
    "numpy",
    "scipy",
    "triton",
    "gymnasium",
    "ale-py",
    "minigrid",
    "metaworld",
    "mujoco",
    "opencv-python",
    "opencv-python-headless",
    "imageio-ffmpeg",
    "onnxruntime",
    "openvino",
)
"""Packages whose version can change a result."""

SIMULATORS = {
    "atari": ("gymnasium", "ale_py", "cv2"),
    "babyai": ("gymnasium", "minigrid"),
    "metaworld": ("gymnasium", "metaworld"),
    "mujoco": ("gymnasium", "mujoco"),
}
"""Modules that the environments of a domain import."""

EXTENSIONS = ("_cpu", "_cuda")

_CPU_FLAGS = ("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "asimd", "i8mm", "bf16")
"""Instruction sets that the kernels can use, by their names in /proc/cpuinfo. `_cpu.cpu_features` reports the same."""


def versions() -> dict[str, str | None]:
    """Return the versions of Python, this package and `PACKAGES`, without importing them; None if not installed."""
    from . import __version__

    found: dict[str, str | None] = {"python": platform.python_version(), "jat_engine": __version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def device() -> dict[str, Any]:
    """Return a description of the accelerator that torch finds, or of the CPU if there is none.

    Returns:
        "kind" ("cuda", "mps" or "cpu") and "name"; for CUDA also "count", "compute_capability", "memory_bytes" and
        "cuda" (the version).
    """
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return {
            "kind": "cuda",
            "name": properties.name,
            "count": torch.cuda.device_count(),
            "compute_capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
        }
    if torch.backends.mps.is_available():
        return {"kind": "mps", "name": platform.processor() or "Apple GPU"}
    return {"kind": "cpu", "name": cpu_name()}


def cpu() -> dict[str, Any]:
    """Return a description of the CPU: name, allowed cores, CPU quota, threads of torch, instruction sets."""
    import torch

    return {
        "name": cpu_name(),
        "cores": allowed_cores(),
        "quota": cpu_quota(),
        "torch_threads": torch.get_num_threads(),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "features": cpu_features(),
    }


def cpu_features() -> list[str]:
    """Return the names of the usable instruction sets, from the native module or else from /proc/cpuinfo."""
    try:
        from ._cpu import cpu_features as native
    except ImportError:
        flags = f"{_cpuinfo('flags')} {_cpuinfo('Features')}".split()
        return [flag for flag in _CPU_FLAGS if flag in flags]
    return native()


def cpu_name() -> str:
    """Return the model name of the CPU."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def extension(name: str) -> dict[str, Any]:
    """Return the state of the compiled extension `jat_engine.<name>`.

    Returns:
        `{"built": True, "path": ...}`, or `{"built": False, "reason": ...}` if it is missing or does not load.
    """
    module = f"{__package__}.{name}"
    spec = util.find_spec(module)
    # A folder or a stub of that name is not an extension.
    if spec is None or not spec.origin or not spec.origin.endswith((".so", ".pyd", ".dylib")):
        return {"built": False, "reason": f"not built: there is no compiled {module}"}
    try:
        importlib.import_module(module)
    except ImportError as error:
        return {"built": False, "reason": f"does not load: {error}"}
    return {"built": True, "path": spec.origin}


def simulator(domain: str) -> dict[str, Any]:
    """Return the state of a domain's simulator, without importing it.

    Returns:
        `{"installed": True}`, or `{"installed": False, "missing": [modules], "install": command}`.
    """
    missing = [name for name in SIMULATORS[domain] if util.find_spec(name) is None]
    if missing:
        return {"installed": False, "missing": missing, "install": f"pip install 'jat-engine[{domain}]'"}
    return {"installed": True}


def _cpuinfo(field: str) -> str:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return ""
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == field:
            return value.strip()
    return ""
