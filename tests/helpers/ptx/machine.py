"""Run a kernel: registers, memories, asynchronous work and control flow of some blocks of a grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from .memory import THREADS_OF_BLOCK, AccessError, GlobalMemory, SharedMemory
from .parser import Instruction, Kernel
from .values import BITS, UNSIGNED, Array

WARP = 32

Step = Callable[["Machine", Array | None], None]
"""Execute an instruction for the threads of a mask, [B or 1, T or 1] bool, or for all if it is None."""

_BUILDERS: dict[str, Callable[[Instruction], Step]] = {}


def instruction(*names: str) -> Callable[[Callable[[Instruction], Step]], Callable[[Instruction], Step]]:
    """Register a function that turns instructions of these names into steps."""

    def register(build: Callable[[Instruction], Step]) -> Callable[[Instruction], Step]:
        _BUILDERS.update(dict.fromkeys(names, build))
        return build

    return register


class UnknownInstructionError(NotImplementedError):
    """This simulator does not know an instruction, or not in this form."""


@dataclass
class Job:
    """Asynchronous work, whose effect comes when it is waited for.

    Attributes:
        run: does it. Arrays it needs are in `arrays`, since the blocks of a machine may part in between.
    """

    run: Callable[[Machine, dict[str, Array]], None]
    arrays: dict[str, Array]


class Machine:
    """Some blocks of a grid, at the same instruction.

    A register is an array [B or 1, T or 1] of unsigned integers, or bool: what is the same for all blocks, or all
    threads of a block, is kept once.

    Args:
        kernel: to run.
        grid: number of blocks in x, y, z.
        blocks: their places in the grid, int64 [B, 3].
        arguments: values of the kernel's parameters, by name.
        shared_bytes: of shared memory of a block.
        memory: global memory.
    """

    def __init__(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        blocks: Array,
        arguments: dict[str, int],
        shared_bytes: int,
        memory: GlobalMemory,
    ) -> None:
        self.kernel, self.arguments, self.memory = kernel, arguments, memory
        self.num_blocks, self.num_threads = len(blocks), kernel.num_threads
        self.block_ids = np.ravel_multi_index(tuple(blocks[:, ::-1].T), grid[::-1])
        self.shape = self.num_blocks, self.num_threads
        self.shared = SharedMemory(self.num_blocks, shared_bytes)
        self.position = 0
        self.has_waited = not kernel.waits_for_grids
        self.copies: list[list[Job]] = [[]]  # groups of cp.async; the last one is open
        self.products: list[list[Job]] = [[]]  # groups of wgmma; the last one is open
        self.registers: dict[str, Array] = {"%tid.x": np.arange(self.num_threads, dtype=np.uint32)[None, :]}
        for axis, name in enumerate("xyz"):
            self.registers[f"%ctaid.{name}"] = blocks[:, axis : axis + 1].astype(np.uint32)
            self.registers[f"%nctaid.{name}"] = np.full((1, 1), grid[axis], np.uint32)
            self.registers[f"%ntid.{name}"] = np.full((1, 1), self.num_threads if name == "x" else 1, np.uint32)
        self.registers |= {f"%tid.{name}": np.zeros((1, 1), np.uint32) for name in "yz"}
        self.registers["%laneid"] = self.registers["%tid.x"] % np.uint32(WARP)
        self.warps = (np.arange(self.num_threads) // WARP)[None, :]

    def select(self, blocks: Array) -> Machine:
        """Return a machine of its own for the blocks of a mask, [B] bool."""
        part = Machine.__new__(Machine)
        part.__dict__.update(self.__dict__)
        part.num_blocks = int(blocks.sum())
        part.shape = part.num_blocks, part.num_threads
        part.block_ids = self.block_ids[blocks]
        part.shared = self.shared.select(blocks)

        def chosen(array: Array) -> Array:
            return array[blocks] if len(array) == len(blocks) else array

        part.registers = {name: chosen(array) for name, array in self.registers.items()}
        for name in ("copies", "products"):
            groups = [
                [Job(job.run, {key: chosen(array) for key, array in job.arrays.items()}) for job in group]
                for group in getattr(self, name)
            ]
            setattr(part, name, groups)
        return part

    def write(self, name: str, value: Array, active: Array | None) -> None:
        """Set a register, for the threads of a mask."""
        if active is not None:
            old = self.registers.get(name)
            if old is None:  # not written before: anything
                old = np.full((1, 1), True if value.dtype == bool else np.iinfo(value.dtype).max, value.dtype)
            value = np.where(active, value, old)
        self.registers[name] = value

    def threads(self, array: Array) -> Array:
        """Return a register for every thread, [B, T]."""
        return np.broadcast_to(array, self.shape)

    @property
    def thread_ids(self) -> Array:
        """Return a number for every thread, [B, T], that no other thread of the grid has."""
        return self.block_ids[:, None] * THREADS_OF_BLOCK + np.arange(self.num_threads)

    def wait_for(self, groups: list[list[Job]], keep: int) -> None:
        """Do the work of all closed groups but the last `keep`."""
        while len(groups) - 1 > keep:
            for job in groups.pop(0):
                job.run(self, job.arrays)


def uniform(machine: Machine, predicate: Array, text: str) -> Array:
    """Return a predicate by block, [B] bool.

    Raises:
        UnknownInstructionError: threads of a block differ, so that the block would diverge.
    """
    by_block = predicate[:, 0]
    if predicate.shape[1] > 1 and (predicate != by_block[:, None]).any():
        raise UnknownInstructionError(f"{text}: threads of a block take different branches")
    return np.broadcast_to(by_block, (machine.num_blocks,))


def run(machine: Machine) -> int:
    """Run a machine's blocks to their ends, and return how many instructions they executed.

    Raises:
        AccessError: an instruction accesses memory it must not, or the kernel ends before griddepcontrol.wait.
        UnknownInstructionError: it cannot be executed.
    """
    kernel = machine.kernel
    steps = _steps(kernel)
    executed = 0
    waiting = [machine]
    with np.errstate(all="ignore"):
        while waiting:
            machine = waiting.pop()
            while machine.position < len(steps):
                here = machine.position
                current, step = kernel.code[here], steps[here]
                machine.position += 1
                executed += machine.num_blocks

                active = None
                if current.guard is not None:
                    active = machine.registers[current.guard[0]]
                    active = ~active if current.guard[1] else active
                if step is not None:
                    try:
                        step(machine, active)
                    except (AccessError, NotImplementedError) as error:
                        raise type(error)(f"{kernel.name}, {current.text}: {error}") from None
                    continue

                jumps = np.ones(machine.num_blocks, bool)
                if active is not None:
                    jumps = uniform(machine, active, current.text)
                if not jumps.any():
                    continue
                if not jumps.all():  # the blocks part
                    waiting.append(machine.select(~jumps))
                    machine = machine.select(jumps)
                if current.name == "bra":
                    machine.position = kernel.labels[current.operands[0]]
                    continue
                if not machine.has_waited:
                    raise AccessError(f"{kernel.name}: it ends before griddepcontrol.wait")
                break
    return executed


@lru_cache(maxsize=512)
def _steps(kernel: Kernel) -> list[Step | None]:
    """Return a step for each instruction; None for branches and returns."""
    return [
        None if each.name in ("bra", "ret", "exit") else _BUILDERS.get(each.name, _unknown)(each)
        for each in kernel.code
    ]


def _unknown(each: Instruction) -> Step:
    def step(machine: Machine, active: Array | None) -> None:
        raise UnknownInstructionError("this instruction is not known")

    return step


# ---- operands ------------------------------------------------------------------------------------------------------


def constant(text: str, bits: int) -> Array | None:
    """Return a constant operand, [1, 1], or None for a register."""
    if text.startswith(("0f", "0F", "0d", "0D")):
        return np.full((1, 1), int(text[2:], 16), UNSIGNED[bits])
    if text[0].isdigit() or text[0] == "-":
        return np.full((1, 1), int(text.rstrip("U"), 0) & ((1 << bits) - 1), UNSIGNED[bits])
    if text == "global_smem":
        return np.zeros((1, 1), UNSIGNED[bits])
    return None


def source(text: str, kind: str) -> Callable[[Machine], Array]:
    """Return a function that reads an operand as numbers of type `kind`: f32 as float32, others as integers."""
    bits = BITS[kind]
    dtype: Any = np.float32 if kind == "f32" else np.dtype(f"int{bits}") if kind[0] == "s" else UNSIGNED[bits]
    fixed = constant(text, bits)
    if fixed is not None:
        value = fixed.view(dtype)
        return lambda machine: value

    def read(machine: Machine) -> Array:
        value = machine.registers.get(text)
        if value is None:  # never written: Triton leaves the other number of a pair open
            return np.full((1, 1), (1 << bits) - 1, UNSIGNED[bits]).view(dtype)
        if value.dtype.itemsize * 8 != bits:
            value = value.astype(UNSIGNED[bits])
        return value.view(dtype)

    return read


def predicate(text: str) -> Callable[[Machine], Array]:
    """Return a function that reads a predicate: a register, or a constant."""
    if text[0].isdigit() or text[0] == "-":
        value = np.full((1, 1), int(text) != 0)
        return lambda machine: value
    if text[0] == "!":
        return lambda machine: ~machine.registers[text[1:]]
    return lambda machine: machine.registers[text]


def destination(text: str, bits: int) -> Callable[[Machine, Array, Array | None], None]:
    """Return a function that writes numbers of `bits` bits to a register."""
    dtype = UNSIGNED[bits]

    def write(machine: Machine, value: Array, active: Array | None) -> None:
        if not value.flags.c_contiguous:
            value = np.ascontiguousarray(value)
        machine.write(text, value.view(dtype), active)

    return write


def address(text: str) -> Callable[[Machine], Array]:
    """Return a function that computes an address, "[%rd1 + 16]", int64."""
    base, _, offset = text.strip("[]").replace(" ", "").partition("+")
    moved = int(offset or "0", 0)
    if base == "global_smem":
        fixed = np.full((1, 1), moved, np.int64)
        return lambda machine: fixed
    return lambda machine: machine.registers[base].astype(np.int64) + moved
