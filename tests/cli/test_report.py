"""`jat-engine report`: files, tables and figures of a run, whoever plays it and wherever it is."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from pathlib import Path

import pytest
from helpers.runs import episode, evaluation, finished, make_run, read_only

from jat_engine.cli import main
from jat_engine.runs.database import RunDatabase, read_run
from jat_engine.runs.results import write_results

TASKS = {"atari-pong": [-20.0, 10.0, 18.0], "babyai-go-to": [0.5, 1.0], "mujoco-reacher": [-5.0, -6.0]}
MADE = evaluation(TASKS)
TABLES = {"tasks.csv", "tasks.tex", "groups.csv", "groups.tex"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", MADE)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def _output(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_everything_that_can_be_made(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="needs the bench extra")
    assert main(["report", str(run)]) == 0
    write_results(tmp_path, read_run(run))
    for name in ("results.json", "evaluations.json"):
        assert (run / name).read_bytes() == (tmp_path / name).read_bytes(), "as jat-engine eval writes it"
    assert json.loads((run / "evaluations.json").read_text()) == TASKS
    names = _names(run / "report")
    assert names >= TABLES
    assert {"profile_expert.png", "profile_expert.pdf", "atari_human.pdf"} <= names
    captured = capsys.readouterr()
    assert all(name in captured.out for name in TASKS)
    assert "All tasks" in captured.out or "overall" in captured.out
    assert "tasks.csv" in captured.err


@pytest.mark.parametrize(("flag", "suffixes"), [("--tables", {".csv", ".tex"}), ("--figures", {".png", ".pdf"})])
def test_only_what_is_asked_for(flag: str, suffixes: set[str], run: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the bench extra")
    assert main(["report", str(run), flag]) == 0
    assert {Path(name).suffix for name in _names(run / "report")} == suffixes


def test_without_matplotlib_the_rest_is_written(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", str(run)]) == 0
    assert _names(run / "report") == TABLES
    assert "no figures: " in (said := _output(capsys))
    assert "pip install 'jat-engine[bench]'" in said

    shutil.rmtree(run / "report")
    assert main(["report", str(run), "--figures"]) == 2
    assert "--figures: expected matplotlib" in capsys.readouterr().err
    assert _names(run / "report") == set()


def test_a_run_that_is_being_played(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.closing(RunDatabase(run)) as player:
        player.add_tasks([MADE.tasks["mujoco-reacher"].task], {"mujoco-reacher": 4}, {"mujoco-reacher": {}})
        player.add([finished(episode("mujoco-reacher", 2, -7.0)), finished(episode("mujoco-reacher", 3, None))])
        assert main(["report", str(run), "--tables"]) == 0
        player.add([finished(episode("mujoco-reacher", 3, -8.0))])
    out = capsys.readouterr().out
    assert "3 of 4" in out
    assert "mujoco-reacher: failed in episode 4 (seed 103), step 11: RuntimeError: diverged" in out
    assert "8 of 9 planned episodes are finished" in out
    found = json.loads((run / "results.json").read_text())
    assert found["complete"] is False
    assert found["failed"]["mujoco-reacher"][0]["episode"] == 3
    assert read_run(run).complete


def test_a_run_without_finished_episodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", evaluation({"mujoco-reacher": [None]}))
    assert main(["report", str(run)]) == 0
    out = capsys.readouterr().out
    assert "failed in episode 1" in out
    assert "0 of 1 planned episodes are finished" in out
    assert json.loads((run / "evaluations.json").read_text()) == {}
    assert not (run / "report").exists()


def test_a_folder_that_can_only_be_read(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "elsewhere"
    target.mkdir()
    target.chmod(0o777)
    before = _names(run)
    with read_only(run):
        assert main(["report", str(run), "--tables"]) == 2
        assert f"--output_dir: expected a folder that can be written to, got {run}" in capsys.readouterr().err
        assert main(["report", str(run), "--tables", "--output_dir", str(target)]) == 0
    assert _names(run) == before
    assert _names(target) == {"results.json", "evaluations.json", "report"}


def test_folders_that_have_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        assert main(["report", str(folder)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"jat-engine: error: {folder}: expected the folder of a run, got no run.sqlite")
    assert _names(tmp_path) == set()


def test_the_name_of_the_agent(run: Path) -> None:
    for flags, name in (([], "the agent"), (["--agent", "mine_2"], r"mine\_2")):
        assert main(["report", str(run), "--tables", *flags]) == 0
        assert f"Returns of {name} in each task" in (run / "report" / "tasks.tex").read_text()
    with contextlib.closing(RunDatabase(run)) as database:
        database.set_arguments({"model_name_or_path": "jat-project/jat"})
    assert main(["report", str(run), "--tables"]) == 0
    assert "Returns of jat-project/jat in each task" in (run / "report" / "tasks.tex").read_text()
