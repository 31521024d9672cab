"""Collect expert episodes as a dataset, with real simulators, processes and files."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from jat_engine import DataError
from jat_engine.cli import main
from jat_engine.collect import collect
from jat_engine.collect.chunks import Attempt, ChunkFolder, write_chunk
from jat_engine.collect.collector import episode_settings
from jat_engine.collect.experts import demonstrate, make_expert
from jat_engine.collect.task import Progress, TaskProgress, replace_folder, restore_folder
from jat_engine.collect.worker import Job, Steps
from jat_engine.collect.worker_pool import WorkerPool
from jat_engine.datasets.card import write_card
from jat_engine.datasets.collection import Collection, choose_splits
from jat_engine.datasets.hub import push_to_hub
from jat_engine.datasets.parquet import ShardWriter, episode_row, read_rows, schema
from jat_engine.datasets.schema import check_episode, task_columns
from jat_engine.envs import TASKS
from jat_engine.evaluation.environment import evaluation_env

TASK = "babyai-go-to-local"

WHOLE: dict[str, Any] = {"tasks": [TASK], "num_episodes": 40, "noise": 0.9}
"""Every second episode is noisy, and some of these fail."""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Collect without interruption, with one worker."""
    folder = tmp_path_factory.mktemp("one") / "whole"
    collect(**WHOLE, output_dir=folder, num_workers=1)
    return folder


# ---- stored episodes -----------------------------------------------------------------------------------------------


def test_stored_are_the_first_successful_episodes_and_what_the_expert_did(whole: Path, tmp_path: Path) -> None:
    task = TASKS[TASK]
    collection = Collection.read(whole / task.name)
    assert collection is not None
    assert collection.attempts == collection.seeds[-1] + 1
    assert collection.successes == collection.num_episodes == 40
    assert 0.5 < collection.success_rate < 1  # type: ignore[operator]
    env = evaluation_env(task)
    expert = make_expert(task, env)
    played = {seed: demonstrate(env, expert, task=task, seed=seed, noise=0.9) for seed in range(6)}
    assert [seed for seed, episode in played.items() if episode.success] == [s for s in collection.seeds if s < 6]
    splits = {
        split: datasets.load_dataset(str(whole), task.name, split=split, cache_dir=str(tmp_path))
        for split in ("train", "test")
    }
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 36, "test": 4}
    positions = dict.fromkeys(splits, 0)
    for seed, split, return_ in zip(collection.seeds, collection.splits, collection.returns, strict=True):
        row = splits[split][positions[split]]
        positions[split] += 1
        episode = check_episode(row, source="row", task=task)
        assert episode["rewards"].sum() == pytest.approx(return_, rel=1e-5)
        if seed in played:
            for name, values in played[seed].columns.items():
                assert np.array_equal(episode[name], values), name


def test_a_bot_that_plans_in_circles_fails_and_does_not_hang() -> None:
    task = TASKS["babyai-unlock-to-unlock"]
    env = evaluation_env(task)
    played = demonstrate(env, make_expert(task, env), task=task, seed=4)
    assert (played.success, played.length) == (False, 1)


@pytest.mark.versions
def test_every_kind_of_task_is_read_by_datasets(tmp_path: Path) -> None:
    """Include frames, whose fourth channel image software may take for transparency."""
    rng = np.random.default_rng(0)
    steps = 5
    columns: dict[str, Any] = {
        "continuous_observations": rng.normal(size=(steps, 3)),
        "continuous_actions": rng.normal(size=(steps, 2)),
        "text_observations": ["go to the é", "", "a", "b", "c"],
        "discrete_observations": rng.integers(0, 9, (steps, 148)),
        "image_observations": rng.integers(0, 256, (steps, 84, 84, 4), np.uint8),
        "discrete_actions": rng.integers(0, 6, steps),
        "rewards": rng.normal(size=steps),
    }
    columns["image_observations"][0, ..., 3] = 0
    for name in ("mujoco-ant", "babyai-open", "atari-pong"):
        names = task_columns(TASKS[name])
        episode = check_episode({n: columns[n] for n in names}, source="x", task=TASKS[name])
        writer = ShardWriter(tmp_path, name, schema(names))
        writer.append(episode_row(episode))
        (file,) = writer.close()
        (row,) = datasets.load_dataset("parquet", data_files=str(file), split="train", cache_dir=str(tmp_path / "c"))
        assert list(row) == list(names)
        if "image_observations" in row:
            assert {image.mode for image in row["image_observations"]} == {"RGBA"}
            row["image_observations"] = np.stack(row["image_observations"])
        for column, values in episode.items():
            assert np.array_equal(row[column], values), column


