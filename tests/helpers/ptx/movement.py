"""Loads, stores, asynchronous copies, atomics, barriers, and exchanges between the threads of a warp."""

from __future__ import annotations

from typing import Any

import numpy as np

from .machine import (
    WARP,
    Job,
    Machine,
    Step,
    UnknownInstructionError,
    address,
    destination,
    instruction,
    predicate,
    source,
)
from .memory import SEVERAL_BLOCKS
from .parser import Instruction, register_names
from .values import BITS, UNSIGNED, Array

_LENGTHS = {"v2": 2, "v4": 4, "v8": 8}


def _nothing(machine: Machine, active: Array | None) -> None:
    pass


def _threads(machine: Machine, at: Array, active: Array | None) -> tuple[tuple[int, int], Array | None]:
    """Return the shape [B or 1, T or 1] that covers addresses and mask, and the mask in that shape."""
    if active is None or active.all():
        return at.shape, None
    shape = np.broadcast_shapes(at.shape, active.shape)
    return shape, np.broadcast_to(active, shape)


def _flat(array: Array, shape: tuple[int, ...], mask: Array | None) -> Array:
    array = np.broadcast_to(array, shape)
    return array.ravel() if mask is None else array[mask]


def _blocks_and_warps(machine: Machine, mask: Array | None) -> tuple[Array, Array]:
    block = _flat(np.arange(machine.num_blocks)[:, None], machine.shape, mask)
    return block, _flat(machine.warps, machine.shape, mask)


# ---- loads and stores ----------------------------------------------------------------------------------------------


def _space(each: Instruction) -> str:
    """Return the memory an instruction uses. Without one it is generic: no kernel needs that."""
    return next(
        (part.removesuffix("::cta") for part in each.parts[1:] if part.startswith(("global", "shared", "param"))), ""
    )


@instruction("ld")
def _load(each: Instruction) -> Step:
    space, bits = _space(each), BITS[each.type]
    if space == "param":
        return _load_parameter(each)
    names = register_names(each.operands[0])
    count = next((_LENGTHS[part] for part in each.parts if part in _LENGTHS), 1)
    at = address(each.operands[1])
    # An 8-bit number is held in a 16-bit register, a signed one with its sign.
    held = np.dtype(np.int16 if each.type == "s8" else UNSIGNED[max(bits, 16)])
    if space not in ("global", "shared"):
        raise UnknownInstructionError(each.text)

    def step(machine: Machine, active: Array | None) -> None:
        addresses = at(machine)
        if space == "shared":
            addresses = machine.threads(addresses)
            active = None if active is None else machine.threads(active)
        shape, mask = _threads(machine, addresses, active)
        flat = _flat(addresses, shape, mask)
        if space == "global":
            # What is the same for all blocks is read once.
            blocks = machine.block_ids[:, None] if shape[0] == machine.num_blocks else np.full((1, 1), SEVERAL_BLOCKS)
            by = _flat(blocks, shape, mask)
            values = machine.memory.load(flat, bits, count, early=not machine.has_waited, block=by)
        else:
            block, warp = _blocks_and_warps(machine, mask)
            values = machine.shared.load(block, flat, bits, count, warp)
        if each.type == "s8":
            values = values.view(np.int8)
        values = values.astype(held).view(UNSIGNED[held.itemsize * 8])
        for place, name in enumerate(names):
            if mask is None:
                machine.write(name, values[:, place].reshape(shape), None)
            else:
                full = np.full(shape, np.iinfo(values.dtype).max, values.dtype)
                full[mask] = values[:, place]
                machine.write(name, full, mask)

    return step


def _load_parameter(each: Instruction) -> Step:
    name = each.operands[1].strip("[] ")
    bits = BITS[each.type]

    def step(machine: Machine, active: Array | None) -> None:
        value = machine.arguments[name] & ((1 << bits) - 1)
        machine.write(each.operands[0], np.full((1, 1), value, UNSIGNED[bits]), active)

    return step


@instruction("st")
def _store(each: Instruction) -> Step:
    space, bits = _space(each), BITS[each.type]
    at = address(each.operands[0])
    sources = [source(name, f"b{bits}") for name in register_names(each.operands[1])]
    if space not in ("global", "shared"):
        raise UnknownInstructionError(each.text)

    def step(machine: Machine, active: Array | None) -> None:
        mask = None if active is None or active.all() else machine.threads(active)
        flat = _flat(at(machine), machine.shape, mask)
        values = np.stack([_flat(read(machine), machine.shape, mask) for read in sources], 1)
        if space == "global":
            thread = _flat(machine.thread_ids, machine.shape, mask)
            machine.memory.store(flat, values, early=not machine.has_waited, thread=thread)
        else:
            block, warp = _blocks_and_warps(machine, mask)
            machine.shared.store(block, flat, values, warp)

    return step


