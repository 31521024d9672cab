"""Seeds of `jat-engine compare-agents`."""

from __future__ import annotations

import contextlib
from pathlib import Path

from jat_engine.checkpoint.trained_tasks import read_trained_tasks
from jat_engine.cli.compare_agents import Agent, CompareAgentsArguments, shared_seed
from jat_engine.evaluation.seeds import choose_seed
from jat_engine.runs.database import RunDatabase


def test_a_checkpoint_is_played_with_the_seeds_of_the_run_that_it_is_compared_with(tmp_path: Path) -> None:
    with contextlib.closing(RunDatabase(tmp_path, create=True)) as database:
        database.set_settings({"seed": 7})
    run, checkpoint = Agent.parse("A", str(tmp_path)), Agent.parse("B", "jat-mini:dtype=int8")
    arguments = CompareAgentsArguments()
    assert shared_seed((run, checkpoint), arguments) == shared_seed((checkpoint, run), arguments) == 7
    expected = choose_seed(read_trained_tasks("jat-mini", {}), arguments.num_episodes)
    assert shared_seed((checkpoint, checkpoint), arguments) == expected
