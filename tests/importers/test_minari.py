"""Import datasets that Minari has collected in real environments, and compare them with what was played."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from jat_engine.cli import main
from jat_engine.datasets.collection import Collection
from jat_engine.envs.adapters import choose_adapter

minari = pytest.importorskip("minari", reason="Minari is not installed")
pytestmark = [
    pytest.mark.versions,
    pytest.mark.filterwarnings("ignore::UserWarning:minari"),  # it recommends to name authors
]


@pytest.fixture(autouse=True)
def datasets_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let Minari keep its datasets in a folder of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


class Room(gymnasium.Env[Any, Any]):
    """Environment with observations of a given space, drawn at random."""

    def __init__(self, observation_space: gymnasium.Space[Any], action_space: gymnasium.Space[Any]) -> None:
        self.observation_space, self.action_space, self._steps = observation_space, action_space, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self._steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        return self.observation_space.sample(), float(self._steps), self._steps == 4, False, {}


class Hidden(Room):
    """Environment that is registered while it is played, and not when its episodes are imported."""

    def __init__(self) -> None:
        super().__init__(gymnasium.spaces.Box(0, 1, (2,)), gymnasium.spaces.Discrete(2))


class Unsorted(Room):
    """Environment whose observations have parts that are not in the order of the alphabet."""

    def __init__(self) -> None:
        space = gymnasium.spaces.Dict(b=gymnasium.spaces.Discrete(3, start=4), a=gymnasium.spaces.MultiBinary(2))
        super().__init__(space, gymnasium.spaces.Discrete(2))


def collect(
    env: gymnasium.Env[Any, Any], name: str, num_episodes: int = 3, max_steps: int = 9, **options: Any
) -> list[list[tuple[Any, Any, float]]]:
    """Play random episodes, seeded from 10 on, store them with Minari, and return their steps.

    They are stored as by `minari.DataCollector`, which needs JAX.
    """
    env.action_space.seed(0)
    played: list[list[tuple[Any, Any, float]]] = []
    buffers = []
    for number in range(num_episodes):
        observation, _ = env.reset(seed=10 + number)
        observations, steps, ends = [observation], [], list[tuple[bool, bool]]()
        while len(steps) < max_steps and not (ends and any(ends[-1])):
            action = env.action_space.sample()
            observation, reward, terminated, truncated, _ = env.step(action)
            steps.append((observations[-1], action, float(reward)))
            observations.append(observation)
            ends.append((terminated, truncated or len(steps) == max_steps))
        played.append(steps)
        buffers.append(
            minari.data_collector.EpisodeBuffer(
                id=number,
                seed=10 + number,
                observations=columns(observations),
                actions=columns([action for _, action, _ in steps]),
                rewards=[reward for _, _, reward in steps],
                terminations=[terminated for terminated, _ in ends],
                truncations=[truncated for _, truncated in ends],
            )
        )
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    minari.create_dataset_from_buffers(
        name, buffers, algorithm_name="random", **(spaces if env.spec is None else {"env": env}), **options
    )
    return played


def columns(values: list[Any]) -> Any:
    """Return the entries of steps, one list for each part of a dict or tuple."""
    if isinstance(values[0], dict):
        return {key: columns([value[key] for value in values]) for key in values[0]}
    if isinstance(values[0], tuple):
        return tuple(columns([value[index] for value in values]) for index in range(len(values[0])))
    return values


def run(*arguments: Any) -> int:
    return main(["import", *map(str, arguments)])


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    capsys.readouterr()
    assert run(*arguments) == 2
    return capsys.readouterr().err.splitlines()[-1].removeprefix("jat-engine: error: ")


def stored(folder: Path) -> tuple[Collection, list[dict[str, Any]]]:
    collection = Collection.read(folder)
    assert collection is not None
    return collection, [row.to_pylist()[0] for row in collection.rows(folder)]


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1"])
def test_episodes_are_those_that_were_played(env_id: str, data_format: str, tmp_path: Path) -> None:
    """Numbers and integers; Minari has one observation more than actions, which is left out."""
    played = collect(gymnasium.make(env_id), "room/random-v0", data_format=data_format)
    assert run("room/random-v0", "--output_dir", tmp_path / "d", "--test_fraction", "0.4") == 0

    collection, episodes = stored(tmp_path / "d" / f"gym--{env_id}")
    assert collection.task == f"gym:{env_id}"
    assert collection.seeds == [10, 11, 12]
    assert collection.expert == "the Minari dataset `room/random-v0`, played by random"
    kind, action = {
        "CartPole-v1": ("continuous", "discrete"),
        "Pendulum-v1": ("continuous", "continuous"),
        "FrozenLake-v1": ("discrete", "discrete"),
    }[env_id]
    for steps, episode in zip(played, episodes, strict=True):
        assert len(steps) == len(episode["rewards"])
        observations = np.array([np.reshape(observation, -1) for observation, _, _ in steps])
        np.testing.assert_array_equal(episode[f"{kind}_observations"], observations)
        np.testing.assert_array_equal(episode[f"{action}_actions"], np.array([step[1] for step in steps]))
        np.testing.assert_allclose(episode["rewards"], [step[2] for step in steps])
    np.testing.assert_allclose(collection.returns, [sum(step[2] for step in steps) for steps in played])


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
@pytest.mark.parametrize(
    ("space", "kind"),
    [
        (
            gymnasium.spaces.Dict(
                {
                    "b": gymnasium.spaces.Box(-1, 1, (2, 2)),
                    "a": gymnasium.spaces.Tuple(
                        [gymnasium.spaces.Discrete(3, start=1), gymnasium.spaces.Box(0, 9, (1,))]
                    ),
                }
            ),
            "continuous",
        ),
        (
            gymnasium.spaces.Dict(
                {"m": gymnasium.spaces.MultiDiscrete([3, 4], start=[5, 0]), "d": gymnasium.spaces.Discrete(2)}
            ),
            "discrete",
        ),
        (
            gymnasium.spaces.Dict(
                {"goal": gymnasium.spaces.Text(8, min_length=1), "view": gymnasium.spaces.MultiBinary(5)}
            ),
            "discrete+text",
        ),
    ],
)
def test_spaces_are_converted_as_while_playing(
    space: gymnasium.Space[Any], kind: str, data_format: str, tmp_path: Path
) -> None:
    actions = gymnasium.spaces.Discrete(4, start=2)
    env = Room(space, actions)
    played = collect(env, "room-v0", data_format=data_format)
    assert run("room-v0", "--task", "room", "--output_dir", tmp_path / "d") == 0
    collection, episodes = stored(tmp_path / "d" / "room")
    adapter = choose_adapter(space, actions)
    assert adapter.observation == kind
    assert collection.task_rule is not None
    assert collection.task_rule["adapter"] == adapter.rule
    for steps, episode in zip(played, episodes, strict=True):
        converter = adapter.begin()
        for step, (observation, action, _) in enumerate(steps):
            expected = converter.next(observation) if step else converter.first(observation)
            for name, value in expected.items():
                np.testing.assert_array_equal(episode[f"{name}s"][step], value)
            assert episode["discrete_actions"][step] == action - 2


def test_a_dict_is_in_the_order_of_the_environment(tmp_path: Path) -> None:
    """Minari sorts the keys."""
    gymnasium.register("Sorted-v0", f"{__name__}:Unsorted")
    try:
        played = collect(gymnasium.make("Sorted-v0"), "room-v0")
        assert run("room-v0", "--output_dir", tmp_path / "d") == 0
    finally:
        gymnasium.registry.pop("Sorted-v0")
    collection, episodes = stored(tmp_path / "d" / "gym--Sorted-v0")
    assert collection.task_rule is not None
    assert collection.task_rule["adapter"]["entries"] == ["b", "a"]
    assert collection.task_rule["adapter"]["starts"] == [4, 0, 0]
    (observation, _, _), *_ = played[0]
    assert episodes[0]["discrete_observations"][0] == [observation["b"] - 4, *observation["a"]]


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_pictures_are_stacks_of_grey_frames(
    data_format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    env = Room(gymnasium.spaces.Box(0, 255, (40, 50, 3), np.uint8), gymnasium.spaces.Discrete(2))
    collect(env, "pictures-v0", data_format=data_format)
    assert run("pictures-v0", "--task", "room", "--output_dir", tmp_path / "d") == 0
    assert "JPEG" in capsys.readouterr().out
    _, episodes = stored(tmp_path / "d" / "room")
    assert [len(episode["image_observations"]) for episode in episodes] == [4, 4, 4]


def test_a_folder_is_read_in_place(tmp_path: Path, datasets_path: Path) -> None:
    """Of another machine, or one that is not in Minari's own folder. The first episodes only."""
    collect(gymnasium.make("CartPole-v1"), "cart-v0")
    moved = datasets_path / "cart-v0"
    moved = moved.rename(tmp_path / "elsewhere")
    assert run(moved, "--max_episodes", "2", "--output_dir", tmp_path / "d") == 0
    collection, _ = stored(tmp_path / "d" / "gym--CartPole-v1")
    assert collection.num_episodes == 2


