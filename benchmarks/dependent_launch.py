"""Check in machine code that no kernel touches, before it waits for earlier kernels, what those may write.

    python -m benchmarks.dependent_launch [--architectures 90 100] [--weights bfloat16 ...] [--for "one agent" ...]

With programmatic dependent launch a kernel begins while the previous one still runs, until `griddepcontrol.wait`
(ACQBULK in SASS). Before that it may read what no kernel of a step writes: weights, the step's inputs, and keys of
earlier steps. It must not write, end, or read anything else.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.pop("TRITON_INTERPRET", None)  # read when a kernel is defined

import torch
import triton

from jat_engine.kernels import tiles

from .early_accesses import early_accesses
from .kernel_variants import ROWS, WEIGHT_DTYPES, variants
from .resource_limits import SHARED_LIMIT
from .triton_launches import Launch, compile_launch

ARCHITECTURES = (90, 100, 120)
PARAMETERS_AT = {80: 0x160, 87: 0x160, 90: 0x210, 100: 0x380, 120: 0x380}
"""Where a kernel's parameters begin in constant bank 0."""


def parameter_offsets(launch: Launch, arch: int) -> dict[int, str]:
    """Return where each parameter of a compiled launch lies in constant bank 0: offset -> name."""
    offsets, at = {}, PARAMETERS_AT[arch]
    for name, value in launch.arguments.items():
        parameter = next(p for p in launch.kernel.params if p.name == name)
        if parameter.is_constexpr or value is None:
            continue
        size = 8 if isinstance(value, torch.Tensor) else 4
        at = -(-at // size) * size
        offsets[at] = name
        at += size
    return offsets


def disassemble(cubin: bytes) -> str:
    """Return a cubin's SASS."""
    nvdisasm = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([str(nvdisasm), "-c", file.name], capture_output=True, text=True, check=True).stdout


def check_variants(
    arch: int, weight_dtypes: Iterable[torch.dtype] = WEIGHT_DTYPES, sizes: Iterable[str] = tuple(ROWS)
) -> tuple[int, list[str]]:
    """Return how many kernels were checked, and what is wrong with them, in words."""
    seen: set[Any] = set()
    wrong = []
    for weight_dtype in weight_dtypes:
        for size in sizes:
            with mock.patch.object(tiles, "shared_bytes_of_gpu", return_value=SHARED_LIMIT[arch]):
                launches = variants(weight_dtype, ROWS[size], pdl=True)
            for launch in launches:
                compiled = compile_launch(launch, arch)
                if compiled.hash in seen:
                    continue
                seen.add(compiled.hash)
                messages = early_accesses(disassemble(compiled.asm["cubin"]), parameter_offsets(launch, arch))
                dtype = str(weight_dtype).removeprefix("torch.")
                wrong += [f"{launch.name} ({dtype}, {size}, sm_{arch}): {message}" for message in messages]
    return len(seen), wrong


def main() -> None:
    parser = argparse.ArgumentParser(description="Check what kernels access before they wait for earlier ones.")
    parser.add_argument("--architectures", type=int, nargs="+", default=ARCHITECTURES, choices=ARCHITECTURES)
    parser.add_argument("--weights", nargs="+", default=[str(d).removeprefix("torch.") for d in WEIGHT_DTYPES])
    parser.add_argument("--for", nargs="+", default=list(ROWS), choices=ROWS, dest="sizes")
    options = parser.parse_args()

    total, wrong = 0, []
    for arch in options.architectures:
        count, messages = check_variants(arch, [getattr(torch, name) for name in options.weights], options.sizes)
        total += count
        wrong += messages
    if wrong:
        raise SystemExit("\n".join(wrong))
    names = ", ".join(f"sm_{arch}" for arch in options.architectures)
    print(f"Triton {triton.__version__}, {names}: {total} kernels touch nothing too early")


if __name__ == "__main__":
    main()
