"""Progress bars for episodes that are played, and redirection of the simulators' output."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    import gymnasium

    from ..envs import Task
    from .rollout import Agent, EpisodeResult


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
    """Play episodes as `run_episodes` does, with a progress bar if standard error is a terminal.

    Args:
        agent: as in `run_episodes`.
        processor: as in `run_episodes`.
        env: as in `run_episodes`.
        num_episodes: as in `run_episodes`.
        task: the task of `env`.
        position: line of the bar, if several bars are shown.
        **options: further options of `run_episodes`.

    Yields:
        The result of each episode when it ends.
    """
    from .rollout import run_episodes  # needs torch, which processes with environments alone do not

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
    """Redirect standard output to standard error. Simulators such as Minigrid print remarks to it."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
