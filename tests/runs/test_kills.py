"""A run that is killed, terminated and interrupted goes on, and its results are those of one that was not.

`make test-long` kills a hundred times.
"""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest
from helpers.kills import (
    FLAGS,
    TASKS,
    Command,
    Kill,
    check_finished,
    finished_episodes,
    flags_of,
    results_digest,
    shared_memory,
)

from jat_engine.cli import main

NUM_EPISODES = 4
WORKERS = ("--num_workers", "2", "--num_envs", "2")


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """SHA-256 of the results of a run that nothing has ended, one episode after the other."""
    folder = tmp_path_factory.mktemp("kills") / "whole"
    flags = [*FLAGS, *flags_of(folder, NUM_EPISODES), "--num_workers", "0", "--num_envs", "1"]
    assert main(["eval", *flags, "--output_dir", str(folder)]) == 0
    return results_digest(folder)


def test_a_run_that_is_ended_in_every_way_goes_on(tmp_path: Path, digest: str) -> None:
    folder, numbers, before = tmp_path / "run", random.Random(0), shared_memory()

    first = Command(folder, flags_of(folder, NUM_EPISODES, *WORKERS))
    assert first.kill(Kill("worker", "episode", 0.0), numbers)
    assert first.kill(Kill("driver", "episode", 0.2), numbers)
    assert first.wait() == -signal.SIGKILL
    assert (folder / "run.sqlite-wal").exists()
    found = [finished_episodes(folder)]
    assert found[0]

    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        command = Command(folder, flags_of(folder, NUM_EPISODES, *WORKERS))
        assert command.await_moment("episode")
        os.killpg(command.process.pid, number)  # as a terminal does, or a scheduler
        assert command.wait() == code, command.said
        assert (folder / "results.json").exists(), "of what has ended so far"
        assert not (folder / "run.sqlite-wal").exists()
        found.append(finished_episodes(folder))
        assert found[-2].items() < found[-1].items()

    last = Command(folder, flags_of(folder, NUM_EPISODES, *WORKERS))
    assert last.wait() == 0, last.said
    check_finished(folder, NUM_EPISODES, digest)
    assert found[-1].items() <= finished_episodes(folder).items()
    assert len(found[-1]) < NUM_EPISODES * len(TASKS), "it had something to go on with"
    assert shared_memory() <= before
