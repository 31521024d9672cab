"""`jat-engine eval`: what it keeps, what it refuses before it plays, and what a failure leaves."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from jat_engine.evaluation.results import default_folder
from PIL import Image

from jat_engine import JatEngine
from jat_engine.atomic_io import locked
from jat_engine.checkpoint_files import JAT_MINI_FOLDER
from jat_engine.cli import evaluate, main
from jat_engine.envs import Score, get_task
from jat_engine.evaluation import hub
from jat_engine.evaluation.video import read_video

EVAL = ["eval", "--model_name_or_path", "jat-mini", "--use_cpu", "--max_steps", "3", "--num_episodes", "1"]
FOLDER = Path("results/jat-mini")


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _returns(folder: Path = FOLDER) -> dict[str, list[float]]:
    found: dict[str, list[float]] = json.loads((folder / "evaluations.json").read_text())
    details = json.loads((folder / "results.json").read_text())["tasks"]
    assert found == {name: entry["returns"] for name, entry in details.items()}
    return found


def _error(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the only line that a refused call prints."""
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("jat-engine: error: ")
    return line


def _nothing_is_loaded(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    for module in modules or ("evaluate", "play", "demo"):
        monkeypatch.setattr(f"jat_engine.cli.{module}.load_agent", lambda _: pytest.fail("the model was loaded"))


def _before_episode(monkeypatch: pytest.MonkeyPatch, index: int, act: Callable[[], None]) -> None:
    """Call `act` before the episode with this index, over all tasks."""
    reset, episodes = JatEngine.reset_rl, []

    def counting(agent: JatEngine) -> None:
        if len(episodes) == index:
            act()
        episodes.append(agent)
        reset(agent)

    monkeypatch.setattr(JatEngine, "reset_rl", counting)


# ---- the folder of the results -------------------------------------------------------------------------------------


def test_results_never_hide_the_checkpoint() -> None:
    flags = [*EVAL, "--tasks", "mujoco-reacher"]
    assert main(flags) == 0
    first = _returns()
    assert main(flags) == 0
    assert main(["play", *EVAL[1:], "--task", "mujoco-reacher"]) == 0
    assert main(flags) == 0
    assert _returns() == first


@pytest.mark.parametrize("flags", [["--output_dir=~/out"], ["--output-dir", "~/out"]])
def test_home_folder_in_a_flag(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert main([*EVAL, "--tasks", "mujoco-reacher", *flags]) == 0
    assert _returns(tmp_path / "home/out")


def test_default_folders_are_no_checkpoint_and_differ(tmp_path: Path) -> None:
    for name in ("runs/a/checkpoint-5", "runs/b/checkpoint-5", "model", ".hidden"):
        Path(name).mkdir(parents=True)
    sources = ["jat-mini", "jat-project/jat", "runs/a/checkpoint-5", "runs/b/checkpoint-5", "model", ".", ".hidden"]
    folders = [default_folder(source) for source in sources]
    assert len(set(folders)) == len(sources)
    assert all(folder.parent == Path("results") and not folder.name.startswith(".") for folder in folders)
    assert default_folder(str(tmp_path / "runs" / "a" / "checkpoint-5")) == default_folder("runs/a/checkpoint-5/")
    assert default_folder("/") == Path("results/checkpoint")
    assert default_folder("..").parent == Path("results")


def test_tasks_of_one_checkpoint_gather_in_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    for task in ("mujoco-reacher", "babyai-go-to-obj"):
        assert main([*EVAL, "--tasks", task]) == 0
    assert list(_returns()) == ["mujoco-reacher", "babyai-go-to-obj"]
    details = json.loads((FOLDER / "results.json").read_text())
    assert details["complete"] is True
    assert details["overall"]["tasks"] == 2
    assert details["tasks"]["mujoco-reacher"]["run"]["arguments"]["tasks"] == ["mujoco-reacher"]

    capsys.readouterr()
    assert main([*EVAL, "--tasks", "mujoco-reacher", "--num_episodes", "3"]) == 0
    kept = _returns()
    assert len(kept["mujoco-reacher"]) == 3
    assert main([*EVAL, "--tasks", "mujoco-reacher"]) == 0  # fewer: the first of the three
    assert _returns() == kept
    notes = capsys.readouterr().err
    assert "keeps the results that it had of mujoco-reacher, which have more episodes" in notes
    assert "also has 1 other task(s)" in notes


def test_other_settings_are_refused_before_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*EVAL, "--tasks", "mujoco-reacher"]
    assert main(flags) == 0
    before = (FOLDER / "results.json").read_bytes()
    capsys.readouterr()
    assert main([*flags, "--dtype", "int8"]) == 2  # only known of the engine
    assert re.search(r"\(dtype (bfloat16|float32), now int8\)", _error(capsys))
    with monkeypatch.context() as patch:
        _nothing_is_loaded(patch)
        for other in (["--seed", "1"], ["--deterministic"], ["--max_steps", "4"]):
            assert main([*flags, *other]) == 2
            assert "has results of other settings" in _error(capsys)
    assert (FOLDER / "results.json").read_bytes() == before

    assert main([*flags, "--seed", "1", "--overwrite"]) == 0
    assert json.loads((FOLDER / "results.json").read_text())["tasks"]["mujoco-reacher"]["seeds"] == [1]


def test_other_weights_are_refused(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(tiny_folder, "model")
    flags = ["eval", "--model_name_or_path", "model", *EVAL[3:], "--tasks", "mujoco-reacher"]
    assert main(flags) == 0
    weights = bytearray(Path("model/model.safetensors").read_bytes())
    weights[-2] ^= 1  # a bit of the last number's fraction
    Path("model/model.safetensors").write_bytes(weights)
    capsys.readouterr()
    assert main(flags) == 2
    assert "results/model: has results of other settings (weights_sha256" in _error(capsys)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("evaluations.json", '{"mujoco-reacher": [1.0]}'),
        ("results.json", "{bad"),
        ("results.json", "[]"),
        ("results.json", '{"tasks": {"mujoco-reacher": {"returns": [null], "complete": true}}}'),
    ],
)
def test_results_of_unknown_settings_stay(
    name: str, content: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _nothing_is_loaded(monkeypatch)
    FOLDER.mkdir(parents=True)
    (FOLDER / name).write_text(content)
    assert main([*EVAL, "--tasks", "mujoco-reacher"]) == 2
    assert "add --overwrite to replace them" in _error(capsys)
    assert (FOLDER / name).read_text() == content


def test_two_evaluations_at_once_do_not_share_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    FOLDER.mkdir(parents=True)
    with locked(FOLDER):
        assert main([*EVAL, "--tasks", "mujoco-reacher"]) == 2
    assert "another evaluation writes its results there" in _error(capsys)


# ---- checks before the first episode -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        [*EVAL, "--tasks", "mujoco"],
        ["demo", "--tasks", "mujoco-reacher", "mujoco-humanoid", "mujoco-standup", "--video", ""],
        ["play", *EVAL[1:], "--task", "mujoco-humanoid"],
    ],
)
def test_tasks_that_do_not_fit_are_named_before_anything_runs(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _nothing_is_loaded(monkeypatch)
    assert main(command) == 2
    message = _error(capsys)
    assert "--task" in message
    assert "mujoco-humanoid" in message
    assert ("mujoco-standup" in message) == (command[0] != "play")
    assert "mujoco-ant" not in message
    assert "expected 1 to 39 finite numbers, got shape (376,)" in message
    assert not FOLDER.exists()


@pytest.mark.parametrize(
    "path",
    ["pong.avi", "pong", ".", "..", "/proc/pong.mp4", "file/pong.mp4", "folder.mp4", "x" * 300 + ".mp4", "a\0b.mp4"],
)
@pytest.mark.parametrize("command", ["play", "demo"])
def test_video_paths_are_checked_before_anything_runs(
    path: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _nothing_is_loaded(monkeypatch)
    Path("file").touch()
    Path("folder.mp4").mkdir()
    flags = {"play": [*EVAL[1:], "--task", "mujoco-reacher", "--save_video"], "demo": ["--video"]}[command]
    assert main([command, *flags, path]) == 2
    assert "--save_video: expected" in (message := _error(capsys)) or "--video: expected" in message


@pytest.mark.parametrize("path", ["-v.mp4", "a:b.mp4", "with space/%d.mkv"])
def test_odd_names_of_videos_work(path: str) -> None:
    assert main(["play", *EVAL[1:], "--task", "babyai-open", f"--save_video={path}"]) == 0
    assert len(list(read_video(path))) == 9


def test_play_writes_a_gif() -> None:
    assert main(["play", *EVAL[1:], "--task", "babyai-open", "--save_video", "open.gif"]) == 0
    with Image.open("open.gif") as image:
        assert image.size == (704, 748)
        assert image.n_frames == 4


def test_an_encoder_that_does_not_work_is_known_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import imageio_ffmpeg

    _nothing_is_loaded(monkeypatch)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: "/bin/false")
    assert main([*EVAL, "--tasks", "mujoco-reacher", "--save_video"]) == 2
    assert "--save_video: videos cannot be encoded here" in _error(capsys)
    assert not FOLDER.exists()


@pytest.mark.parametrize("seed", ["-1", str(2**64), str(2**64 - 1)])
def test_seeds_that_no_generator_takes(
    seed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        _nothing_is_loaded(patch)
        assert main([*EVAL, "--tasks", "mujoco-reacher", "--seed", seed, "--num_episodes", "2"]) == 2
        assert "--seed: expected 0 to 2**64 - 1" in _error(capsys)
    assert main([*EVAL, "--tasks", "mujoco-reacher", "--seed", str(2**64 - 1)]) == 0


def test_mistyped_flags_are_one_line_with_a_guess(capsys: pytest.CaptureFixture[str]) -> None:
    for flags, message in (
        (["--taks", "all"], "did you mean --tasks?"),
        (["--num-episode=2"], "did you mean --num_episodes?"),
        (["--tasks"], "expected at least one argument"),
    ):
        try:
            assert main([*EVAL, *flags]) == 2
        except SystemExit as error:
            assert error.code == 2
        assert message in _error(capsys)


# ---- failures while playing ----------------------------------------------------------------------------------------


class _Breaks(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Break in the second episode: by an error, an observation, or a last reward that is not a number."""

    def __init__(self, env: gymnasium.Env[Any, Any], kind: str) -> None:
        super().__init__(env)
        self._kind, self._episode, self._step = kind, 0, 0

    def reset(self, **options: Any) -> Any:
        self._episode, self._step = self._episode + 1, 0
        return self.env.reset(**options)

    def step(self, action: Any) -> Any:
        observation, reward, *rest = self.env.step(action)
        self._step += 1
        if self._episode == 2:
            if self._kind == "raises":
                raise RuntimeError("physics\ndiverged")
            if self._kind == "nan":
                observation = {"continuous_observation": np.full(4, np.nan)}
            elif self._step == 3:
                reward = float("inf")
        return observation, reward, *rest


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("raises", "RuntimeError: physics diverged"),
        ("nan", "InputError: continuous_observation"),
        ("reward", "got inf"),
    ],
)
def test_a_task_that_fails_is_named_and_the_others_are_played(
    kind: str, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make = evaluate.evaluation_env
    monkeypatch.setattr(
        evaluate,
        "evaluation_env",
        lambda task, mode: _Breaks(make(task, mode), kind) if task.name == "mujoco-pendulum" else make(task, mode),
    )
    tasks = ["mujoco-reacher", "mujoco-pendulum", "babyai-go-to-obj"]
    assert main([*EVAL, "--num_episodes", "3", "--tasks", *tasks]) == 1
    captured = capsys.readouterr()
    last = captured.err.splitlines()[-1]
    assert last.startswith("jat-engine: error: mujoco-pendulum: failed in episode 2 (seed 3000001): ")
    assert reason in last
    assert "1 of 3" in captured.out
    assert {name: len(returns) for name, returns in _returns().items()} == dict(zip(tasks, (3, 1, 3), strict=True))
    found = json.loads((FOLDER / "results.json").read_text())
    assert found["complete"] is False
    assert found["failed"]["mujoco-pendulum"]["seed"] == 3_000_001
    assert "Traceback" in found["failed"]["mujoco-pendulum"]["traceback"]


@pytest.mark.parametrize("command", ["play", "demo"])
def test_a_simulator_that_fails_is_one_line(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = f"jat_engine.cli.{command}.evaluation_env"
    make = evaluate.evaluation_env
    monkeypatch.setattr(module, lambda task, mode: _Breaks(make(task, mode), "raises"))
    flags = ["--max_steps", "3", "--num_episodes", "3", "--seed", "5"]
    flags += ["--task", "mujoco-reacher"] if command == "play" else ["--tasks", "mujoco-reacher", "--video", ""]
    assert main([command, "--model_name_or_path", "jat-mini", *flags]) == 1
    captured = capsys.readouterr()
    assert ("episode 1: return" if command == "play" else "3 (capped)") in captured.out
    (line,) = captured.err.splitlines()
    reason = "failed in episode 2 (seed 6): RuntimeError: physics diverged"
    assert line == f"jat-engine: error: mujoco-reacher: {reason}"


def test_a_reader_that_goes_away_ends_no_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as output:
        monkeypatch.setattr("sys.stdout", output)
        assert main([*EVAL, "--tasks", "mujoco-reacher", "mujoco-pendulum"]) == 0
    assert set(_returns()) == {"mujoco-reacher", "mujoco-pendulum"}


def test_sigterm_keeps_what_is_finished(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    _before_episode(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as stop:
        main([*EVAL, "--num_episodes", "2", "--tasks", "mujoco-reacher", "mujoco-pendulum"])
    assert stop.value.code == 128 + signal.SIGTERM
    assert {name: len(returns) for name, returns in _returns().items()} == {"mujoco-reacher": 2, "mujoco-pendulum": 1}
    assert "ended by SIGTERM" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_kill_finds_earlier_episodes_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    monkeypatch.setattr(evaluate, "_PAUSE", 0.0)
    monkeypatch.setattr(evaluate, "_WRITE_SHARE", 0.0)
    _before_episode(monkeypatch, 2, lambda: found.append(len(_returns()["mujoco-reacher"])))
    assert main([*EVAL, "--num_episodes", "3", "--tasks", "mujoco-reacher"]) == 0
    assert found == [2]


def test_results_that_cannot_be_written_are_kept_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _before_episode(monkeypatch, 0, (FOLDER / "results.json").mkdir)
    assert main([*EVAL, "--tasks", "mujoco-reacher"]) == 1
    captured = capsys.readouterr()
    assert "mujoco: expert-normalised IQM" in captured.out
    last = captured.err.splitlines()[-1]
    assert last.startswith("jat-engine: error: results/jat-mini: the results cannot be written")
    assert len(_returns(Path(last.rpartition("they are in ")[2]))["mujoco-reacher"]) == 1


def test_a_video_that_fails_costs_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    (FOLDER / "videos" / "babyai-open.mp4").mkdir(parents=True)
    (FOLDER / "replay.mp4").mkdir()
    assert main([*EVAL, "--tasks", "babyai-open", "babyai-go-to-obj", "--save_video"]) == 1
    captured = capsys.readouterr()
    assert "babyai: expert-normalised IQM" in captured.out
    assert "no video of babyai-open" in captured.err
    assert set(_returns()) == {"babyai-open", "babyai-go-to-obj"}
    assert len(list(read_video(FOLDER / "videos" / "babyai-go-to-obj.mp4"))) == 3


# ---- the hub -------------------------------------------------------------------------------------------------------


def test_an_upload_that_fails_says_how_to_repeat_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any, **__: Any) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr("jat_engine.hub_account.check_upload", lambda _: None)
    monkeypatch.setattr(hub, "push_to_hub", fails)
    assert main([*EVAL, "--tasks", "mujoco-reacher", "--push_to_hub", "--repo_id", "me/agent"]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert "the upload to me/agent failed (no network). The results are in results/jat-mini" in message
    assert len(_returns()["mujoco-reacher"]) == 1

    uploaded: dict[str, Any] = {}
    monkeypatch.setattr(hub, "push_to_hub", lambda *_, **options: uploaded.update(options) or "address")
    command = shlex.split(message.partition("upload them with: ")[2])
    assert command.pop(0) == "jat-engine"
    assert main(command) == 0
    assert uploaded["evaluations"] == FOLDER / "evaluations.json"
    assert [path.name for path in uploaded["files"]] == ["results.json", "tasks.json"]
    reacher = get_task("mujoco-reacher").with_scores(None, Score(pytest.approx(-4.109, abs=1e-3), None))
    assert uploaded["tasks"] == {"mujoco-reacher": reacher}
    assert "pushed to address" in capsys.readouterr().err


def test_an_upload_without_results_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jat_engine.hub_account.check_upload", lambda _: None)
    assert main([*EVAL, "--push_to_hub", "--repo_id", "me/agent"]) == 2
    assert "results/jat-mini has no results" in _error(capsys)
    FOLDER.mkdir(parents=True)
    (FOLDER / "results.json").write_text(
        json.dumps({"settings": {"weights_sha256": "0"}, "tasks": {"x": {"returns": [1.0], "complete": True}}})
    )
    assert main([*EVAL, "--push_to_hub", "--repo_id", "me/agent"]) == 2
    assert "weights_sha256 0" in _error(capsys)


@pytest.mark.parametrize("name", ["me", "me/agent/x", "me/a b", "me/a--b", "me/a..b", "/x", "me/", "https://x/y"])
def test_names_of_repositories_are_checked_before_anything_runs(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _nothing_is_loaded(monkeypatch)
    assert main([*EVAL, "--tasks", "mujoco-reacher", "--push_to_hub", "--repo_id", name]) == 2
    assert "--repo_id: expected owner/name" in _error(capsys)


def test_weights_of_the_package_are_what_the_results_name() -> None:
    import hashlib

    assert main([*EVAL, "--tasks", "mujoco-reacher"]) == 0
    settings = json.loads((FOLDER / "results.json").read_text())["settings"]
    expected = hashlib.sha256((JAT_MINI_FOLDER / "model.safetensors").read_bytes()).hexdigest()
    assert settings["weights_sha256"] == expected
