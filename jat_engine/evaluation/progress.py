"""Playing with a progress bar: steps of the running task, its episode and return."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from . import Agent, EpisodeResult, run_episodes

if TYPE_CHECKING:
    import gymnasium

    from ..envs import Task


def play_episodes(
    agent: Agent,
    processor: Any,
    env: gymnasium.Env[Any, Any],
    num_episodes: int,
    *,
    task: Task,
    position: int = 0,
    **options: Any,
) -> Iterator[EpisodeResult]:
    """`run_episodes` with a bar on standard error, if that is a terminal."""
    with tqdm(desc=task.name, unit="step", disable=None, leave=False, position=position) as bar:
        finished = 0

        def show(_: int, total: float) -> None:
            bar.set_postfix_str(f"episode {finished + 1}/{num_episodes}, return {total:.1f}", refresh=False)
            bar.update()

        episodes = run_episodes(agent, processor, env, num_episodes, task=task, on_step=show, **options)
        while True:
            with simulator_output():
                episode = next(episodes, None)
            if episode is None:
                return
            finished += 1
            yield episode


@contextlib.contextmanager
def simulator_output() -> Iterator[None]:
    """Standard output is for results; simulators, minigrid for one, print remarks there."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
