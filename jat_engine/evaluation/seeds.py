"""Seeds of evaluations, apart from those of demonstrations."""

from __future__ import annotations

from collections.abc import Iterable

from ..checkpoint.trained_tasks import TrainedTask

EVALUATION_SEED = 1_000_000
"""Default seed of the first episode. `jat-engine collect` begins at 0."""


def choose_seed(trained: Iterable[TrainedTask], num_episodes: int) -> int:
    """Return the first multiple of `EVALUATION_SEED` from which no episode begins as a demonstration.

    Args:
        trained: tasks of the checkpoint.
        num_episodes: episodes of a task, with consecutive seeds.
    """
    runs = sorted(run for task in trained for run in task.seeds)
    seed = EVALUATION_SEED
    for first, last in runs:
        if first < seed + num_episodes and seed <= last:
            seed = (last // EVALUATION_SEED + 1) * EVALUATION_SEED
    return seed


def overlap_warning(trained: Iterable[TrainedTask], first: int, num_episodes: int) -> str:
    """Return a warning about evaluated episodes that begin as demonstrations do; "" if there are none.

    Args:
        trained: tasks that are evaluated, as the checkpoint describes them.
        first: seed of the first episode.
        num_episodes: episodes of a task.
    """
    trained = list(trained)
    names = [task.name for task in trained if task.overlaps(first, first + num_episodes - 1)]
    if not names:
        return ""
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return (
        f"warning: episodes of {shown} begin as demonstrations of the training did (seeds from {first}); without "
        f"--seed, others are taken, from {choose_seed(trained, num_episodes)}"
    )
