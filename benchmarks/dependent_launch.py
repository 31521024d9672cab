"""Check in machine code that no kernel touches, before it waits for earlier kernels, what those may write.

    python -m benchmarks.dependent_launch [--architectures 90 100] [--weights bfloat16 ...] [--for "one agent" ...]

With programmatic dependent launch a kernel begins while the previous one still runs, until `griddepcontrol.wait`
(ACQBULK in SASS). Before that it may read what no kernel of a step writes: weights, the step's inputs, and keys of
earlier steps. It must not write, end, or read anything else. The parameter that an address was computed from is found
by following registers from the constant bank where the parameters lie.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # read when a kernel is defined

import torch
import triton

from .kernel_variants import ROWS, WEIGHT_DTYPES, variants
from .triton_launches import Launch, compile_launch

ARCHITECTURES = (90, 100, 120)
PARAMETERS_AT = {80: 0x160, 87: 0x160, 90: 0x210, 100: 0x380, 120: 0x380}
"""Where a kernel's parameters begin in constant bank 0."""

CONSTANT = re.compile(
    r"(\w+_)?(weight|weights|scale|scales|bias|fc|table)_ptr"
    r"|(page_table|query_start|context_lens|start_offsets|slot_mapping|slots|positions)_ptr"  # copied in by the host
    r"|(source|target|head|head_bias)_ptrs_ptr|(source_sizes|value_starts|values|head_sizes)_ptr"
    r"|kv_(layer|scale|scales)_ptr"  # of earlier tokens, which tests/ptx/test_episodes.py checks byte by byte
)
"""Parameters that point to what no kernel of a step writes."""

_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")
_LABEL = re.compile(r"^\s*(\.L_\w+):", re.MULTILINE)
_ACCESS = re.compile(r"^(LDG|LDGSTS|LD|STG|ST|ATOMG?|REDG?|UBLKCP|UBLKRED|UTMA\w+)(\.|$)")
_READS = ("LDG", "LDGSTS", "LD", "UBLKCP", "UTMALDG")
_REGISTER = re.compile(r"\b(U?R)(\d+)\b")
_CONSTANT = re.compile(r"c\[0x0\]\[(0x[0-9a-f]+)\]")


def parameter_offsets(launch: Launch, arch: int) -> dict[int, str]:
    """Return where each parameter of a compiled launch lies in constant bank 0: offset -> name."""
    offsets, at = {}, PARAMETERS_AT[arch]
    for name, value in launch.arguments.items():
        parameter = next(p for p in launch.kernel.params if p.name == name)
        if parameter.is_constexpr or value is None:
            continue
        size = 8 if isinstance(value, torch.Tensor) else 4
        at = -(-at // size) * size
        offsets[at] = name
        at += size
    return offsets


def disassemble(cubin: bytes) -> str:
    """Return a cubin's SASS."""
    nvdisasm = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([str(nvdisasm), "-c", file.name], capture_output=True, text=True, check=True).stdout


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
    labels = {m[1]: sum(start < m.start() for start in starts) for m in _LABEL.finditer(sass)}
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
    for place in _CONSTANT.findall(rest):
        at = int(place, 16)
        found |= {name for offset, name in offsets.items() if offset <= at < offset + 8 and at - offset in (0, 4)}
    if _ACCESS.match(opcode) or opcode.startswith(("LDS", "LDSM")):
        found = frozenset()
    kind, number = register[1], int(register[2])
    wide = 4 if ".128" in opcode else 2 if ".64" in opcode or ".WIDE" in opcode else 1
    for part in range(wide):
        origins[f"{kind}{number + part}"] = found


def check_variants(
    arch: int, weight_dtypes: Iterable[torch.dtype] = WEIGHT_DTYPES, sizes: Iterable[str] = tuple(ROWS)
) -> tuple[int, list[str]]:
    """Return how many kernels were checked, and what is wrong with them, in words."""
    seen: set[Any] = set()
    wrong = []
    for weight_dtype in weight_dtypes:
        for size in sizes:
            for launch in variants(weight_dtype, ROWS[size], pdl=True):
                compiled = compile_launch(launch, arch)
                if compiled.hash in seen:
                    continue
                seen.add(compiled.hash)
                messages = early_accesses(disassemble(compiled.asm["cubin"]), parameter_offsets(launch, arch))
                dtype = str(weight_dtype).removeprefix("torch.")
                wrong += [f"{launch.name} ({dtype}, {size}, sm_{arch}): {message}" for message in messages]
    return len(seen), wrong


def main() -> None:
    parser = argparse.ArgumentParser(description="Check what kernels access before they wait for earlier ones.")
    parser.add_argument("--architectures", type=int, nargs="+", default=ARCHITECTURES, choices=ARCHITECTURES)
    parser.add_argument("--weights", nargs="+", default=[str(d).removeprefix("torch.") for d in WEIGHT_DTYPES])
    parser.add_argument("--for", nargs="+", default=list(ROWS), choices=ROWS, dest="sizes")
    options = parser.parse_args()

    total, wrong = 0, []
    for arch in options.architectures:
        count, messages = check_variants(arch, [getattr(torch, name) for name in options.weights], options.sizes)
        total += count
        wrong += messages
    if wrong:
        raise SystemExit("\n".join(wrong))
    names = ", ".join(f"sm_{arch}" for arch in options.architectures)
    print(f"Triton {triton.__version__}, {names}: {total} kernels touch nothing too early.")


if __name__ == "__main__":
    main()
