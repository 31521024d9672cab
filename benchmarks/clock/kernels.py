"""Clock one Triton kernel as it was launched: cycles of a program, programs a multiprocessor, waves, bytes."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..kernel_resources import cubin_resources
from ..triton_launches import Launch, compile_launch
from .interpret import PARAMETERS, Interpreter, Path, Program
from .machine import Multiprocessor, prepare
from .memory import COLD, WARM, GlobalMemory, as_words
from .sass import disassemble

NUM_MULTIPROCESSORS = 132
REGISTERS = 65536
SHARED_BYTES = 227 * 1024
SHARED_OF_A_BLOCK = 1024
"""Bytes the system keeps of each block's shared memory."""
MAX_WARPS, MAX_BLOCKS = 64, 32
RELEASED = 4000.0
"""Cycles after its start at which a kernel's predecessor is through, if it started before: longer than any prologue."""

_WEIGHTS = ("weight", "bias", "scale", "kv", "table", "positions", "wpe", "fc_", "conv", "w1", "w2")


@dataclass(frozen=True)
class Clocked:
    """Hold what the clock found for a launch.

    Attributes:
        name: of the kernel.
        programs: of the grid.
        warps: of a program.
        registers: of a thread.
        shared_bytes: of a program.
        resident: programs that fit on a multiprocessor together.
        program_cycles: one program alone on a multiprocessor.
        cycles: the whole grid, from its start; no load waits for bandwidth beyond its own multiprocessor's.
        after_wait_cycles: the same from the end of the kernel before, what comes ahead of the wait being done by then.
        waves: rounds of resident programs.
        l2_bytes: asked of the L2 cache by all programs.
        late_l2_bytes: of them, those asked for after the wait.
        guesses: branches on unknown values.
    """

    name: str
    programs: int
    warps: int
    registers: int
    shared_bytes: int
    resident: int
    program_cycles: int
    cycles: int
    after_wait_cycles: int
    waves: int
    l2_bytes: int
    late_l2_bytes: int
    instructions: int
    barriers: int
    guesses: int


def place(name: str, argument: Tensor) -> str:
    """Return where a kernel finds an argument: weights, keys and values in device memory, the rest in L2."""
    if argument.dtype in (torch.int32, torch.int64, torch.uint8):
        return WARM
    is_weight = any(part in name for part in _WEIGHTS)
    return COLD if is_weight else WARM


def memory_of(arguments: Mapping[str, Any]) -> GlobalMemory:
    """Return global memory with the tensors among the arguments; integers are known."""
    memory = GlobalMemory()
    for name, value in arguments.items():
        if isinstance(value, Tensor) and value.numel():
            is_integer = value.dtype in (torch.int32, torch.int64)
            words = as_words(value.detach().contiguous().numpy()) if is_integer else None
            memory.add(value.data_ptr(), value.nbytes, place(name, value), words)
    return memory


def parameters_of(launch: Launch) -> bytes:
    """Return the kernel's parameters as they lie in constant memory."""
    constexprs = {parameter.name for parameter in launch.kernel.params if parameter.is_constexpr}
    out = b""
    for name, value in launch.arguments.items():
        if name in constexprs or value is None:
            continue
        if isinstance(value, Tensor):
            out += bytes(-len(out) % 8) + struct.pack("<Q", value.data_ptr())
        elif isinstance(value, float):
            out += struct.pack("<f", value)
        else:
            out += struct.pack("<i", value)
    return out + bytes(-len(out) % 8) + bytes(16)


def resident_programs(registers: int, warps: int, shared_bytes: int) -> int:
    """Return how many programs a multiprocessor holds at a time."""
    by_registers = REGISTERS // 4 // (-(-registers // 8) * 8 * 32) * 4 // warps
    by_shared = SHARED_BYTES // (shared_bytes + SHARED_OF_A_BLOCK)
    return max(1, min(by_registers, by_shared, MAX_WARPS // warps, MAX_BLOCKS))


@dataclass(frozen=True)
class Compiled:
    """A launch compiled for the clock."""

    program: Program
    registers: int
    shared_bytes: int


def compile_for_clock(launch: Launch, compute_capability: int = 90) -> Compiled:
    """Compile a launch and lay out its parameters and memory."""
    compiled = compile_launch(launch, compute_capability)
    cubin = compiled.asm["cubin"]
    (code,) = disassemble(cubin).values()
    grid = (*launch.grid, 1, 1)[:3]
    program = Program(
        code, {0: bytes(PARAMETERS) + parameters_of(launch)}, (grid[0], grid[1], grid[2]),
        int(compiled.metadata.num_warps), memory_of(launch.arguments),
    )  # fmt: skip
    return Compiled(program, cubin_resources(cubin)["registers"], int(compiled.metadata.shared))


def clock_launch(
    launch: Launch, *, compute_capability: int = 90, multiprocessors: int = NUM_MULTIPROCESSORS
) -> Clocked:
    """Compile a launch and clock it.

    Raises:
        RuntimeError: a program does not end, or the code cannot be read.
    """
    made = compile_for_clock(launch, compute_capability)
    resident = resident_programs(made.registers, made.program.num_warps, made.shared_bytes)
    return clock_program(launch.name, made.program, made.registers, made.shared_bytes, resident, multiprocessors)


def clock_program(
    name: str, program: Program, registers: int, shared_bytes: int, resident: int, multiprocessors: int
) -> Clocked:
    """Clock a grid: the fullest multiprocessor's programs, wave by wave."""
    programs = math.prod(program.grid)
    here = -(-programs // multiprocessors)  # on the fullest multiprocessor
    together = min(resident, here)
    interpreter = Interpreter(program)
    paths = [interpreter.block(k * multiprocessors % programs) for k in range(together)]

    statics = prepare(program.code)
    alone = Multiprocessor(statics).play(paths[:1])
    full = Multiprocessor(statics).play(paths) if together > 1 else alone
    released = _released(statics, paths)
    waves, rest = divmod(here, together)
    last = 0.0
    if rest:
        last = Multiprocessor(statics).play(paths[:rest]).cycles
    cycles = waves * full.cycles + last
    return Clocked(
        name=name, programs=programs, warps=program.num_warps, registers=registers, shared_bytes=shared_bytes,
        resident=resident, program_cycles=round(alone.cycles), cycles=round(cycles),
        after_wait_cycles=round(cycles - full.cycles + released), waves=waves + bool(rest),
        l2_bytes=alone.sectors * 32 * programs, late_l2_bytes=alone.late_sectors * 32 * programs,
        instructions=alone.issued,
        barriers=sum(1 for k in paths[0][0].indices if program.code[k].base == "BAR"),
        guesses=sum(len(path.guesses) for path in paths[0]),
    )  # fmt: skip


def _released(statics: list[Any], paths: list[list[Path]]) -> float:
    """Return the cycles of a wave after the programmatic wait, if all before it is done; without a wait, all."""
    run = Multiprocessor(statics, released=RELEASED).play(paths)
    return run.cycles - RELEASED if run.wait_cycles and run.wait_cycles < RELEASED else run.cycles
