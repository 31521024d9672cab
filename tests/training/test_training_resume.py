"""Test what `jat-engine train` goes on from, what it refuses to, and what a training that fails leaves."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

for package in ("accelerate", "datasets"):
    pytest.importorskip(package, reason="the extra train is not installed")

import torch
from helpers.damage import damaged
from helpers.training_data import CONFIG, episode, write_split
from helpers.training_runs import flags, weights, write_inputs

import jat_engine
from jat_engine.atomic_io import hold
from jat_engine.cli import main
from jat_engine.training.resume import claim, damage_of, newest_whole, state_of

TASKS = ["mujoco-hopper", "babyai-go-to-local"]
EVERY_2 = ["--save_strategy", "steps", "--save_steps", "2", "--logging_steps", "1", "--learning_rate", "0.01"]
LATEST = ["--resume_from_checkpoint", "latest"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the inputs of trainings, and a `finished` training of 6 steps with checkpoints at 2, 4 and 6."""
    folder = write_inputs(tmp_path_factory.mktemp("resume"))
    assert main(run(folder, folder / "finished")) == 0
    return folder


@pytest.fixture
def finished(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder / "finished", tmp_path / "run")


def run(folder: Path, output: Path, *more: str, steps: int = 6, data: str = "data") -> list[str]:
    return flags(folder, output, *EVERY_2, "--max_steps", str(steps), *more, tasks=TASKS, data=data)


def assert_equal_weights(folder: Path, other: Path) -> None:
    expected = weights(other)
    assert all(torch.equal(value, expected[name]) for name, value in weights(folder).items())