@instruction("atom", "red")
def _atomic(each: Instruction) -> Step:
    """Read, change and write global memory, thread by thread."""
    returns = each.name == "atom"
    operands = each.operands if returns else ("_", *each.operands)
    operation = next((part for part in each.parts if part in ("add", "min", "max", "exch", "cas", "inc")), "")
    count = next((_LENGTHS[part] for part in each.parts if part in _LENGTHS), 1)
    if "global" not in each.parts or not operation or count > 1 or each.type in ("bf16", "f16", "bf16x2", "f16x2"):
        raise UnknownInstructionError(each.text)
    bits, at = BITS[each.type], address(operands[1])
    values = [source(text, each.type) for text in operands[2:]]

    def step(machine: Machine, active: Array | None) -> None:
        mask = None if active is None or active.all() else machine.threads(active)
        flat = _flat(at(machine), machine.shape, mask)
        given = [_flat(read(machine), machine.shape, mask) for read in values]
        olds = np.empty(flat.size, UNSIGNED[bits])
        for thread in range(flat.size):
            place = flat[thread : thread + 1]
            old = machine.memory.load(place, bits, 1, early=not machine.has_waited, block=None)
            olds[thread] = old[0, 0]
            new = _changed(operation, old[0].view(given[0].dtype), [x[thread : thread + 1] for x in given])
            machine.memory.store(place, new.view(UNSIGNED[bits])[:, None], early=not machine.has_waited, thread=None)
        if returns and operands[0] != "_":
            result = np.zeros(machine.shape, UNSIGNED[bits])
            result[np.ones(machine.shape, bool) if mask is None else mask] = olds
            machine.write(operands[0], result, mask)

    return step


def _changed(operation: str, old: Array, given: list[Array]) -> Array:
    if operation == "cas":
        return np.where(old == given[0], given[1], old)
    if operation == "inc":
        return np.where(old >= given[0], old.dtype.type(0), old + old.dtype.type(1))
    functions: dict[str, Any] = {"add": np.add, "min": np.minimum, "max": np.maximum, "exch": lambda _, new: new}
    return np.asarray(functions[operation](old, given[0]), old.dtype)


# ---- asynchronous copies -------------------------------------------------------------------------------------------


