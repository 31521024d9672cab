"""Read registers, spills and shared memory of every kernel, compiled for five architectures without a GPU.

    python -m benchmarks.kernel_resources [--architectures 80 87 90] [--weights ...] [--for "one agent"] [--write]

Triton kernels are compiled in the variants the engine launches at the published size (kernel_variants.py), the
persistent kernel of csrc/cuda by nvcc (cuda_resources.py), where there is one. --write keeps the table in
benchmarks/results/kernel_resources.{json,md}, which also has the rows of other releases of Triton. What each kernel may
use at most is in resource_limits.py; tests hold a fresh compile to it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from unittest import mock

os.environ.pop("TRITON_INTERPRET", None)  # read when a kernel is defined

import torch
import triton

from jat_engine.bench.report import markdown
from jat_engine.kernels import tiles

from .cuda_resources import cuda_resources
from .kernel_variants import ROWS, WEIGHT_DTYPES, variants
from .resource_limits import ARCHITECTURES, REGISTER_LIMIT, SHARED_LIMIT, Row, violations
from .triton_launches import compile_launch

RESULTS = Path(__file__).parent / "results" / "kernel_resources"


def triton_resources(
    arch: int, weight_dtypes: Iterable[torch.dtype] = WEIGHT_DTYPES, sizes: Iterable[str] = tuple(ROWS)
) -> list[Row]:
    """Return a row for each compiled variant: kernel, weights, for, registers, spills, shared bytes, warps, grid."""
    seen, table = set(), []
    for weight_dtype in weight_dtypes:
        for rows_name in sizes:
            with mock.patch.object(tiles, "shared_bytes_of_gpu", return_value=SHARED_LIMIT[arch]):
                launches = variants(weight_dtype, ROWS[rows_name], pdl=arch >= 90)
            for launch in launches:
                compiled = compile_launch(launch, arch)
                if compiled.hash in seen:
                    continue

                seen.add(compiled.hash)
                table.append({
                    "kernel": launch.name,
                    "language": "triton",
                    "triton": triton.__version__,
                    "arch": arch,
                    "weights": str(weight_dtype).removeprefix("torch."),
                    "for": rows_name,
                    "programs": math.prod(launch.grid),
                    "warps": compiled.metadata.num_warps,
                    **cubin_resources(compiled.asm["cubin"]),
                    "shared_bytes": compiled.metadata.shared,
                })  # fmt: skip
    return table


def cubin_resources(cubin: bytes) -> Row:
    """Return registers, and spill_bytes: the local memory a thread uses (stack frame included)."""
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(cuobjdump), "--dump-resource-usage", file.name]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", output)
    if found is None:
        raise RuntimeError(f"cuobjdump: expected a line REG:.. STACK:.. SHARED:.. LOCAL:.., got {output!r}")
    registers, stack, local = map(int, found.groups())
    return {"registers": registers, "spill_bytes": stack + local}


def cuda_rows(arch: int) -> list[Row]:
    """Return the persistent kernel's rows. Before sm_90 its body is empty, but it compiles."""
    name = f"sm_{arch}a" if arch >= 90 else f"sm_{arch}"
    return [{"language": "cuda", "arch": arch, **row} for row in cuda_resources(name)]


def as_markdown(table: list[Row]) -> str:
    """Return the table, and what it says."""
    names = [
        "kernel",
        "weights",
        "for",
        "arch",
        "triton",
        "programs",
        "warps",
        "registers",
        "spill_bytes",
        "shared_bytes",
    ]
    releases = " and ".join(sorted({row["triton"] for row in table if "triton" in row}))
    limits = ", ".join(f"sm_{arch} {limit // 1024} KiB" for arch, limit in SHARED_LIMIT.items())
    return (
        "# Registers, spills and shared memory of the kernels\n\n"
        "Read from compiled code by `python -m benchmarks.kernel_resources --write`, Triton "
        f"{releases}; nothing here was timed. Hidden 768, 12 heads of 64, MLP 3072; registers and "
        f"spill_bytes are a thread's. Limits: {REGISTER_LIMIT} registers, no spills (float32: 128 bytes; step on "
        f"sm_100 and sm_120: 80 bytes), shared memory {limits}. Variants that compile to the same code are listed "
        "once. `step` is the persistent kernel of csrc/cuda, whose shared memory is chosen at launch: what a block "
        "may have.\n\n" + markdown({name: [str(row.get(name, "")) for row in table] for name in names}) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Registers, spills and shared memory of every kernel.")
    parser.add_argument("--architectures", type=int, nargs="+", default=ARCHITECTURES, choices=ARCHITECTURES)
    parser.add_argument("--weights", nargs="+", default=[str(d).removeprefix("torch.") for d in WEIGHT_DTYPES])
    parser.add_argument("--for", nargs="+", default=list(ROWS), choices=ROWS, dest="sizes")
    parser.add_argument("--write", action="store_true", help=f"keep the table in {RESULTS}.json and .md")
    options = parser.parse_args()

    weight_dtypes = [getattr(torch, name) for name in options.weights]
    with_cuda = options.write or shutil.which("nvcc") is not None
    table = [
        row
        for arch in options.architectures
        for row in triton_resources(arch, weight_dtypes, options.sizes) + (cuda_rows(arch) if with_cuda else [])
    ]
    print(as_markdown(table))
    if options.write:
        kept = json.loads(RESULTS.with_suffix(".json").read_text())["kernels"]
        others = [row for row in kept if row.get("triton", triton.__version__) != triton.__version__]
        RESULTS.with_suffix(".md").write_text(as_markdown(others + table))
        RESULTS.with_suffix(".json").write_text(json.dumps({"kernels": others + table}, indent=1) + "\n")

    without = "" if with_cuda else ", without the persistent kernel: nvcc is not on the PATH"
    print(f"Triton {triton.__version__}: {len(table)} kernels{without}")
    wrong = violations(table)
    if wrong:
        raise SystemExit("Over the limit:\n" + "\n".join(wrong))


if __name__ == "__main__":
    main()