# ---- finished trainings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [6, 5, 2])
@pytest.mark.parametrize("left", ["whole", "cut off", "gone"])
def test_a_finished_training_is_not_trained_on(
    steps: int, left: str, folder: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Check a job that is started again; a model that the first run did not finish writing is made whole."""
    model = finished / "model.safetensors"
    if left == "cut off":
        os.truncate(model, 1000)
    elif left == "gone":
        model.unlink()
    assert main(run(folder, finished, *LATEST, steps=steps)) == 0
    assert "finished: " in capsys.readouterr().err
    assert state_of(finished)["global_step"] == 6
    assert_equal_weights(finished, folder / "finished")


def test_a_finished_training_of_whole_epochs_without_checkpoints(folder: Path, tmp_path: Path) -> None:
    more = ["--num_train_epochs", "0.5"]
    assert main(flags(folder, tmp_path, *more, tasks=TASKS)) == 0
    before = (tmp_path / "model.safetensors").read_bytes()
    assert main(flags(folder, tmp_path, *more, *LATEST, tasks=TASKS)) == 0
    assert main(flags(folder, tmp_path, *more, tasks=TASKS)) == 2  # nothing is written over
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_more_steps_need_a_checkpoint(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags(folder, tmp_path, "--max_steps", "2", tasks=TASKS)) == 0
    for more in (["--max_steps", "3"], ["--num_train_epochs", "2"]):
        assert main(flags(folder, tmp_path, *more, *LATEST, tasks=TASKS)) == 2
        assert "expected a complete checkpoint for steps after 2, got" in capsys.readouterr().err.splitlines()[-1]


def test_a_finished_training_whose_last_checkpoint_is_damaged(
    folder: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.truncate(finished / "checkpoint-6/optimizer.pt", 100)
    before = (finished / "model.safetensors").stat().st_mtime_ns
    for named in ("latest", str(finished / "checkpoint-2")):
        assert main(run(folder, finished, "--resume_from_checkpoint", named)) == 0
        assert "finished: " in capsys.readouterr().err
    assert (finished / "model.safetensors").stat().st_mtime_ns == before


def test_the_best_model_of_a_folder_that_was_moved(folder: Path, finished: Path) -> None:
    """Check a job that was killed before it wrote its model: the state names the best checkpoint by its old place."""
    (finished / "model.safetensors").unlink()
    state = json.loads((finished / "checkpoint-6/trainer_state.json").read_text())
    state["best_model_checkpoint"] = "/gone/checkpoint-2"
    (finished / "checkpoint-6/trainer_state.json").write_text(json.dumps(state))
    best = ["--eval_strategy", "steps", "--eval_steps", "2", "--load_best_model_at_end"]
    assert main(run(folder, finished, *best, *LATEST)) == 0
    assert_equal_weights(finished, finished / "checkpoint-2")


def test_whole_epochs_are_counted_as_the_trainer_does(folder: Path, tmp_path: Path) -> None:
    more = ["--num_train_epochs", "1.2", "--gradient_accumulation_steps", "3", "--save_strategy", "epoch"]
    assert main(flags(folder, tmp_path, *more, tasks=TASKS)) == 0
    step = state_of(tmp_path)["global_step"]
    assert main(flags(folder, tmp_path, *more, *LATEST, tasks=TASKS)) == 0
    assert state_of(tmp_path)["global_step"] == step


def test_more_steps_go_on(folder: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(run(folder, finished, *LATEST, steps=8)) == 0
    assert state_of(finished)["global_step"] == 8
    assert "the learning rate goes on by the schedule of 8 steps" in capsys.readouterr().err


def test_a_finished_training_is_not_written_over(
    folder: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(run(folder, finished, "--overwrite_output_dir")) == 2
    assert "got one with checkpoint-6; go on from it with --resume_from_checkpoint latest" in capsys.readouterr().err
    elsewhere = ["--resume_from_checkpoint", str(folder / "finished/checkpoint-2")]
    assert main(run(folder, finished, *elsewhere)) == 2
    assert "got one with checkpoint-6; go on from it with --resume_from_checkpoint latest" in capsys.readouterr().err


def test_checkpoints_with_a_model_only_are_not_written_over(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert main(run(folder, output, "--save_only_model", "true", steps=2)) == 0
    (output / "model.safetensors").unlink()  # as after a kill
    assert main(run(folder, output, steps=4)) == 2
    assert "got one with checkpoint-2, which has a model but cannot be resumed" in capsys.readouterr().err
    (output / "checkpoint-2/trainer_state.json").unlink()  # a checkpoint that was never whole is no obstacle
    assert main(run(folder, output, steps=2)) == 0


# ---- whole checkpoints ---------------------------------------------------------------------------------------------


@pytest.mark.versions
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", "cut"),
        ("model.safetensors", "removed"),
        ("optimizer.pt", "cut"),
        ("optimizer.pt", "overwritten"),
        ("scheduler.pt", "removed"),
        ("rng_state.pth", "zeros"),
        ("config.json", "cut"),
        ("trainer_state.json", "cut"),
        ("trainer_state.json", "removed"),
        ("jat_training.json", "cut"),
        ("jat_training.json", "zeros"),
    ],
)
def test_damaged_checkpoints_are_passed_over(
    name: str, damage: str, folder: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = finished / "checkpoint-6" / name
    content = file.read_bytes()
    middle = len(content) // 2
    if damage == "removed":
        file.unlink()
    elif damage == "overwritten":
        file.write_bytes(content[:middle] + bytes(8) + content[middle + 8 :])
    else:
        file.write_bytes(content[:middle] if damage == "cut" else bytes(len(content)))

    said: list[str] = []
    assert newest_whole(finished, said.append) == finished / "checkpoint-4"
    assert len(said) == 1
    assert f"passing over {finished / 'checkpoint-6'}, which is not whole: " in said[0]
    assert name in said[0] or name == "model.safetensors"

    if (name, damage) == ("model.safetensors", "cut"):
        (finished / "model.safetensors").unlink()
        assert main(run(folder, finished, "--resume_from_checkpoint", str(finished / "checkpoint-6"))) == 2
        assert main(run(folder, finished, *LATEST)) == 0
        assert_equal_weights(finished, folder / "finished")


def test_any_damage_of_a_file_is_found_or_harmless(finished: Path) -> None:
    """A byte of a zip file may say that it is encrypted, or of a version that nobody knows."""
    file = finished / "checkpoint-6" / "scheduler.pt"
    found = 0
    for data in damaged(file.read_bytes(), 300):
        file.write_bytes(data)
        found += damage_of(finished / "checkpoint-6") is not None
    assert found > 100


# ---- other trainings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--seed 1", "expected --seed 42, as it was trained with, got 1"),
        ("--learning_rate 0.02", "expected --learning_rate 0.01, as it was trained with, got 0.02"),
        ("--per_device_train_batch_size 3", "expected --per_device_train_batch_size 2"),
        ("--lr_scheduler_type cosine", "expected --lr_scheduler_type linear, as it was trained with, got cosine"),
        ("--batch_sizes mujoco=1", "expected --batch_sizes mujoco-hopper=none, as it was trained with, got mujoco-"),
        ("--freeze transformer.", "expected --freeze none, as it was trained with, got transformer."),
        ("--bf16", "expected --bf16 False"),
        ("--tasks mujoco-hopper", "expected --tasks mujoco-hopper babyai-go-to-local, as it was trained with, got"),
        ("--model_name_or_path {folder}/deeper", "expected a model with num_layers 2, as it has, got 4"),
        ("--dataset {folder}/other", "expected the data that it was trained on, got other data of mujoco-hopper"),
    ],
)
def test_another_training_does_not_go_on(
    change: str, message: str, folder: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "deeper" in change:
        config = jat_engine.JatConfig(**{**CONFIG, "num_layers": 4})
        jat_engine.JatModel(config).save_pretrained(folder / "deeper")
        jat_engine.JatProcessor.byte_level(config).save_pretrained(folder / "deeper")
    if "other" in change:
        shutil.copytree(folder / "data", folder / "other")
        write_split(folder / "other", "mujoco-hopper", "train", [episode("continuous", n, n) for n in (30, 12, 25, 7)])
    before = (finished / "model.safetensors").read_bytes()
    assert main([*run(folder, finished, *LATEST, steps=8), *change.format(folder=folder).split()]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert (finished / "model.safetensors").read_bytes() == before


def test_folders_of_save_to_disk_that_are_streamed_from_elsewhere(folder: Path, tmp_path: Path) -> None:
    import datasets

    def save(name: str, seed: int) -> list[str]:
        path = write_split(tmp_path / "parquet", "mujoco-hopper", "train", [episode("continuous", 20, seed)])
        loaded = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "datasets"))
        loaded.save_to_disk(str(tmp_path / name / "mujoco-hopper"))
        return ["--tasks", "mujoco-hopper", "--dataset", str(tmp_path / name)]

    output, more = tmp_path / "run", ["--streaming"]
    assert main([*run(folder, output, *more, steps=2), *save("before", 0)]) == 0
    moved = str((tmp_path / "before").rename(tmp_path / "after"))
    assert main([*run(folder, output, *more, *LATEST, steps=4), "--tasks", "mujoco-hopper", "--dataset", moved]) == 0
    assert main([*run(folder, output, *more, *LATEST, steps=6), *save("other", 1)]) == 2


@pytest.mark.parametrize("streaming", [False, True])
def test_data_that_was_copied_elsewhere_is_the_same(streaming: bool, folder: Path, tmp_path: Path) -> None:
    more = ["--streaming"] if streaming else []
    assert main(run(folder, tmp_path / "run", *more, steps=2)) == 0
    copied = shutil.copytree(folder / "data", tmp_path / "data", copy_function=shutil.copyfile)
    assert main([*run(folder, tmp_path / "run", *more, *LATEST, steps=4), "--dataset", str(copied)]) == 0
    write_split(copied, "mujoco-hopper", "train", [episode("continuous", 20, 3)])
    assert main([*run(folder, tmp_path / "run", *more, *LATEST, steps=6), "--dataset", str(copied)]) == 2


@pytest.mark.parametrize("streaming", [False, True])
def test_a_tilde_that_the_shell_did_not_expand(
    streaming: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder))
    more = ["--tasks", "mujoco", *(["--streaming"] if streaming else [])]
    assert main([*run(folder, tmp_path / "run", *more, steps=2), "--dataset=~/data"]) == 0
    assert main([*run(folder, tmp_path / "run", *more, *LATEST, steps=4), "--dataset", str(folder / "data")]) == 0


# ---- trainings that fail -------------------------------------------------------------------------------------------


@pytest.mark.versions
def test_a_loss_that_is_not_a_number_ends_the_training(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--save_steps", "1", "--learning_rate", "1e30", "--lr_scheduler_type", "constant"]
    assert main(run(folder, tmp_path / "run", *more)) == 1
    printed = capsys.readouterr()
    error = printed.err.splitlines()[-1]
    assert error.startswith("jat-engine: error: step 2: the loss on ")
    assert ", the largest number in the batch " in error
    assert "with a learning rate of 1e+30" in error
    assert "--learning_rate" in error
    assert "'loss': '0'" not in printed.out
    saved = {path.name for path in (tmp_path / "run").iterdir()}
    assert saved <= {"checkpoint-1", "curves.png"}
    for name in saved - {"curves.png"}:
        assert all(value.isfinite().all() for value in weights(tmp_path / "run" / name).values())


def test_a_test_loss_that_is_not_a_number_chooses_no_best_model(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    huge = episode("continuous", 12, 0)
    huge["continuous_observations"][:] = 1e25
    write_split(tmp_path / "data", "mujoco-hopper", "train", [episode("continuous", 12, n) for n in range(6)])
    write_split(tmp_path / "data", "mujoco-hopper", "test", [huge])
    data = ["--dataset", str(tmp_path / "data"), "--tasks", "mujoco-hopper", "--eval_strategy", "steps"]
    best = [*data, "--eval_steps", "2", "--load_best_model_at_end"]
    assert main([*run(folder, tmp_path / "best"), *best]) == 1
    assert "step 2: eval_mujoco-hopper_loss is inf, by which no best" in capsys.readouterr().err.splitlines()[-1]
    assert main([*run(folder, tmp_path / "last"), *data]) == 0


def test_weights_that_are_not_numbers_are_not_saved(
    folder: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Check a last step whose loss was finite and whose weights are not: the checkpoint before it stays."""
    more = ["--optim", "sgd", "--learning_rate", "1e25", "--max_grad_norm", "0", "--lr_scheduler_type", "constant"]
    more += ["--loss_weights", "mujoco=1e20", "babyai=1e20"]
    output = finished.with_name("last")
    assert main(run(folder, output, *more, steps=1)) == 1
    assert "is not finite any more" in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in output.iterdir()] == ["curves.png"]


