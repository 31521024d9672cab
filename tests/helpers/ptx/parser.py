"""Parse the PTX of a kernel into instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache

_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")
_PARAMETER = re.compile(r"\.param\s+\.(\w+)[^,)]*?(\w+_param_\d+)")
_GUARD = re.compile(r"^@(!?)([%\w]+)\s+(.*)$", re.DOTALL)
_LABEL = re.compile(r"^(\$\w+):\s*")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_LINE_DIRECTIVE = re.compile(r"^\s*\.(loc|file)\b[^\n]*$", re.MULTILINE)


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        text: as it stands in the PTX, for messages.
        parts: of the opcode, e.g. ("ld", "global", "v4", "b32").
        operands: e.g. ("{%r1, %r2}", "[%rd1+16]").
        guard: the predicate it is executed under, and whether that is negated; None for always.
    """

    text: str
    parts: tuple[str, ...]
    operands: tuple[str, ...]
    guard: tuple[str, bool] | None

    @property
    def name(self) -> str:
        return self.parts[0]

    @property
    def type(self) -> str:
        return self.parts[-1]


@dataclass(frozen=True)
class Kernel:
    """A kernel's code.

    Attributes:
        name: of the entry.
        parameters: name and type, in order. Triton adds two of its own at the end.
        num_threads: of a block.
        code: all instructions.
        labels: name -> index into `code`.
    """

    name: str
    parameters: tuple[tuple[str, str], ...]
    num_threads: int
    code: tuple[Instruction, ...]
    labels: dict[str, int] = field(hash=False)

    @property
    def waits_for_grids(self) -> bool:
        """Return whether it was compiled for programmatic dependent launch."""
        return any(instruction.parts == ("griddepcontrol", "wait") for instruction in self.code)

    def count(self, *opcode: str) -> int:
        """Return how many instructions begin with these parts of an opcode."""
        return sum(instruction.parts[: len(opcode)] == opcode for instruction in self.code)


def register_names(operand: str) -> list[str]:
    """Return the elements of a vector operand, "{%r1, %r2}", or the operand itself."""
    return [name.strip() for name in operand.strip("{} ").split(",")]


@lru_cache(maxsize=512)
def parse(ptx: str) -> Kernel:
    """Parse a module with one kernel.

    Raises:
        ValueError: it has no entry, or no .reqntid.
    """
    begin = ptx.find(".entry")
    threads = re.search(r"\.reqntid\s+(\d+)", ptx)
    if begin < 0 or threads is None:
        raise ValueError(f"ptx: expected a kernel with .entry and .reqntid, got {ptx[:80]!r}")
    head, _, body = ptx[begin:].partition("{")
    name = re.match(r"\.entry\s+([\w$]+)", head)
    assert name is not None
    parameters = tuple((parameter, kind) for kind, parameter in _PARAMETER.findall(head))

    code: list[Instruction] = []
    labels: dict[str, int] = {}
    for statement in _body(body).split(";"):
        rest = statement.strip()
        while rest:
            if label := _LABEL.match(rest):
                labels[label[1]] = len(code)
                rest = rest[label.end() :]
            elif rest[0] in "{}":  # a scope, in inline assembly
                rest = rest[1:].lstrip()
            else:
                break
        if rest and not rest.startswith("."):
            code.append(_instruction(rest))
    return Kernel(name[1], parameters, int(threads[1]), tuple(code), labels)


def _body(text: str) -> str:
    """Return a function's body, up to its closing brace, without comments and line numbers."""
    text = _LINE_DIRECTIVE.sub("", _COMMENT.sub("", text))
    depth = 1
    for match in re.finditer(r"[{}]", text):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return text[: match.start()]
    raise ValueError("ptx: expected a closing brace at the end of the kernel")


def _instruction(text: str) -> Instruction:
    guard, rest = None, text
    if match := _GUARD.match(text):
        guard, rest = (match[2], match[1] == "!"), match[3]
    opcode, _, operands = rest.replace("\t", " ").replace("\n", " ").partition(" ")
    return Instruction(" ".join(text.split()), tuple(opcode.split(".")), tuple(_OPERAND.findall(operands)), guard)