def test_shards_are_cut_by_size_and_hold_every_row_in_order(tmp_path: Path) -> None:
    names = task_columns(TASKS["mujoco-ant"])
    episodes = [
        check_episode(
            {
                "continuous_observations": np.full((10 + i, 27), i),
                "continuous_actions": np.full((10 + i, 8), i),
                "rewards": np.full(10 + i, i),
            },
            source="x",
        )
        for i in range(7)
    ]
    rows = [episode_row(episode) for episode in episodes]
    writer = ShardWriter(tmp_path, "train", schema(names), shard_bytes=rows[0].nbytes * 3)
    for row in rows:
        writer.append(row)
    files = writer.close()
    assert [file.name for file in files] == [f"train-{i:05d}-of-00004.parquet" for i in range(4)]
    assert sorted(tmp_path.iterdir()) == files
    read = [row for file in files for row in read_rows(file)]
    assert [row["rewards"][0].as_py() for row in read] == [episode["rewards"].tolist() for episode in episodes]


@pytest.mark.parametrize(
    ("count", "fraction", "tests"), [(1, 0.5, 0), (2, 0.01, 1), (2, 0.99, 1), (10, 0.1, 1), (95, 0.1, 10), (9, 0, 0)]
)
def test_splits(count: int, fraction: float, tests: int) -> None:
    splits = choose_splits(count, fraction, seed=3)
    assert splits.count("test") == tests
    assert splits.count("train") == count - tests
    assert splits == choose_splits(count, fraction, seed=3)


def test_splits_hardly_change_as_a_task_grows() -> None:
    small, large = choose_splits(200, 0.1, 0), choose_splits(400, 0.1, 0)
    tests = [i for i, split in enumerate(small) if split == "test"]
    assert sum(large[i] == "test" for i in tests) >= 0.7 * len(tests)
    assert small != choose_splits(200, 0.1, 1)


# ---- interruptions -------------------------------------------------------------------------------------------------


def processes(group: int) -> list[int]:
    """Return the running processes of a process group, without zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, _, rest = stat.read_text().partition(" ")
        except OSError:
            continue
        state, _, its_group = rest.rpartition(")")[2].split()[:3]
        if int(its_group) == group and state != "Z":
            found.append(int(pid))
    return found


def interrupted(folder: Path, how: str) -> subprocess.CompletedProcess[str]:
    """Collect in a process that is interrupted after its second chunk: by "kill", or by "ctrl-c" to its group."""
    if how == "kill":
        script = f"""
from jat_engine.collect import collect
collect(**{WHOLE}, output_dir={str(folder)!r}, num_workers=2, on_progress=tell)"""
    else:
        script = f"""