def test_options_of_the_environment_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    collect(gymnasium.make("FrozenLake-v1"), "lake-v0")
    collect(gymnasium.make("FrozenLake-v1", is_slippery=False), "lake-v1")
    assert run("lake-v0", "--output_dir", tmp_path / "d") == 0
    assert "played in" not in capsys.readouterr().out
    assert run("lake-v1", "--output_dir", tmp_path / "e") == 0
    output = capsys.readouterr().out
    assert "the episodes were played in FrozenLake-v1 with is_slippery=False, without which it is made here" in output


def other_spaces() -> list[str]:
    collect(gymnasium.make("CartPole-v1"), "room-v0")
    return ["--task", "gym:Pendulum-v1"]


def many_actions() -> list[str]:
    collect(Room(gymnasium.spaces.Box(0, 1, (2,)), gymnasium.spaces.MultiDiscrete([2, 2])), "room-v0")
    return ["--task", "room"]


def nan() -> list[str]:
    space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
    env = Room(space, gymnasium.spaces.Discrete(2))
    env.step = lambda action: (np.full(2, np.nan, np.float32), 0.0, False, False, {})  # type: ignore[method-assign]
    collect(env, "room-v0")
    return ["--task", "room"]


def no_task() -> list[str]:
    collect(Room(gymnasium.spaces.Box(0, 1, (2,)), gymnasium.spaces.Discrete(2)), "room-v0")
    return []


