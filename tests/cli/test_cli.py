"""The command line `jat-engine`, through `main` and once as a process."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jat_engine import cli
from jat_engine.backends import choose_backend
from jat_engine.cli import main
from jat_engine.cli.demo import DEMO_TASKS
from jat_engine.envs import DOMAINS, MissingSimulatorError, Task
from jat_engine.evaluation.video import read_video


@pytest.fixture
def checkpoint(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of a checkpoint in the working directory."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


@pytest.fixture
def results(checkpoint: Path) -> Path:
    """Return the folder that its results are written to by default."""
    return checkpoint.parent / "results" / "model"


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def _error(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the only line that a wrong call prints."""
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("jat-engine: error: ")
    return lines[0]


# ---- eval ----------------------------------------------------------------------------------------------------------


def test_eval_writes_the_published_files_and_repeats_itself(
    checkpoint: Path, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["eval", "--model_name_or_path", str(checkpoint), "--use_cpu", "--max_steps", "12"]
    flags += ["--tasks", "babyai-go-to-local", "metaworld-reach", "atari-bowling", "--num_episodes", "2"]
    assert main(flags) == 0
    evaluations = _json(results / "evaluations.json")
    assert list(evaluations) == ["atari-bowling", "babyai-go-to-local", "metaworld-reach"]
    assert all(len(returns) == 2 for returns in evaluations.values())
    table = capsys.readouterr().out
    assert "metaworld: IQM normalised by the published expert" in table
    assert "atari: IQM normalised by the published expert -, from 0 of 1 task" in table
    assert all(name in table for name in evaluations)
    assert "undefined" in table

    found = _json(results / "results.json")
    assert found["complete"] is True
    for name, returns in evaluations.items():
        assert found["tasks"][name]["returns"] == returns
        assert found["tasks"][name]["seeds"] == [1_000_000, 1_000_001]
    assert set(found["domains"]) == {"babyai", "metaworld", "atari"}
    timing = _json(results / "timing.json")
    assert timing["arguments"]["tasks"] == ["babyai-go-to-local", "metaworld-reach", "atari-bowling"]
    assert {"python", "torch", "transformers", "gymnasium", "jat_engine", "mujoco"} <= set(timing["versions"])
    assert timing["last"]["steps"] == sum(task["steps"] for task in timing["tasks"].values()) > 0

    other = tmp_path / "again"
    assert main([*flags, "--output-dir", str(other)]) == 0
    for name in ("evaluations.json", "results.json"):
        assert (other / name).read_bytes() == (results / name).read_bytes()
    other = tmp_path / "another seed"
    assert main([*flags, "--output_dir", str(other), "--seed", "100", "--tasks", "metaworld-reach"]) == 0
    assert _json(other / "evaluations.json")["metaworld-reach"] != evaluations["metaworld-reach"]


def test_engine_and_reference_give_the_same_returns(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["eval", "--model_name_or_path", str(checkpoint), "--use_cpu", "--max_steps", "20", "--num_episodes", "1"]
    flags += ["--tasks", "babyai-open", "atari-bowling", "metaworld-reach", "--dtype", "float32"]
    returns, devices = {}, {}
    for backend in ("reference", "torch", "cpu"):
        assert main([*flags, "--backend", backend, "--output_dir", backend]) == 0
        returns[backend] = _json(Path(backend) / "evaluations.json")
        devices[backend] = _json(Path(backend) / "timing.json")["device"]
    for backend in ("torch", "cpu"):
        for task, values in returns["reference"].items():
            assert returns[backend][task] == pytest.approx(values, rel=1e-4)
        assert f"JatEngine, backend {backend}, float32" in devices[backend]
    assert "JatModel, float32" in devices["reference"]
    capsys.readouterr()
    assert main([*flags, "--backend", "reference", "--dtype", "int8"]) == 2
    assert "expected float32 or bfloat16 with --backend reference" in _error(capsys)


def test_eval_as_a_process_with_the_published_flags(checkpoint: Path, results: Path) -> None:
    command = [sys.executable, "-m", "jat_engine.cli", "eval", "--model_name_or_path", str(checkpoint)]
    command += ["--tasks", "atari-breakout", "babyai-open", "--trust_remote_code", "--use_cpu", "--save_video"]
    command += ["--num_episodes", "1", "--cache_dir", str(checkpoint / "cache"), "--max_steps", "15"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "--trust_remote_code is ignored" in done.stderr
    assert "Loading weights" not in done.stderr
    assert "atari-breakout" in done.stdout
    assert set(_json(results / "evaluations.json")) == {"atari-breakout", "babyai-open"}
    lengths = _json(results / "results.json")["tasks"]["atari-breakout"]["lengths"]
    assert lengths == [15]
    frames = list(read_video(results / "videos" / "atari-breakout" / "episode-0000.mp4"))
    assert len(frames) == 45, "16 states, and the last one up to three seconds"
    height, width = next(read_video(results / "replay.mp4")).shape[:2]
    assert width > height, "two tasks side by side"


def test_eval_reads_arguments_from_a_json_file(checkpoint: Path, tmp_path: Path) -> None:
    arguments = {
        "model_name_or_path": str(checkpoint),
        "tasks": ["mujoco-pendulum"],
        "max_steps": 2,
        "output_dir": str(tmp_path / "out"),
    }
    (tmp_path / "eval.json").write_text(json.dumps(arguments))
    assert main(["eval", str(tmp_path / "eval.json")]) == 0
    assert len(_json(tmp_path / "out" / "evaluations.json")["mujoco-pendulum"]) == 2  # the published default


def test_interrupted_eval_keeps_what_is_finished(
    checkpoint: Path, results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from jat_engine import JatEngine

    open_session, episodes = JatEngine.open_session, []

    def interrupted(engine: JatEngine, *arguments: Any) -> Any:
        episodes.append(engine)
        if len(episodes) == 4:  # the second episode of the second task
            raise KeyboardInterrupt
        return open_session(engine, *arguments)

    flags = ["eval", "--model_name_or_path", str(checkpoint), "--max_steps", "2"]
    flags += ["--tasks", "mujoco-pendulum", "babyai-open", "mujoco-swimmer", "--num_workers", "0", "--num_envs", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(JatEngine, "open_session", interrupted)
        assert main(flags) == 130
    evaluations = _json(results / "evaluations.json")
    assert {name: len(returns) for name, returns in evaluations.items()} == {
        "babyai-open": 1,
        "mujoco-pendulum": 2,
    }
    found = _json(results / "results.json")
    assert found["complete"] is False
    assert {name: task["complete"] for name, task in found["tasks"].items()} == {
        "babyai-open": False,
        "mujoco-pendulum": True,
    }
    assert "interrupted" in capsys.readouterr().err

    before = (results / "results.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(JatEngine, "open_session", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(flags) == 130
    assert (results / "results.json").read_bytes() == before, "nothing has ended"
    assert main(flags) == 0
    assert _json(results / "results.json")["complete"] is True


# ---- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks", "atari-pongg"], "atari-pong"),
        (["--tasks", "mujoco-pendulum", "--push_to_hub"], "--repo_id"),
        (["--tasks", "mujoco-pendulum", "--num_episodes", "0"], "--num_episodes: expected at least 1, got 0"),
        (["--tasks", "mujoco-pendulum", "--max_steps", "0"], "--max_steps: expected at least 1, got 0"),
    ],
)
def test_eval_refuses_bad_arguments_before_anything_runs(
    flags: list[str],
    message: str,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from jat_engine.cli import evaluate

    monkeypatch.setattr(evaluate, "load_agents", lambda *_, **__: pytest.fail("the model was loaded"))
    assert main(["eval", "--model_name_or_path", str(checkpoint), *flags]) == 2
    assert message in _error(capsys)


def test_eval_reports_all_missing_simulators_before_anything_runs(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from jat_engine.cli import evaluate
    from jat_engine.evaluation import environment

    make = environment.make

    def lacking(task: Task, **options: Any) -> Any:
        if task.domain in ("atari", "metaworld"):
            raise MissingSimulatorError(f"{task.name}: pip install 'jat-engine[{task.domain}]'")
        return make(task, **options)

    monkeypatch.setattr(environment, "make", lacking)
    monkeypatch.setattr(evaluate, "load_agents", lambda *_, **__: pytest.fail("the model was loaded"))
    tasks = ["mujoco-pendulum", "atari-pong", "metaworld-reach"]
    assert main(["eval", "--model_name_or_path", str(checkpoint), "--tasks", *tasks]) == 2
    message = _error(capsys)
    assert "'jat-engine[atari]'" in message
    assert "'jat-engine[metaworld]'" in message


def test_missing_encoder_is_reported_before_anything_runs(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from jat_engine.cli import evaluate

    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setattr(evaluate, "load_agents", lambda *_, **__: pytest.fail("the model was loaded"))
    flags = ["--model_name_or_path", str(checkpoint), "--tasks", "mujoco-pendulum", "--save_video"]
    assert main(["eval", *flags]) == 2
    assert "pip install 'jat-engine[video]'" in _error(capsys)


def test_a_machine_that_cannot_render_is_known_before_anything_runs(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "none")
    monkeypatch.setattr("jat_engine.cli.play.load_agent", lambda *_, **__: pytest.fail("the model was loaded"))
    flags = ["--model_name_or_path", str(checkpoint), "--task", "mujoco-pendulum", "--save_video", "x.mp4"]
    assert main(["play", *flags]) == 2
    assert "mujoco-pendulum: MUJOCO_GL: expected one of glfw, egl, osmesa for frames, got 'none'" in _error(capsys)


def test_a_window_needs_a_display(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    flags = ["--model_name_or_path", str(checkpoint), "--task", "babyai-open", "--render", "--max_steps", "1"]
    assert main(["play", *flags]) == 2
    assert "--save_video" in _error(capsys)


def test_models_that_cannot_be_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--tasks", "mujoco-pendulum", "--output_dir", str(tmp_path / "out")]
    assert main(["eval", "--model_name_or_path", str(tmp_path / "none"), *flags]) == 2
    assert f"{tmp_path / 'none'}: expected a folder, a repository id" in _error(capsys)
    (tmp_path / "empty").mkdir()
    assert main(["eval", "--model_name_or_path", str(tmp_path / "empty"), *flags]) == 2
    assert str(tmp_path / "empty") in _error(capsys)
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_is_one_line(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert main(["play", "--model_name_or_path", str(checkpoint), "--task", "mujoco-pendulum"]) == 2
    assert "model.safetensors" in _error(capsys)


def test_defects_of_other_packages_keep_their_traceback(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jat_engine.cli.play.load_agent", lambda _: json.loads("{"))
    with pytest.raises(ValueError, match="Expecting property name"):
        main(["play", "--model_name_or_path", str(checkpoint), "--task", "mujoco-pendulum"])


@pytest.mark.parametrize("argv", [["evla"], ["evaluate", "--tasks", "all"]])
def test_unknown_commands(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert "eval" in _error(capsys)


_REQUIRED = {
    "play": ["--model_name_or_path", "x", "--task", "atari-pong"],
    "eval": ["--model_name_or_path", "x", "--tasks", "all"],
    "serve": ["--model_name_or_path", "x"],
    "generate": ["--model_name_or_path", "x"],
    "lm-eval": ["--model_name_or_path", "x", "--tasks", "y"],
    "collect": ["--tasks", "all", "--output_dir", "x"],
    "train": ["--tasks", "all", "--output_dir", "x"],
    "import": ["x.npz", "--output_dir", "x"],
    "quantize": ["--model", "x", "--output", "x"],
}


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_has_help_and_refuses_unknown_flags(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert f"usage: jat-engine {name}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main([name, "--modle", "x", *_REQUIRED.get(name, [])])
    assert stop.value.code == 2
    assert "unrecognized arguments: --modle" in capsys.readouterr().err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    from jat_engine import __version__

    assert main(["--help"]) == main([]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in cli.COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"jat-engine {__version__}\n"


# ---- play ----------------------------------------------------------------------------------------------------------


def test_play_prints_each_episode_and_records_it(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = tmp_path / "videos" / "open.mp4"
    flags = ["--model-name-or-path", str(checkpoint), "--task", "babyai-open", "--seed", "4"]
    flags += ["--num-episodes", "2", "--max-steps", "3", "--save-video", str(video), "--deterministic"]
    assert main(["play", *flags]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("episode 1: return ")
    assert "3 steps (stopped by --max_steps)" in first
    assert first.endswith("seed 4")
    assert second.endswith("seed 5")
    assert len(list(read_video(video))) == 2 * 9, "three seconds of each"
    assert not (checkpoint / "evaluations.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task", "mujoco"], "--task: expected the name of one task, got 'mujoco'"),
        (["--task", "mujoco-hoper"], "mujoco-hopper"),
        (["--task", "mujoco-hopper", "--render", "--save_video", "x.mp4"], "expected one of them"),
    ],
)
def test_play_refuses(flags: list[str], message: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["play", "--model_name_or_path", str(checkpoint), *flags]) == 2
    assert message in _error(capsys)


# ---- tasks, info, demo ---------------------------------------------------------------------------------------------


def test_tasks_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert sum(row.get("domain") in DOMAINS for row in rows) == 157  # other tests of this process register more
    pong = next(row for row in rows if row["name"] == "atari-pong")
    assert (pong["domain"], pong["context_window"], pong["observation"]) == ("atari", 32, "image")
    assert pong["random"]["mean"] == -20.7
    assert main(["tasks", "--domain", "babyai", "--search", "red", "--json"]) == 0
    names = {row["name"] for row in json.loads(capsys.readouterr().out)}
    assert "babyai-open-red-door" in names
    assert all(name.startswith("babyai-") and "red" in name for name in names)
    assert main(["tasks", "--domain", "mujoco"]) == 0
    out = capsys.readouterr().out
    assert "mujoco-hopper" in out
    assert out.startswith("11 tasks")


def test_narrow_terminals_lose_columns_but_no_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    from jat_engine.cli import tables

    columns = {"task": ["metaworld-button-press-topdown-wall"], "domain": ["metaworld"], "return": ["1 ± [bold]"]}
    for width, shown in ((80, ["task", "domain", "return"]), (50, ["task", "return"]), (20, ["task", "return"])):
        monkeypatch.setattr(tables, "console", lambda width=width: Console(width=width))
        tables.print_table("t", columns, left=["task"], optional=["domain"])
        out = capsys.readouterr().out
        assert out.splitlines()[2].split() == shown
        assert "metaworld-button-press-topdown-wall" in out
        assert "1 ± [bold]" in out


def test_tasks_check_tells_ok_missing_and_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from jat_engine.cli import tasks

    assert main(["tasks", "--check", "--search", "pendulum"]) == 0
    assert "2 ok" in capsys.readouterr().out
    make = tasks.make

    def lacking(task: Task, **options: Any) -> Any:
        if task.name == "mujoco-pendulum":
            raise MissingSimulatorError("pip install 'jat-engine[mujoco]'")
        return make(task, **options)

    monkeypatch.setattr(tasks, "make", lacking)
    assert main(["tasks", "--check", "--search", "pendulum", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["mujoco-pendulum"]["status"] == "not installed"
    assert "jat-engine[mujoco]" in rows["mujoco-pendulum"]["reason"]
    assert rows["mujoco-doublependulum"]["status"] == "ok"

    def broken(name: str, **options: Any) -> Any:
        raise RuntimeError("no such file: [model.xml]")

    monkeypatch.setattr(tasks, "make", broken)
    assert main(["tasks", "--check", "--search", "pendulum"]) == 1
    out = capsys.readouterr().out
    assert "2 failed" in out
    assert "RuntimeError: no such file: [model.xml]" in " ".join(out.split())


def test_info_describes_the_engine_of_a_checkpoint(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json", "--model_name_or_path", str(tiny_folder)]) == 0
    engine = json.loads(capsys.readouterr().out)["engine"]
    assert engine["backend"].endswith(choose_backend(head_dim=16).reason)
    assert engine["persistent kernel"]
    assert re.search(r"weights \d+\.\d MB, cache \d+\.\d MB", engine["memory"])

    assert main(["info", "--model_name_or_path", str(tiny_folder)]) == 0
    assert f"  {engine['persistent kernel']}" in capsys.readouterr().out
    assert main(["info", "--model_name_or_path", str(tiny_folder / "absent")]) == 2
    assert "--model_name_or_path" in capsys.readouterr().err


def test_info(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from jat_engine import __version__
    from jat_engine import installation as info

    monkeypatch.setattr(info, "EXTENSIONS", ("_absent",))
    monkeypatch.setitem(info.SIMULATORS, "atari", ("gymnasium", "no_such_module"))
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["jat_engine"] == __version__
    assert found["cpu"]["cores"] >= 1
    assert found["backend"]["backend"] in ("cpu", "torch")
    assert found["backend"]["reason"]
    assert found["gpu"].keys() == {"graphs", "persistent kernel"}
    assert all(found["gpu"].values())
    assert found["extensions"]["_absent"]["built"] is False
    assert found["simulators"]["atari"]["missing"] == ["no_such_module"]
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert "not built: there is no compiled jat_engine._absent" in out
    assert "missing no_such_module; pip install 'jat-engine[atari]'" in out


@pytest.mark.versions
def test_demo_plays_every_domain(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--use_cpu", "--max_steps", "4", "--video", str(tmp_path / "demo.mp4")]
    assert main(["demo", "--model_name_or_path", str(tiny_folder), *flags]) == 0
    out = capsys.readouterr().out
    for task in DEMO_TASKS:
        assert task in out
    assert "4 (capped)" in out
    frames = list(read_video(tmp_path / "demo.mp4"))
    assert len(frames) == 90, "three seconds"
    assert "random weights" not in out


@pytest.fixture
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the preset `small`, which takes seconds to make."""
    from jat_engine.config import PRESETS

    sizes = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64}
    monkeypatch.setitem(PRESETS, "small", sizes)


@pytest.mark.usefixtures("tiny_preset")
def test_demo_without_a_checkpoint_says_that_the_weights_are_random(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--use_cpu", "--preset", "small", "--video", "", "--max_steps", "2", "--tasks", "mujoco-pendulum"]
    assert main(["demo", *flags, "babyai-open"]) == 0
    out = capsys.readouterr().out
    assert "random weights, size small" in out
    assert "JatEngine, backend" in out
    assert main(["demo", *flags, "--backend", "reference"]) == 0
    assert "JatModel, float32" in capsys.readouterr().out


@pytest.mark.usefixtures("tiny_preset")
def test_random_agent_is_always_the_same() -> None:
    import torch

    from jat_engine.cli.demo import random_agent

    before = torch.get_rng_state()
    first, second, other = (random_agent(seed=seed)[0].continuous_encoder.weight for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_importing_the_package_needs_no_simulator() -> None:
    simulators = ("ale_py", "minigrid", "metaworld", "mujoco", "cv2", "imageio_ffmpeg")
    code = (
        "import sys, jat_engine, jat_engine.cli\n"
        "assert 'gymnasium' not in sys.modules\n"
        "import jat_engine.evaluation, jat_engine.envs  # registers ids with gymnasium, if that is installed\n"
        f"loaded = set({simulators}) & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("content", ["{bad", "[1]", '{"bogus": 1}', '{"task": "mujoco-hopper", "max_steps": "x"}'])
def test_mistakes_in_an_argument_file(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "arguments.json"
    file.write_text(content)
    try:
        code = main(["play", str(file)])
    except SystemExit as error:  # argparse
        code = error.code
    assert code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("place", ["/proc/none", "a file"])
def test_an_output_folder_that_cannot_be_written(
    place: str, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error comes before the model is loaded and anything is played."""
    if place == "a file":
        place = str(tmp_path / "file")
        Path(place).touch()
    flags = ["--model_name_or_path", str(tiny_folder), "--tasks", "mujoco-hopper", "--output_dir", place]
    assert main(["eval", *flags]) == 2
    assert f"--output_dir: expected a folder that can be written to, got {place}" in capsys.readouterr().err


def test_a_domain_is_trained_on_what_a_folder_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from jat_engine.cli.arguments import TaskArguments
    from jat_engine.cli.train import DataArguments, collected_tasks

    choice = TaskArguments()

    (tmp_path / "mujoco-pendulum").mkdir()
    (tmp_path / "babyai-open").mkdir()
    data = DataArguments(tasks=["babyai-go-to", "mujoco"], dataset=str(tmp_path))
    assert list(collected_tasks(data, choice)) == ["babyai-go-to", "mujoco-pendulum"]  # what is named must be there
    assert "does not have mujoco-ant" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"--tasks atari: expected tasks that .* has, got none of them"):
        collected_tasks(DataArguments(tasks=["atari"], dataset=str(tmp_path)), choice)
    assert len(collected_tasks(DataArguments(tasks=["mujoco"]), choice)) == 11  # on the hub
