"""Play the warps of the blocks on one Hopper multiprocessor, cycle by cycle, by the compiler's control words.

Known: in-order issue, one instruction a cycle and scheduler; stall counts and scoreboards; throughput of the pipes;
wavefronts of shared memory; lines that a multiprocessor has already asked for; barriers of a block; asynchronous copies
and tensor-core groups. Not known: see `report.NOT_MODELLED`.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from .interpret import Path
from .memory import COLD
from .sass import Instruction

NUM_SCHEDULERS = 4

# Latencies in cycles, public micro-benchmarks of Hopper: shared memory 29, L1 hit 38, shuffle 24, mma m16n8k16 33.
SHARED_LATENCY = 29
SHUFFLE_LATENCY = 24
L1_LATENCY = 38
L2_LATENCY = 270
DRAM_LATENCY = 650
BARRIER_LATENCY = 20
READ_LATENCY = 12
"""From issue until the operands of a memory instruction have been read."""
LATENCY = {
    "MUFU": 22, "F2F": 22, "FCHK": 22, "I2F": 22, "F2I": 22, "I2FP": 12, "POPC": 22, "FLO": 22, "LDC": 38, "S2R": 25,
    "S2UR": 25, "R2UR": 12, "REDUX": 30, "HMMA": 34, "IMMA": 34, "SYNCS": 25, "CS2R": 12, "VOTEU": 12, "ELECT": 12,
    "UCGABAR": 25,
}  # fmt: skip
DEFAULT_LATENCY = 25
ATOMIC_LATENCY = 700

L2_BYTES_PER_CYCLE = 64
"""From the L2 cache to one multiprocessor, at most."""
TENSOR_LATENCY = 24
"""Added to the cycles a wgmma occupies the tensor core."""

# Cycles a warp's instruction occupies its pipe, of one scheduler's quarter of the multiprocessor.
_HALF = 2
_PIPES: dict[str, tuple[str, float]] = {
    **dict.fromkeys(("FADD", "FMUL", "FFMA", "FADD2", "FFMA2", "HFMA2", "HADD2", "HMUL2"), ("fma", 1.0)),
    **dict.fromkeys(("IMAD",), ("imad", _HALF)),
    **dict.fromkeys(("MUFU", "F2I", "I2F", "F2F", "POPC", "FLO", "BREV"), ("xu", 8.0)),
    **dict.fromkeys(("HMMA",), ("tensor", 6.5)),
    **dict.fromkeys(("IMMA",), ("tensor", 3.25)),
    **dict.fromkeys(
        ("IADD3", "LOP3", "ISETP", "SEL", "FSEL", "FMNMX", "FSETP", "SHF", "PRMT", "LEA", "VIADD", "MOV", "F2FP", "P2R",
         "R2P", "PLOP3", "SGXT", "VIMNMX", "VIADDMNMX", "VIMNMX3", "IABS", "I2FP", "VOTE", "BMSK", "FCHK"),
        ("alu", _HALF),
    ),
}  # fmt: skip
_MEMORY = frozenset(
    {"LDS", "STS", "LDSM", "STSM", "LDG", "STG", "LDGSTS", "ATOMS", "ATOMG", "RED", "LD", "ST", "ATOM", "CCTL"}
)
_KIND = {
    "plain": 0,
    "memory": 1,
    "barrier": 2,
    "copy_group": 3,
    "copy_wait": 4,
    "wgmma": 5,
    "wgmma_wait": 6,
    "pdl": 7,
    "mark": 8,
}


@dataclass
class Run:
    """Hold what a simulation found.

    Attributes:
        cycles: until the last warp is through.
        issued: instructions of all warps.
        shared_cycles: cycles the shared-memory pipe was busy.
        sectors: 32-byte sectors asked of the L2 cache.
        cold_sectors: of them, those in device memory.
        late_sectors: of them, those asked for after the programmatic wait.
        marks: for every warp, its cycles at the marks (PMTRIG) it passed.
        wait_cycles: when the last warp came to the programmatic wait; 0 without one.
    """

    cycles: float = 0.0
    issued: int = 0
    shared_cycles: float = 0.0
    sectors: int = 0
    cold_sectors: int = 0
    late_sectors: int = 0
    marks: list[list[tuple[int, float]]] = field(default_factory=list)
    wait_cycles: float = 0.0


@dataclass(frozen=True)
class Static:
    """An instruction as the machine needs it."""

    kind: int
    pipe: str
    occupies: float
    latency: int
    waits: tuple[int, ...]
    stall: int
    write: int
    read: int
    is_load: bool
    argument: int
    op: str


def _last_number(i: Instruction) -> int:
    return int(i.operands[-1], 0) if i.operands and i.operands[-1].startswith(("0x", "-")) else 0


def prepare(code: Sequence[Instruction]) -> list[Static]:
    """Return what the machine needs to know of each instruction."""
    return [_prepare(i) for i in code]


def _prepare(i: Instruction) -> Static:
    base, kind, argument = i.base, "plain", 0
    pipe, occupies = _PIPES.get(base, ("", 0.0))
    latency = LATENCY.get(base, DEFAULT_LATENCY)
    if base in _MEMORY:
        kind = "memory"
    elif base == "SHFL":
        kind, latency = "memory", SHUFFLE_LATENCY
    elif base == "BAR" and ".ARV" not in i.op:
        kind = "barrier"
        # A named barrier says how many threads it waits for; barrier 0 waits for all warps that have not ended.
        numbers = [int(text, 16) if text.startswith("0x") else 0 for text in i.operands]
        argument = numbers[0] << 16 | (numbers[1] // 32 if len(numbers) == 2 else 0)
    elif base == "LDGDEPBAR":
        kind = "copy_group"
    elif base == "DEPBAR" and i.operands and i.operands[0].startswith("SB"):
        kind, argument = "copy_wait", _last_number(i)
    elif base in ("HGMMA", "IGMMA", "QGMMA"):
        kind, pipe = "wgmma", "tensor"
        shape = i.op.split(".")[1].split("x")
        # 64 x N x 16 products of two bytes; A from shared memory takes at least 16 cycles.
        occupies = max(int(shape[1]) / 2, 16.0)
    elif i.op.startswith("WARPGROUP.DEPBAR"):
        kind, argument = "wgmma_wait", _last_number(i)
    elif base == "ACQBULK":
        kind = "pdl"
    elif base == "PMTRIG":
        kind, argument = "mark", _last_number(i).bit_length() - 1  # pmevent n sets bit n
    waits = tuple(b for b in range(6) if i.wait >> b & 1)
    return Static(
        _KIND[kind], pipe, occupies, latency, waits, max(1, i.stall), i.write, i.read,
        base in ("LDG", "LDGSTS", "LD"), argument, base,
    )  # fmt: skip


@dataclass
class WarpState:
    path: Path
    block: int
    at: int = 0
    ready: float = 0.0
    boards: list[float] = field(default_factory=lambda: [0.0] * 6)
    copies: float = 0.0
    groups: list[float] = field(default_factory=list)
    products: list[float] = field(default_factory=list)
    is_waiting: bool = False
    has_waited: bool = False
    marks: list[tuple[int, float]] = field(default_factory=list)
    through: float = 0.0


class Multiprocessor:
    """One multiprocessor with its pipes and the lines it has asked for."""

    def __init__(self, code: Sequence[Static], *, dram_latency: int = DRAM_LATENCY, released: float = 0.0) -> None:
        self._code = code
        self._dram_latency = dram_latency
        self._released = released
        self._pipes: list[dict[str, float]] = [{} for _ in range(NUM_SCHEDULERS)]
        self._shared_free = 0.0
        self._l2_free = 0.0
        self._arrives: dict[int, float] = {}
        self.run = Run()

    def play(self, blocks: Sequence[Sequence[Path]]) -> Run:
        """Run the blocks' warps together, from cycle 0.

        Args:
            blocks: paths of the warps of each block; warp w of a block is on scheduler w % 4.
        """
        warps = [WarpState(path, b) for b, paths in enumerate(blocks) for path in paths]
        owners: list[list[WarpState]] = [[] for _ in range(NUM_SCHEDULERS)]
        for k, warp in enumerate(warps):
            owners[k % NUM_SCHEDULERS].append(warp)
        self._barriers: dict[tuple[int, int], list[WarpState]] = {}
        self._members = [len(paths) for paths in blocks]
        self._alive = list(self._members)
        self._owner = {id(warp): k % NUM_SCHEDULERS for k, warp in enumerate(warps)}
        self._live = [[warp for warp in owned if warp.path.indices] for owned in owners]
        self._last: list[WarpState | None] = [None] * NUM_SCHEDULERS
        queue: list[tuple[float, int]] = [(0.0, k) for k in range(NUM_SCHEDULERS)]
        self._queue = queue
        self._next = [0.0] * NUM_SCHEDULERS

        while queue:
            now, scheduler = heapq.heappop(queue)
            if now != self._next[scheduler]:
                continue  # woken earlier in the meantime
            following = self._issue(scheduler, now)
            if following is not None:
                self._next[scheduler] = following
                heapq.heappush(queue, (following, scheduler))
            else:
                self._next[scheduler] = float("inf")

        stuck = [warp for live in self._live for warp in live]
        if stuck:
            raise RuntimeError(f"clock: expected all warps to end, {len(stuck)} wait at a barrier for ever")
        self.run.marks = [warp.marks for warp in warps]
        self.run.cycles = max((warp.through for warp in warps), default=0.0)
        return self.run

    def _wake(self, scheduler: int, when: float) -> None:
        if when < self._next[scheduler]:
            self._next[scheduler] = when
            heapq.heappush(self._queue, (when, scheduler))

    def _issue(self, scheduler: int, now: float) -> float | None:
        """Issue one instruction of this scheduler at `now` if a warp is ready; return when to look again."""
        best: WarpState | None = None
        soonest = float("inf")
        last = self._last[scheduler]
        pipes = self._pipes[scheduler]
        for warp in self._live[scheduler]:
            if warp.is_waiting:
                continue
            ready = warp.ready
            s = self._code[warp.path.indices[warp.at]]
            if s.pipe:
                free = pipes.get(s.pipe, 0.0)
                if free > ready:
                    ready = free
            if ready <= now:
                if best is None or warp is last:
                    best = warp
            elif ready < soonest:
                soonest = ready
        if best is None:
            return soonest if soonest != float("inf") else None
        self._last[scheduler] = best
        self.execute(best, scheduler, now)
        return now + 1

    def execute(self, warp: WarpState, scheduler: int, now: float) -> None:
        """Issue a warp's next instruction at the cycle `now`."""
        s = self._code[warp.path.indices[warp.at]]
        position = warp.at
        warp.at += 1
        self.run.issued += 1
        finished = now + s.latency
        read_at = now + READ_LATENCY
        if s.pipe and s.kind != 5:
            pipes = self._pipes[scheduler]
            start = max(now, pipes.get(s.pipe, 0.0))
            pipes[s.pipe] = start + s.occupies
            finished = start + max(s.latency, s.occupies)

        after = now + s.stall
        if s.kind == 1:
            finished, read_at = self._access(warp, s, position, now)
        elif s.kind == 3:
            warp.groups.append(max(warp.copies, now))
            finished = warp.copies
        elif s.kind == 4:
            if len(warp.groups) > s.argument:
                after = max(after, warp.groups[len(warp.groups) - 1 - s.argument] + 2)
        elif s.kind == 5:
            pipes = self._pipes[scheduler]
            start = max(now, pipes.get("tensor", 0.0))
            pipes["tensor"] = start + s.occupies
            warp.products.append(start + s.occupies + TENSOR_LATENCY)
        elif s.kind == 6:
            if len(warp.products) > s.argument:
                after = max(after, warp.products[len(warp.products) - 1 - s.argument] + 2)
        elif s.kind == 7:
            self.run.wait_cycles = max(self.run.wait_cycles, now)
            warp.has_waited = True
            after = max(after, self._released)
        elif s.kind == 8:
            warp.marks.append((s.argument, now))

        if s.write < 6:
            warp.boards[s.write] = max(warp.boards[s.write], finished)
        if s.read < 6:
            warp.boards[s.read] = max(warp.boards[s.read], read_at)
        warp.ready = after
        if warp.at >= len(warp.path.indices):
            self._end(warp, scheduler, max(after, max(warp.boards)))
            return
        if s.kind == 2:
            number = warp.path.barriers.get(position)
            self._arrive(warp, s.argument if number is None else s.argument & 0xFFFF | number << 16, after)
            return
        self._set_ready(warp)

    def _set_ready(self, warp: WarpState) -> None:
        """Add what the next instruction waits for."""
        s = self._code[warp.path.indices[warp.at]]
        for board in s.waits:
            if warp.boards[board] > warp.ready:
                warp.ready = warp.boards[board]

    def _arrive(self, warp: WarpState, barrier: int, now: float) -> None:
        waiting = self._barriers.setdefault((warp.block, barrier), [])
        warp.is_waiting = True
        warp.ready = now
        waiting.append(warp)
        self._open(warp.block, barrier)

    def _open(self, block: int, barrier: int) -> None:
        waiting = self._barriers.get((block, barrier), [])
        if not waiting or len(waiting) < (barrier & 0xFFFF or self._alive[block]):
            return
        when = max(warp.ready for warp in waiting) + BARRIER_LATENCY
        for warp in waiting:
            warp.is_waiting = False
            warp.ready = when
            self._set_ready(warp)
            self._wake(self._owner[id(warp)], warp.ready)
        waiting.clear()

    def _end(self, warp: WarpState, scheduler: int, when: float) -> None:
        warp.through = when
        self._live[scheduler].remove(warp)
        self._alive[warp.block] -= 1
        for block, barrier in list(self._barriers):
            if block == warp.block:
                self._open(block, barrier)

    def _access(self, warp: WarpState, s: Static, position: int, now: float) -> tuple[float, float]:
        """Return when the data of a memory instruction are there, and when its operands have been read."""
        access = warp.path.accesses.get(position)
        waves = 1 if access is None else access.wavefronts
        if s.op == "CCTL":
            waves = 1
        start = max(now, self._shared_free)
        self._shared_free = start + waves
        self.run.shared_cycles += waves
        read_at = start + READ_LATENCY
        if access is None or access.sectors is None:
            latency = s.latency if s.op == "SHFL" else SHARED_LATENCY
            return start + latency + max(0, waves - 1), read_at

        if s.op in ("ATOMG", "ATOM"):
            return start + ATOMIC_LATENCY, read_at
        arrived = start + L1_LATENCY
        asked = 0
        for sector in access.sectors:
            known = self._arrives.get(sector) if s.is_load and sector >= 0 else None
            if known is not None:
                arrived = max(arrived, known)
                continue
            asked += 1
            is_cold = access.place == COLD
            self._l2_free = max(self._l2_free, start) + 32 / L2_BYTES_PER_CYCLE
            when = self._l2_free + (self._dram_latency if is_cold else L2_LATENCY)
            self.run.sectors += 1
            self.run.cold_sectors += is_cold
            self.run.late_sectors += warp.has_waited
            if s.is_load:
                if sector >= 0:
                    self._arrives[sector] = when
                arrived = max(arrived, when)
        if s.op == "LDGSTS":
            warp.copies = max(warp.copies, arrived)
        return (arrived if s.is_load else start + READ_LATENCY), read_at