def given_columns() -> list[str]:
    return ["--columns", "reward=rewards"]


def empty() -> list[str]:
    Path("room-v0").mkdir()
    return ["--task", "room", "--format", "minari"]


def damaged() -> list[str]:
    import os

    collect(gymnasium.make("CartPole-v1"), "room-v0")
    path = Path(os.environ["MINARI_DATASETS_PATH"]) / "room-v0" / "data" / "main_data.hdf5"
    path.write_bytes(path.read_bytes()[:1000])
    return []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (other_spaces, "room-v0: expected "),
        (many_actions, "room-v0: action_space: expected a Discrete, or a Box of shape"),
        (
            nan,
            "room-v0: episode 0: column continuous_observations, step 1 (element 0): expected a finite number, got nan",
        ),
        (no_task, "--task: expected a name, since room-v0 does not name its environment"),
        (given_columns, "--columns: expected none for Minari"),
        (empty, "room-v0: expected a dataset that Minari loads, got ValueError: No data found"),
        (damaged, "room-v0: expected episodes that Minari reads, got OSError"),
    ],
)
def test_faults_are_named_in_one_line(
    given: Callable[[], list[str]], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = given()
    line = refused(capsys, "room-v0", *arguments, "--output_dir", tmp_path / "d")
    assert line.startswith(message), line
    assert not list((tmp_path / "d").rglob("*.parquet"))


def test_an_environment_that_is_not_installed_can_still_be_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gymnasium.register("Hidden-v3", f"{__name__}:Hidden")
    try:
        collect(gymnasium.make("Hidden-v3"), "room-v0")
    finally:
        gymnasium.registry.pop("Hidden-v3")
    assert run("room-v0", "--output_dir", tmp_path / "d") == 0
    assert "gym:Hidden-v3 can be trained on and not played" in capsys.readouterr().out
    collection, _ = stored(tmp_path / "d" / "gym--Hidden-v3")
    assert collection.task_rule is not None
    assert collection.task_rule["adapter"]["size"] == 2
