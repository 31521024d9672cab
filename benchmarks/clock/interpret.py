"""Follow a block's warps through their SASS: which instructions each executes, and what its memory accesses touch.

Integer registers, predicates, constants and shared memory are executed; floating-point values are unknown. A branch on
an unknown value falls through, unless that leads to a call, and is counted in `Path.guesses`. Warps run one after the
other from barrier to barrier, so that what one writes to shared memory is there when another reads it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .memory import WARM, GlobalMemory, Lanes, SharedMemory, sectors, shared_wavefronts
from .operands import FALSE, TRUE, ZERO, Value, is_predicate, lanes, next_register, read_predicate, write
from .sass import Instruction
from .semantics import both, decode

PARAMETERS = 0x210
"""Address of a kernel's parameters in constant bank 0 on sm_90."""

SPINS = 64
"""Passes through an unknown branch after which it is taken: a loop that waits for others ends."""


@dataclass
class Access:
    """Record what an executed memory instruction touches.

    Attributes:
        wavefronts: cycles of the shared-memory pipe.
        sectors: 32-byte sectors of global memory, as addresses divided by 32; None for shared memory.
        place: COLD or WARM, where a first access finds them.
    """

    wavefronts: int = 0
    sectors: list[int] | None = None
    place: str = WARM


@dataclass
class Path:
    """The instructions a warp executes.

    Attributes:
        indices: into the code, in order.
        accesses: by position in `indices`.
        barriers: by position in `indices`, the number of a barrier that a register names.
        guesses: address of a branch on an unknown value: how often it was passed.
    """

    indices: list[int] = field(default_factory=list)
    accesses: dict[int, Access] = field(default_factory=dict)
    barriers: dict[int, int] = field(default_factory=dict)
    guesses: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """Code with its launch.

    Attributes:
        code: instructions of the kernel.
        constants: bytes of constant banks, by bank; parameters are in bank 0 from PARAMETERS on.
        grid: programs in x, y, z.
        num_warps: of a block.
        memory: global memory.
        specials: special registers that all threads of the grid share.
    """

    code: list[Instruction]
    constants: Mapping[int, bytes]
    grid: tuple[int, int, int]
    num_warps: int
    memory: GlobalMemory
    specials: Mapping[str, int] = field(default_factory=dict)


