"""Test what commands say about tasks of one's own: their modules, their checkpoint, and `--adapter`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from jat_engine.checkpoint.trained_tasks import TrainedTask, to_json, write_trained_tasks
from jat_engine.checkpoint_files import JAT_MINI, resolve
from jat_engine.cli import main
from jat_engine.cli.arguments import TaskArguments
from jat_engine.cli.train_data import DataArguments, collected_tasks
from jat_engine.collect import collect
from jat_engine.envs import TaskError, get_task, load_task_module, register_task


def make_cart() -> gymnasium.Env[Any, Any]:
    return gymnasium.make("CartPole-v1")


MODULE = """
import gymnasium
from jat_engine.envs import register_task

print("a remark of the module")

def make(render_mode=None):
    print("a remark of the maker")
    return gymnasium.make("CartPole-v1", render_mode=render_mode)

register_task("own-cart", make, domain="test-own")
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_cart_module.py").write_text(MODULE)
    return "own_cart_module"


def test_what_a_module_prints_is_not_among_the_results(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "--task_module", module, "--domain", "test-own", "--json"]) == 0
    said = capsys.readouterr()
    assert [task["name"] for task in json.loads(said.out)] == ["own-cart"]
    assert "a remark of the maker" in said.err


@pytest.mark.parametrize("command", ["eval", "play"])
def test_the_module_of_a_checkpoint_is_named(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(resolve(JAT_MINI), tmp_path / "m")
    for module, said in (("gone_module", "was trained with --task_module gone_module"), (None, "register_task")):
        rule = {"observation": "continuous", "action": "discrete", "adapter": None, "module": module}
        write_trained_tasks(tmp_path / "m", to_json([TrainedTask("gone-task", rule)]))
        flag = "--tasks" if command == "eval" else "--task"
        assert main([command, "--model_name_or_path", str(tmp_path / "m"), flag, "gone-task"]) == 2
        error = capsys.readouterr().err
        assert "no task is named 'gone-task'; the checkpoint was trained" in error
        assert said in error


def test_adapter_without_effect(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--model_name_or_path", "jat-mini", "--tasks", "atari-pong", "--adapter", "image"]) == 2
    assert "--adapter image: expected a task that is not published" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "module.py", "../module", "a b"])
def test_names_that_no_module_has(name: str) -> None:
    with pytest.raises(TaskError, match=r"^--task_module: expected the name of a module"):
        load_task_module(name)


def test_modules_that_end_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "exiting_module.py").write_text("import sys; sys.exit(3)")
    with pytest.raises(TaskError, match=r"exiting_module: expected a module that can be imported, got SystemExit: 3$"):
        load_task_module("exiting_module")
    assert "exiting_module" not in sys.modules


def test_names_are_apart_from_the_folders_of_gymnasium() -> None:
    with pytest.raises(TaskError, match="begins with gym--"):
        register_task(get_task("gym:CartPole-v1").folder_name, "a:b")


def test_training_on_a_domain_needs_the_tasks_of_the_dataset_alone(tmp_path: Path) -> None:
    def fail() -> gymnasium.Env[Any, Any]:
        raise RuntimeError("no such device")

    register_task("fits-cart", make_cart, domain="test-fits")
    register_task("fits-not", fail, domain="test-fits")
    collect(["fits-cart"], tmp_path, expert="random", num_episodes=2, random_episodes=1, num_workers=1)
    data = DataArguments(dataset=str(tmp_path), tasks=["test-fits"])
    assert list(collected_tasks(data, TaskArguments())) == ["fits-cart"]
    with pytest.raises(ValueError, match=r"expected tasks that .* has, got none of them"):
        collected_tasks(DataArguments(dataset=str(tmp_path), tasks=["babyai"]), TaskArguments())
    with pytest.raises(TaskError, match=r"fits-not: .*no such device"):
        collected_tasks(DataArguments(dataset=str(tmp_path), tasks=["fits-not"]), TaskArguments())
