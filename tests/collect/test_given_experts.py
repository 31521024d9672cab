"""Collect episodes of tasks that are not published, with experts of other modules."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from helpers.damage import damaged

from jat_engine import DataError
from jat_engine.cli import main
from jat_engine.collect import collect
from jat_engine.collect.chunks import check_settings
from jat_engine.collect.collector import episode_settings
from jat_engine.collect.experts import Demonstration, ExpertChoice, ExpertError, demonstrate
from jat_engine.collect.experts.saved_policy import SavedPolicy
from jat_engine.datasets.collection import Collection
from jat_engine.envs import MissingSimulatorError, Task, get_task, load_task_module
from jat_engine.evaluation import checked_env
from jat_engine.evaluation.environment import evaluation_env
from jat_engine.evaluation.random_policy import RandomPolicy, action_seed, measure_random

MODULE = '''
import functools
import random
import gymnasium
import numpy as np
from jat_engine.envs import register_task


class Line(gymnasium.Env):
    """Walk to the end of a line; observations become wrong in one way or another."""

    observation_space = gymnasium.spaces.Box(-9, 9, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, fault="", fault_step=3):
        self.fault, self.fault_step = fault, fault_step

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = self.np_random.uniform(-1, 0), 0
        return np.array([self.place, 0], np.float32), {}

    def step(self, action):
        self.steps += 1
        self.place += float(action[0])
        observation, reward = np.array([self.place, self.steps % 2], np.float32), -abs(self.place)
        if self.steps == self.fault_step:
            observation[1] = np.nan if self.fault == "nan" else observation[1]
            observation = observation[:1] if self.fault == "size" else observation
            reward = float("inf") if self.fault == "reward" else reward
        return observation, reward, self.fault != "endless" and self.steps >= 8, False, {"success": self.place > 2}


for fault in ("", "nan", "size", "reward", "endless"):
    register_task(f"line{fault and '-'}{fault}", functools.partial(Line, fault), domain="lines",
                  success=None if fault else "info")


register_task("line-hidden", lambda: Line())


class Walker:
    """Walk to the right, now and then with a random stride."""

    def __init__(self, env):
        self.env, self.calls = env, []

    def reset(self):
        self.calls.append("reset")

    def act(self, observation):
        raw = self.env.get_wrapper_attr("raw_observation")
        assert np.array_equal(observation["continuous_observation"], raw)
        assert abs(raw[0] - self.env.unwrapped.place) < 1e-6
        stride = random.choice([0.5, np.random.uniform(0.2, 0.9), float(self.env.action_space.sample()[0])])
        return np.array([stride], np.float32)

    def executed(self, action):
        self.calls.append(float(action[0]))


def half(env):
    """Walk with half strides."""
    return lambda observation: [0.5]


def answer(env):
    return env.answer


def broken(env):
    return {}["key"]


def answering(value):
    def expert(env):
        def policy(observation):
            if observation["continuous_observation"][1] == 0 and env.unwrapped.steps == 2:
                return value() if callable(value) else value
            return [0.0]
        return policy
    return expert


def divide():
    return 1 / 0


outside, shaped, nothing, nan, raising = map(answering, ([1.5], [0.1, 0.2], None, [float("nan")], divide))
number = 3
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a folder with a module of tasks and experts, which can be imported."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_line.py").write_text(MODULE)
    (folder / "own_broken.py").write_text("1 / 0\n")
    sys.path.insert(0, str(folder))
    load_task_module("own_line")
    yield folder
    sys.path.remove(str(folder))


def show(task: Task, address: str, seed: int = 0, noise: float = 0.0) -> Demonstration:
    with contextlib.closing(evaluation_env(task)) as env:
        return demonstrate(env, ExpertChoice(address).open(task, env), task=task, seed=seed, noise=noise)


# ---- experts -------------------------------------------------------------------------------------------------------


def test_objects_and_functions_are_experts_and_their_episodes_depend_on_the_seed_alone(folder: Path) -> None:
    task = get_task("line")
    with contextlib.closing(evaluation_env(task)) as env:
        expert = ExpertChoice("own_line:Walker").open(task, env)
        shown = [demonstrate(env, expert, task=task, seed=seed, noise=0.3) for seed in (0, 1, 0, 1)]
        made: Any = expert._made  # type: ignore[attr-defined]
        assert made.calls.count("reset") == 4
        assert len(made.calls) == 4 * 9
        assert expert.description == "Walk to the right, now and then with a random stride."  # type: ignore[attr-defined]
        assert ExpertChoice("own_line:half").open(task, env).description == "Walk with half strides."  # type: ignore[attr-defined]
    for first, again in zip(shown[:2], shown[2:], strict=True):
        for name, values in first.columns.items():
            assert np.array_equal(values, again.columns[name]), name
    assert not np.array_equal(shown[0].columns["continuous_actions"], shown[1].columns["continuous_actions"])
    executed = np.diff(shown[1].columns["continuous_observations"][:, 0])  # type: ignore[arg-type]
    assert not np.allclose(executed, shown[1].columns["continuous_actions"][:-1, 0])  # type: ignore[call-overload]
    half = show(task, "own_line:half")
    assert (half.success, half.columns["continuous_actions"].dtype) == (True, np.float32)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("outside", r"returned a wrong action: element 0: expected a number in \[-1, 1\], got 1.5; clip it with"),
        ("shaped", r"returned a wrong action: expected numbers of shape \(1,\), got float64 \(2,\)"),
        ("nothing", r"returned a wrong action: expected numbers of shape \(1,\), got None"),
        ("nan", "returned a wrong action: expected numbers, got NaN"),
        ("raising", r"raised ZeroDivisionError: division by zero \(own_line.py, line \d+\)"),
    ],
)
def test_a_wrong_action_is_named_with_seed_and_step(name: str, message: str, folder: Path) -> None:
    address = f"own_line:{name}"
    with pytest.raises(ExpertError, match=f"^line: episode with seed 5, step 2: --expert {address} {message}"):
        show(get_task("line"), address, seed=5)


@pytest.mark.parametrize(("action", "good"), [(1, 1), (np.int64(0), 0), (np.array([1]), 1), (2, None), (0.0, None)])
def test_choices_are_checked(action: Any, good: int | None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = get_task("gym:CartPole-v1")
    monkeypatch.setattr(sys.modules["own_line"], "half", lambda env: lambda observation: action)
    with contextlib.closing(evaluation_env(task)) as env:
        expert = ExpertChoice("own_line:half").open(task, env)
        observation, _ = env.reset(seed=0)
        if good is not None:
            assert expert.act(observation) == good
        else:
            with pytest.raises(ExpertError, match=r"expected an integer in \[0, 2\), got"):
                expert.act(observation)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("no_such:expert", "--expert: expected a module that can be imported, got no_such:expert"),
        ("own_line:missing", "--expert: expected a name of the module, got own_line:missing"),
        ("own_line:number", "own_line:number: expected a function that takes the environment .*, got int"),
        ("own_broken:expert", "importing own_broken raised ZeroDivisionError"),
        ("own_line", "expected module:function, sb3:model.zip or random, got 'own_line'"),
        ("sb3:none.zip", "sb3:none.zip: expected a file that Stable-Baselines3 saved, got none"),
    ],
)
def test_an_address_without_an_expert(address: str, message: str, folder: Path) -> None:
    with pytest.raises(ExpertError, match=message):
        ExpertChoice(address, trusted=True).check()


def test_a_function_that_makes_no_expert(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = get_task("line")
    with pytest.raises(ExpertError, match=r"line: own_line:broken\(env\) raised KeyError: 'key' \(own_line.py, line"):
        show(task, "own_line:broken")
    monkeypatch.setattr(sys.modules["own_line"], "half", lambda env: 3)
    with pytest.raises(
        ExpertError, match=r"own_line:half\(env\): expected an object with act\(observation\), or .* 3$"
    ):
        show(task, "own_line:half")


# ---- files of Stable-Baselines3 ------------------------------------------------------------------------------------


class Marks:
    """Pickle that creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_files_of_stable_baselines_act_as_they_do_there_and_need_trust(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sb3 = pytest.importorskip("stable_baselines3", reason="needs the sb3 extra")
    task, file = get_task("gym:Pendulum-v1"), tmp_path / "td3.zip"
    model = sb3.TD3("MlpPolicy", "Pendulum-v1", device="cpu", learning_starts=4, seed=0).learn(8)
    model.save(file)
    shown = show_saved(task, file)
    assert np.allclose(
        shown.columns["continuous_actions"],
        model.predict(shown.columns["continuous_observations"], deterministic=True)[0],
    )
    with pytest.raises(ExpertError, match=r"expected actions of Discrete\(2\), got Box\(-2.0"):
        show_saved(get_task("gym:CartPole-v1"), file)

    command = ["collect", "--tasks", task.name, "--expert", f"sb3:{file}", "--output_dir", str(tmp_path / "d")]
    assert main(command) == 2
    assert capsys.readouterr().err.endswith(
        "runs pickled code of whoever wrote it; if you trust it, say so with --trust_expert\n"
    )
    assert main([*command, "--trust_expert", "--num_episodes", "2", "--random_episodes", "3"]) == 0
    collection = Collection.read(tmp_path / "d" / "gym--Pendulum-v1")
    assert collection is not None
    assert collection.settings["expert"] == "sb3:td3.zip"
    assert collection.settings["versions"]["stable_baselines3"] == sb3.__version__
    assert "--expert sb3:td3.zip --trust_expert" in (tmp_path / "d" / "README.md").read_text().replace("\n", " ")

    sb3.TD3("MlpPolicy", "Pendulum-v1", device="cpu", seed=1).save(file)  # another policy under the same name
    assert main([*command, "--trust_expert", "--num_episodes", "3"]) == 2
    assert "expected what was collected with expert_sha256" in capsys.readouterr().err


def show_saved(task: Task, file: Path) -> Demonstration:
    with contextlib.closing(evaluation_env(task)) as env:
        return demonstrate(env, ExpertChoice(f"sb3:{file}", trusted=True).open(task, env), task=task, seed=0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"policy_class": {"__module__": "sb3_contrib.tqc.policies"}, "target_entropy": 1}, "sb3_contrib.tqc.policies"),
        ({"policy_class": {"__module__": "mine"}}, "expected PPO, SAC, DQN, TD3, A2C or DDPG, got a policy of mine"),
        ({}, "expected a file that Stable-Baselines3 saved, got KeyError: 'policy_class'"),
        (None, "expected a file that Stable-Baselines3 saved, got BadZipFile"),
    ],
)
def test_other_files_are_refused(data: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "model.zip"
    if data is None:
        file.write_bytes(b"x")
    else:
        write(file, data, tmp_path / "marker")
    with pytest.raises(ExpertError, match=message):
        ExpertChoice(f"sb3:{file}", trusted=True).check()


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.zip"
    write(file, {"policy_class": {"__module__": "mine"}, "clip_range": 1}, tmp_path / "marker")
    data, file = file.read_bytes(), tmp_path / "damaged.zip"
    for changed in damaged(data, 500):
        file.write_bytes(changed)
        with contextlib.suppress(ExpertError, MissingSimulatorError):
            ExpertChoice(f"sb3:{file}", trusted=True).check()


def test_nothing_is_unpickled_without_trust(tmp_path: Path) -> None:
    file, marker = tmp_path / "model.zip", tmp_path / "marker"
    task = get_task("gym:CartPole-v1")
    write(file, {"clip_range": 1, "policy_class": {"__module__": "stable_baselines3.common.policies"}}, marker)
    with pytest.raises(ExpertError, match="--trust_expert"):
        ExpertChoice(f"sb3:{file}").check()
    with contextlib.closing(evaluation_env(task)) as env:
        with pytest.raises(ExpertError, match="--trust_expert"):
            ExpertChoice(f"sb3:{file}").open(task, env)
        assert not marker.exists()
        pytest.importorskip("stable_baselines3", reason="needs the sb3 extra")
        ExpertChoice(f"sb3:{file}", trusted=True).check()
        assert not marker.exists()
        with pytest.raises(ExpertError, match=r"PPO.load raised .*; for others give a function that loads it"):
            SavedPolicy(file, task, env)  # so that the file would have run its code
    assert marker.exists()


def write(file: Path, data: dict[str, Any], marker: Path) -> None:
    """Write a file as Stable-Baselines3 does, with a pickle that creates `marker`."""
    import base64

    code = base64.b64encode(pickle.dumps(Marks(marker))).decode()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data", json.dumps({**data, "verbose": {":type:": "x", ":serialized:": code}} if data else {}))


# ---- random actions ------------------------------------------------------------------------------------------------


def test_random_actions_depend_on_the_seed_and_not_as_the_environment_does() -> None:
    task = get_task("gym:CartPole-v1")
    with contextlib.closing(evaluation_env(task)) as env:
        policy = RandomPolicy(env.action_space)
        actions = []
        for seed in (3, 4, 3):
            policy.seed(seed)
            actions.append([policy.act() for _ in range(40)])
        env.action_space.seed(3)
        assert actions[0] == actions[2] != actions[1]
        assert actions[0] != [env.action_space.sample() for _ in range(40)]
    assert action_seed(2**63) != action_seed(2**64)
    measured = measure_random(task, 8)
    assert measured == measure_random(task, 8)
    assert measured["episodes"] == 8
    assert 12 < measured["mean"] < 40


# ---- environments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nan", r"step 3: continuous_observation \(element 1\): expected a finite number, got nan"),
        ("size", "step 3: observation: expected 2 values, as its space has, got 1"),
        ("reward", "step 3: reward: expected a finite number, got inf"),
        ("endless", "step 50: expected an episode that ends, got 50 steps; wrap .*TimeLimit"),
    ],
)
def test_a_faulty_environment_is_named_with_seed_and_step(
    name: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked_env, "MAX_STEPS", 50)
    task = get_task(f"line-{name}")
    with pytest.raises(DataError, match=f"^line-{name}: episode with seed 4, {message}"):
        show(task, "own_line:half", seed=4)
    with pytest.raises(DataError, match=f"^line-{name}: episode with seed 9, {message}"):
        measure_random(task, 1, seed=9)


