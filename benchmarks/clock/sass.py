"""Read the machine code (SASS) of a cubin with the control words the compiler gave each instruction."""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton

NO_SCOREBOARD = 7

_FUNCTION = re.compile(r"\s*Function : (\S+)")
_TEXT = re.compile(r"\s+/\*([0-9a-f]{4,6})\*/\s+(.*?)\s*;?\s+/\* 0x([0-9a-f]{16}) \*/")
_CONTROL = re.compile(r"\s+/\* 0x([0-9a-f]{16}) \*/")
_OPERANDS = re.compile(r",\s*(?![^\[]*\])")


@dataclass(frozen=True)
class Instruction:
    """An instruction and its control word.

    Attributes:
        address: in bytes from the function's start.
        guard: predicate that a lane needs, e.g. "!P0"; "" without one.
        op: opcode with its modifiers, e.g. "LDG.E.128".
        operands: as written, modifiers such as ".reuse" taken away.
        stall: cycles until the warp may issue its next instruction.
        write: scoreboard that is released when the result is there; 7 if none.
        read: scoreboard that is released when the operands have been read; 7 if none.
        wait: mask of the scoreboards this instruction waits for.
    """

    address: int
    guard: str
    op: str
    operands: tuple[str, ...]
    stall: int
    write: int
    read: int
    wait: int

    @property
    def base(self) -> str:
        """The opcode without modifiers."""
        return self.op.split(".", 1)[0]

    def __str__(self) -> str:
        guard = f"@{self.guard} " if self.guard else ""
        return f"{self.address:05x} {guard}{self.op} {', '.join(self.operands)}"


def tool(name: str) -> str:
    """Return the path of a program of CUDA that comes with Triton's package, e.g. "cuobjdump"."""
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def parse(listing: str) -> dict[str, list[Instruction]]:
    """Return the instructions of every function of a listing by `cuobjdump -sass`, by mangled name."""
    functions: dict[str, list[Instruction]] = {}
    code: list[Instruction] = []
    pending: tuple[int, str] | None = None

    for line in listing.splitlines():
        if found := _FUNCTION.match(line):
            code = functions.setdefault(found[1], [])
        elif found := _TEXT.match(line):
            pending = (int(found[1], 16), found[2].rstrip(" ;"))
        elif (found := _CONTROL.match(line)) and pending is not None:
            code.append(_instruction(*pending, int(found[1], 16) >> 41))
            pending = None
    return functions


def _instruction(address: int, text: str, control: int) -> Instruction:
    guard = ""
    text = text.strip("{} ")
    if text.startswith("@"):
        guard, text = text[1:].split(None, 1)
    op, _, rest = text.partition(" ")
    rest = re.sub(r"\.reuse|&\w+=\S+|\?\w+", "", rest).strip()
    operands = tuple(part.strip() for part in _OPERANDS.split(rest)) if rest else ()
    return Instruction(
        address, guard, op, operands, control & 15, control >> 5 & 7, control >> 8 & 7, control >> 11 & 63
    )  # fmt: skip


@functools.lru_cache(maxsize=64)
def disassemble(cubin: bytes) -> dict[str, list[Instruction]]:
    """Return the instructions of every function of a cubin, by mangled name.

    Raises:
        RuntimeError: cuobjdump cannot read it.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool("cuobjdump"), "-sass", file.name], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"cuobjdump -sass: expected a listing, got {done.stderr!r}")
    return parse(done.stdout)
