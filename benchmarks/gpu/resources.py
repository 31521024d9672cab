"""Read registers, spills and shared memory of the Triton kernels, compiled by the Triton that is installed here."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton

from ..kernel_resources import cubin_resources
from ..kernel_variants import ROWS, variants
from ..triton_launches import compile_launch
from .section import SectionRun


def run(section: SectionRun) -> None:
    major, minor = torch.cuda.get_device_capability() if section.has_gpu else (9, 0)
    section.record("triton", triton.__version__)
    seen: set[str] = set()
    rows: list[dict[str, Any]] = []
    for name, count in ROWS.items():
        for launch in variants(torch.bfloat16, count, pdl=major >= 9):
            if section.time_left() < 3:
                return
            compiled = compile_launch(launch, 10 * major + minor)
            if compiled.hash in seen:
                continue
            seen.add(compiled.hash)
            rows.append({
                "kernel": launch.name,
                "for": name,
                "programs": math.prod(launch.grid),
                "warps": compiled.metadata.num_warps,
                **cubin_resources(compiled.asm["cubin"]),
                "shared_bytes": compiled.metadata.shared,
            })  # fmt: skip
            section.record("kernels", rows)
