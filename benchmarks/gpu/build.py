"""Build the compiled parts, by CMake and ninja, into the package's folder; keep what nvcc says of registers and spills.

While the compilers run, so do two more things that later sections wait for: random checkpoints are written, and with a
GPU the compiled torch peer fills its caches.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jat_engine import installation as info
from jat_engine import machine

from .process import Finished, Process, python_module
from .process import run as run_process
from .section import ROOT, SectionRun

TARGETS = ("_cuda", "_cpu")


def run(section: SectionRun) -> None:
    folder = section.folder / "build"
    folder.mkdir(exist_ok=True)
    kind = ["tiny"] if section.quick else []
    data = Process(python_module("checkpoints", section.work, *kind), section.folder / "checkpoints.log")
    primitives = compile_primitives(section)
    peer = ThreadPoolExecutor(1).submit(_fill_caches, section, data)
    section.guard("configure", lambda: _configure(section, folder))
    built = {}
    for target in TARGETS:
        section.guard(target, lambda target=target: _build(section, folder, target, built))
    section.record("extensions", {name: info.extension(name) for name in TARGETS})
    if primitives is not None:
        done = primitives.wait(section.time_left() - 2)
        section.record("primitives.cu", {"seconds": round(done.seconds, 1), "exit": done.code, "output": done.tail})
    else:
        section.record("primitives.cu", {"not run": "there is no nvcc"})
    for name, done in peer.result().items():
        section.record(name, {"seconds": round(done.seconds, 1), "exit": done.code, "output": done.tail[-600:]})


def _fill_caches(section: SectionRun, data: Process) -> dict[str, Finished]:
    found = {"checkpoints": data.wait(section.time_left() - 5)}
    if section.has_gpu and not section.quick:
        command, log = python_module("compiled_peer", section.work), section.folder / "peer.log"
        found["compiled torch, caches filled"] = run_process(command, log, section.time_left() - 5)
    return found


def architecture() -> str:
    """Return the GPU's architecture as nvcc names it, with its accelerated features; sm_90a without a GPU."""
    import torch

    major, minor = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
    return f"{major}{minor}" + ("a" if major >= 9 else "")


def compile_primitives(section: SectionRun) -> Process | None:
    """Start compiling primitives.cu; None where there is no nvcc."""
    if shutil.which("nvcc") is None:
        return None
    arch = architecture()
    command = ["nvcc", "-O3", "-std=c++17", f"-gencode=arch=compute_{arch},code=sm_{arch}", "-Xptxas=-v"]
    source = str(Path(__file__).parent / "primitives.cu")
    return Process([*command, source, "-o", str(section.folder / "primitives")], section.folder / "primitives.log")


def _configure(section: SectionRun, folder: Path) -> dict[str, Any]:
    import pybind11

    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    options = [
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_CUDA_ARCHITECTURES={architecture()}",
        "-DCMAKE_CUDA_FLAGS=-Xptxas=-v",
    ]
    command = ["cmake", "-S", str(ROOT), "-B", str(folder), *generator, *options]
    done = run_process(command, folder / "configure.log", min(60, section.time_left() - 5))
    if done.code != 0:
        raise RuntimeError(f"cmake: exit {done.code}\n{done.tail}")
    return {"seconds": round(done.seconds, 1)}


def _build(section: SectionRun, folder: Path, target: str, built: dict[str, Path]) -> dict[str, Any]:
    listed = subprocess.run(
        ["cmake", "--build", str(folder), "--target", "help"], capture_output=True, text=True, check=False
    )
    if not re.search(rf"(^|\s){target}(:|\s|$)", listed.stdout, re.MULTILINE):
        return {"not run": f"CMake has no target {target} here"}
    jobs = str(min(machine.available_cores(), 16))
    command = ["cmake", "--build", str(folder), "--target", target, "--parallel", jobs, "--verbose"]
    done = run_process(command, folder / f"{target}.log", section.time_left() - 8)
    if done.code != 0:
        raise RuntimeError(f"{target}: exit {done.code}\n{done.tail}")
    (path,) = [p for p in folder.glob(f"**/{target}.*so") if "host" not in p.name]
    output = ROOT / "jat_engine" / path.name
    temporary = output.with_suffix(".new")
    shutil.copy2(path, temporary)
    temporary.replace(output)  # a process that has the old one loaded keeps it
    built[target] = output
    return {"seconds": round(done.seconds, 1), "bytes": path.stat().st_size, "resources": resources(done.output)}


def resources(output: str) -> list[dict[str, Any]]:
    """Read kernel, architecture, registers, spills and shared memory from the lines of `ptxas -v`."""
    rows: list[dict[str, Any]] = []
    for line in output.splitlines():
        found = re.search(r"Compiling entry function '(\S+)' for '(\S+)'", line)
        if found:
            rows.append({"kernel": _demangle(found[1]), "arch": found[2]})
        elif rows:
            for name, pattern in (
                ("spill_stores", r"(\d+) bytes spill stores"),
                ("spill_loads", r"(\d+) bytes spill loads"),
                ("registers", r"Used (\d+) registers"),
                ("shared_bytes", r"(\d+) bytes smem"),
            ):
                number = re.search(pattern, line)
                if number:
                    rows[-1][name] = int(number[1])
    return rows


def _demangle(name: str) -> str:
    if shutil.which("c++filt") is None:
        return name
    return subprocess.run(["c++filt", name], capture_output=True, text=True, check=False).stdout.strip()[:120]