from jat_engine.cli import collect, main
show = collect._Bars.show
collect._Bars.show = lambda bars, event: (tell(event), show(bars, event))
flags = ["--tasks", {WHOLE["tasks"][0]!r}, "--num_episodes", "40", "--noise", "0.9", "--num_workers", "2"]
raise SystemExit(main(["collect", *flags, "--output_dir", {str(folder)!r}]))"""
    script = f"""
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is started without it
seen = []
def tell(event):
    attempts = getattr(event, "attempts", 0)
    if attempts and attempts not in seen:
        seen.append(attempts)
        if len(seen) == 2:
            {"os.kill(os.getpid(), signal.SIGKILL)" if how == "kill" else "os.killpg(0, signal.SIGINT)"}
{script}"""
    command = [sys.executable, "-c", script]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    error = process.stderr.read()  # until the workers, which inherit it, have ended
    process.wait()
    until = time.monotonic() + 10
    while processes(process.pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert processes(process.pid) == []
    return subprocess.CompletedProcess(command, process.returncode, stderr=error)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_killed_interrupted_and_resumed_by_other_workers_it_is_the_same(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    assert interrupted(folder, "kill").returncode == -signal.SIGKILL
    assert not (folder / TASK).exists()
    assert list(folder.glob(".incomplete/*/episodes-*.parquet"))
    stopped = interrupted(folder, "ctrl-c")
    assert stopped.returncode == 130
    assert stopped.stderr.splitlines() == ["jat-engine: interrupted"]
    assert not (folder / TASK).exists()
    (folder / ".incomplete" / TASK / "episodes-0000000-0000009.parquet.1.tmp").write_bytes(b"half")

    events: list[Any] = []
    collect(**WHOLE, output_dir=folder, num_workers=2, on_progress=events.append)
    first = next(e for e in events if isinstance(e, Progress) and e.attempts)  # attempts of the interrupted processes
    collection = events[-1]
    assert 0 < first.attempts < collection.attempts
    assert contents(folder) == contents(whole)  # so that nothing is left in .incomplete either


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = f"""
import subprocess, time
from pathlib import Path
from jat_engine.collect.worker import Job, Steps
from jat_engine.collect.worker_pool import WorkerPool
from jat_engine.envs import TASKS
workers = WorkerPool(1)
workers.give(Job(TASKS["atari-pong"], 0, 99, Path({str(tmp_path)!r}), seed=0, noise=0.0, keep_failures=False))
while not any(isinstance(message, Steps) for message in workers.receive()):
    pass
