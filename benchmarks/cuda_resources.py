"""Read registers, spills and shared memory of the CUDA kernels from the compiler; no GPU is needed."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent.parent / "csrc/cuda/step.cu"
TYPES = {"f": "float32", "6__half": "float16", "13__nv_bfloat16": "bfloat16"}

ENTRY = re.compile(r"Compiling entry function '_ZN3jat\d+(\w+?)I(f|6__half|13__nv_bfloat16)Li(\d+)E\w*'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


def cuda_resources(arch: str) -> list[dict[str, Any]]:
    """Return one row per kernel.

    Its columns are kernel, weights, for (which sizes), registers (of a thread), spill_bytes (stores and loads), and
    shared_bytes (static; the step adds what its plan says at launch: all that a block may have).

    Args:
        arch: as nvcc's -arch, e.g. "sm_90a".

    Raises:
        FileNotFoundError: no nvcc on the PATH.
        RuntimeError: the kernels do not compile.
    """
    if shutil.which("nvcc") is None:
        raise FileNotFoundError("cuda_resources: nvcc is not on the PATH")
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "nvcc",
            "-std=c++17",
            "-O3",
            "-cubin",
            f"-arch={arch}",
            "-Xptxas",
            "-v",
            "-o",
            f"{folder}/step.cubin",
        ]
        done = subprocess.run([*command, str(SOURCE)], capture_output=True, text=True)

    if done.returncode != 0:
        raise RuntimeError(f"nvcc -arch={arch}:\n{done.stderr}")

    rows: list[dict[str, Any]] = []
    for line in done.stderr.splitlines():
        if entry := ENTRY.search(line):
            size = "any size" if entry[3] == "0" else f"hidden {entry[3]}"
            rows.append({"kernel": entry[1].removesuffix("_kernel"), "weights": TYPES[entry[2]], "for": size})
        elif spills := SPILLS.search(line):
            rows[-1]["spill_bytes"] = int(spills[2]) + int(spills[3])
        elif registers := REGISTERS.search(line):
            shared = SHARED.search(line)
            rows[-1] |= {"registers": int(registers[1]), "shared_bytes": int(shared[1]) if shared else 0}
    return rows
