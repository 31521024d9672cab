"""Runs over tasks of all four domains, killed a hundred times at random moments: `make test-long`.

With KILLS_REPORT the counts and the digest are written to that file.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from helpers.kills import (
    TASKS,
    Command,
    Kill,
    check_finished,
    finished_episodes,
    flags_of,
    results_digest,
    shared_memory,
)

NUM_KILLS = int(os.environ.get("KILLS", "100"))
NUM_EPISODES = 8
WORKERS = ("--num_workers", "2", "--num_envs", "4")
MAX_WORKER_KILLS = 2
"""Of one command: an episode that happens to be played at the fourth counts as failed."""


def draw_kills(numbers: random.Random, seconds: float) -> list[Kill]:
    """Draw the kills of one command: of workers, then of the driver, at moments from its start to its end.

    Args:
        numbers: to draw from.
        seconds: that a command takes which is not killed.
    """
    kills = []
    if numbers.random() < 0.5:
        for _ in range(numbers.randint(1, MAX_WORKER_KILLS)):
            moment = numbers.choice(["start", "episode"])
            kills.append(Kill("worker", moment, numbers.uniform(0, seconds if moment == "start" else 1.0)))
    moment = numbers.choice(["start", "start", "episode", "files"])
    longest = {"start": seconds, "episode": 1.0, "files": 0.7}[moment]
    kills.append(Kill("driver", moment, numbers.uniform(0, longest)))
    return sorted(kills, key=lambda kill: (kill.moment != "start", kill.moment == "files", kill.seconds))


def write_report(path: Path, done: list[list[tuple[Kill, int]]], digest: str, seconds: float) -> None:
    """Write the kills, and what was there after each, as a page of Markdown."""
    kills = [kill for run in done for kill, _ in run]
    victims, moments = Counter(kill.victim for kill in kills), Counter(kill.moment for kill in kills)
    lines = [
        "# Evaluations that are killed",
        "",
        f"`make test-long`: `jat-engine eval` of {', '.join(TASKS)} with jat-mini, {NUM_EPISODES} episodes each of at "
        f"most 60 steps, in two worker processes with four environments each. Processes are killed with SIGKILL at "
        f"random moments, and the run goes on with `--resume` until it is finished.",
        "",
        f"- {len(kills)} kills in {len(done)} runs: the driver {victims['driver']} times, a worker {victims['worker']} "
        f"times. {moments['start']} at a moment from the start on (imports, loading, start of the workers, playing), "
        f"{moments['episode']} after an episode was recorded, {moments['files']} after the last one, while files are "
        f"written.",
        f"- `results.json` of all {len(done)} runs, and of one that plays an episode at a time and is not killed, has "
        f"the SHA-256 `{digest}`.",
        "- After each kill SQLite's integrity check passes, and every episode that had ended is there with the time at "
        "which it ended: none is played twice, none has failed.",
        "- No process, no file in /dev/shm, no log of SQLite, no claim and no temporary file is left.",
        f"- {seconds / 60:.0f} minutes.",
        "",
        "Kills of each run, with the number of episodes of the run when the command had ended:",
        "",
    ]
    for number, run in enumerate(done, 1):
        lines.append(f"{number}. " + "; ".join(f"{kill}: {count}" for kill, count in run))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.long
def test_results_do_not_depend_on_kills(tmp_path: Path) -> None:
    numbers, began, memory = random.Random(19), time.monotonic(), shared_memory()
    whole = tmp_path / "whole"
    assert Command(whole, flags_of(whole, NUM_EPISODES, "--num_workers", "0", "--num_envs", "1")).wait() == 0
    digest = results_digest(whole)
    other, start = tmp_path / "other", time.monotonic()
    assert Command(other, flags_of(other, NUM_EPISODES, *WORKERS)).wait() == 0
    seconds = time.monotonic() - start
    check_finished(other, NUM_EPISODES, digest)

    done: list[list[tuple[Kill, int]]] = []
    while sum(map(len, done)) < NUM_KILLS:
        folder = tmp_path / f"run-{len(done)}"
        kills: list[tuple[Kill, int]] = []
        found = finished_episodes(folder)
        code = None
        while code != 0:
            wanted = draw_kills(numbers, seconds)
            command = Command(folder, flags_of(folder, NUM_EPISODES, *WORKERS))
            killed = [kill for kill in wanted if command.kill(kill, numbers)]
            code = command.wait()
            assert code in (0, -9), command.said
            before, found = found, finished_episodes(folder)
            assert before.items() <= found.items(), "an episode was played again"
            kills += [(kill, len(found)) for kill in killed]
        check_finished(folder, NUM_EPISODES, digest)
        done.append(kills)
        print(f"run {len(done)}: " + "; ".join(f"{kill}: {count}" for kill, count in kills), flush=True)
    assert shared_memory() <= memory
    if "KILLS_REPORT" in os.environ:
        write_report(Path(os.environ["KILLS_REPORT"]), done, digest, time.monotonic() - began)
