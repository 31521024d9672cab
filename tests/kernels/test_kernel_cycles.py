"""The clock of GPU code: sequences whose cycles are known by hand, limits of the real kernels, slower ones found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT

pytest.importorskip("triton", reason="Triton is not installed")

import triton

from benchmarks.clock.hardware import CLOCK_GHZ, CLUSTER_BARRIER_US
from benchmarks.clock.interpret import Interpreter, Program
from benchmarks.clock.limits import kernel_violations, phase_violations
from benchmarks.clock.machine import BARRIER_LATENCY, SHARED_LATENCY, Multiprocessor, Run, prepare
from benchmarks.clock.memory import COLD, GlobalMemory, as_words, sectors, shared_wavefronts
from benchmarks.clock.persistent import slowest_phases, spans_of
from benchmarks.clock.sass import NO_SCOREBOARD, Instruction

TABLE = ROOT / "benchmarks" / "results" / "kernel_cycles.json"
LANES = np.arange(32)
ALL = np.ones(32, bool)


class Code:
    """Instructions written by hand, 16 bytes each."""

    def __init__(self) -> None:
        self.instructions: list[Instruction] = []

    def add(
        self, op: str, *operands: str, stall: int = 1, write: int = NO_SCOREBOARD, wait: int = 0, guard: str = ""
    ) -> Code:
        address = 16 * len(self.instructions)
        self.instructions.append(Instruction(address, guard, op, operands, stall, write, NO_SCOREBOARD, wait))
        return self

    def program(self, warps: int = 1, memory: GlobalMemory | None = None, parameters: bytes = b"") -> Program:
        constants = {0: bytes(0x210) + parameters}
        return Program(self.instructions, constants, (1, 1, 1), warps, memory or GlobalMemory())

    def run(self, warps: int = 1, memory: GlobalMemory | None = None) -> Run:
        program = self.program(warps, memory)
        return Multiprocessor(prepare(program.code)).play([Interpreter(program).block(0)])


# ---- what a multiprocessor takes -----------------------------------------------------------------------------------


def test_dependent_additions_take_their_stalls() -> None:
    code = Code()
    for _ in range(50):
        code.add("FADD", "R0", "R0", "R1", stall=4)
    assert code.add("EXIT").run().cycles == 50 * 4 + 1


def test_two_warps_of_a_scheduler_share_its_issue_slot() -> None:
    code = Code()
    for _ in range(64):
        code.add("FADD", "R0", "R0", "R1")
    code.add("EXIT")
    assert code.run(warps=4).cycles == pytest.approx(65, abs=2)  # one on each scheduler
    assert code.run(warps=8).cycles == pytest.approx(130, abs=2)


def test_special_functions_take_eight_cycles_each() -> None:
    code = Code()
    for _ in range(32):
        code.add("MUFU.EX2", "R0", "R1")
    assert code.add("EXIT").run(warps=8).cycles == pytest.approx(2 * 32 * 8, rel=0.05)


def test_a_load_from_shared_memory_is_waited_for() -> None:
    code = Code().add("LDS", "R0", "[RZ]", write=0).add("FADD", "R1", "R0", "R0", wait=1).add("EXIT")
    assert code.run().cycles == SHARED_LATENCY + 2


def test_bank_conflicts_take_a_wavefront_each() -> None:
    # Lane l reads the word 32 l: all lanes meet in one bank.
    code = Code().add("S2R", "R2", "SR_TID.X").add("IMAD.SHL.U32", "R3", "R2", "0x80", "RZ")
    code.add("LDS", "R0", "[R3]", write=0).add("FADD", "R1", "R0", "R0", wait=1).add("EXIT")
    assert code.run().cycles == 2 + SHARED_LATENCY + 31 + 2


@pytest.mark.parametrize(
    ("stride", "num_bytes", "wavefronts"),
    [(4, 4, 1), (0, 4, 1), (8, 4, 2), (128, 4, 32), (8, 8, 2), (16, 16, 4), (32, 16, 8), (512, 16, 32)],
)
def test_wavefronts_of_shared_memory(stride: int, num_bytes: int, wavefronts: int) -> None:
    assert shared_wavefronts(LANES * stride, ALL, num_bytes) == wavefronts


def test_sectors_of_global_memory() -> None:
    assert len(sectors(LANES * 4, ALL, 4)) == 4
    assert len(sectors(LANES * 16, ALL, 16)) == 16
    assert len(sectors(LANES * 64, ALL, 4)) == 32
    assert len(sectors(LANES * 0 + 8, ALL, 4)) == 1


def test_a_barrier_waits_for_the_slowest_warp() -> None:
    # Warp 1 has 20 additions more than warp 0.
    code = Code().add("S2R", "R2", "SR_TID.X").add("ISETP.LT.AND", "P0", "PT", "R2", "0x20", "PT")
    code.add("BRA", hex(16 * 23), guard="P0")
    for _ in range(20):
        code.add("FADD", "R0", "R0", "R1", stall=4)
    code.add("BAR.SYNC.DEFER_BLOCKING", "0x0").add("EXIT")
    assert code.run(warps=2).cycles == pytest.approx(3 + 80 + 1 + BARRIER_LATENCY + 1, abs=2)


def test_cold_memory_is_slower_than_l2_and_asked_for_once() -> None:
    def cycles(place: str, loads: int) -> float:
        memory = GlobalMemory()
        memory.add(0x10000, 4096, place)
        code = Code().add("MOV", "R4", "0x10000").add("MOV", "R5", "RZ")
        for _ in range(loads):
            code.add("LDG.E", "R0", "desc[UR4][R4.64]", write=0).add("FADD", "R1", "R0", "R0", wait=1)
        return code.add("EXIT").run(memory=memory).cycles

    assert cycles(COLD, 1) > cycles("l2", 1) + 300
    assert cycles(COLD, 2) < cycles(COLD, 1) + 60  # the second finds the line in the L1 cache


# ---- which way a program goes --------------------------------------------------------------------------------------


def test_a_loop_runs_as_often_as_its_argument_says() -> None:
    memory = GlobalMemory()
    counts = np.array([7], np.int32)
    memory.add(0x10000, 4, "l2", as_words(counts))
    code = Code().add("MOV", "R4", "0x10000").add("MOV", "R5", "RZ").add("LDG.E", "R6", "desc[UR4][R4.64]")
    code.add("MOV", "R0", "RZ")
    code.add("VIADD", "R0", "R0", "0x1")  # the loop begins here
    code.add("ISETP.LT.AND", "P0", "PT", "R0", "R6", "PT").add("BRA", hex(16 * 4), guard="P0").add("EXIT")
    (path,) = Interpreter(code.program(memory=memory)).block(0)
    assert path.indices.count(4) == 7
    assert not path.guesses


def test_lanes_that_part_meet_again() -> None:
    code = Code().add("S2R", "R2", "SR_TID.X").add("ISETP.LT.AND", "P0", "PT", "R2", "0x8", "PT")
    code.add("BSSY", "B0", hex(16 * 6)).add("BRA", hex(16 * 5), guard="P0")
    code.add("MOV", "R3", "0x1").add("BSYNC", "B0")
    code.add("VIADD", "R4", "R3", "0x1").add("EXIT")
    (path,) = Interpreter(code.program()).block(0)
    assert [path.indices.count(k) for k in range(8)] == [1, 1, 1, 1, 1, 2, 1, 1]


def test_an_unknown_branch_is_counted() -> None:
    code = Code().add("FSETP.GT.AND", "P0", "PT", "R0", "RZ", "PT").add("BRA", hex(16 * 3), guard="P0")
    code.add("MOV", "R1", "RZ").add("EXIT")
    (path,) = Interpreter(code.program()).block(0)
    assert path.indices == [0, 1, 2, 3]
    assert path.guesses == {16: 1}


# ---- the real kernels ----------------------------------------------------------------------------------------------


def clock(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.kernel_cycles", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=kept | environment)


def table() -> dict[str, object]:
    found: dict[str, object] = json.loads(TABLE.read_text())
    return found


def test_the_table_is_of_this_code() -> None:
    script = "from benchmarks.clock.table import source_hash; print(source_hash())"
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=kept)
    assert done.stdout.strip() == table()["source_hash"], (
        "kernels have changed: write the table again, python -m benchmarks.kernel_cycles --write"
    )


@pytest.mark.skipif(table()["triton"] != triton.__version__, reason="the table is of another release of Triton")
def test_kernels_of_one_agent_are_no_slower_than_in_the_table() -> None:
    done = clock("--agents", "1", "--check")
    assert done.returncode == 0, done.stderr


SLOWER = """
import os
os.environ.pop("TRITON_INTERPRET", None)
import triton, triton.language as tl, torch
from benchmarks.triton_launches import recorded
from benchmarks.clock.kernels import clock_launch

