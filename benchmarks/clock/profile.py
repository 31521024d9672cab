"""Show where a warp of a program spends its cycles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from .interpret import Path, Program
from .machine import Multiprocessor, Static, _Warp, prepare


class _Logged(Multiprocessor):
    """A multiprocessor that notes when its first warp issues what."""

    def __init__(self, code: Sequence[Static]) -> None:
        super().__init__(code)
        self.log: list[tuple[float, int]] = []
        self._first: _Warp | None = None

    def _execute(self, warp: _Warp, scheduler: int, now: float) -> None:
        if self._first is None:
            self._first = warp
        if warp is self._first:
            self.log.append((now, warp.path.indices[warp.at]))
        super()._execute(warp, scheduler, now)


def profile(program: Program, paths: list[Path], lines: int = 25) -> str:
    """Return the instructions before which the first warp waits longest, and the accesses with bank conflicts."""
    machine = _Logged(prepare(program.code))
    run = machine.play([paths])
    waited: Counter[int] = Counter()
    times: Counter[int] = Counter()
    before = 0.0
    for now, index in machine.log:
        waited[index] += round(now - before)
        times[index] += 1
        before = now

    out = [
        f"one program: {run.cycles:.0f} cycles, {run.issued} instructions, shared-memory pipe busy "
        f"{run.shared_cycles:.0f} cycles, {run.sectors} sectors asked of L2, {run.cold_sectors} cold",
        "cycles before it, times, instruction (first warp)",
    ]
    out += [f"{cycles:8d} {times[index]:5d}  {program.code[index]}" for index, cycles in waited.most_common(lines)]

    conflicts: Counter[tuple[int, int]] = Counter()
    for position, access in paths[0].accesses.items():
        if access.wavefronts > 4:
            conflicts[paths[0].indices[position], access.wavefronts] += 1
    out.append("wavefronts above 4 each, times, instruction")
    by_cost = sorted(conflicts.items(), key=lambda item: -item[0][1] * item[1])[:lines]
    out += [f"{waves:8d} {count:5d}  {program.code[index]}" for (index, waves), count in by_cost]
    return "\n".join(out)
