"""Show where the warps of a program spend their cycles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from .interpret import Path, Program
from .machine import Multiprocessor, Run, Static, WarpState, prepare


class _Logged(Multiprocessor):
    """A multiprocessor that notes when its warps issue what."""

    def __init__(self, code: Sequence[Static]) -> None:
        super().__init__(code)
        self.log: dict[int, list[tuple[float, int]]] = {}

    def execute(self, warp: WarpState, scheduler: int, now: float) -> None:
        """Issue the instruction, and note when."""
        self.log.setdefault(id(warp.path), []).append((now, warp.path.indices[warp.at]))
        super().execute(warp, scheduler, now)


def profile(program: Program, paths: list[Path], lines: int = 25) -> str:
    """Return the instructions before which the first warp waits longest, and the accesses with bank conflicts."""
    machine = _Logged(prepare(program.code))
    run = machine.play([paths])
    out = [_summary(run), "cycles before it, times, instruction (first warp)"]
    out += _waits(program, machine.log[id(paths[0])], lines)
    out.append("wavefronts above 4 each, times, instruction")
    out += _conflicts(program, paths[0], range(len(paths[0].indices)), lines)
    return "\n".join(out)


def profile_phase(program: Program, paths: list[Path], phase: int, lines: int = 25) -> str:
    """Return the same for one marked phase of a step, of the warp that is in it longest."""
    machine = _Logged(prepare(program.code))
    run = machine.play([paths])
    best: tuple[float, int] = 0.0, 0
    for w, marks in enumerate(run.marks):
        spans = [(n, marks[k + 1][1] - t) for k, (n, t) in enumerate(marks[:-1])]
        inside = sum(span for number, span in spans if number == phase)
        best = max(best, (inside, w))

    cycles, w = best
    log, positions, inside_now = machine.log[id(paths[w])], [], False
    coming = iter(run.marks[w])
    following = next(coming, None)
    for position, (now, _) in enumerate(log):
        if following is not None and now >= following[1]:
            inside_now = following[0] == phase
            following = next(coming, None)
        if inside_now:
            positions.append(position)
    steps = [(log[p][0] - log[p - 1][0], log[p][1]) for p in positions if p]
    out = [f"phase {phase}: warp {w}, {cycles:.0f} cycles in it, {len(positions)} instructions"]
    out += ["cycles before it, times, instruction", *_tally(program, steps, lines)]
    out += ["wavefronts above 4 each, times, instruction", *_conflicts(program, paths[w], positions, lines)]
    return "\n".join(out)


def _summary(run: Run) -> str:
    return (
        f"one program: {run.cycles:.0f} cycles, {run.issued} instructions, shared-memory pipe busy "
        f"{run.shared_cycles:.0f} cycles, {run.sectors} sectors asked of L2, {run.cold_sectors} cold"
    )


def _waits(program: Program, log: Sequence[tuple[float, int]], lines: int) -> list[str]:
    steps = [(now - log[k - 1][0] if k else now, index) for k, (now, index) in enumerate(log)]
    return _tally(program, steps, lines)


def _tally(program: Program, steps: Sequence[tuple[float, int]], lines: int) -> list[str]:
    waited: Counter[int] = Counter()
    times: Counter[int] = Counter()
    for cycles, index in steps:
        waited[index] += round(cycles)
        times[index] += 1
    return [f"{cycles:8d} {times[index]:5d}  {program.code[index]}" for index, cycles in waited.most_common(lines)]


def _conflicts(program: Program, path: Path, positions: Sequence[int], lines: int) -> list[str]:
    found: Counter[tuple[int, int]] = Counter()
    for position in positions:
        access = path.accesses.get(position)
        if access is not None and access.wavefronts > 4:
            found[path.indices[position], access.wavefronts] += 1
    by_cost = sorted(found.items(), key=lambda item: -item[0][1] * item[1])[:lines]
    return [f"{waves:8d} {count:5d}  {program.code[index]}" for (index, waves), count in by_cost]