connection, process = next(iter(workers._processes.items()))
holder = subprocess.Popen(["sleep", "60"], pass_fds=[connection.fileno()])  # the connection outlives this process
print(process.pid, holder.pid, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    assert parent.stdout is not None
    worker, holder = map(int, parent.stdout.readline().split())
    assert set(processes(parent.pid)) >= {parent.pid, worker, holder}
    parent.kill()
    parent.wait()
    until = time.monotonic() + 10
    while worker in processes(parent.pid) and time.monotonic() < until:
        time.sleep(0.02)
    left = processes(parent.pid)
    os.kill(holder, signal.SIGKILL)
    parent.stdout.close()
    assert worker not in left


def test_a_worker_that_dies_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    def kill_workers(event: Any) -> None:
        if isinstance(event, Progress) and event.attempts:
            for process in multiprocessing.active_children():
                process.kill()

    with pytest.raises(
        ChildProcessError, match=r"^babyai-open, seed .*: the process that played was ended by signal 9"
    ):
        collect(["babyai-open"], tmp_path, num_episodes=40, num_workers=1, on_progress=kill_workers)
    assert multiprocessing.active_children() == []
    assert list(tmp_path.glob(".incomplete/babyai-open/episodes-*.parquet"))


def test_errors_in_a_worker_are_raised_with_their_seeds(tmp_path: Path) -> None:
    workers = WorkerPool(1)
    options: dict[str, Any] = {"seed": 7, "noise": 0.0, "keep_failures": False}
    workers.give(Job(TASKS["mujoco-ant"], 0, 3, tmp_path, **options))
    assert workers.idle() == 0
    with pytest.raises(
        RuntimeError, match=r"(?s)^mujoco-ant, seed 7 to 9 failed:\nTraceback .* expected one with an exp"
    ):
        workers.receive()
    workers.give(Job(TASKS["babyai-open"], 0, 1, tmp_path / "gone", **options))  # the worker is still running
    with pytest.raises(OSError, match="gone"):  # noqa: PT012 (messages about steps come first)
        while not workers.idle():
            workers.receive()
    assert workers.receive() == []
    workers.close()
    assert multiprocessing.active_children() == []


# ---- the same command again ----------------------------------------------------------------------------------------


def test_a_finished_task_is_left_alone_extended_or_split_again(tmp_path: Path) -> None:
    task = "mujoco-pendulum"
    events: list[Any] = []
    options: dict[str, Any] = {"tasks": [task], "num_workers": 1, "on_progress": events.append}

    def loaded() -> list[int]:
        read = datasets.load_dataset(str(tmp_path / "d"), task, cache_dir=str(tmp_path / "cache"))
        return [len(rows) for rows in read.values()]

    collect(**options, output_dir=tmp_path / "d", num_episodes=3)
    assert loaded() == [2, 1]
    before = contents(tmp_path / "d")
    events.clear()
    collection = collect(**options, output_dir=tmp_path / "d", num_episodes=2)[task]
    assert events == [collection]
    assert collection.num_episodes == 3
    assert contents(tmp_path / "d") == before

    events.clear()
    collect(**options, output_dir=tmp_path / "d", num_episodes=5, test_fraction=0.5)
    assert [e.attempts for e in events if isinstance(e, Progress)][:2] == [3, 3]  # the stored episodes
    assert loaded() == [3, 2]  # and not the cached episodes of before
    events.clear()
    collect(**options, output_dir=tmp_path / "d", num_episodes=5, test_fraction=0.2)
    assert not [e for e in events if isinstance(e, Steps)]
    collect(**options, output_dir=tmp_path / "e" / "d", num_episodes=5, test_fraction=0.2)
    assert contents(tmp_path / "d") == contents(tmp_path / "e" / "d")


def test_other_arguments_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["collect", "--tasks", "mujoco-pendulum", "--output_dir", str(tmp_path), "--num_workers", "1"]
    assert main([*flags, "--num_episodes", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("1 task\n")
    assert "mujoco-pendulum: 1 episodes, 1,000 steps" in captured.err
    kept = contents(tmp_path)
    for more, message in [
        (["--seed", "1"], f"{tmp_path}/mujoco-pendulum: expected what was collected with seed 1, got 0; use the same"),
        (["--noise", "0.5"], "expected what was collected with noise 0.5, got 0.0"),
        (["--keep_failures"], "expected what was collected with keep_failures True, got False"),
        (["--tasks", "mujoco-humanoid"], "tasks: mujoco-humanoid has no expert"),
        (["--num_episodes", "0"], "num_episodes: expected at least 1, got 0"),
        (["--num_workers", "0"], "num_workers: expected at least 1, got 0"),
        (["--seed", "-1"], "seed: expected at least 0, got -1"),
        (["--noise", "nan"], "noise: expected a finite number of at least 0, got nan"),
        (["--test_fraction", "1"], "test_fraction: expected at least 0 and less than 1, got 1.0"),
        (["--push_to_hub"], "--push_to_hub needs --repo_id"),
    ]:
        assert main([*flags, *more]) == 2
        assert message in capsys.readouterr().err
    path = tmp_path / "mujoco-pendulum" / "collection.json"
    stored = json.loads(path.read_text())
    stored["settings"]["versions"]["mujoco"] = "2.1"
    path.write_text(json.dumps(stored))
    assert main([*flags, "--num_episodes", "1"]) == 0  # nothing has to be played
    assert main([*flags, "--num_episodes", "2"]) == 2
    assert "with mujoco 3" in (error := capsys.readouterr().err)
    assert "got 2.1" in error
    path.write_text("{}")
    assert main(flags) == 2
    assert "collection.json: expected what `jat-engine collect` writes, got KeyError" in capsys.readouterr().err
    path.unlink()
    assert main(flags) == 2
    assert "exists, but was not written by `jat-engine collect`" in capsys.readouterr().err
    assert set(contents(tmp_path)) == set(kept) - {"mujoco-pendulum/collection.json"}


def test_missing_packages_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert main(["collect", "--tasks", "mujoco", "--output_dir", str(tmp_path / "d")]) == 2
    assert capsys.readouterr().err.endswith(
        "collecting and training need datasets, not installed here; pip install 'jat-engine[train]'\n"
    )
    assert not (tmp_path / "d").exists()


def chunk(folder: Path, first: int, kept: list[bool]) -> Any:
    names = task_columns(TASKS["babyai-open"])
    columns = {
        "text_observations": ["go"],
        "discrete_observations": np.zeros((1, 148), np.int64),
        "discrete_actions": [0],
    }
    attempts = [Attempt(first + i, 1.0, 1, success, success) for i, success in enumerate(kept)]
    rows = [
        episode_row(check_episode({**columns, "rewards": [attempt.index]}, source="x"))
        for attempt in attempts
        if attempt.kept
    ]
    folder.mkdir(parents=True, exist_ok=True)
    return write_chunk(folder, schema(names), attempts, rows, "an expert")


def begin(folder: Path, num_episodes: int, stored: Collection | None = None) -> TaskProgress:
    settings = {"seed": 100, "noise": 0.0, "keep_failures": False, "versions": {}}
    return TaskProgress(
        TASKS["babyai-open"],
        folder,
        num_episodes=num_episodes,
        test_fraction=0,
        settings=settings,
        stored=stored,
    )


def test_too_few_successes_end_it(tmp_path: Path) -> None:
    task = begin(tmp_path, 50)
    cache = tmp_path / ".incomplete" / "babyai-open"
    task.add(chunk(cache, 0, [True] * 6 + [False] * 113))
    task.add(chunk(cache, 119, [True, True]))  # 1 in 20 is enough
    with pytest.raises(
        DataError, match="babyai-open: 8 of the first 161 episodes succeeded, expected at least 1 in 20"
    ):
        task.add(chunk(cache, 121, [False] * 100))
    task.close()


@pytest.mark.parametrize("played", [99, 100])  # the hundredth ends it now, or was played before
def test_a_task_that_is_given_up_does_not_keep_others_from_being_finished(played: int, tmp_path: Path) -> None:
    cache = ChunkFolder(tmp_path / ".incomplete/babyai-open", episode_settings(TASKS["babyai-open"], 0, 0.0, False))
    chunk(cache.folder, 0, [False] * played)
    cache.close()
    with pytest.raises(
        DataError, match=r"^babyai-open: [01] of the first 100 episodes .* Use --keep_failures, or leave"
    ):
        collect(["babyai-open", "mujoco-pendulum"], tmp_path, num_episodes=1, num_workers=1)
    assert not (tmp_path / "babyai-open").exists()
    assert (tmp_path / "mujoco-pendulum").exists()
    ChunkFolder(cache.folder, json.loads((cache.folder / "settings.json").read_text())).close()  # it is not held


def test_gaps_are_played_first_and_chunks_that_overlap_what_is_stored_count_once(tmp_path: Path) -> None:
    cache = tmp_path / ".incomplete" / "babyai-open"
    begin(tmp_path, 5).close()
    chunk(cache, 0, [True, False])
    chunk(cache, 4, [True, True, False, True, True])  # left by a faster worker
    (cache / "episodes-0000009-0000009.parquet").write_bytes(b"not parquet")
    task = begin(tmp_path, 5)
    assert not task.complete
    job = task.next_job(num_workers=2)
    assert job is not None
    assert (job.first, job.stop, job.seed) == (2, 4, 100)
    assert task.next_job(num_workers=2) is None  # the attempts being played should be enough
    task.add(chunk(cache, 2, [False, True]))
    collection = task.finish()
    task.close()  # as if the process had ended here, with the chunks still there
    assert collection.seeds == [100, 103, 104, 105, 107]
    assert (collection.attempts, collection.successes) == (8, 5)

    task = begin(tmp_path, 7, stored=Collection.read(tmp_path / "babyai-open"))
    assert task.progress().episodes == 6
    job = task.next_job(num_workers=1)
    assert job is not None
    assert (job.first, job.stop) == (9, 10)
    task.add(chunk(cache, 8, [True, True]))  # the last again
    collection = task.finish()
    task.remove()
    assert collection.seeds == [100, 103, 104, 105, 107, 108, 109]
    rows = list(collection.rows(tmp_path / "babyai-open"))
    assert [row["rewards"][0].as_py()[0] + 100 for row in rows] == collection.seeds
    assert not (tmp_path / ".incomplete").exists()


def test_one_process_at_a_time_and_only_with_the_same_settings(tmp_path: Path) -> None:
    folder = ChunkFolder(tmp_path / "x", {"seed": 0})
    with pytest.raises(DataError, match="x: another process is collecting this task"):
        ChunkFolder(tmp_path / "x", {"seed": 0})
    folder.close()
    ChunkFolder(tmp_path / "x", {"seed": 2}).close()  # no episode has been played
    chunk(tmp_path / "x", 0, [True])
    with pytest.raises(DataError, match="x: expected what was collected with seed 1, got 2"):
        ChunkFolder(tmp_path / "x", {"seed": 1})
    ChunkFolder(tmp_path / "x", {"seed": 2}).remove()


def test_a_replacement_that_is_interrupted_loses_nothing(tmp_path: Path) -> None:
    folder, new = tmp_path / "task", tmp_path / ".incomplete" / "task" / "new"
    for path, text in ((folder, "old"), (new, "new")):
        path.mkdir(parents=True)
        (path / "file").write_text(text)
    folder.replace(new.with_name("old"))  # interrupted here
    restore_folder(folder)
    assert (folder / "file").read_text() == "old"
    replace_folder(folder, new)
    restore_folder(folder)
    assert (folder / "file").read_text() == "new"
    assert not list(new.parent.iterdir())


# ---- card and hub --------------------------------------------------------------------------------------------------


class FakeApi:
    """Keep the files that would be uploaded."""

    def create_repo(self, **options: Any) -> str:
        assert options["repo_type"] == "dataset"
        return f"https://huggingface.co/datasets/{options['repo_id']}"

    def upload_folder(self, *, folder_path: Path, delete_patterns: list[str], **_: Any) -> None:
        self.files, self.deleted = contents(folder_path), delete_patterns


def test_the_card_lists_what_is_stored_and_all_of_it_is_published(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "d")
    folder = tmp_path / "d"
    collect(["mujoco-pendulum"], folder, num_episodes=1, num_workers=1)
    assert datasets.get_dataset_config_names(str(folder)) == [TASK, "mujoco-pendulum"]
    assert list(datasets.load_dataset(str(folder), "mujoco-pendulum", cache_dir=str(tmp_path / "c"))) == ["train"]
    text = (folder / "README.md").read_text()
    rows = {line.split(" | ")[0][2:]: line for line in text.splitlines() if line.startswith("| ")}
    assert rows["mujoco-pendulum"].startswith("| mujoco-pendulum | 1 | 0 | 1,000 | 1000.00 ± 0.00 | - | 475.398 ±")
    collection = Collection.read(folder / TASK)
    assert collection is not None
    assert f"| {collection.success_rate:.1%} |" in rows[TASK]
    assert f"| 0.9 | 0 to {collection.seeds[-1]} |" in rows[TASK]
    assert "license: apache-2.0" in text

    (folder / ".incomplete").mkdir()
    (folder / ".incomplete" / "half").write_bytes(b"x")
    api = FakeApi()
    assert push_to_hub(folder, "me/data", api=api).endswith("datasets/me/data")  # type: ignore[arg-type]
    assert f'load_dataset("me/data", "{TASK}"' in api.files.pop("README.md").decode()
    assert api.files == {name: file for name, file in contents(folder).items() if "/" in name and name[0] != "."}
    assert api.deleted == [f"{TASK}/*", "mujoco-pendulum/*"]

    shutil.rmtree(folder / TASK)
    write_card(folder)
    assert datasets.get_dataset_config_names(str(folder)) == ["mujoco-pendulum"]
    with pytest.raises(DataError, match="expected tasks that `jat-engine collect` finished, got none"):
        push_to_hub(tmp_path, "me/data", api=api)  # type: ignore[arg-type]
