"""Predict a step of the persistent kernel: cycles per phase from its SASS, barriers at their readings, the stream.

The published size in bfloat16 is compiled with a marker at each phase (JAT_TRACE=2). Its blocks are interpreted with
the arguments a launch would pass; every wait for other blocks is over at once, and costs what hardware.py says.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .hardware import (
    CLOCK_GHZ,
    CLUSTER_BARRIER_US,
    PACKET_US,
    PERSISTENT_LAUNCH_US,
    PHASE_FACTOR,
    Gpu,
    cycles_us,
)
from .interpret import PARAMETERS, Interpreter, Program
from .machine import Multiprocessor, prepare
from .memory import WARM, GlobalMemory, as_words
from .phases import PHASES, START
from .sass import disassemble

FOLDER = Path(__file__).parent
SOURCES = FOLDER.parent.parent / "csrc" / "cuda"

VECTORS, GRID_WAITS, CLUSTER_WAITS = 2, (3,), (1, 4, 7, 10)
"""Phases that run while other blocks' numbers are on their way, or wait for them: a reading takes the place of their
cycles."""
FINISH = 15
_HIDDEN_US = {
    VECTORS: PACKET_US,
    FINISH: PERSISTENT_LAUNCH_US,
    **dict.fromkeys(CLUSTER_WAITS, CLUSTER_BARRIER_US),
}
"""Microseconds of a phase that are in a reading already; only more than these count.

FINISH runs while the last store is on its way to the host: a kernel's own duration is longer by it, a call's is not.
"""


@dataclass(frozen=True)
class Phase:
    """A phase of the slowest block.

    Attributes:
        name: of the phase.
        times: it occurs in a step.
        cycles: of all its occurrences together.
    """

    name: str
    times: int
    cycles: int


@dataclass(frozen=True)
class PersistentStep:
    """Hold what the clock found for the persistent kernel.

    Attributes:
        num_blocks, cluster_size: of the launch.
        context: cached tokens.
        phases: by where they occur; those that wait for others have a reading instead.
        grid_barriers, cluster_barriers: of a step.
        bytes_per_step: from device memory.
        ring_bytes: of a block's ring.
        instructions: that a block issues.
        guesses: branches on unknown values.
    """

    num_blocks: int
    cluster_size: int
    context: int
    phases: tuple[Phase, ...]
    grid_barriers: int
    cluster_barriers: int
    bytes_per_step: int
    ring_bytes: int
    instructions: int
    guesses: int

    @property
    def compute_us(self) -> float:
        """Return the microseconds of all phases that do not wait, by their cycles and what the clock does not see."""
        return PHASE_FACTOR * cycles_us(sum(phase.cycles for phase in self.phases))

    @property
    def waits_us(self) -> float:
        """Return the microseconds of all waits for other blocks; what a block does meanwhile takes less."""
        return self.grid_barriers * PACKET_US + self.cluster_barriers * CLUSTER_BARRIER_US

    def stream_us(self, gpu: Gpu) -> float:
        """Return the microseconds that the step's bytes take at least."""
        return gpu.memory_us(self.bytes_per_step)

    def total_us(self, gpu: Gpu) -> float:
        """Return the predicted step: the chain of phases and waits, or the stream if that is longer, and the launch.

        Loads run ahead as far as the ring reaches; a block's bytes are spread over its phases, so the two overlap but
        for the first piece.
        """
        return PERSISTENT_LAUNCH_US + max(self.compute_us + self.waits_us, self.stream_us(gpu))


