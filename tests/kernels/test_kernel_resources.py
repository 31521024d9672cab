"""Triton kernels compile for every architecture the engine supports, without spills and within shared memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from helpers import ROOT
from helpers.kernel_names import KERNELS

pytest.importorskip("triton", reason="Triton is not installed")

from benchmarks.early_accesses import early_accesses
from benchmarks.resource_limits import ARCHITECTURES, violations

OF_MANY_ROWS = {"layer_norm", "encode_discrete", "image_conv", "image_norm", "image_fc"}
"""Kernels that steps of one agent do not launch in half precision."""
RESULTS = ROOT / "benchmarks" / "results" / "kernel_resources.json"


def kernels_of(architecture: int) -> set[str]:
    """Return the kernels that exist there: float8 does from sm_89 on."""
    return KERNELS if architecture >= 89 else KERNELS - {"quantized_attention"}


def compile_with(program: str, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{program}", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)


@pytest.mark.parametrize(
    ("architectures", "sizes"),
    [(("90",), ("one agent", "64 agents")), (("87", "120"), ("one agent",))],
    ids=["sm_90", "sm_87 and sm_120"],
)
def test_kernels_compile_within_their_limits(architectures: tuple[str, ...], sizes: tuple[str, ...]) -> None:
    """In bfloat16; `make test-gpu-code` compiles all variants."""
    options = ["--architectures", *architectures, "--weights", "bfloat16", "--for", *sizes]
    result = compile_with("kernel_resources", *options)
    assert result.returncode == 0, result.stderr
    for kernel in KERNELS if "64 agents" in sizes else KERNELS - OF_MANY_ROWS:
        able = [arch for arch in architectures if kernel in kernels_of(int(arch))]
        assert result.stdout.count(f"| {kernel} |") >= len(able)


def test_kernels_touch_nothing_too_early() -> None:
    """The kernels are those of the test before, from Triton's cache."""
    sizes = ("one agent", "64 agents")
    options = ["--architectures", "90", "--weights", "bfloat16", "--for", *sizes]
    result = compile_with("dependent_launch", *options)
    assert result.returncode == 0, result.stderr


SASS = """
    /*0000*/                   LDC R1, c[0x0][0x28] ;
    /*0010*/                   S2R R0, SR_TID.X ;
    /*0020*/                   ULDC.64 UR4, c[0x0][0x218] ;
    /*0030*/                   IADD3 R2, P0, R0, UR4, RZ ;
    /*0040*/                   IADD3.X R3, RZ, UR5, RZ, P0, !PT ;
    /*0050*/                   ULDC.64 UR6, c[0x0][0x208] ;
    /*0060*/                   LDG.E.128 R8, desc[UR6][R2.64] ;
    /*0070*/               @P1 BRA `(.L_x_1) ;
    /*0080*/                   ACQBULK ;
    /*0090*/                   LDC.64 R4, c[0x0][0x210] ;
    /*00a0*/                   LDG.E R6, desc[UR6][R4.64] ;
    /*00b0*/                   STG.E desc[UR6][R4.64], R6 ;
    /*00c0*/                   EXIT ;
.L_x_1:
    /*00d0*/                   {late}
    /*00e0*/                   ACQBULK ;
    /*00f0*/                   EXIT ;
"""


@pytest.mark.parametrize(
    ("late", "message"),
    [
        ("NOP ;", ""),
        ("LDC.64 R4, c[0x0][0x210] ;\n /*00d4*/ LDG.E R6, desc[UR6][R4.64+0x10] ;", "LDG from x_ptr before the wait"),
        ("LDC R4, c[0x0][0x210] ;\n /*00d4*/ LDGSTS.E [R9], desc[UR6][R4.64] ;", "LDGSTS from x_ptr before the wait"),
        ("STG.E desc[UR6][R2.64], R6 ;", "STG to weight_ptr before the wait"),
        ("LDG.E R6, desc[UR6][R8.64] ;", "LDG from an unknown address before the wait"),
        ("@P0 EXIT ;", "it ends before it waits"),
    ],
)
def test_an_early_access_is_found(late: str, message: str) -> None:
    """Also on a path that lies behind the wait in the code; weights may be read early."""
    offsets = {0x210: "x_ptr", 0x218: "weight_ptr"}
    assert early_accesses(SASS.format(late=late), offsets) == ([message] if message else [])
    assert early_accesses(SASS.replace("ACQBULK", "NOP"), offsets) == ["it does not wait for earlier kernels"]


def test_a_spill_or_too_much_shared_memory_is_reported() -> None:
    row = {"kernel": "k", "weights": "bfloat16", "for": "one agent", "arch": 120, "registers": 255, "spill_bytes": 0}
    row["shared_bytes"] = 99 * 1024
    assert violations([row]) == []
    assert len(violations([{**row, "spill_bytes": 4}])) == 1
    row["shared_bytes"] += 1
    assert len(violations([row, {**row, "arch": 90}])) == 1


def test_the_committed_table_is_complete() -> None:
    """It has both releases of Triton, all architectures, weight dtypes and kernels, and all are within limits."""
    table = json.loads(RESULTS.read_text())["kernels"]
    assert violations(table) == []
    step = [row for row in table if row["language"] == "cuda"]
    assert {(row["arch"], row["weights"], row["for"]) for row in step} == {
        (arch, weights, size)
        for arch in ARCHITECTURES
        for weights in ("float32", "bfloat16", "float16")
        for size in ("hidden 768", "any size")
    }
    for release in ("oldest", "newest"):
        pin = (ROOT / "requirements" / f"triton-{release}.txt").read_text().split()[0]
        compiled = [row for row in table if row.get("triton") == pin.removeprefix("triton==")]
        for architecture in ARCHITECTURES:
            rows = [row for row in compiled if row["arch"] == architecture]
            assert {row["kernel"] for row in rows} == kernels_of(architecture), pin
            assert {row["weights"] for row in rows} == {"float32", "bfloat16", "float16", "int8"}, pin
