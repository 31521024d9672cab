"""Folders of runs: setting an old run aside."""

from __future__ import annotations

import shutil
from pathlib import Path

from helpers.runs import evaluation, make_run

from jat_engine.runs.database import FILE_NAME, RunDatabase, read_run
from jat_engine.runs.folder import set_aside
from jat_engine.runs.results import write_results

MADE = evaluation({"mujoco-reacher": [1.0, 2.0]})


def test_everything_of_a_run_is_set_aside(tmp_path: Path) -> None:
    assert set_aside(tmp_path) is None
    kept = {"notes.txt", "config.json"}
    for number in (1, 2):
        make_run(tmp_path, MADE)
        write_results(tmp_path, MADE)
        for name in ("timing.json", "replay.mp4", "videos/a/b.mp4", "trajectories/a/b.parquet", "report/c.csv", *kept):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        aside = set_aside(tmp_path)
        assert aside == tmp_path / f"earlier-{number}"
        assert read_run(aside).tasks["mujoco-reacher"].returns.tolist() == [1.0, 2.0]
        assert {path.name for path in aside.iterdir()} == {
            *(FILE_NAME, "results.json", "evaluations.json", "timing.json", "replay.mp4"),
            *("videos", "trajectories", "report"),
        }
        assert {path.name for path in tmp_path.iterdir() if not path.name.startswith("earlier")} == kept


def test_a_run_that_was_killed_is_set_aside_with_its_log(tmp_path: Path) -> None:
    """Its last episodes are in the log alone."""
    made = make_run(tmp_path / "made", MADE)
    database = RunDatabase(made)
    database.set_arguments({"tasks": ["mujoco-reacher"]})
    killed = Path(shutil.copytree(made, tmp_path / "killed"))  # as it is while a process has it open
    database.close()
    assert (killed / f"{FILE_NAME}-wal").stat().st_size

    aside = set_aside(killed)
    assert aside is not None
    assert [path.name for path in killed.iterdir()] == [aside.name]
    assert RunDatabase(aside).arguments == {"tasks": ["mujoco-reacher"]}