def compile_step(sources: Path = SOURCES) -> bytes:
    """Return the cubin of the persistent kernel with its markers.

    Args:
        sources: folder of the kernel's files.

    Raises:
        FileNotFoundError: there is no nvcc.
        RuntimeError: it does not compile.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "step.cubin"
        source = str(FOLDER / "published_step.cu")
        _run(["nvcc", "-std=c++17", "-O3", "-cubin", "-arch=sm_90a", f"-I{sources}", "-o", str(target), source])
        return target.read_bytes()


def arguments(num_blocks: int, cluster_size: int, context: int, num_layers: int) -> dict[str, tuple[int, bytes]]:
    """Return the regions that arguments.cpp prints: address and bytes by name."""
    files = [str(FOLDER / "arguments.cpp"), str(SOURCES / "layout.cpp")]
    numbers = [str(number) for number in (num_blocks, cluster_size, context, num_layers)]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "arguments"
        _run(["c++", "-std=c++17", "-O1", f"-I{SOURCES}", "-o", str(program), *files])
        raw = subprocess.run([program, *numbers], capture_output=True, check=True).stdout

    regions: dict[str, tuple[int, bytes]] = {}
    at = 0
    while at < len(raw):
        name = raw[at : at + 16].rstrip(b"\0").decode()
        address, size = struct.unpack_from("<QQ", raw, at + 16)
        regions[name] = address, raw[at + 32 : at + 32 + size]
        at += 32 + size
    return regions


def _run(command: list[str]) -> None:
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(f"clock: {command[0]} is not on the PATH")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stderr}")


def load_step(
    num_blocks: int, cluster_size: int, context: int, num_layers: int = 12, cubin: bytes | None = None
) -> tuple[Program, dict[str, tuple[int, bytes]]]:
    """Return the kernel with its arguments and memory, and the regions of `arguments`."""
    regions = arguments(num_blocks, cluster_size, context, num_layers)
    memory = GlobalMemory()
    for address, content in regions.values():
        if address:
            memory.add(address, len(content), WARM, as_words(np.frombuffer(content, np.uint8)))
    model, inputs = regions["model"][1], regions["input"][1]
    constants = bytes(PARAMETERS) + model + bytes(-len(model) % 8) + inputs
    (code,) = disassemble(cubin if cubin is not None else compile_step()).values()
    return Program(code, {0: constants}, (num_blocks, 1, 1), 13, memory), regions


def clock_persistent(
    num_blocks: int = 128, cluster_size: int = 8, context: int = 505, num_layers: int = 12,
    blocks: Sequence[int] | None = None, cubin: bytes | None = None,
) -> PersistentStep:  # fmt: skip
    """Clock the persistent kernel.

    Args:
        num_blocks: of the launch.
        cluster_size: blocks of a cluster.
        context: cached tokens.
        num_layers: of the model; all are alike but for their windows.
        blocks: those to play; each phase counts as its slowest. By default the last of a cluster with a head, which
            also has the new keys, and the last of all, which may have more neurons.
        cubin: of `compile_step`; compiled if not given.

    Raises:
        FileNotFoundError, RuntimeError: as `compile_step`.
    """
    program, regions = load_step(num_blocks, cluster_size, context, num_layers, cubin)
    interpreter = Interpreter(program)
    statics = prepare(program.code)
    chosen = blocks if blocks is not None else (cluster_size - 1, num_blocks - 1)
    played = []
    instructions = guesses = 0
    for block in chosen:
        paths = interpreter.block(block)
        run = Multiprocessor(statics).play([paths])
        instructions = max(instructions, run.issued)
        guesses = max(guesses, sum(len(path.guesses) for path in paths[:-1]))
        played.append(spans_of([marks for marks in run.marks if marks], run.cycles))

    bytes_per_step, ring_bytes = struct.unpack("<qq", regions["bytes"][1])
    grid_barriers, _ = struct.unpack("<ii", regions["counts"][1])
    phases = slowest_phases(played)
    return PersistentStep(
        num_blocks, cluster_size, context, phases, grid_barriers,
        max(sum(1 for number, _ in spans if number in CLUSTER_WAITS) for spans in played),
        bytes_per_step, ring_bytes, instructions, guesses,
    )  # fmt: skip


def spans_of(marks: Sequence[Sequence[tuple[int, float]]], end: float) -> list[tuple[int, float]]:
    """Return the phases a block passes, with cycles: from its last warp's mark to the last warp's next one.

    The first is what comes before any mark.
    """
    sequences = {tuple(number for number, _ in warp) for warp in marks}
    if len(sequences) != 1:
        raise RuntimeError(f"clock: expected all warps to pass the same phases, got {len(sequences)} orders")
    numbers = [number for number, _ in marks[0]]
    times = [max(warp[k][1] for warp in marks) for k in range(len(numbers))] + [end]
    return [(START, times[0]), *((number, times[k + 1] - times[k]) for k, number in enumerate(numbers))]


def slowest_phases(played: Sequence[Sequence[tuple[int, float]]]) -> tuple[Phase, ...]:
    """Return the phases of the slowest block between any two grid barriers, summed over a step."""
    sums: dict[int, float] = {}
    times: dict[int, int] = {}
    split = [_between(spans) for spans in played]
    for parts in zip(*split, strict=True):
        slowest = max(parts, key=lambda part: sum(cycles for number, cycles in part if number not in CLUSTER_WAITS))
        for number, cycles in slowest:
            times[number] = times.get(number, 0) + 1
            hidden = _HIDDEN_US.get(number, 0.0) * CLOCK_GHZ * 1e3
            sums[number] = sums.get(number, 0.0) + max(0.0, cycles - hidden)
    return tuple(
        Phase(PHASES.get(number, f"phase {number}"), times[number], round(sums[number])) for number in sorted(sums)
    )


def _between(spans: Sequence[tuple[int, float]]) -> list[list[tuple[int, float]]]:
    """Split a block's phases at its waits for the grid, which are left out."""
    out: list[list[tuple[int, float]]] = [[]]
    for number, cycles in spans:
        if number in GRID_WAITS:
            out.append([])
        else:
            out[-1].append((number, cycles))
    return out
