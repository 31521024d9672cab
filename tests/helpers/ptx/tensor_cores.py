"""Matrices: ldmatrix, stmatrix, mma.sync, and wgmma with its descriptors of shared memory.

Products are those of exact operands, summed in float32.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from .machine import WARP, Job, Machine, Step, UnknownInstructionError, address, instruction, predicate, source
from .parser import Instruction, register_names
from .values import BITS, Array, to_float

_LANE = np.arange(WARP)
_GROUP, _IN_GROUP = _LANE // 4, _LANE % 4
_WARPGROUP = 128


def _by_warp(machine: Machine, array: Array) -> Array:
    return machine.threads(array).reshape(machine.num_blocks, -1, WARP)


def _matrix_count(each: Instruction) -> int:
    if "m8n8" not in each.parts or each.type != "b16":
        raise UnknownInstructionError(each.text)
    return next(int(part[1]) for part in each.parts if part in ("x1", "x2", "x4"))


@instruction("ldmatrix")
def _load_matrices(each: Instruction) -> Step:
    """Load matrices of 8 x 8 elements of 16 bits: lane l has elements 2 (l % 4) and the next of row l / 4."""
    count, is_transposed = _matrix_count(each), "trans" in each.parts
    names, at = register_names(each.operands[0]), address(each.operands[1])

    def step(machine: Machine, active: Array | None) -> None:
        starts = _by_warp(machine, at(machine))[:, :, : 8 * count]
        block, warp = _owners(machine, starts.shape)
        rows = machine.shared.load(block, starts.ravel(), 32, 4, warp)
        matrices = rows.view(np.uint16).reshape(*starts.shape[:2], count, 8, 8)
        if is_transposed:
            matrices = np.ascontiguousarray(matrices.swapaxes(3, 4))
        registers = matrices.reshape(*starts.shape[:2], count, 64).view(np.uint32)
        for place, name in enumerate(names):
            machine.write(name, registers[:, :, place].reshape(machine.shape), active)

    return step


@instruction("stmatrix")
def _store_matrices(each: Instruction) -> Step:
    count, is_transposed = _matrix_count(each), "trans" in each.parts
    at = address(each.operands[0])
    sources = [source(name, "b32") for name in register_names(each.operands[1])]

    def step(machine: Machine, active: Array | None) -> None:
        starts = _by_warp(machine, at(machine))[:, :, : 8 * count]
        registers = np.stack([_by_warp(machine, read(machine)) for read in sources], 2)  # [B, W, count, 32]
        matrices = np.ascontiguousarray(registers).view(np.uint16).reshape(*starts.shape[:2], count, 8, 8)
        if is_transposed:
            matrices = np.ascontiguousarray(matrices.swapaxes(3, 4))
        block, warp = _owners(machine, starts.shape)
        rows = np.ascontiguousarray(matrices).reshape(-1, 8).view(np.uint32)
        machine.shared.store(block, starts.ravel(), rows, warp)

    return step


def _owners(machine: Machine, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Return block and warp of each address of [B, W, addresses]."""
    block = np.broadcast_to(np.arange(machine.num_blocks)[:, None, None], shape)
    warp = np.broadcast_to(np.arange(shape[1])[None, :, None], shape)
    return block.ravel(), warp.ravel()


def _elements(registers: list[Array], kind: str) -> list[Array]:
    """Return the numbers in registers of 32 bits, lowest first, each as an array of float32."""
    bits = BITS[kind]
    if bits == 32:
        return [to_float(register, kind) for register in registers]
    mask = np.uint32((1 << bits) - 1)
    return [to_float((register >> np.uint32(at)) & mask, kind) for register in registers for at in range(0, 32, bits)]