class Warp:
    """A warp's registers and where it is."""

    def __init__(self, program: Program, block: int, warp: int, shared: SharedMemory) -> None:
        self.program, self.shared = program, shared
        self.registers: dict[str, Value] = {}
        self.predicates: dict[str, Value] = {}
        self.active = TRUE.copy()
        self.path = Path()
        self.at = 0
        self.is_done = False
        self.stack: list[dict[str, Any]] = []
        self.pending: list[tuple[int, Lanes]] = []
        self.gathered: dict[int, Lanes] = {}
        x, y, _ = program.grid
        position = {"X": block % x, "Y": block // x % y, "Z": block // (x * y)}
        self._specials: dict[str, Lanes] = {"SR_TID.X": (np.arange(32) + 32 * warp).astype(np.uint32)}
        self._specials |= {f"SR_CTAID.{axis}": lanes(value) for axis, value in position.items()}
        self._specials |= {"SR_LANEID": np.arange(32, dtype=np.uint32)}
        self._specials |= {name: lanes(value) for name, value in program.specials.items()}

    def constant(self, bank: int, address: int) -> Value:
        """Return a word of a constant bank in all lanes."""
        content = self.program.constants.get(bank, b"")
        if bank == 0 and address < PARAMETERS:
            return lanes({0x208: 0, 0x20C: 0}.get(address, 0))
        word = content[address : address + 4]
        return lanes(int.from_bytes(word, "little")) if len(word) == 4 else None

    def special(self, name: str) -> Value:
        """Return a special register; those not known are zero (one cluster rank, the first multiprocessor)."""
        if "CLOCK" in name or "GLOBALTIMER" in name:
            return None
        return self._specials.get(name, ZERO)


def _address_reader(text: str) -> tuple[list[Callable[[Warp], Any]], int]:
    """Return readers of the registers in an address such as [R2.64+UR4+0x10], and its offset."""
    inner = text[text.rindex("[") + 1 : text.rindex("]")] if "[" in text else text
    readers, offset = [], 0
    for part in re.findall(r"[-+]?[^-+\[\]]+", inner):
        token = part.lstrip("+")
        if re.fullmatch(r"-?0x[0-9a-f]+", token):
            offset += int(token, 16)
            continue
        name, *suffixes = token.split(".")
        scale = next((int(s[1:]) for s in suffixes if re.fullmatch(r"X\d+", s)), 1)
        readers.append(_register_reader(name, "64" in suffixes, scale))
    return readers, offset


def _register_reader(name: str, is_pair: bool, scale: int) -> Callable[[Warp], Any]:
    def read(warp: Warp) -> Any:
        value = warp.registers.get(name, ZERO)
        if value is None:
            return None
        wide = value.astype(np.int64)
        if is_pair and not name.endswith("Z"):
            high = warp.registers.get(next_register(name), ZERO)
            if high is None:
                return None
            wide = wide + (high.astype(np.int64) << 32)
        return wide * scale

    return read


def access_bytes(op: str) -> int:
    """Return the bytes a lane accesses."""
    parts = op.split(".")
    for text, size in (("128", 16), ("64", 8), ("U16", 2), ("S16", 2), ("U8", 1), ("S8", 1)):
        if text in parts:
            return size
    return 4


SHARED_OPS = frozenset({"LDS", "STS", "LDSM", "STSM", "ATOMS", "LDGSTS"})
GLOBAL_OPS = frozenset({"LDG", "STG", "LDGSTS", "ATOMG", "RED", "LD", "ST", "ATOM"})


CONTROL_OPS = frozenset(
    {"BRA", "EXIT", "BSSY", "BSYNC", "BAR", "CALL", "RET", "WARPSYNC", "BREAK", "JMP", "BRX", "UCGABAR_WAIT"}
)


def _execute_memory(i: Instruction) -> Callable[[Warp, Lanes], Access]:
    """Return the function that executes a memory instruction and tells what it touches."""
    base, num_bytes = i.base, access_bytes(i.op)
    brackets = [text for text in i.operands if "[" in text]
    shared = next((text for text in brackets if not text.startswith("desc")), brackets[0]) if base in SHARED_OPS else ""
    globally = brackets[-1] if base in GLOBAL_OPS else ""
    shared_at, global_at = (_address_reader(text) if text else None for text in (shared, globally))
    words = max(1, num_bytes // 4)
    ignore = read_predicate(i.operands[-1]) if base == "LDGSTS" and is_predicate(i.operands[-1]) else None
    matrices = {"4": 4, "2": 2}.get(i.op.rsplit(".", 1)[-1], 1)

    def address(warp: Warp, at: tuple[list[Callable[[Warp], Any]], int]) -> Any:
        values = [read(warp) for read in at[0]]
        return None if any(value is None for value in values) else sum(values, ZERO.astype(np.int64)) + at[1]

    def execute(warp: Warp, mask: Lanes) -> Access:
        access = Access()
        if base in ("LDSM", "STSM"):
            where = address(warp, shared_at) if shared_at else None
            access.wavefronts = matrices if where is None else _matrix_wavefronts(where, matrices)
            for k in range(matrices if base == "LDSM" else 0):
                write(warp, next_register(i.operands[0], k), None, mask)
            return access

        where_shared = address(warp, shared_at) if shared_at else None
        where = address(warp, global_at) if global_at else None
        takes_part = mask
        if ignore is not None:
            kept = ignore(warp)
            takes_part = mask if kept is None else mask & kept

        if global_at is not None:
            count = int(takes_part.sum())
            if where is None:
                access.sectors = [-1 - k for k in range(-(-count * num_bytes // 32))]
            else:
                access.sectors = sectors(where, takes_part, num_bytes) if count else []
                access.place = warp.program.memory.place(int(where[np.argmax(takes_part)])) if count else WARM
            access.wavefronts = max(1, -(-count * num_bytes // 128)) if base != "LDGSTS" else 1
        if shared_at is not None:
            extra = words if where_shared is None else shared_wavefronts(where_shared, mask, num_bytes)
            access.wavefronts += extra

        if base in ("LDS", "LDG", "LD"):
            for k in range(words):
                value: Value = None
                if num_bytes >= 4 and mask.any():
                    if base == "LDS" and where_shared is not None:
                        value = warp.shared.load(where_shared + 4 * k, mask)
                    elif base != "LDS" and where is not None:
                        value = warp.program.memory.load(where + 4 * k, mask)
                write(warp, next_register(i.operands[0], k), value, mask)
        elif base == "STS" and where_shared is not None:
            for k in range(words):
                name = i.operands[-1]
                value = warp.registers.get(next_register(name, k), ZERO)
                warp.shared.store(where_shared + 4 * k, mask, value)
        elif base == "LDGSTS" and where_shared is not None:
            for k in range(words):
                value = None if where is None else warp.program.memory.load(where + 4 * k, takes_part)
                warp.shared.store(where_shared + 4 * k, mask, value)
        elif i.operands and base in ("ATOMG", "ATOM", "ATOMS"):
            for text in i.operands[:2]:
                if text.startswith("R"):
                    write(warp, text, None, mask)
        return access

    return execute


def _matrix_wavefronts(addresses: Any, matrices: int) -> int:
    """Return the wavefronts of LDSM or STSM: eight rows of 16 bytes for each matrix."""
    total = 0
    for first in range(0, 8 * matrices, 8):
        words = np.unique(addresses[first : first + 8, None] // 4 + np.arange(4))
        total += int(np.bincount(words % 32).max())
    return total


def _decode_all(code: list[Instruction]) -> list[tuple[Instruction, str, Callable[[Any], Value] | None, Any]]:
    out: list[tuple[Instruction, str, Callable[[Any], Value] | None, Any]] = []
    for i in code:
        guard = read_predicate(i.guard) if i.guard and i.guard not in ("PT", "UPT") else None
        if i.base in SHARED_OPS | GLOBAL_OPS:
            out.append((i, "memory", guard, _execute_memory(i)))
        elif i.base in CONTROL_OPS:
            out.append((i, i.base, guard, None))
        else:
            out.append((i, "", guard, decode(i)))
    return out


class Interpreter:
    """Executes the warps of blocks of one program."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._decoded = _decode_all(program.code)
        self._index = {i.address: k for k, i in enumerate(program.code)}

    def block(self, number: int, limit: int = 3_000_000) -> list[Path]:
        """Return the paths of the warps of a block.

        Raises:
            RuntimeError: a warp executes more than `limit` instructions.
        """
        shared = SharedMemory()
        warps = [Warp(self.program, number, warp, shared) for warp in range(self.program.num_warps)]
        while any(not warp.is_done for warp in warps):
            for warp in warps:
                if not warp.is_done:
                    self._run_to_barrier(warp, limit)
        return [warp.path for warp in warps]

    def _run_to_barrier(self, warp: Warp, limit: int) -> None:
        path = warp.path
        while True:
            if len(path.indices) > limit:
                where = self.program.code[warp.at]
                raise RuntimeError(
                    f"interpreter: expected at most {limit} instructions a warp; a loop at {where} goes on"
                )
            i, kind, guard, run = self._decoded[warp.at]
            condition = guard(warp) if guard is not None else TRUE
            mask = warp.active if condition is None else warp.active & condition
            path.indices.append(warp.at)
            warp.at += 1

            if kind == "":
                if mask.any():
                    run(warp, mask)
            elif kind == "memory":
                if mask.any():
                    path.accesses[len(path.indices) - 1] = run(warp, mask)
                else:
                    path.accesses[len(path.indices) - 1] = Access()
            elif kind == "BAR":
                if mask.any():
                    number = warp.registers.get(i.operands[0]) if i.operands[0].startswith("R") else None
                    if number is not None:
                        path.barriers[len(path.indices) - 1] = int(number[0])
                    return
            elif kind == "UCGABAR_WAIT":
                return
            elif kind in ("BRA", "JMP", "CALL"):
                self._branch(warp, i, condition)
            elif kind == "EXIT":
                if condition is None and i.guard:
                    path.guesses[i.address] = path.guesses.get(i.address, 0) + 1
                    continue
                if self._exit(warp, mask):
                    return
            elif kind == "BSSY":
                target = self._index.get(int(i.operands[1].strip("`()"), 16), warp.at)
                warp.stack.append({"name": i.operands[0], "mask": warp.active, "pending": [], "resume": target})
            elif kind == "BSYNC":
                self._reconverge(warp, i.operands[0])
            elif kind == "WARPSYNC":
                self._gather(warp)
            elif kind == "RET":
                name = i.operands[0].split()[0]
                value = warp.registers.get(name)
                if value is not None and int(value[0]) in self._index:
                    warp.at = self._index[int(value[0])]

    def _branch(self, warp: Warp, i: Instruction, condition: Value) -> None:
        if ".DIV" in i.op:  # taken by a warp whose lanes are apart
            return
        operands = list(i.operands)
        if operands and is_predicate(operands[0]):
            condition = both(condition, read_predicate(operands.pop(0))(warp))
            if condition is not None and not condition.any():
                return
        found = re.search(r"0x([0-9a-f]+)", operands[-1])
        if found is None or int(found[1], 16) not in self._index:
            return
        target = int(found[1], 16)
        index = self._index[target]

        if condition is None:
            passed = warp.path.guesses[i.address] = warp.path.guesses.get(i.address, 0) + 1
            # A slow path is called for numbers that a fast one cannot do.
            skips_call = any(other.base == "CALL" for other in self.program.code[warp.at : index])
            if skips_call or passed % SPINS == 0:
                warp.at = index
            return
        taken = condition & warp.active
        if not taken.any():
            return
        if taken[warp.active].all():
            warp.at = index
            return
        pending = warp.stack[-1]["pending"] if warp.stack else warp.pending
        pending.append((index, taken))
        warp.active = warp.active & ~taken

    def _gather(self, warp: Warp) -> None:
        """At a WARPSYNC let the lanes that went elsewhere come here, too."""
        here = warp.at - 1
        elsewhere = (frame["pending"] for frame in reversed(warp.stack) if frame["pending"])
        waiting = warp.pending or next(elsewhere, [])
        gathered = warp.gathered.pop(here, FALSE)
        if not waiting:
            warp.active = warp.active | gathered
            return
        warp.gathered[here] = warp.active | gathered
        warp.at, warp.active = waiting.pop()

    def _reconverge(self, warp: Warp, name: str) -> None:
        while warp.stack and warp.stack[-1]["name"] != name:
            warp.stack.pop()
        if not warp.stack:
            return
        frame = warp.stack[-1]
        if frame["pending"]:
            warp.at, warp.active = frame["pending"].pop()
            return
        warp.stack.pop()
        warp.active = frame["mask"]
        warp.at = max(warp.at, frame["resume"])

    def _exit(self, warp: Warp, mask: Lanes) -> bool:
        """Take lanes out; return True if the warp has ended."""
        for frame in warp.stack:
            frame["mask"] = frame["mask"] & ~mask
        warp.active = warp.active & ~mask
        if warp.active.any():
            return False
        for frame in reversed(warp.stack):
            if frame["pending"]:
                warp.at, warp.active = frame["pending"].pop()
                return False
            if frame["mask"].any():
                break
        if warp.pending:
            warp.at, warp.active = warp.pending.pop()
            return False
        warp.is_done = True
        return True
