"""Import npz files and Parquet tables: the episodes that come out, and the line that names each fault."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.damage import damaged

from jat_engine.cli import main
from jat_engine.datasets.collection import Collection
from jat_engine.datasets.hub import push_to_hub
from jat_engine.datasets.importers import npz, parquet_table
from jat_engine.datasets.importers.columns import parse_columns
from jat_engine.envs import get_task
from jat_engine.errors import DataError

LENGTHS = [3, 1, 5, 4]
STARTS = np.cumsum([0, *LENGTHS])
EPISODES = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
ENDS = np.isin(np.arange(len(EPISODES)), STARTS[1:] - 1)
OBSERVATIONS = np.random.default_rng(0).normal(size=(len(EPISODES), 4))
ACTIONS = np.arange(len(EPISODES)) % 2
REWARDS = np.arange(len(EPISODES), dtype=np.float64)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in pieces that are smaller than an episode, as of large files."""
    monkeypatch.setattr(npz, "_PIECE_BYTES", 100)
    monkeypatch.setattr(parquet_table, "_ROWS", 2)


def d4rl(**changed: Any) -> dict[str, Any]:
    arrays = {
        "observations": OBSERVATIONS,
        "actions": ACTIONS,
        "rewards": REWARDS,
        "terminals": ENDS & (EPISODES % 2 == 0),
        "timeouts": ENDS & (EPISODES % 2 == 1),
    }
    return {name: array for name, array in {**arrays, **changed}.items() if array is not None}


def save(path: Path, arrays: dict[str, Any]) -> str:
    """Write arrays to an npz file or a Parquet table, by the suffix of its name."""
    if path.suffix == ".npz":
        np.savez_compressed(path, **arrays)
    else:
        columns = {
            name: values.tolist() if isinstance(values, np.ndarray) else values for name, values in arrays.items()
        }
        pq.write_table(pa.table(columns), path, row_group_size=3)
    return str(path)