@instruction("cp")
def _copy(each: Instruction) -> Step:
    """cp.async: what is read, and where it is written to, happens when its group is waited for."""
    if each.parts[:3] == ("cp", "async", "commit_group"):
        return lambda machine, active: machine.copies.append([])
    if each.parts[:3] == ("cp", "async", "wait_group"):
        keep = int(each.operands[0])
        return lambda machine, active: machine.wait_for(machine.copies, keep)
    if each.parts[:3] == ("cp", "async", "wait_all"):

        def wait_all(machine: Machine, active: Array | None) -> None:
            machine.copies.append([])
            machine.wait_for(machine.copies, 0)

        return wait_all
    if each.parts[2] not in ("ca", "cg"):
        raise UnknownInstructionError(each.text)

    target, origin, size = address(each.operands[0]), address(each.operands[1]), int(each.operands[2], 0)
    given = source(each.operands[3], "u32") if len(each.operands) > 3 else None  # the rest is filled with zeros

    def start(machine: Machine, active: Array | None) -> None:
        bytes_given = np.full((1, 1), size, np.uint32) if given is None else given(machine)
        arrays = {
            "target": machine.threads(target(machine)),
            "origin": machine.threads(origin(machine)),
            "given": machine.threads(bytes_given),
            "active": np.ones(machine.shape, bool) if active is None else machine.threads(active),
            "early": np.full((machine.num_blocks, 1), not machine.has_waited),
        }
        if not np.isin(arrays["given"][arrays["active"]], (0, size)).all():
            raise UnknownInstructionError(f"a copy of part of its {size} bytes")
        machine.copies[-1].append(Job(finish, arrays))

    def finish(machine: Machine, arrays: dict[str, Array]) -> None:
        active, reads = arrays["active"], arrays["active"] & (arrays["given"] > 0)
        values = np.zeros((*machine.shape, size // 4), np.uint32)
        early = bool(arrays["early"].any())
        by = np.broadcast_to(machine.block_ids[:, None], machine.shape)[reads]
        values[reads] = machine.memory.load(arrays["origin"][reads], 32, size // 4, early=early, block=by)
        block, warp = _blocks_and_warps(machine, active)
        machine.shared.store(block, arrays["target"][active], values[active], warp)

    return start


@instruction("prefetch", "prefetchu", "discard", "applypriority")
def _hint(each: Instruction) -> Step:
    return _nothing


@instruction("griddepcontrol")
def _dependent_launch(each: Instruction) -> Step:
    if each.parts[1] != "wait":
        return _nothing

    def wait(machine: Machine, active: Array | None) -> None:
        machine.has_waited = True

    return wait


@instruction("bar", "barrier")
def _barrier(each: Instruction) -> Step:
    if each.parts[1] == "warp":
        return _nothing
    if each.operands not in (("0",), ("0", "0")) and len(each.operands) != 1:
        raise UnknownInstructionError(each.text)

    def wait(machine: Machine, active: Array | None) -> None:
        machine.shared.interval += 1

    return wait


@instruction("fence", "membar", "nanosleep", "pragma")
def _order(each: Instruction) -> Step:
    return _nothing


# ---- warps ---------------------------------------------------------------------------------------------------------


def _by_warp(machine: Machine, array: Array) -> Array:
    """Return a register by warp, [B or 1, W, 32]."""
    array = np.broadcast_to(array, (array.shape[0], machine.num_threads))
    return array.reshape(array.shape[0], -1, WARP)


@instruction("shfl")
def _shuffle(each: Instruction) -> Step:
    mode = each.parts[2]
    target, _, valid = each.operands[0].partition("|")
    value, lane_operand, control = (source(text, "u32") for text in each.operands[1:4])

    def step(machine: Machine, active: Array | None) -> None:
        lanes = np.arange(WARP)
        values = _by_warp(machine, value(machine))
        b = _by_warp(machine, lane_operand(machine)).astype(np.int64) & 31
        c = _by_warp(machine, control(machine)).astype(np.int64)
        segment = (c >> 8) & 31
        low, high = lanes & segment, (lanes & segment) | (c & 31 & ~segment)
        if mode == "bfly":
            origin, is_valid = lanes ^ b, (lanes ^ b) <= high
        elif mode == "idx":
            origin = low | (b & ~segment & 31)
            is_valid = origin <= high
        elif mode == "down":
            origin, is_valid = lanes + b, lanes + b <= high
        else:  # up: its limit is the lowest lane
            origin, is_valid = lanes - b, lanes - b >= high
        origin = np.where(is_valid, origin, lanes)
        shape = np.broadcast_shapes(values.shape, origin.shape)
        moved = np.take_along_axis(np.broadcast_to(values, shape), np.broadcast_to(origin, shape), 2)
        machine.write(target, moved.reshape(shape[0], -1), active)
        if valid and valid != "_":
            machine.write(valid, np.broadcast_to(is_valid, shape).reshape(shape[0], -1), active)

    return step


@instruction("redux")
def _reduce(each: Instruction) -> Step:
    functions: dict[str, Any] = {
        "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }  # fmt: skip
    function = functions[each.parts[2]]
    read, write = source(each.operands[1], each.type), destination(each.operands[0], 32)

    def step(machine: Machine, active: Array | None) -> None:
        values = _by_warp(machine, read(machine))
        total = function.reduce(values, axis=2).astype(values.dtype)
        write(machine, np.repeat(total, WARP, axis=1), active)

    return step


@instruction("vote")
def _vote(each: Instruction) -> Step:
    mode, read = each.parts[2], predicate(each.operands[1])

    def step(machine: Machine, active: Array | None) -> None:
        votes = _by_warp(machine, read(machine))
        if mode == "ballot":
            ballot = (votes.astype(np.uint32) << np.arange(WARP, dtype=np.uint32)).sum(2).astype(np.uint32)
            machine.write(each.operands[0], np.repeat(ballot, WARP, axis=1), active)
            return
        result = votes.any(2) if mode == "any" else votes.all(2)
        machine.write(each.operands[0], np.repeat(result, WARP, axis=1), active)

    return step


@instruction("elect")
def _elect(each: Instruction) -> Step:
    target = each.operands[0].partition("|")[2] or each.operands[0]

    def step(machine: Machine, active: Array | None) -> None:
        machine.write(target, machine.registers["%tid.x"] % np.uint32(WARP) == 0, active)

    return step
