"""`jat-engine verify`: what differs of an episode is found at its step, and equal runs pass."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import strange_tasks
from helpers.runs import episode, evaluation

from jat_engine.cli import main
from jat_engine.runs.database import FILE_NAME, read_run
from jat_engine.runs.verify import choose_episodes, compare

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

TASKS = ["strange-changed", "strange-plain", "atari-pong", "babyai-go-to-obj", "mujoco-reacher"]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of five tasks with two episodes each, and their trajectories."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    flags = ["--model_name_or_path", "jat-mini", "--use_cpu", "--task_module", strange_tasks.MODULE, "--max_steps", "9"]
    flags += ["--seed", "100", "--save_trajectories", "--output_dir", str(folder)]
    assert main(["eval", *flags, "--tasks", *TASKS]) == 0
    return folder


@pytest.fixture
def run(played: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return shutil.copytree(played, tmp_path / "copy")


@pytest.fixture
def verify(run: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[str]]]:
    """Verify the copy, and return the exit code, the lines of the results and the last one of the messages."""

    def verify(*flags: str, episodes: str = "all") -> tuple[int, list[str]]:
        capsys.readouterr()
        code = main(["verify", str(run), "--episodes", episodes, *flags])
        said = capsys.readouterr()
        return code, [*said.out.splitlines()[1:], *said.err.splitlines()[-1:]]

    return verify


def edit(run: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(run / FILE_NAME)
    with connection:
        assert connection.execute(statement, values).rowcount == 1
    connection.close()


def edit_json(run: Path, table: str, where: str, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
    """Change the JSON value of a row."""
    column = "value" if table == "run" else "description"
    connection = sqlite3.connect(run / FILE_NAME)
    with connection:
        found = json.loads(connection.execute(f"select {column} from {table} where {where}").fetchone()[0])
        change(found)
        connection.execute(f"update {table} set {column} = ? where {where}", (json.dumps(found),))
    connection.close()


# ---- what differs --------------------------------------------------------------------------------------------------


def test_a_run_is_equal_and_left_as_it_was(run: Path, verify: Callable[..., tuple[int, list[str]]]) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, said = verify()
    steps = sum(one.length for task in read_run(run).tasks.values() for one in task.episodes)
    assert code == 0
    assert said[0] == f"10 of 10 episodes are equal in every observation, action and reward ({steps} steps)"
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_changed_reward_is_found_at_its_step(
    run: Path, verify: Callable[..., tuple[int, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(strange_tasks.CHANGED, "7")
    recorded = read_run(run).tasks["strange-changed"].returns[1]
    code, (line, summary) = verify()
    assert code == 1
    saved = run / "trajectories/strange-changed/episode-0001.parquet"
    assert line == (
        f"strange-changed episode 1 (seed 101): step 7 differs first; return {recorded}, now {recorded + 0.5}; "
        f"{saved} differs in step 7 (rewards)"
    )
    assert summary.startswith("9 of 10 episodes are equal")


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("return", 12.0, "return 12.0, now "),
        ("length", 8, "length 8, now 9"),
        ("success", 1, "success True, now None"),
        ("lives", 2, "lives 2, now None"),
        ("digest", "0" * 64, "digest 000000000000, now "),
        ("chain", b"\0" * 36, "hash of step 1"),
    ],
)
def test_values_that_were_changed_in_the_database_are_told(
    column: str, value: object, said: str, run: Path, verify: Callable[..., tuple[int, list[str]]]
) -> None:
    edit(run, f"update episodes set {column} = ? where task = 'strange-plain' and number = 0", value)
    code, (line, *_) = verify()
    assert code == 1
    reason = "every step is equal, but what the run has of it was changed: "
    assert line.startswith(f"strange-plain episode 0 (seed 100): {reason}{said}")


def test_trajectories_that_were_changed_are_told(run: Path, verify: Callable[..., tuple[int, list[str]]]) -> None:
    changed, damaged = (run / f"trajectories/mujoco-reacher/episode-000{index}.parquet" for index in (0, 1))
    table = pq.read_table(changed)
    rewards = table["rewards"].to_pylist()
    rewards[0][3] += 1
    index = table.column_names.index("rewards")
    pq.write_table(
        table.set_column(index, table.schema.field(index), pa.array(rewards, pa.list_(pa.float32()))), changed
    )
    damaged.write_bytes(damaged.read_bytes()[:-20])
    code, said = verify()
    assert code == 1
    assert any(line.endswith(f"was changed: {changed} differs in step 4 (rewards)") for line in said)
    assert any(f"was changed: {damaged} differs because it cannot be read" in line for line in said)


def test_an_episode_that_fails_now_is_told(
    run: Path, verify: Callable[..., tuple[int, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strange_tasks.Walk, "_go_wrong", lambda *_: float("nan"))
    code, said = verify()
    assert code == 1
    assert said[0].startswith("strange-changed episode 1 (seed 101): step 6 fails now: ValueError: reward: expected")
    assert len([line for line in said if "fails now" in line]) == 2


def test_the_first_of_the_steps_counts_and_missing_ones_differ() -> None:
    one = episode("mujoco-reacher", 0, 1.0, digest="a")
    other = replace(one, digest="b")
    for chain, now, step in ((b"aaaabbbbcccc", b"aaaaxxxxyyyy", 2), (b"aaaa", b"aaaabbbb", 2), (b"aaaabbbb", b"", 1)):
        assert compare(one, other, chain, now).step == step


# ---- which episodes ------------------------------------------------------------------------------------------------


def test_episodes_are_chosen_of_all_tasks_in_turn() -> None:
    made = evaluation({"atari-pong": [1.0, 2.0, None, 3.0, 4.0], "mujoco-reacher": [1.0], "babyai-go-to": [1.0] * 9})
    chosen = choose_episodes(made, 6, seed=3)
    assert chosen == choose_episodes(made, 6, seed=3)
    assert chosen != choose_episodes(made, 6, seed=4)
    counts = Counter(one.task for one in chosen)
    assert counts["mujoco-reacher"] == 1
    assert {counts["atari-pong"], counts["babyai-go-to"]} == {2, 3}
    everything = choose_episodes(made, None, seed=0)
    assert len(everything) == 14
    assert not any(one.failed for one in everything)
    assert choose_episodes(made, 100, seed=1) == everything


# ---- what is refused -----------------------------------------------------------------------------------------------


def test_other_settings_are_named(run: Path, verify: Callable[..., tuple[int, list[str]]]) -> None:
    edit_json(run, "run", "key = 'settings'", lambda found: found.update(weights_sha256="0"))
    code, (line,) = verify()
    assert code == 2
    assert "was played with other settings (weights_sha256 0, now " in line
    assert line.endswith("name its checkpoint with --model_name_or_path")


def test_other_machines_are_refused_unless_differences_are_expected(
    run: Path, verify: Callable[..., tuple[int, list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    edit_json(run, "run", "key = 'settings'", lambda found: found["versions"].update(numpy="1.0"))
    edit_json(run, "tasks", "name = 'atari-pong'", lambda found: found["versions"].update({"ale-py": "0.1"}))
    code, (line,) = verify()
    assert code == 2
    assert "(versions.numpy 1.0, now " in line
    assert line.endswith("or add --mixed_machines: differences are then to be expected")

    assert main(["verify", str(run), "--episodes", "5", "--mixed_machines"]) == 0
    expected = [line for line in capsys.readouterr().err.splitlines() if line.startswith("differences are to be expec")]
    assert [line.split(": ")[1].split()[0] for line in expected] == ["versions.numpy", "versions.ale-py"]


def test_other_simulators_are_named(run: Path, verify: Callable[..., tuple[int, list[str]]]) -> None:
    edit_json(run, "tasks", "name = 'atari-pong'", lambda found: found["versions"].update({"ale-py": "0.1"}))
    code, (line,) = verify()
    assert code == 2
    assert "has results of atari-pong with versions.ale-py 0.1, now " in line


def test_a_task_that_is_another_now_is_named(run: Path, verify: Callable[..., tuple[int, list[str]]]) -> None:
    edit_json(run, "tasks", "name = 'strange-plain'", lambda found: found["rule"].update(context_window=7))
    code, (line,) = verify()
    assert code == 2
    assert "has results of strange-plain with rule.context_window 7, now 256; register the task as it was" in line


def test_another_dtype_is_allowed_and_told(
    run: Path, verify: Callable[..., tuple[int, list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    dtype = str(read_run(run).settings["dtype"])
    other = "int8" if dtype != "int8" else "float32"
    main(["verify", str(run), "--episodes", "5", "--dtype", other])
    said = capsys.readouterr()
    assert f"differences are to be expected: dtype {dtype}, now {other}" in said.err
    assert " of 5 episodes are equal" in said.out


def test_what_cannot_be_verified_is_one_line(
    run: Path, tmp_path: Path, verify: Callable[..., tuple[int, list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(tmp_path)]) == 2
    assert f"error: {tmp_path}: expected the folder of a run" in capsys.readouterr().err
    for flag in ("0", "-1", "some"):
        code, (line,) = verify(episodes=flag)
        assert code == 2
        assert f"--episodes: expected an integer of at least 1, or all, got {flag!r}" in line
    code, (line,) = verify("--model_name_or_path", str(tmp_path / "gone"))
    assert code == 2
    assert "--model_name_or_path: " in line
    edit_json(run, "run", "key = 'arguments'", lambda found: found.update(model_name_or_path=str(tmp_path / "gone")))
    code, (line,) = verify()
    assert code == 2
    assert line.endswith(f"That is what {run} was played with; name where it is now")
    assert verify("--model_name_or_path", "jat-mini", episodes="2")[0] == 0


def test_a_run_without_finished_episodes_is_refused(run: Path, verify: Callable[..., tuple[int, list[str]]]) -> None:
    connection = sqlite3.connect(run / FILE_NAME)
    with connection:
        connection.execute("delete from episodes")
    connection.close()
    code, (line,) = verify()
    assert code == 2
    assert line.endswith("expected a run with finished episodes, got none; play it on with --resume")