# ---- collections ---------------------------------------------------------------------------------------------------

OPTIONS: dict[str, Any] = {
    "num_episodes": 40,
    "expert": "own_line:Walker",
    "noise": 0.4,
    "keep_failures": True,
    "random_episodes": 12,
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_task_of_ones_own_killed_and_resumed_is_the_same(folder: Path, tmp_path: Path) -> None:
    whole, resumed = tmp_path / "one" / "d", tmp_path / "two" / "d"
    collection = collect(["line"], whole, num_workers=1, **OPTIONS)["line"]
    script = f"""
import os, signal
from pathlib import Path
from jat_engine.collect import collect
from jat_engine.envs import load_task_module
load_task_module("own_line")
def tell(event):
    if getattr(event, "attempts", 0):
        os.kill(os.getpid(), signal.SIGKILL)
collect(["line"], {str(resumed)!r}, num_workers=2, on_progress=tell, **{OPTIONS})"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    assert subprocess.run([sys.executable, "-c", script], env=environment, check=False).returncode == -signal.SIGKILL
    kept = list(resumed.glob(".incomplete/line/episodes-*.parquet"))
    assert kept
    collect(["line"], resumed, num_workers=2, **OPTIONS)
    assert contents(resumed) == contents(whole)

    task = get_task("line")
    assert collection.task_rule == task.rule
    assert collection.task_rule["module"] == "own_line"
    assert collection.expert == "Walk to the right, now and then with a random stride."
    assert 0 < collection.success_rate < 1  # type: ignore[operator]
    assert collection.scores["random"] == measure_random(task, 12)
    calm = [return_ for seed, return_ in zip(collection.seeds, collection.returns, strict=True) if seed % 2 == 0]
    assert collection.scores["expert"] == {"mean": np.mean(calm), "std": np.std(calm), "episodes": 20}
    assert collection.as_task().random.mean == collection.scores["random"]["mean"]  # type: ignore[union-attr]
    text = (whole / "README.md").read_text()
    assert "Walk to the right, now and then with a random stride. (`own_line:Walker`) | line |" in text
    assert "| line | continuous | continuous | size 2; num_actions 1 | own_line |" in text
    assert "--task_module own_line --expert own_line:Walker --noise 0.4 --keep_failures" in text
    read = datasets.load_dataset(str(whole), "line", split="train", cache_dir=str(tmp_path / "cache"))
    assert len(read) == collection.splits.count("train")


def test_episodes_of_another_adapter_are_not_mixed() -> None:
    task = get_task("gym:FrozenLake-v1")
    own = episode_settings(task, 0, 0.0, False)
    assert own["versions"].keys() == {"jat_engine", "numpy", "gymnasium"}
    check_settings(own, episode_settings(replace(task, context_window=8), 0, 0.0, False), Path("d"))
    other = episode_settings(get_task("gym:FrozenLake-v1", "continuous"), 0, 0.0, False)
    with pytest.raises(DataError, match=r"d: expected what was collected with adapter .'observation': 'continuous'"):
        check_settings(own, other, Path("d"))


def test_versions_are_those_of_the_packages_with_the_environment_and_the_expert() -> None:
    task = replace(get_task("gym:FrozenLake-v1"), module="hypothesis.strategies")
    versions = episode_settings(task, 0, 0.0, False, ExpertChoice("scipy.linalg:inv"))["versions"]
    assert {"scipy", "hypothesis"} <= versions.keys()


def test_other_experts_are_refused_and_a_task_without_an_expert(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    sys.path.remove(str(folder))  # the current folder is searched without it
    try:
        out = str(tmp_path / "d")
        command = ["collect", "--task_module", "own_line", "--output_dir", out, "--num_workers", "1", "--tasks"]
        lines = [*command, "line", "--random_episodes", "0", "--num_episodes"]
        assert main([*lines, "2", "--expert", "random", "--keep_failures"]) == 0
    finally:
        sys.path.remove(str(folder))
        sys.path.insert(0, str(folder))
    collection = Collection.read(tmp_path / "d" / "line")
    assert collection is not None
    assert collection.scores == {}  # neither is measured, and random actions are no expert
    assert collection.expert == "Uniform random actions."
    before = contents(tmp_path / "d")
    capsys.readouterr()
    for arguments, message in [
        ([*lines, "2", "--keep_failures", "--expert", "own_line:half"], "with expert own_line:half, got random"),
        ([*lines, "2"], "line has no expert of this package; give one with --expert module:function, sb3:model.zip or"),
        ([*lines, "2", "--expert", "own_line:half", "--random_episodes", "-1"], "random_episodes: expected at least 0"),
        ([*command, "mujoco-pendulum", "--expert", "own_line:what"], "expected a name of the module"),
        ([*command, "line-hidden", "--expert", "own_line:half"], "line-hidden: maker: expected a function that worker"),
        ([*command, "line-nan", "--expert", "own_line:half"], "line-nan: episode with seed 0, step 3: continuous_obs"),
        ([*command, "line-nan", "--expert", "own_line:raising"], "step 2: --expert own_line:raising raised ZeroDivisi"),
        ([*command, "line", "--expert", "own_line:nan", "--seed", "7"], "got random"),
    ]:
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error.splitlines()[-1], error
    after = contents(tmp_path / "d")
    assert {name: file for name, file in after.items() if not name.startswith(".incomplete/line-nan/")} == before