def run(*arguments: Any) -> int:
    return main(["import", *map(str, arguments)])


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """Run an import that fails, and return its one line."""
    capsys.readouterr()
    assert run(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("jat-engine: error: ")
    return line.removeprefix("jat-engine: error: ")


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return the stored episodes in the order of the source, and check that each split is what its files say."""
    collection = Collection.read(folder)
    assert collection is not None
    for split in ("train", "test"):
        names = collection.files.get(split, [])
        collection.check_names(folder, split, {name: pq.read_metadata(folder / name).num_rows for name in names})
    collection.check_contents(folder, [name for names in collection.files.values() for name in names])
    return [row.to_pylist()[0] for row in collection.rows(folder)]


class FakeApi:
    """Keep the names of the files that would be uploaded."""

    def create_repo(self, **options: Any) -> str:
        return str(options["repo_id"])

    def upload_folder(self, *, folder_path: Path, delete_patterns: list[str], **_: Any) -> None:
        self.names = [str(path.relative_to(folder_path)) for path in folder_path.rglob("*") if path.is_file()]
        self.deleted = delete_patterns


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_episodes_are_those_of_the_table(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save(tmp_path / f"cart.{suffix}", d4rl(infos=REWARDS))
    assert run(source, "--task", "gym:CartPole-v1", "--output_dir", tmp_path / "d", "--test_fraction", "0.25") == 0
    output = capsys.readouterr().out
    assert "4 episodes, 13 steps; observation: observations, action: actions" in output
    assert "infos" in output[output.index("left out") :]

    folder = tmp_path / "d" / "gym--CartPole-v1"
    stored = rows(folder)
    for number, episode in enumerate(stored):
        steps = slice(STARTS[number], STARTS[number + 1])
        assert set(episode) == {"continuous_observations", "discrete_actions", "rewards"}
        np.testing.assert_array_equal(episode["continuous_observations"], OBSERVATIONS[steps].astype(np.float32))
        assert episode["discrete_actions"] == ACTIONS[steps].tolist()
        assert episode["rewards"] == REWARDS[steps].tolist()

    collection = Collection.read(folder)
    assert collection is not None
    returns = [float(REWARDS[number == EPISODES].sum()) for number in range(4)]
    assert (collection.returns, collection.lengths, collection.seeds) == (returns, LENGTHS, [])
    assert collection.scores["expert"] == {"mean": np.mean(returns), "std": np.std(returns), "episodes": len(returns)}
    assert 9 < collection.scores["random"]["mean"] < 40
    assert sorted(collection.splits) == ["test", "train", "train", "train"]
    assert collection.task_rule is not None
    assert collection.task_rule["adapter"]["size"] == 4
    assert not (tmp_path / "d" / ".incomplete").exists()

    loaded = datasets.load_dataset(str(tmp_path / "d"), "gym--CartPole-v1", cache_dir=str(tmp_path / "cache"))
    assert {split: len(part) for split, part in loaded.items()} == {"train": 3, "test": 1}
    card = (tmp_path / "d" / "README.md").read_text()
    assert f"| gym:CartPole-v1 | {source} | {suffix} | observation: observations; action: actions" in card
    assert "Collect them again" not in card
    assert "license" not in card

    api = FakeApi()
    push_to_hub(tmp_path / "d", "me/d", api=api)  # type: ignore[arg-type]
    names = {f"gym--CartPole-v1/{path.name}" for path in folder.iterdir()}
    assert (set(api.names), api.deleted) == ({"README.md", *names}, ["gym--CartPole-v1/*"])


def test_columns_have_any_names_and_are_joined(tmp_path: Path) -> None:
    """Scalar columns of a Parquet table, with names of episodes instead of their ends."""
    table = {
        "x": OBSERVATIONS[:, 0],
        "v": OBSERVATIONS[:, 1:],
        "push": np.stack([ACTIONS, -ACTIONS], 1).astype(np.float32),
        "gain": REWARDS[:, None],
        "run": [f"run {number}" for number in EPISODES],
    }
    source = save(tmp_path / "a.parquet", table)
    columns = ["observation=v,x", "action=push", "reward=gain", "episode=run"]
    assert run(source, "--task", "arm", "--output_dir", tmp_path / "d", "--columns", *columns) == 0
    stored = rows(tmp_path / "d" / "arm")
    assert [len(episode["rewards"]) for episode in stored] == LENGTHS
    joined = np.concatenate([OBSERVATIONS[:, 1:], OBSERVATIONS[:, :1]], axis=1).astype(np.float32)
    np.testing.assert_array_equal(np.concatenate([e["continuous_observations"] for e in stored]), joined)
    assert stored[0]["continuous_actions"] == [[0, 0], [1, -1], [0, 0]]
    collection = Collection.read(tmp_path / "d" / "arm")
    assert collection is not None
    assert collection.task_rule == {
        "observation": "continuous",
        "action": "continuous",
        "context_window": 256,
        "adapter": None,
        "module": None,
    }


def test_integers_and_texts_are_a_mission(tmp_path: Path) -> None:
    """Integers that pandas has made floating-point numbers of are integers; a folder's files are its episodes."""
    (tmp_path / "runs").mkdir()
    for number in range(3):
        part = {
            "obs": np.full((number + 2, 7), number, np.float64),
            "act": np.arange(number + 2),
            "goal": ["go"] * (number + 2),
        }
        save(tmp_path / "runs" / f"{number}.parquet", {**part, "goal": [f"go to {number}"] * (number + 2)})
    columns = ["text=goal"]
    arguments = ["--task", "maze", "--output_dir", tmp_path / "d", "--columns", *columns, "--adapter", "discrete+text"]
    assert run(tmp_path / "runs", *arguments) == 0
    stored = rows(tmp_path / "d" / "maze")
    assert [episode["text_observations"] for episode in stored] == [[f"go to {n}"] * (n + 2) for n in range(3)]
    assert stored[2]["discrete_observations"] == [[2] * 7] * 4
    assert stored[2]["rewards"] == [0.0] * 4
    collection = Collection.read(tmp_path / "d" / "maze")
    assert collection is not None
    assert (collection.imported or {})["has_rewards"] is False
    assert collection.scores == {}


def test_pictures_are_stacks_of_grey_frames(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (6, 96, 96, 3), np.uint8)
    arrays = {"observations": frames, "actions": np.arange(6) % 3, "rewards": np.ones(6), "dones": [0, 0, 0, 1, 0, 1]}
    source = save(tmp_path / "a.npz", arrays)
    assert run(source, "--task", "my-game", "--output_dir", tmp_path / "d", "--max_episodes", "1") == 0
    loaded = datasets.load_dataset(str(tmp_path / "d"), "my-game", cache_dir=str(tmp_path / "cache"))
    (episode,) = loaded["train"]
    stacks = [np.asarray(image) for image in episode["image_observations"]]
    assert [stack.shape for stack in stacks] == [(84, 84, 4)] * 4
    np.testing.assert_array_equal(stacks[3][:, :, 2], stacks[2][:, :, 3])
    assert (stacks[0][:, :, 0] == stacks[0][:, :, 3]).all()  # the first frame four times, and of this episode alone
    assert (stacks[3][:, :, 0] == stacks[0][:, :, 3]).all()


def test_small_arrays_of_bytes_are_grids_of_integers(tmp_path: Path) -> None:
    arrays = d4rl(observations=np.full((len(EPISODES), 7, 7, 3), 5, np.uint8), actions=ACTIONS[:, None])
    assert run(save(tmp_path / "a.npz", arrays), "--task", "grid", "--output_dir", tmp_path / "d") == 0
    assert rows(tmp_path / "d" / "grid")[1]["discrete_observations"] == [[5] * 147]


def test_a_dict_of_the_environment_is_joined_in_its_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A registered task, with starts that are subtracted; a table has no names of the parts."""
    (tmp_path / "room_tasks.py").write_text(
        "import gymnasium\n"
        "from gymnasium import spaces\n"
        "from jat_engine.envs import register_task\n"
        "class Room(gymnasium.Env):\n"
        "    observation_space = spaces.Dict({'b': spaces.Discrete(3, start=1), 'a': spaces.MultiDiscrete([9, 9])})\n"
        "    action_space = spaces.Discrete(2)\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        return {'b': 1, 'a': [0, 0]}, {}\n"
        "    def step(self, action):\n"
        "        return {'b': 1, 'a': [0, 0]}, 2.0, True, False, {}\n"
        "register_task('test-room', Room)\n"
    )
    observations = np.stack([EPISODES, EPISODES + 1, 1 + ACTIONS], axis=1)
    arguments = ["--task", "test-room", "--task_module", "room_tasks"]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        source = save(tmp_path / "a.npz", d4rl(observations=observations))
        assert run(source, *arguments, "--output_dir", tmp_path / "d") == 0
        assert "observations are taken as a, b, joined in this order" in capsys.readouterr().out
        assert rows(tmp_path / "d" / "test-room")[1]["discrete_observations"] == [[1, 2, 1]]
        collection = Collection.read(tmp_path / "d" / "test-room")
        assert collection is not None
        assert collection.scores["random"]["mean"] == 2.0
        bad = save(tmp_path / "b.npz", d4rl(observations=observations + np.array([0, 0, 2])))
        line = refused(capsys, bad, *arguments, "--output_dir", tmp_path / "e")
        assert line.startswith(f"{bad}: episode 0, step 1 (element 2): observation: expected 0 to 2 after the start")
        bad = save(tmp_path / "c.npz", d4rl(observations=observations[:, :2]))
        line = refused(capsys, bad, *arguments, "--output_dir", tmp_path / "e")
        assert line.startswith(f"{bad}: episode 0: observations: expected 3 values a step, a, b joined in this order")


def test_arrays_in_fortran_order_are_read_alike(tmp_path: Path) -> None:
    source = save(tmp_path / "a.npz", d4rl(observations=np.asfortranarray(OBSERVATIONS)))
    assert run(source, "--task", "cart", "--output_dir", tmp_path / "d") == 0
    stored = rows(tmp_path / "d" / "cart")
    joined = np.concatenate([episode["continuous_observations"] for episode in stored])
    np.testing.assert_array_equal(joined, OBSERVATIONS.astype(np.float32))


def test_the_end_of_an_unfinished_episode_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = d4rl(timeouts=np.where(EPISODES == 3, False, d4rl()["timeouts"]))
    assert run(save(tmp_path / "a.npz", arrays), "--task", "cart", "--output_dir", tmp_path / "d") == 0
    assert len(rows(tmp_path / "d" / "cart")) == 3
    output = capsys.readouterr().out
    assert "no task is named cart: it can be trained on, and played once --task_module registers it" in output
    assert "the last 4 steps belong to an episode that does not end, and are left out" in output


def test_a_published_task_has_its_own_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second task in one folder: the card has both."""
    run(save(tmp_path / "a.npz", d4rl()), "--task", "cart", "--output_dir", tmp_path / "d")
    arrays = d4rl(actions=ACTIONS[:, None].astype(np.float64))
    assert run(save(tmp_path / "b.npz", arrays), "--task", "mujoco-pendulum", "--output_dir", tmp_path / "d") == 0
    collection = Collection.read(tmp_path / "d" / "mujoco-pendulum")
    assert collection is not None
    assert collection.task_rule is None
    assert list(collection.scores) == ["expert"]  # the random policy's return is published
    assert collection.as_task().demonstrator.mean == np.mean(collection.returns)  # type: ignore[union-attr]
    assert collection.as_task().expert == get_task("mujoco-pendulum").expert
    card = (tmp_path / "d" / "README.md").read_text()
    assert "of 1 of the 157 tasks of the JAT agent, and of 1 other task" in card
    assert card.index("| mujoco-pendulum |") < card.index("| cart |")
    for changed, message in (
        (
            {"observations": OBSERVATIONS[:, :3]},
            "continuous_observations: expected 4 values a step, as the environment",
        ),
        ({"actions": OBSERVATIONS}, "continuous_actions: expected 1 values a step, as the environment has, got 4"),
    ):
        bad = save(tmp_path / "bad.npz", {**arrays, **changed})
        line = refused(capsys, bad, "--task", "mujoco-pendulum", "--output_dir", tmp_path / "e")
        assert line.startswith(f"{bad}: episode 0: {message}")
    bad = save(tmp_path / "c.npz", d4rl(observations=np.ones((len(EPISODES), 12), int)))
    message = refused(capsys, bad, "--task", "babyai-open", "--output_dir", tmp_path / "d")
    assert message.startswith(f"{bad}: episode 0: expected a text for each step; name its column with --columns text=")


def nan(array: np.ndarray) -> np.ndarray:
    changed = array.astype(np.float64).copy()
    changed[5] = np.nan
    return changed


@pytest.mark.parametrize(
    ("arrays", "arguments", "message"),
    [
        (
            d4rl(observations=nan(OBSERVATIONS)),
            [],
            r"{}: episode 2: column continuous_observations, step 1 \(element 0\): expected a finite number, got nan",
        ),
        (d4rl(rewards=nan(REWARDS)), [], "{}: episode 2: column rewards, step 1: expected a finite number, got nan"),
        (d4rl(actions=nan(ACTIONS)), [], "{}: episode 2: actions, step 1: expected an integer, got nan"),
        (
            d4rl(actions=ACTIONS + 1),
            [],
            "{}: episode 0: actions, step 1: expected 0 to 1, as the action space has, got 2",
        ),
        (d4rl(actions=ACTIONS - 1), [], "{}: episode 0: actions, step 0: expected 0 to 1, .* got -1"),
        (d4rl(actions=OBSERVATIONS), [], "{}: episode 0: actions: expected one integer for each step, got 4"),
        (
            d4rl(observations=OBSERVATIONS[:, :3]),
            [],
            r"{}: episode 0, step 0: observation: expected \[4\], .* got \[3\]",
        ),
        (d4rl(observations=None), [], "{}: expected a column of observations, such as 'observations', got actions"),
        (d4rl(terminals=None, timeouts=None), [], "{}: expected a column that tells episodes apart, got observations"),
        (d4rl(terminals=REWARDS, timeouts=None), [], "{}: column terminals, row 2: expected 0 or 1, got 2.0"),
        (
            d4rl(terminals=ENDS & False, timeouts=None),
            [],
            "{}: expected an episode to end, got no true value in terminals",
        ),
        (d4rl(), ["--columns", "observation=obz"], "--columns observation=obz: {} has no column 'obz'"),
        (d4rl(), ["--columns", "observation=observation"], "has no column 'observation'; did you mean observations"),
        (d4rl(), ["--columns", "observations=observations"], "no column has the use 'observations'; did you mean obs"),
        (d4rl(), ["--columns", "reward=rewards", "reward=x"], "--columns: expected reward= once, got it twice"),
        (d4rl(), ["--columns", "reward=rewards,x"], "--columns reward=rewards,x: expected one column, got 2"),
        (d4rl(), ["--columns", "rewards"], "--columns: expected use=column .* got 'rewards'"),
        (
            d4rl(episode=EPISODES % 2),
            [],
            "{}: row 4: expected the rows of an episode next to each other, got episode 0 again",
        ),
        (
            d4rl(episode=OBSERVATIONS[:, 0]),
            [],
            "{}: column episode: expected an integer or a string for each step, got float64",
        ),
        (d4rl(), ["--test_fraction", "1"], "test_fraction: expected at least 0 and less than 1, got 1.0"),
        (d4rl(), ["--max_episodes", "0"], "max_episodes: expected at least 1, got 0"),
        (d4rl(), ["--task", "gym:CartPole-v9"], "task: gym:CartPole-v9: Environment version `v9`"),
        (d4rl(), ["--task", "atari"], "task: no task is named 'atari'"),
        (d4rl(), ["--task", "my/task"], "task: no task is named 'my/task'"),
        (
            d4rl(observations=np.array(["a"] * len(EPISODES))),
            ["--task", "mujoco-ant"],
            "{}: episode 0: observations: expected numbers",
        ),
        (
            d4rl(),
            ["--task_module", "no_such_module"],
            "--task_module no_such_module: expected a module that can be imported",
        ),
    ],
)
@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_faults_are_named_in_one_line(
    arrays: dict[str, Any],
    arguments: list[str],
    message: str,
    suffix: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = save(tmp_path / f"a.{suffix}", arrays)
    given = [] if "--task" in arguments else ["--task", "gym:CartPole-v1"]
    line = refused(capsys, source, "--output_dir", tmp_path / "d", *given, *arguments)
    assert re.search(message.format(re.escape(source)), line), line
    assert not (tmp_path / "d").exists() or not list((tmp_path / "d").rglob("*.parquet"))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"obs": [[1.0, 2.0], [1.0]], "act": [0, 1], "ep": [0, 0]},
            "column obs, row 1: expected 2 values as in row 0, got 1",
        ),
        ({"obs": [[1.0, 2.0], None], "act": [0, 1], "ep": [0, 0]}, "column obs, row 1: expected a value, got none"),
        (
            {"obs": [[1.0, 2.0], [1.0, None]], "act": [0, 1], "ep": [0, 0]},
            "column obs, row 1: expected numbers, got a missing",
        ),
        (
            {"obs": [{"x": 1}], "act": [0], "ep": [0]},
            "column obs: expected numbers, lists of numbers or strings, got struct",
        ),
        ({"obs": ["a"], "act": [0], "ep": [0]}, "episode 0 .ep 0.: observations: expected numbers, got object"),
    ],
)
def test_ragged_and_missing_cells_are_named(
    table: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save(tmp_path / "a.parquet", table)
    columns = ["observation=obs", "action=act", "episode=ep"]
    line = refused(capsys, source, "--task", "arm", "--output_dir", tmp_path / "d", "--columns", *columns)
    assert re.search(f"{re.escape(source)}: {message}", line), line


def test_sizes_are_those_of_all_episodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").mkdir()
    for number, size in enumerate((4, 4, 3)):
        save(tmp_path / "runs" / f"{number}.npz", {"obs": np.ones((2, size)), "act": np.ones((2, 1))})
    line = refused(capsys, tmp_path / "runs", "--task", "arm", "--output_dir", tmp_path / "d")
    where = f"{tmp_path}/runs/2.npz: episode 2"
    assert line.startswith(
        f"{where}: column continuous_observations: expected 4 values a step, as in {tmp_path}/runs/1.npz"
    )


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"PK not a zip", "expected an npz file of numpy.savez, got one that cannot be read"),
        (None, "array observations: expected numbers or strings, got pickled objects, which are not loaded"),
        ("shorter", "expected as many entries in every array, one for each step, got observations 13, actions 12"),
        ("cut", "expected an npz file of numpy.savez, got one that cannot be read"),
        ("flipped", "array observations: expected an array, got a damaged one: Bad CRC-32"),
    ],
)
def test_damaged_and_pickled_files_are_refused(
    contents: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.npz"
    if isinstance(contents, bytes):
        path.write_bytes(contents)
    elif contents is None:
        np.savez(path, **d4rl(observations=np.array([{}] * len(EPISODES), object)), allow_pickle=True)
    elif contents == "shorter":
        np.savez(path, **d4rl(actions=ACTIONS[1:]))
    else:
        np.savez(path, **d4rl())
        whole = path.read_bytes()
        if contents == "cut":
            path.write_bytes(whole[:300])
        else:
            place = whole.index(OBSERVATIONS[1].tobytes())
            path.write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
    line = refused(capsys, path, "--task", "arm", "--output_dir", tmp_path / "d")
    assert line.startswith(f"{path}: {message}"), line


def test_what_is_there_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save(tmp_path / "a.npz", d4rl())
    assert run(source, "--task", "cart", "--output_dir", tmp_path / "d") == 0
    capsys.readouterr()
    before = (tmp_path / "d" / "cart" / "collection.json").read_bytes()
    line = refused(capsys, source, "--task", "cart", "--output_dir", tmp_path / "d")
    assert line.startswith(
        f"{tmp_path}/d/cart: expected no folder of cart, got one; delete it to import the task again"
    )
    assert (tmp_path / "d" / "cart" / "collection.json").read_bytes() == before
    assert json.loads(before)["settings"]["import"]["format"] == "npz"
    assert run(source, "--task", "mujoco-pendulum", "--output_dir", tmp_path / "d", "--columns", "action=rewards") == 0
    capsys.readouterr()
    assert main(["collect", "--tasks", "mujoco-pendulum", "--output_dir", str(tmp_path / "d")]) == 2
    assert f"expected episodes that were played here, got imported ones (from {source})" in capsys.readouterr().err
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "README.md").write_text("mine")
    assert "README.md: expected none" in refused(capsys, source, "--task", "cart", "--output_dir", tmp_path / "e")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "nothing: expected a file, a folder, or the id of a Minari dataset"),
        ("empty", "empty: expected *.npz or *.parquet files"),
        ("text.csv", "text.csv: expected *.npz or *.parquet files"),
    ],
)
def test_a_source_without_a_format_is_refused(
    name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.csv").write_text("a,b")
    assert refused(capsys, name, "--task", "arm", "--output_dir", "d").startswith(message)


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_damaged_files_are_read_or_refused(suffix: str, tmp_path: Path) -> None:
    """Damaged names of columns of a Parquet file are no text, and flags of a zip file say that it is encrypted."""
    opens = npz.open_npz if suffix == "npz" else parquet_table.open_parquet
    source, refused = Path(save(tmp_path / f"a.{suffix}", d4rl())), 0
    path = tmp_path / f"b.{suffix}"
    for data in damaged(source.read_bytes(), 1000):
        path.write_bytes(data)
        try:
            list(opens(path, parse_columns([])).read())
        except DataError:
            refused += 1
    assert refused > 300
