"""`jat-engine eval`: what it keeps, what it refuses before it plays, and what a failure leaves."""

from __future__ import annotations

import contextlib
import hashlib
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
from helpers.runs import evaluation, make_run
from PIL import Image

from jat_engine import JatEngine
from jat_engine.atomic_io import locked
from jat_engine.checkpoint_files import JAT_MINI_FOLDER
from jat_engine.cli import evaluate, main
from jat_engine.envs import Task
from jat_engine.evaluation.environment import evaluation_env
from jat_engine.evaluation.video import read_video
from jat_engine.runs import hub, slots
from jat_engine.runs.database import FILE_NAME, RunDatabase, read_run
from jat_engine.runs.folder import default_folder

EVAL = ["eval", "--model_name_or_path", "jat-mini", "--use_cpu", "--max_steps", "3", "--num_episodes", "1"]
ALONE = ["--num_workers", "0", "--num_envs", "1"]
"""Flags with which episodes are played one after the other in this process, so that a test can change something."""

FOLDER = Path("results/jat-mini")
WEIGHTS = JAT_MINI_FOLDER / "model.safetensors"


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


def _nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    for loader in ("evaluate.load_agents", "play.load_agent", "demo.load_agent"):
        monkeypatch.setattr(f"jat_engine.cli.{loader}", lambda *_, **__: pytest.fail("the model was loaded"))


def _before_episode(monkeypatch: pytest.MonkeyPatch, index: int, act: Callable[[], object]) -> None:
    """Call `act` before the episode with this index, over all tasks; for runs with the flags `ALONE`."""
    open_session, episodes = JatEngine.open_session, []

    def counting(engine: JatEngine, *arguments: Any) -> Any:
        if len(episodes) == index:
            act()
        episodes.append(engine)
        return open_session(engine, *arguments)

    monkeypatch.setattr(JatEngine, "open_session", counting)


def _changed(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[Any], Any]) -> None:
    """Wrap the environment of a task in runs with the flags `ALONE`."""

    def make(task: Task, mode: str | None = None) -> Any:
        env = evaluation_env(task, mode)
        return change(env) if task.name == name else env

    monkeypatch.setattr(slots, "evaluation_env", make)


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


def test_tasks_of_one_checkpoint_gather_in_a_folder() -> None:
    for task in ("mujoco-reacher", "babyai-go-to-obj"):
        assert main([*EVAL, "--tasks", task]) == 0
    assert list(_returns()) == ["babyai-go-to-obj", "mujoco-reacher"]
    details = json.loads((FOLDER / "results.json").read_text())
    assert details["complete"] is True
    assert details["overall"]["tasks"] == 2


def test_no_episode_is_played_twice(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*EVAL, *ALONE, "--tasks", "mujoco-reacher"]
    assert main([*flags, "--num_episodes", "2"]) == 0
    (first,) = _returns().values()
    seeds: list[int] = []

    class Noting(gymnasium.Wrapper[Any, Any, Any, Any]):
        def reset(self, **options: Any) -> Any:
            seeds.append(options["seed"])
            return self.env.reset(**options)

    _changed(monkeypatch, "mujoco-reacher", Noting)
    assert main([*flags, "--num_episodes", "3"]) == 0
    assert seeds == [3_000_002]
    kept = _returns()
    assert kept["mujoco-reacher"][:2] == first
    assert len(kept["mujoco-reacher"]) == 3

    capsys.readouterr()
    before = (FOLDER / "results.json").read_bytes()
    assert main(flags) == 0, "fewer episodes: the first of the three"
    assert seeds == [3_000_002]
    assert (FOLDER / "results.json").read_bytes() == before
    assert "mujoco-reacher" in capsys.readouterr().out


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
    assert main([*flags, "--seed", "2", "--overwrite"]) == 0
    assert (FOLDER / "earlier-1" / "results.json").read_bytes() == before, "nothing is deleted"
    assert [read_run(FOLDER / f"earlier-{number}").settings["seed"] for number in (1, 2)] == [3_000_000, 1]


