"""Progress of a run: bars on a terminal, lines in a log."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..envs import Task
from ..runs.plan import Item
from ..runs.play import Finished, Playing, PlayTiming
from .arguments import note
from .run_tables import failure_line

_LINE_SECONDS, _BAR_SECONDS = 10.0, 0.25
_MAX_BARS = 12


class RunProgress:
    """Show how far a run is, on standard error: a bar for each task that is played, and one of all episodes.

    The first failure of a task is said at once. Where standard error is no terminal, a line is printed every 10 s.

    Args:
        tasks: of the run.
        counts: name of the task -> episodes.
        items: episodes that are to be played.
    """

    def __init__(self, tasks: Sequence[Task], counts: Mapping[str, int], items: Sequence[Item]) -> None:
        missing = Counter(item.task for item in items)
        self._counts = counts
        self._finished = {task.name: counts[task.name] - missing[task.name] for task in tasks}
        self._returns: dict[str, list[float]] = {task.name: [] for task in tasks}
        self._failing: set[str] = set()
        self._num_items, self._num_done = len(items), 0
        self._shown = time.monotonic()
        self._bars: Progress | None = None
        self._ids: dict[str, int] = {}
        if sys.stderr.isatty():
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[detail]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._all = self._bars.add_task("episodes", total=sum(counts.values()), detail="")

    def __enter__(self) -> RunProgress:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def show(self, player: Playing, finished: Sequence[Finished]) -> None:
        """Show episodes that ended, and now and then the rate."""
        for one in finished:
            episode = one.ended.episode
            self._num_done += 1
            self._finished[episode.task] += 1
            if episode.return_ is not None:
                self._returns[episode.task].append(episode.return_)
            elif episode.task not in self._failing:
                self._failing.add(episode.task)
                self._note(failure_line(episode))
        now = time.monotonic()
        is_last = self._num_done == self._num_items
        if now - self._shown < (_LINE_SECONDS if self._bars is None else _BAR_SECONDS) and not is_last:
            return
        self._shown = now
        if self._bars is not None:
            self._show_bars(player)
        elif not is_last:
            note(f"{self._overall(player)}; playing {_names(player)}")
        if is_last and self._num_items:
            note(summary(player.timing))

    def _note(self, text: str) -> None:
        """Print a message above the bars."""
        if self._bars is None:
            note(text)
        else:
            self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _overall(self, player: Playing) -> str:
        timing = player.timing
        total = sum(self._counts.values())
        text = f"{sum(self._finished.values())} of {total} episodes, {timing.rate:,.0f} steps/s ({_sides(timing)})"
        left = player.expected_seconds
        if left is not None:
            text += f", about {_duration(left)} left"
        return text

    def _show_bars(self, player: Playing) -> None:
        assert self._bars is not None, "on a terminal"
        self._bars.update(
            self._all,
            completed=sum(self._finished.values()),
            detail=self._overall(player),
        )
        running = list(dict.fromkeys(item.task for item in player.running))[:_MAX_BARS]
        for name in [name for name in self._ids if name not in running]:
            self._bars.remove_task(self._ids.pop(name))  # type: ignore[arg-type]
        for name in running:
            returns = self._returns[name]
            detail = f"return {sum(returns) / len(returns):.4g}" if returns else ""
            if name not in self._ids:
                self._ids[name] = self._bars.add_task(f"  {name}", total=self._counts[name], detail="")
            self._bars.update(self._ids[name], completed=self._finished[name], detail=detail)  # type: ignore[arg-type]


def _names(player: Playing) -> str:
    running = Counter(item.task for item in player.running)
    shown = [f"{name} ({count})" if count > 1 else name for name, count in running.most_common(4)]
    return ", ".join(shown) + (f" and {len(running) - 4} more" if len(running) > 4 else "")


def _sides(timing: PlayTiming) -> str:
    return f"λ {timing.demand:,.0f}, μ {timing.supply:,.0f}"


def summary(timing: PlayTiming) -> str:
    """Return a line about the speed of a run, and which side limits it."""
    limit = "environments are" if timing.demand < timing.supply else "agent is"
    batch = timing.steps / max(timing.batches, 1)
    return (
        f"{timing.episodes} episodes, {timing.steps:,} steps in {_duration(timing.seconds)}: {timing.rate:,.0f} "
        f"steps/s. The environments could take λ = {timing.demand:,.0f} steps/s, the agent μ = {timing.supply:,.0f} "
        f"in batches of {batch:.1f}: the {limit} the limit"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
