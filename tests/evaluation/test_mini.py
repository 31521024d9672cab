"""The shipped jat-mini loads and plays as its card says, and the card is written from its scores."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jat_engine import JatEngine, JatModel, JatProcessor, checkpoint_files
from jat_engine.checkpoint.trained_tasks import FILE_NAME, as_trained, read_trained_tasks
from jat_engine.envs import DOMAINS, TASKS
from jat_engine.errors import CheckpointError
from jat_engine.evaluation import normalize, run_episode
from jat_engine.recipes.jat_mini import card, recipe

for simulator in ("minigrid", "metaworld", "mujoco"):
    pytest.importorskip(simulator)

SCORES: dict[str, Any] = json.loads((checkpoint_files.JAT_MINI_FOLDER / "scores.json").read_text())["tasks"]


@pytest.fixture(scope="module")
def engine() -> JatEngine:
    return JatEngine.from_pretrained("jat-mini", device="cpu", dtype="float32")


def play(agent: Any, processor: Any, name: str, seed: int) -> float:
    from jat_engine.evaluation.environment import evaluation_env

    task = TASKS[name]
    with contextlib.closing(evaluation_env(task)) as env:
        return run_episode(agent, processor, env, task=task, seed=seed, deterministic=True).return_


def test_it_is_small_and_plays_ten_tasks_of_all_domains() -> None:
    assert (checkpoint_files.JAT_MINI_FOLDER / "model.safetensors").stat().st_size <= 20_000_000
    assert list(SCORES) == list(recipe.TASKS)
    assert len(SCORES) >= 10
    domains = [TASKS[name].domain for name in SCORES]
    assert set(domains) == set(DOMAINS)
    for domain, least in {"babyai": 3, "metaworld": 4, "mujoco": 2, "atari": 1}.items():
        assert domains.count(domain) >= least
    for row in SCORES.values():
        assert all(len(row[agent]) >= 30 for agent in ("random", "demonstrator", *card.AGENTS))


def test_the_card_is_made_of_the_scores() -> None:
    folder = checkpoint_files.JAT_MINI_FOLDER
    assert card.render(folder) == (folder / "README.md").read_text(encoding="utf-8")


def test_its_tasks_have_the_demonstrators_of_the_scores(tmp_path: Path) -> None:
    folder = checkpoint_files.JAT_MINI_FOLDER
    shutil.copy(folder / FILE_NAME, tmp_path)
    recipe.store_demonstrators(tmp_path, SCORES)
    assert (tmp_path / FILE_NAME).read_bytes() == (folder / FILE_NAME).read_bytes()


def test_the_pendulum_is_as_good_as_its_demonstrator_and_twice_as_good_as_the_published_expert() -> None:
    pendulum = as_trained(TASKS["mujoco-pendulum"], read_trained_tasks("jat-mini"))
    returns = SCORES[pendulum.name]["engine_float32"]
    by_demonstrator, by_expert = (normalize(returns, pendulum, reference) for reference in ("demonstrator", "expert"))
    assert by_demonstrator is not None
    assert by_expert is not None
    assert by_demonstrator.mean() == pytest.approx(1.0, abs=0.005)
    assert by_expert.mean() == pytest.approx(2.12, abs=0.005)


@pytest.mark.versions
@pytest.mark.parametrize("name", ["babyai-go-to-obj", "babyai-open-red-door", "mujoco-reacher"])
def test_episodes_have_the_recorded_returns(engine: JatEngine, name: str) -> None:
    for seed in (0, 1, 2):
        assert play(engine, None, name, seed) == pytest.approx(SCORES[name]["engine_float32"][seed], rel=1e-3)


@pytest.mark.versions
def test_the_reference_plays_the_same_episodes() -> None:
    model = JatModel.from_pretrained("jat-mini", dtype=torch.float32).eval()
    processor = JatProcessor.from_pretrained("jat-mini")
    for name in ("babyai-go-to-obj", "mujoco-reacher"):
        assert play(model, processor, name, 0) == pytest.approx(SCORES[name]["engine_float32"][0], rel=1e-3)


def test_a_meta_world_robot_does_most_of_its_task(engine: JatEngine) -> None:
    # A simulator lets rounding grow, so this is no comparison of digits.
    name = "metaworld-drawer-open"
    random, demonstrator = np.mean(SCORES[name]["random"]), np.mean(SCORES[name]["demonstrator"])
    assert (play(engine, None, name, 0) - random) / (demonstrator - random) > 0.5


def test_a_checkpoint_folder_of_the_same_name_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint_files, "JAT_MINI_FOLDER", tmp_path / "packaged")
    with pytest.raises(CheckpointError, match="jat-mini: its weights are not there; in a checkout `make train-mini`"):
        checkpoint_files.resolve("jat-mini")
    checkpoint_files.JAT_MINI_FOLDER.mkdir()
    (checkpoint_files.JAT_MINI_FOLDER / "model.safetensors").touch()
    assert checkpoint_files.resolve("jat-mini") == checkpoint_files.JAT_MINI_FOLDER
    (tmp_path / "jat-mini").mkdir()  # of results, not of a checkpoint
    assert checkpoint_files.resolve("jat-mini") == checkpoint_files.JAT_MINI_FOLDER
    (tmp_path / "jat-mini" / "config.json").touch()
    assert checkpoint_files.resolve("jat-mini") == Path("jat-mini")
    assert checkpoint_files.resolve("owner/jat-mini") == "owner/jat-mini"


def test_what_no_task_trains_is_zero() -> None:
    model = JatModel.from_pretrained("jat-mini")
    untrained = [p for name, p in model.named_parameters() if name.startswith(recipe.UNTRAINED)]
    assert untrained
    assert all(not parameter.any() for parameter in untrained)


def test_the_recipe_trains_from_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every stage briefly: demonstrations, tokenizer, training, export."""
    pytest.importorskip("datasets")
    few = {
        "babyai-go-to-obj": recipe.MiniTask(num_episodes=4, noise=0.1, batch_size=2),
        "mujoco-reacher": recipe.MiniTask(num_episodes=4, noise=0.1, batch_size=2),
    }
    again = {
        "babyai-go-to-obj": recipe.MiniTask(num_episodes=0, noise=0.0, batch_size=2),
        "mujoco-reacher": recipe.MiniTask(num_episodes=3, noise=0.2, batch_size=2),
    }
    phases = (recipe.Phase(few, 1_000, {"learning_rate": 1e-3}), recipe.Phase(again, 2_000, {"learning_rate": 1e-4}))
    monkeypatch.setattr(recipe, "PHASES", phases)

    data, initial, run, made = (tmp_path / name for name in ("data", "initial", "run", "made"))
    recipe.collect(data, num_workers=1)
    assert (data / "1/babyai-go-to-obj").resolve() == (data / "0/babyai-go-to-obj").resolve()
    assert (data / "1/mujoco-reacher").resolve() != (data / "0/mujoco-reacher").resolve()

    recipe.initialize(data / "0", initial)
    few_steps = {"max_steps": 3, "warmup_steps": 0, "logging_steps": 1, "report_to": "none"}
    trained = recipe.train(data, initial, run, few_steps)
    assert trained == run / "1"
    recipe.export(trained, made)
    assert all(task.demonstrator is not None for task in read_trained_tasks(made))

    before, after = JatModel.from_pretrained(initial), JatModel.from_pretrained(made)
    assert after.dtype == torch.bfloat16
    assert not after.transformer.wpe.weight.any()
    changed = (before.continuous_decoder.weight - after.continuous_decoder.weight.float()).abs().max()
    assert changed > 1e-3
    action = play(JatEngine.from_pretrained(made, device="cpu"), None, "babyai-go-to-obj", 0)
    assert 0 <= action <= 1