def test_resuming_takes_tasks_episodes_and_seed_from_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*EVAL[:-2], "--resume"]) == 2
    assert "results/jat-mini: expected the folder of a run" in _error(capsys)
    tasks = ["mujoco-reacher", "mujoco-pendulum"]
    with monkeypatch.context() as patch:
        _before_episode(patch, 3, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        flags = ["--num_episodes", "2", "--seed", "5"]
        assert main([*EVAL[:-2], *ALONE, *flags, "--tasks", *tasks]) == 130
    assert {name: len(returns) for name, returns in _returns().items()} == {"mujoco-reacher": 2, "mujoco-pendulum": 1}
    assert main([*EVAL[:-2], "--resume"]) == 0
    resumed = (FOLDER / "results.json").read_bytes()
    assert main([*EVAL[:-2], *flags, "--tasks", *tasks, "--output_dir", "at once"]) == 0
    assert Path("at once/results.json").read_bytes() == resumed


def test_other_versions_and_processors_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*EVAL, "--tasks", "mujoco-reacher"]
    assert main(flags) == 0
    other = {"instruction_set": "sse", "versions": {"jat_engine": "0", "numpy": "1", "torch": "2"}}
    monkeypatch.setattr(evaluate, "machine_settings", lambda: other)
    capsys.readouterr()
    assert main([*flags, "--num_episodes", "2"]) == 2
    assert re.search(r"\(instruction_set \S+, now sse\); .*; or --mixed_machines$", _error(capsys))
    assert main([*flags, "--num_episodes", "2", "--mixed_machines"]) == 0
    assert len(_returns()["mujoco-reacher"]) == 2
    assert read_run(FOLDER).settings["mixed_machines"] is True


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
    ("name", "reason"),
    [
        ("evaluations.json", "has evaluations.json without run.sqlite, of unknown settings"),
        ("results.json", "has results.json without run.sqlite, of unknown settings"),
        (FILE_NAME, "is not a run of jat_engine, or is damaged"),
    ],
)
def test_results_of_unknown_settings_stay(
    name: str, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    FOLDER.mkdir(parents=True)
    (FOLDER / name).write_text("{bad")
    with monkeypatch.context() as patch:
        _nothing_is_loaded(patch)
        assert main([*EVAL, "--tasks", "mujoco-reacher"]) == 2
    assert reason in _error(capsys)
    assert (FOLDER / name).read_text() == "{bad"
    assert main([*EVAL, "--tasks", "mujoco-reacher", "--overwrite"]) == 0
    assert (FOLDER / "earlier-1" / name).read_text() == "{bad"
    assert "earlier results are in results/jat-mini/earlier-1" in capsys.readouterr().err


def test_a_run_whose_process_was_killed_at_its_start_goes_on() -> None:
    FOLDER.mkdir(parents=True)
    (FOLDER / FILE_NAME).touch()
    assert main([*EVAL, "--tasks", "mujoco-reacher"]) == 0


def test_two_evaluations_at_once_do_not_share_a_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _nothing_is_loaded(monkeypatch)
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
    """Break in the episode of one seed: by an error, an observation, or a last reward that is not a number."""

    def __init__(self, env: gymnasium.Env[Any, Any], kind: str, seed: int) -> None:
        super().__init__(env)
        self._kind, self._broken, self._seed, self._step = kind, seed, 0, 0

    def reset(self, **options: Any) -> Any:
        self._seed, self._step = options["seed"], 0
        return self.env.reset(**options)

    def step(self, action: Any) -> Any:
        observation, reward, *rest = self.env.step(action)
        self._step += 1
        if self._seed == self._broken:
            if self._kind == "raises":
                raise RuntimeError("physics\ndiverged")
            if self._kind == "nan":
                observation = {"continuous_observation": np.full(4, np.nan)}
            elif self._step == 3:
                reward = float("inf")
        return observation, reward, *rest


@pytest.mark.parametrize("num_envs", ["1", "4"])
@pytest.mark.parametrize(
    ("kind", "step", "reason"),
    [
        ("raises", 1, "RuntimeError: physics diverged"),
        ("nan", 2, "InputError: continuous_observation"),
        ("reward", 3, "got inf"),
    ],
)
def test_an_episode_that_fails_is_named_and_the_others_are_played(
    kind: str,
    step: int,
    reason: str,
    num_envs: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tasks = ["babyai-go-to-obj", "mujoco-pendulum", "mujoco-reacher"]
    flags = [*EVAL, *ALONE, "--num_envs", num_envs, "--num_episodes", "3", "--tasks", *tasks]
    with monkeypatch.context() as patch:
        _changed(patch, "mujoco-pendulum", lambda env: _Breaks(env, kind, 3_000_001))
        assert main(flags) == 1
    captured = capsys.readouterr()
    last = captured.err.splitlines()[-1]
    assert last.startswith(f"jat-engine: error: mujoco-pendulum: failed in episode 2 (seed 3000001), step {step}: ")
    assert reason in last
    assert "2 of 3" in captured.out
    assert {name: len(returns) for name, returns in _returns().items()} == dict(zip(tasks, (3, 2, 3), strict=True))
    found = json.loads((FOLDER / "results.json").read_text())
    assert found["complete"] is False
    (failed,) = found["failed"]["mujoco-pendulum"]
    assert (failed["episode"], failed["seed"]) == (1, 3_000_001)
    assert reason in failed["error"]
    with contextlib.closing(RunDatabase(FOLDER)) as database:
        assert reason.split()[-1] in database.traces()["mujoco-pendulum", 1]

    assert main(flags) == 0, "what failed is played again"
    assert len(_returns()["mujoco-pendulum"]) == 3
    found = json.loads((FOLDER / "results.json").read_text())
    assert (found["complete"], found["failed"]) == (True, {})


@pytest.mark.parametrize("command", ["play", "demo"])
def test_a_simulator_that_fails_is_one_line(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = f"jat_engine.cli.{command}.evaluation_env"
    monkeypatch.setattr(module, lambda task, mode: _Breaks(evaluation_env(task, mode), "raises", 6))
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
        main([*EVAL, *ALONE, "--num_episodes", "2", "--tasks", "mujoco-reacher", "mujoco-pendulum"])
    assert stop.value.code == 128 + signal.SIGTERM
    assert {name: len(returns) for name, returns in _returns().items()} == {"mujoco-reacher": 2, "mujoco-pendulum": 1}
    assert "ended by SIGTERM" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_every_episode_is_on_disk_when_the_next_one_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []
    _before_episode(monkeypatch, 2, lambda: found.append(len(read_run(FOLDER).tasks["mujoco-reacher"].episodes)))
    assert main([*EVAL, *ALONE, "--num_episodes", "3", "--tasks", "mujoco-reacher"]) == 0
    assert found == [2]


def test_results_that_cannot_be_written_can_be_made_later(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _before_episode(monkeypatch, 0, (FOLDER / "results.json").mkdir)
    assert main([*EVAL, *ALONE, "--tasks", "mujoco-reacher"]) == 1
    captured = capsys.readouterr()
    assert "mujoco: IQM" in captured.out
    last = captured.err.splitlines()[-1]
    assert last.startswith("jat-engine: error: results/jat-mini: the results cannot be written")
    assert "the episodes are in results/jat-mini/run.sqlite" in last
    (FOLDER / "results.json").rmdir()
    command = re.search(r"`jat-engine (report .*)`", last)
    assert command is not None
    assert main(shlex.split(command[1])) == 0
    assert len(_returns()["mujoco-reacher"]) == 1


def test_a_video_that_fails_costs_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    (FOLDER / "videos" / "babyai-open" / "episode-0000.mp4").mkdir(parents=True)
    (FOLDER / "replay.mp4").mkdir()
    assert main([*EVAL, "--tasks", "babyai-open", "babyai-go-to-obj", "--save_video"]) == 1
    captured = capsys.readouterr()
    assert "babyai: IQM" in captured.out
    assert "no video of babyai-open, episode 0" in captured.err
    assert "replay.mp4" in captured.err
    assert set(_returns()) == {"babyai-open", "babyai-go-to-obj"}
    frames = list(read_video(FOLDER / "videos" / "babyai-go-to-obj" / "episode-0000.mp4"))
    assert len(frames) == 9, "four states, and the last one up to three seconds"


def test_videos_of_chosen_episodes(capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*EVAL, "--tasks", "babyai-open", "--num_episodes", "3", "--save_video"]
    assert main([*flags, "--video_episodes", "3"]) == 2
    assert "--video_episodes: expected indices from 0 to 2" in _error(capsys)
    assert main([*flags, "--video_episodes", "1", "2", "--format", "gif"]) == 0
    names = sorted(path.name for path in (FOLDER / "videos" / "babyai-open").iterdir())
    assert names == ["episode-0001.gif", "episode-0002.gif"]
    assert "not recorded" not in capsys.readouterr().err
    assert main([*flags, "--format", "gif", "--video_episodes", "first:2"]) == 0
    assert "1 episode(s) were played before, and are not recorded now" in capsys.readouterr().err


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

    uploaded: list[Any] = []

    def push(*given: Any, files: list[Path]) -> str:
        uploaded.extend([*given[2:], [path.name for path in files]])
        return "address"

    monkeypatch.setattr(hub, "push_to_hub", push)
    command = shlex.split(message.partition("upload them with: ")[2])
    assert command.pop(0) == "jat-engine"
    assert main(command) == 0
    repository, evaluation, names = uploaded
    assert repository == "me/agent"
    assert names == ["results.json", "evaluations.json", "tasks.json"]
    (reacher,) = evaluation.tasks.values()
    assert reacher.task.name == "mujoco-reacher"
    assert reacher.task.demonstrator.mean == pytest.approx(-4.109, abs=1e-3)
    assert evaluation.complete
    assert "pushed to address" in capsys.readouterr().err


def test_an_upload_without_results_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jat_engine.hub_account.check_upload", lambda _: None)
    upload = [*EVAL, "--push_to_hub", "--repo_id", "me/agent"]
    assert main(upload) == 2
    assert "results/jat-mini has no results" in _error(capsys)
    make_run(FOLDER, evaluation({"mujoco-reacher": [None]}, weights_sha256="0"))
    assert main(upload) == 2
    assert "results of other weights (weights_sha256)" in _error(capsys)
    with contextlib.closing(RunDatabase(FOLDER)) as database:
        database.set_settings({"weights_sha256": hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()})
    assert main(upload) == 2
    assert "has no finished episodes" in _error(capsys)


@pytest.mark.parametrize("name", ["me", "me/agent/x", "me/a b", "me/a--b", "me/a..b", "/x", "me/", "https://x/y"])
def test_names_of_repositories_are_checked_before_anything_runs(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _nothing_is_loaded(monkeypatch)
    assert main([*EVAL, "--tasks", "mujoco-reacher", "--push_to_hub", "--repo_id", name]) == 2
    assert "--repo_id: expected owner/name" in _error(capsys)


def test_weights_of_the_package_are_what_the_results_name() -> None:
    assert main([*EVAL, "--tasks", "mujoco-reacher"]) == 0
    settings = json.loads((FOLDER / "results.json").read_text())["settings"]
    assert settings["weights_sha256"] == hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
