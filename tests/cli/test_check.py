"""`jat-engine check` passes on checkpoints that work, and reports the fault of others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import published_checkpoint
from helpers.engines import TOLERANCE, Load, variants

from jat_engine import JatEngine, JatModel, JatProcessor
from jat_engine.checkpoint.trained_tasks import TrainedTask, to_json, write_trained_tasks
from jat_engine.checkpoint_files import JAT_MINI_FOLDER
from jat_engine.cli import main
from jat_engine.envs import TASKS, MissingSimulatorError, get_task
from jat_engine.testing import golden, record_observations
from jat_engine.testing.agreement import errors
from jat_engine.testing.checkpoint_checks import CheckpointChecks
from jat_engine.testing.outcome import CheckFailedError
from jat_engine.testing.recordings import FILE, Recording, load_recordings

RECORDINGS = {recording.task.name: recording for recording in load_recordings()}
COMPARED = [f"compare {name}" for name in RECORDINGS]
PLAYED = "mujoco-reacher"

Check = Callable[..., tuple[int, dict[str, dict[str, str]]]]


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Check:
    """Run the command, and return its exit code and the outcome of each check by name."""

    def check(source: Any, *flags: str) -> tuple[int, dict[str, dict[str, str]]]:
        pytest.importorskip("mujoco", reason="needs the mujoco extra")
        code = main(["check", str(source), "--tasks", PLAYED, "--json", "--use_cpu", *flags])
        found = json.loads(capsys.readouterr().out)
        return code, {row["name"]: row for row in found["checks"]}

    return check


def statuses(rows: dict[str, dict[str, str]], status: str) -> list[str]:
    return [name for name, row in rows.items() if row["status"] == status]


def write(folder: Path, **changed: np.ndarray) -> Path:
    """Write the golden checkpoint with some parameters replaced."""
    return golden.write_checkpoint(folder, golden.weights() | changed)


# ---- checkpoints that work -----------------------------------------------------------------------------------------


def test_jat_mini_passes(check: Check) -> None:
    code, rows = check("jat-mini")
    assert code == 0
    assert list(rows) == ["files", "JatModel", "JatEngine", "tokenizer", *COMPARED, "text", f"episode {PLAYED}"]
    assert statuses(rows, "SKIPPED") == ["compare mujoco-humanoid"]  # 376 values
    assert "config.json is too small for this task" in rows["compare mujoco-humanoid"]["detail"]
    assert "8.5 M parameters" in rows["JatModel"]["detail"]
    assert "published random -43.0, expert -5.68), 50 steps" in rows[f"episode {PLAYED}"]["detail"]


@pytest.fixture
def published_folder(tmp_path: Path) -> Iterator[Path]:
    yield published_checkpoint.write(tmp_path / "published", num_layers=2)
    shutil.rmtree(tmp_path / "published")  # half a gigabyte, which pytest would keep


def test_the_published_configuration_and_layout_pass(published_folder: Path, check: Check) -> None:
    """All sizes but the number of layers are as published, so every observation fits."""
    code, rows = check(published_folder)
    assert code == 0
    assert statuses(rows, "PASS") == list(rows)
    assert "487.4 MB, F32" in rows["files"]["detail"]
    assert "50257 tokens of vocab_size 50257;" in rows["tokenizer"]["detail"]
    assert "the same 8 tokens" in rows["text"]["detail"]


def test_a_repository_in_the_cache_of_the_hub_passes(tiny_folder: Path, tmp_path: Path) -> None:
    """A cached repository loads without a network. A missing one gives one line and no traceback."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--jat-project--jat"
    for name in ("blobs", "refs", f"snapshots/{revision}"):
        (repository / name).mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    for number, file in enumerate(sorted(tiny_folder.iterdir())):
        shutil.copy(file, repository / "blobs" / str(number))
        (repository / "snapshots" / revision / file.name).symlink_to(f"../../blobs/{number}")

    def run(source: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "jat_engine.cli", "check", source, "--tasks", PLAYED, "--use_cpu"]
        environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)

    done = run("jat-project/jat")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"revision {revision}" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("jat-project/jat: ")
    assert ", 0 failed, " in done.stdout

    done = run("jat-project/none")
    assert done.returncode == 1
    failed, summary = done.stdout.splitlines()
    assert failed.startswith("FAIL     files ")
    assert "jat-project/none: expected config.json, got no such folder, and no such file in the hub" in failed
    assert summary.startswith("jat-project/none: 0 passed, 1 failed, 0 skipped")
    assert "Traceback" not in done.stderr