@triton.jit
def kernel(x_ptr, rounds, BLOCK: tl.constexpr, SERIAL: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, BLOCK))
    if SERIAL:
        for _ in range(rounds):
            x = x + tl.sum(x, 0)  # a sum over the program: two barriers
    tl.store(x_ptr + tl.arange(0, BLOCK), x)

x = torch.zeros(1024)
with recorded() as launches:
    for serial in (False, True):
        kernel[(1,)](x, 16, BLOCK=1024, SERIAL=serial, num_warps=4)
plain, serial = (clock_launch(launch) for launch in launches)
print(plain.cycles, serial.cycles, plain.barriers, serial.barriers, serial.guesses)
"""


def test_a_serial_loop_is_seen(tmp_path: Path) -> None:
    script = tmp_path / "slower.py"  # Triton reads a kernel's source
    script.write_text(SLOWER)
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", str(script)]
    kept["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=kept)
    plain, serial, barriers, serial_barriers, guesses = map(int, done.stdout.split())
    assert serial > plain + 16 * 100
    assert serial_barriers >= barriers + 16
    assert guesses == 0


def test_slower_rows_break_the_limits() -> None:
    row = {"name": "norm_qkv", "launches": 12, "chain_cycles": 2000}
    phase = {"name": "LayerNorm", "times": 25, "cycles": 25_000}
    assert kernel_violations([row], [row]) == phase_violations([phase], [phase]) == []
    assert len(kernel_violations([row | {"chain_cycles": 2300}], [row])) == 1
    assert len(kernel_violations([row | {"name": "other"}], [row])) == 1
    longer = row | {"chain_cycles": 3000}  # of the same name: the first is not held to the limit of the second
    assert kernel_violations([row, longer], [row, longer]) == []
    assert len(kernel_violations([longer, longer], [row, longer])) == 1
    assert len(kernel_violations([row], [row, longer])) == 1
    assert len(phase_violations([phase | {"cycles": 31_000}], [phase])) == 1


def test_what_a_wait_for_others_hides_is_free_and_the_start_is_not() -> None:
    """Cycles before the first mark count; a phase that waits for cluster peers counts beyond the wait's own time."""
    marks = [[(0, 100.0), (7, 200.0), (8, 2200.0)], [(0, 150.0), (7, 200.0), (8, 2200.0)]]
    phases = slowest_phases([spans_of(marks, 2300.0)])
    hidden = round(CLUSTER_BARRIER_US * CLOCK_GHZ * 1e3)
    expected = {"start": 150, "embedding": 50, "wait for the cluster": 2000 - hidden, "scores, softmax, values": 100}
    assert {phase.name: phase.cycles for phase in phases} == expected


@pytest.mark.skipif(shutil.which("nvcc") is None or shutil.which("c++") is None, reason="needs nvcc and c++")
def test_phases_of_the_persistent_kernel_are_no_slower_and_a_slower_one_is_seen(tmp_path: Path) -> None:
    done = clock("--persistent", "--check")
    assert done.returncode == 0, done.stderr

    sources = tmp_path / "cuda"
    shutil.copytree(ROOT / "csrc" / "cuda", sources)
    norm = sources / "phases" / "norm.cuh"
    text = norm.read_text()
    assert "  trace(5);\n" in text
    loop = "  trace(5);\n  JAT_UNROLL_BY(1)\n  for (int i = 0; i < 20; ++i) block.barrier();\n"
    norm.write_text(text.replace("  trace(5);\n", loop))
    done = clock("--persistent", "--check", "--sources", str(sources))
    assert done.returncode == 1
    assert "LayerNorm: expected at most" in done.stderr