@instruction("mma")
def _multiply(each: Instruction) -> Step:
    """mma.sync m16n8kK, row.col: D [16, 8] = A [16, K] B [K, 8] + C, for each warp."""
    shape = re.fullmatch(r"m16n8k(\d+)", each.parts[3])
    if shape is None or each.parts[4:6] != ("row", "col") or each.parts[6] != "f32" or each.parts[9] != "f32":
        raise UnknownInstructionError(each.text)
    depth, kind_a, kind_b = int(shape[1]), each.parts[7], each.parts[8]
    packed = 32 // BITS[kind_a]  # elements of a register
    targets = register_names(each.operands[0])
    a, b = ([source(name, "b32") for name in register_names(text)] for text in each.operands[1:3])
    c = [source(name, "f32") for name in register_names(each.operands[3])]

    element = np.arange(packed)
    row_c = [_GROUP + 8 * (place >> 1) for place in range(4)]
    column_c = [2 * _IN_GROUP + (place & 1) for place in range(4)]

    def step(machine: Machine, active: Array | None) -> None:
        warps = machine.num_threads // WARP
        matrix_a = np.empty((machine.num_blocks, warps, 16, depth), np.float32)
        matrix_b = np.empty((machine.num_blocks, warps, depth, 8), np.float32)
        for place, read in enumerate(a):
            row = _GROUP + 8 * (place & 1)
            for e, value in zip(element, _elements([_by_warp(machine, read(machine))], kind_a), strict=True):
                matrix_a[:, :, row, packed * _IN_GROUP + 4 * packed * (place >> 1) + e] = value
        for place, read in enumerate(b):
            for e, value in zip(element, _elements([_by_warp(machine, read(machine))], kind_b), strict=True):
                matrix_b[:, :, packed * _IN_GROUP + 4 * packed * place + e, _GROUP] = value
        product = matrix_a @ matrix_b
        for place, (target, read) in enumerate(zip(targets, c, strict=True)):
            total = product[:, :, row_c[place], column_c[place]].reshape(machine.shape) + read(machine)
            machine.write(target, total.view(np.uint32), active)

    return step


# ---- wgmma ---------------------------------------------------------------------------------------------------------

_SWIZZLE_WIDTH = {0: 16, 1: 128, 2: 64, 3: 32}
"""Bytes of a row of the core matrix, by bits 62 and 63 of a descriptor."""