def test_choices_between_nearly_equal_logits_may_differ(tmp_path: Path) -> None:
    """Two rows of the head differ by rounding only, and are exchanged in the engine's checkpoint."""
    head = golden.weights()["single_discrete_decoder.weight"]
    row, head = head[0], np.zeros_like(head)
    folders = []
    for name, sign in (("model", 1), ("engine", -1)):
        head[0], head[1] = row * np.float32(1 + sign * 1e-6), row * np.float32(1 - sign * 1e-6)
        folders.append(write(tmp_path / name, **{"single_discrete_decoder.weight": head}))
    detail = loaded(*folders).compare(RECORDINGS["babyai-go-to"])
    assert "choices between nearly equal logits differ" in detail


# ---- checkpoints that do not ---------------------------------------------------------------------------------------


def loaded(model: Path, engine: Path) -> CheckpointChecks:
    """Return checks whose model and engine come from two checkpoints, as if the engine computed wrong results."""
    checks = CheckpointChecks(str(model), device="cpu")
    checks.check_files()
    checks.load_model()
    checks.load_processor()
    checks.engine = JatEngine.from_pretrained(engine, device="cpu", dtype="float32")
    return checks


@pytest.mark.parametrize("name", ["metaworld-drawer-open", "babyai-go-to", "atari-pong"])
def test_one_weight_of_another_sign_is_a_failure(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    weight = golden.weights()["transformer.h.1.mlp.c_fc.weight"]
    weight[3, 5] *= -1
    checks = loaded(tiny_folder, write(tmp_path, **{"transformer.h.1.mlp.c_fc.weight": weight}))
    with pytest.raises(CheckFailedError, match=r"expected an error of at most 0.0001 in float32, got 0.0\d+ at step"):
        checks.compare(RECORDINGS[name])


def test_predictions_that_are_not_finite_fail(tmp_path: Path, check: Check) -> None:
    """All weights are finite, so the checkpoint loads, but the last norm overflows."""
    large = np.full(64, 3e38, np.float32)
    code, rows = check(write(tmp_path, **{"transformer.ln_f.weight": large}))
    assert code == 1
    assert statuses(rows, "FAIL") == [*COMPARED, f"episode {PLAYED}"]
    for name in COMPARED:
        assert rows[name]["detail"].startswith("JatModel at step 0: ")
        assert "got a prediction that is not finite" in rows[name]["detail"]


def test_a_tokenizer_of_another_model_fails(tmp_path: Path, check: Check) -> None:
    folder = write(tmp_path)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["<more>"] = 257
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    code, rows = check(folder)
    assert code == 1
    assert statuses(rows, "FAIL") == ["tokenizer"]
    assert "expected at most vocab_size=257 tokens, got 258" in rows["tokenizer"]["detail"]
    assert statuses(rows, "SKIPPED") == ["compare babyai-go-to", "compare babyai-boss-level", "text"]


def test_an_engine_that_reads_other_tokens_fails(tmp_path: Path, check: Check) -> None:
    """transformers follows this class of tokenizer_config.json, the engine follows tokenizer.json, and they differ."""
    folder = write(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "CLIPTokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    code, rows = check(folder)
    assert code == 1
    assert statuses(rows, "FAIL") == ["tokenizer"]
    assert "expected JatProcessor's token 256 at 0, JatEngine has 70" in rows["tokenizer"]["detail"]


def test_without_a_tokenizer_what_needs_it_is_skipped(tmp_path: Path, check: Check) -> None:
    folder = write(tmp_path)
    (folder / "tokenizer.json").unlink()
    code, rows = check(folder)
    assert code == 0
    assert statuses(rows, "SKIPPED") == ["tokenizer", "compare babyai-go-to", "compare babyai-boss-level", "text"]
    assert "the checkpoint has no tokenizer.json" in rows["text"]["detail"]


def test_a_configuration_that_only_the_model_computes_fails(tmp_path: Path, check: Check) -> None:
    folder = write(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"activation_function": "gelu"}))
    code, rows = check(folder)
    assert code == 1
    assert statuses(rows, "FAIL") == ["JatEngine"]
    assert "config.activation_function: expected 'gelu_new', got 'gelu'" in rows["JatEngine"]["detail"]
    assert {rows[name]["detail"] for name in COMPARED} == {"JatEngine was not loaded"}
    assert rows["text"]["status"] == "PASS"


