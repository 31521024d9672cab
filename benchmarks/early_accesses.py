"""Find in machine code what a kernel accesses before it waits for earlier kernels, see dependent_launch.py.

The parameter that an address was computed from is found by following registers from the constant bank where a kernel's
parameters lie.
"""

from __future__ import annotations

import re
from bisect import bisect_left

CONSTANT = re.compile(
    r"(\w+_)?(weight|weights|scale|scales|bias|fc|table)_ptr|(squeeze|excite)(_in)?_ptr"
    r"|(page_table|query_start|context_lens|start_offsets|slot_mapping|slots|positions)_ptr"  # copied in by the host
    r"|(source|target|head|head_bias)_ptrs_ptr|(source_sizes|value_starts|values|tokens|rewards|head_sizes|log_noise|has_noise)_ptr"
    r"|targets of head(_bias)?_ptrs_ptr"  # not those of source_ptrs and target_ptrs, which encoders write
    r"|kv_(layer|scale|scales)_ptr"  # of earlier tokens, which tests/ptx/test_episodes.py checks byte by byte
)
"""Parameters that point to what no kernel of a step writes."""

_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")
_LABEL = re.compile(r"^\s*(\.L_\w+):", re.MULTILINE)
_ACCESS = re.compile(r"^(LDG|LDGSTS|LD|STG|ST|ATOMG?|REDG?|UBLKCP|UBLKRED|UTMA\w+)(\.|$)")
_READS = ("LDG", "LDGSTS", "LD", "UBLKCP", "UTMALDG")
_REGISTER = re.compile(r"\b(U?R)(\d+)\b")
_CONSTANT = re.compile(r"c\[0x0\]\[(0x[0-9a-f]+)\]")


def early_accesses(sass: str, offsets: dict[int, str]) -> list[str]:
    """Return what is wrong before the wait, in words.

    Args:
        sass: of one kernel.
        offsets: of `parameter_offsets`.
    """
    code = [match.groups() for match in _INSTRUCTION.finditer(sass)]
    reached = _reached_before_the_wait(sass, code)
    if not any(opcode.startswith("ACQBULK") for _, _, opcode, _ in code):
        return ["it does not wait for earlier kernels"]

    wrong: dict[str, None] = {}
    origins: dict[str, frozenset[str]] = {}
    for _ in range(2):  # a second time for pointers that a loop carries on
        for index in sorted(reached):
            _, _, opcode, operands = code[index]
            if opcode.startswith("EXIT"):
                wrong["it ends before it waits"] = None
            elif _ACCESS.match(opcode):
                message = _judge(opcode, operands, origins)
                if message:
                    wrong[message] = None
            _follow(opcode, operands, origins, offsets)
    return list(wrong)


def _reached_before_the_wait(sass: str, code: list[tuple[str, ...]]) -> set[int]:
    """Return the indices of instructions that can be executed before ACQBULK."""
    starts = [match.start() for match in _INSTRUCTION.finditer(sass)]
    labels = {m[1]: bisect_left(starts, m.start()) for m in _LABEL.finditer(sass)}
    reached: set[int] = set()
    waiting = [0]
    while waiting:
        index = waiting.pop()
        while index < len(code) and index not in reached:
            _, guard, opcode, operands = code[index]
            if opcode.startswith("ACQBULK"):
                break
            reached.add(index)
            if opcode.startswith(("BRA", "BRX", "CALL", "BSSY")):
                waiting += [labels[name] for name in re.findall(r"\.L_\w+", operands) if name in labels]
            if opcode.startswith(("BRA", "EXIT", "RET")) and not guard:
                break
            index += 1
    return reached


def _registers(text: str) -> list[str]:
    """Return the registers in operands; both of a pair of 64 bits."""
    names = []
    for kind, number in _REGISTER.findall(text):
        names += [f"{kind}{number}", f"{kind}{int(number) + 1}"] if f"{kind}{number}.64" in text else [kind + number]
    return names


def _judge(opcode: str, operands: str, origins: dict[str, frozenset[str]]) -> str:
    brackets = re.findall(r"\[([^\]]*)\]", re.sub(r"desc\[[^\]]*\]", "", operands))
    address = brackets[-1] if opcode.startswith(_READS) else brackets[0]
    sources = frozenset().union(*(origins.get(name, frozenset()) for name in _registers(address)))
    pointers = {name for name in sources if name.endswith("_ptr")}
    pointers = {name for name in pointers if f"targets of {name}" not in pointers}
    what = opcode.partition(".")[0]
    if not what.startswith(_READS):
        return f"{what} to {' or '.join(sorted(pointers)) or 'an unknown address'} before the wait"
    if pointers and all(CONSTANT.fullmatch(name) for name in pointers):
        return ""
    return f"{what} from {' or '.join(sorted(pointers)) or 'an unknown address'} before the wait"


def _follow(opcode: str, operands: str, origins: dict[str, frozenset[str]], offsets: dict[int, str]) -> None:
    """Note which parameters the result of an instruction was computed from. What is loaded has none."""
    target, _, rest = operands.partition(",")
    register = _REGISTER.match(target.strip())
    if register is None or opcode.startswith(("STG", "ST.", "STS", "LDGSTS", "RED")):
        return
    found = frozenset().union(*(origins.get(name, frozenset()) for name in _registers(rest)))
    kind, number = register[1], int(register[2])
    if opcode.startswith(("LDC", "ULDC")) and ".128" in opcode and not _registers(rest):
        # Two parameters side by side.
        for place in _CONSTANT.findall(rest):
            for part in range(4):
                origins[f"{kind}{number + part}"] = _parameter_at(int(place, 16) + 4 * part, offsets)
        return
    for place in _CONSTANT.findall(rest):
        found |= _parameter_at(int(place, 16), offsets)
    if _ACCESS.match(opcode) or opcode.startswith(("LDS", "LDSM")):
        # Of a table of addresses, its name.
        found = frozenset(f"targets of {name}" for name in found if name.endswith("_ptrs_ptr"))
    wide = 4 if ".128" in opcode else 2 if ".64" in opcode or ".WIDE" in opcode else 1
    for part in range(wide):
        origins[f"{kind}{number + part}"] = found


def _parameter_at(at: int, offsets: dict[int, str]) -> frozenset[str]:
    """Return the name of the pointer of which a half lies at a place of the constant bank, if any does."""
    return frozenset(name for offset, name in offsets.items() if at - offset in (0, 4))