@lru_cache(maxsize=4096)
def _operand_index(descriptor: int, rows: int, depth: int, is_k_major: bool, bits: int) -> Array:
    """Return where elements [rows, depth] of an operand lie, in elements of shared memory.

    rows: of M or of N. The descriptor holds the start, the leading and the stride byte offset, each divided by 16, and
    the swizzle, which flips bits 4 to 6 of an address by bits 7 to 9.
    """
    start, leading, stride = (((descriptor >> shift) & 0x3FFF) << 4 for shift in (0, 16, 32))
    swizzle = descriptor >> 62
    width, size = _SWIZZLE_WIDTH[swizzle], bits // 8
    r, k = np.arange(rows)[:, None], np.arange(depth)[None, :]
    if is_k_major:
        inside = k * size
        step = 0 if swizzle else (inside // 16) * leading - (inside // 16) * 16
        at = start + (r // 8) * stride + (r % 8) * width + inside + step
    else:
        if not swizzle:
            raise UnknownInstructionError("an operand of wgmma that is neither K-major nor swizzled")
        per_row = width // size
        at = start + (r // per_row) * leading + (r % per_row) * size + (k // 8) * stride + (k % 8) * width
    at = at ^ (((at >> 7) & (width // 16 - 1)) << 4)
    return at // size


@instruction("wgmma")
def _warpgroup_multiply(each: Instruction) -> Step:
    """wgmma.mma_async: D [64, N] += A [64, K] B [K, N] for each warpgroup, done when its group is waited for."""
    if each.parts[1] == "fence":
        return lambda machine, active: None
    if each.parts[1] == "commit_group":
        return lambda machine, active: machine.products.append([])
    if each.parts[1] == "wait_group":
        keep = int(each.operands[0])
        return lambda machine, active: machine.wait_for(machine.products, keep)

    shape = re.fullmatch(r"m64n(\d+)k(\d+)", each.parts[4])
    if each.parts[1] != "mma_async" or shape is None or each.parts[5] != "f32":
        raise UnknownInstructionError(each.text)
    columns, depth = int(shape[1]), int(shape[2])
    kind_a, kind_b = each.parts[6], each.parts[7]
    targets = register_names(each.operands[0])
    accumulates, signs = predicate(each.operands[3]), each.operands[4:6]
    majors = [int(text) for text in each.operands[6:]]
    if signs != ("1", "1"):
        raise UnknownInstructionError(each.text)
    a_in_registers = each.operands[1].startswith("{")
    a_is_k_major = a_in_registers or not majors or majors[0] == 0
    b_is_k_major = not majors or majors[-1] == 0

    fragments = _fragments(each, kind_a, depth) if a_in_registers else None
    descriptor_a = None if a_in_registers else source(each.operands[1], "u64")
    descriptor_b = source(each.operands[2], "u64")
    thread = np.arange(_WARPGROUP)
    row, column = thread // WARP * 16 + thread % WARP // 4, thread % 4 * 2

    def start(machine: Machine, active: Array | None) -> None:
        if active is not None or machine.num_threads % _WARPGROUP:
            raise UnknownInstructionError("wgmma of a part of a warpgroup")
        machine.shared.note_matrix_read()
        arrays = {"add": machine.threads(accumulates(machine)), "b": machine.threads(descriptor_b(machine))}
        if descriptor_a is not None:
            arrays["a"] = machine.threads(descriptor_a(machine))
        machine.products[-1].append(Job(finish, arrays))

    def finish(machine: Machine, arrays: dict[str, Array]) -> None:
        # [B, groups, 64, K] and [B, groups, N, K]
        if fragments is None:
            a = _from_shared(machine, arrays["a"], 64, depth, a_is_k_major, kind_a)
        else:
            a = fragments(machine)
        b = _from_shared(machine, arrays["b"], columns, depth, b_is_k_major, kind_b)
        product = a @ b.swapaxes(2, 3)
        for place, target in enumerate(targets):
            value = product[:, :, row + 8 * ((place >> 1) & 1), column + 8 * (place >> 2) + (place & 1)]
            value = np.ascontiguousarray(value.reshape(machine.shape))
            if arrays["add"].any():
                before = np.ascontiguousarray(machine.threads(machine.registers[target])).view(np.float32)
                value = value + np.where(arrays["add"], before, np.float32(0))
            machine.registers[target] = value.view(np.uint32)

    return start


def _fragments(each: Instruction, kind: str, depth: int) -> Callable[[Machine], Array]:
    """Return a function that reads A [64, K] from registers, whose rows the four warps share."""
    sources = [source(name, "b32") for name in register_names(each.operands[1])]
    packed = 32 // BITS[kind]

    def read(machine: Machine) -> Array:
        groups = machine.num_threads // _WARPGROUP
        matrix = np.empty((machine.num_blocks, groups, 4, 16, depth), np.float32)
        for place, register in enumerate(sources):
            value = machine.threads(register(machine)).reshape(machine.num_blocks, groups, 4, WARP)
            for e, part in enumerate(_elements([value], kind)):
                column = packed * _IN_GROUP + 4 * packed * (place >> 1) + e
                matrix[:, :, :, _GROUP + 8 * (place & 1), column] = part
        return matrix.reshape(machine.num_blocks, groups, 64, depth)

    return read


def _from_shared(machine: Machine, descriptors: Array, rows: int, depth: int, is_k_major: bool, kind: str) -> Array:
    """Return an operand [rows, K] of each warpgroup, [B, groups, rows, K], given each thread's descriptor."""
    by_group = descriptors.reshape(machine.num_blocks, -1, _WARPGROUP)
    if (by_group != by_group[:1, :, :1]).any():
        raise UnknownInstructionError("descriptors of wgmma that differ within a warpgroup or between blocks")
    bits, operands = BITS[kind], []
    for descriptor in by_group[0, :, 0].tolist():
        index = _operand_index(descriptor, rows, depth, is_k_major, bits)
        operands.append(to_float(machine.shared.gather(index, bits), kind))
    return np.stack(operands, 1)