def test_nothing_at_a_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "none")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"jat-engine: error: source: {tmp_path / 'none'}: expected a folder, a repository id (user/name) or jat-mini, "
        "got neither; check the path\n"
    )
    assert main(["check", str(tmp_path)]) == 1
    failed, summary = capsys.readouterr().out.splitlines()
    assert f"{tmp_path}: expected config.json, got no such file" in failed
    assert summary.startswith(f"{tmp_path}: 0 passed, 1 failed, 0 skipped")


def test_a_missing_simulator_is_skipped_with_its_remedy(
    tiny_folder: Path, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(name: str, **options: Any) -> Any:
        raise MissingSimulatorError(f"{name}: pip install 'jat-engine[mujoco]'")

    monkeypatch.setattr("jat_engine.evaluation.environment.make", lacking)
    code, rows = check(tiny_folder)
    assert code == 0
    assert rows[f"episode {PLAYED}"]["status"] == "SKIPPED"
    assert "pip install 'jat-engine[mujoco]'" in rows[f"episode {PLAYED}"]["detail"]


# ---- recordings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(record_observations.STEPS))
def test_the_script_records_what_is_shipped(name: str) -> None:
    assert FILE.stat().st_size < 200_000
    try:
        again = record_observations.record(name, record_observations.STEPS[name])
    except MissingSimulatorError as error:
        pytest.skip(str(error))
    again = Recording.from_arrays(name, again.to_arrays())
    shipped = RECORDINGS[name]
    assert (again.task, again.action_space) == (shipped.task, shipped.action_space)
    assert again.rewards[0] is None
    assert again.rewards[1:] == pytest.approx(shipped.rewards[1:], rel=1e-3, abs=1e-3)
    assert len(again.observations) == len(shipped.observations) >= 20
    for one, other in zip(again.observations, shipped.observations, strict=True):
        assert one.keys() == other.keys()
        if "continuous_observation" in one:
            assert one["continuous_observation"] == pytest.approx(other["continuous_observation"], rel=1e-3, abs=1e-3)
        else:
            assert all(np.array_equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def exact(tiny_folder: Path, tiny_processor: JatProcessor) -> dict[str, list[np.ndarray]]:
    """Return the predictions of the reference in float64 for each recording."""
    model = JatModel.from_pretrained(tiny_folder, dtype=torch.float64).eval()
    return {name: predict(model, tiny_processor, recording) for name, recording in RECORDINGS.items()}


def predict(agent: Any, processor: Any, recording: Recording) -> list[np.ndarray]:
    agent.reset_rl()
    options = {"action_space": recording.action_space, "deterministic": True, "return_prediction": True}
    options["context_window"] = TASKS[recording.task.name].context_window
    steps = zip(recording.observations, recording.rewards, strict=True)
    return [agent.get_next_action(processor, **o, reward=reward, **options)[1] for o, reward in steps]


@pytest.mark.parametrize("options", variants("float32"))
def test_engines_round_little_on_real_observations(
    options: dict[str, str], exact: dict[str, list[np.ndarray]], load: Load
) -> None:
    """Most pixels of a real frame are equal, so rounding errors of sums over them can add up."""
    engine = load(**options)
    for name, recording in RECORDINGS.items():
        assert errors(predict(engine, None, recording), exact[name]).max() <= TOLERANCE, name


def test_a_task_that_is_not_the_trained_one_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The environment of a name can change after the training; `check` and `bench loop` then say so."""
    folder = shutil.copytree(JAT_MINI_FOLDER, tmp_path / "agent")
    task = get_task("gym:CartPole-v1")
    rule = task.rule | {"adapter": {**task.rule["adapter"], "size": 6}}
    write_trained_tasks(folder, to_json([TrainedTask(task.name, rule)]))

    assert main(["check", str(folder), "--tasks", task.name, "--json", "--use_cpu"]) == 1
    played = json.loads(capsys.readouterr().out)["checks"][-1]
    assert (played["name"], played["status"]) == (f"episode {task.name}", "FAIL")
    assert "'size': 6" in played["detail"]
    assert main(["bench", "loop", "--models", str(folder), "--task", task.name, "--minutes", "0.01"]) == 2
    assert "expected adapter {'observation': 'continuous', 'size': 6" in capsys.readouterr().err