@pytest.fixture
def file_limit() -> Iterator[list[int]]:
    """Yield a list; a number that is put in limits the size of files that this process writes, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield list(before)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.versions
@pytest.mark.parametrize("largest", ["model.safetensors", "optimizer.pt"])
def test_a_full_disk_leaves_the_last_whole_checkpoint(
    largest: str, folder: Path, finished: Path, file_limit: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("checkpoint-4", "checkpoint-6"):
        shutil.rmtree(finished / name)
    (finished / "model.safetensors").unlink()
    size = (finished / "checkpoint-2" / largest).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 5000, file_limit[1]))
    assert main(run(folder, finished, *LATEST)) == 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit[0], file_limit[1]))

    error = capsys.readouterr().err.splitlines()[-1]
    assert f"step 4: expected to write {finished / 'checkpoint-4'}, got an error" in error
    assert f"the last whole checkpoint is {finished / 'checkpoint-2'}" in error
    assert not (finished / "checkpoint-4").exists()
    assert damage_of(finished / "checkpoint-2") is None

    assert main(run(folder, finished, *LATEST)) == 0
    assert_equal_weights(finished, folder / "finished")


# ---- two trainings in one folder -----------------------------------------------------------------------------------


@pytest.mark.versions
def test_two_trainings_in_one_folder(folder: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = hold(finished, wait=False)
    assert lock is not None
    assert main(run(folder, finished, *LATEST, steps=8)) == 2
    assert "expected a folder that no other training uses" in capsys.readouterr().err
    os.close(lock)
    assert main(run(folder, finished, *LATEST)) == 0


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    said: list[str] = []
    with claim(tmp_path, said.append):
        pass
    assert said == [f"the file system of {tmp_path} has no locks: take care that no other training uses this folder"]


def test_workers_do_not_keep_the_lock_of_a_killed_training(tmp_path: Path) -> None:
    ready, tell = os.pipe()
    (tmp_path / "run").mkdir()
    with claim(tmp_path / "run"):
        worker = os.fork()
        if worker == 0:
            os.write(tell, b".")
            signal.pause()
            os._exit(0)
        os.read(ready, 1)
    try:
        with claim(tmp_path / "run"):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


def test_an_output_folder_that_is_a_file(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").touch()
    assert main(run(folder, tmp_path / "run")) == 2
    assert "--output_dir: expected a folder that can be written" in capsys.readouterr().err
