"""Collect into folders that are taken, cannot be written, are full, or are used by another process."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jat_engine import DataError
from jat_engine.atomic_io import write_json, write_text
from jat_engine.cli import main
from jat_engine.collect import collect
from jat_engine.collect.chunks import ChunkFolder
from jat_engine.collect.collector import episode_settings
from jat_engine.collect.task import TaskProgress
from jat_engine.collect.worker import Steps
from jat_engine.datasets.collection import Collection
from jat_engine.envs import TASKS

TASK = "babyai-go-to-local"
SEED = 2**64


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make(folder: Path, kind: str) -> Path:
    """Make something that is not a folder for a dataset, and return the path to give."""
    place = folder / "d"
    if kind in ("file", "below a file"):
        place.write_text("mine")
    elif kind == "dead link":
        place.symlink_to("nowhere")
    elif kind == "task":
        place.mkdir()
        (place / TASK).write_text("mine")
    elif kind == "card":
        place.mkdir()
        (place / "README.md").write_text("# My project\n")
    else:
        (place / ".incomplete" / TASK).mkdir(parents=True)
        (place / ".incomplete" / TASK / "settings.json").write_text(kind)
    return place / "below" if kind == "below a file" else place


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("file", "output_dir: expected a folder, got {}/d, a file; name another"),
        ("below a file", "output_dir: expected a folder, got {}/d, a file; name another"),
        ("dead link", "output_dir: expected a folder, got {}/d, a link to nowhere, which is not there"),
        ("task", f"{{}}/d/{TASK}: exists, but was not written by `jat-engine collect`"),
        ("card", "{}/d/README.md: expected none, or the card of a collected dataset, got another"),
        (
            "{",
            f"{{}}/d/.incomplete/{TASK}/settings.json: expected what `jat-engine collect` writes, got JSONDecodeError",
        ),
        ("[]", f"{{}}/d/.incomplete/{TASK}/settings.json: expected what `jat-engine collect` writes, got ValueError"),
    ],
)
def test_a_folder_that_is_something_else_is_left_alone(
    kind: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path, kind)
    before = contents(tmp_path)
    assert main(["collect", "--tasks", TASK, "--num_episodes", "1", "--output_dir", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("jat-engine: error: " + message.format(tmp_path))
    assert contents(tmp_path) == before


def test_a_folder_without_a_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="output_dir: expected the name of a folder, got ''"):
        collect([TASK], "", num_episodes=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="writes to /proc, where nobody can")
def test_a_folder_that_cannot_be_written_is_told_before_playing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collect", "--tasks", TASK, "--num_episodes", "1", "--output_dir", "/proc/d"]) == 2
    assert capsys.readouterr().err.startswith("jat-engine: error: /proc/d: cannot be written: No such file")


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes, in this process and those it starts: writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """The first limit is below the size of a chunk, the second between that of a chunk and of the finished task."""
    whole = tmp_path / "whole" / "d"
    collect([TASK], whole, num_episodes=60, num_workers=1)
    size = (whole / TASK / "train-00000-of-00001.parquet").stat().st_size

    folder = tmp_path / "d"
    for limit in (1_000, size - 1):
        message = "cannot be written: File too large; finished chunks of episodes are kept: make room"
        with full_disk(limit), pytest.raises(OSError, match=message):
            collect([TASK], folder, num_episodes=60, num_workers=1)
        assert not (folder / TASK).exists()
        assert not list(folder.glob(".incomplete/*/*.tmp"))
    chunks = list(folder.glob(".incomplete/*/episodes-*.parquet"))
    assert len(chunks) > 1

    played: list[Any] = []
    collect([TASK], folder, num_episodes=60, num_workers=1, on_progress=played.append)
    assert not [event for event in played if isinstance(event, Steps)]
    assert contents(folder) == contents(whole)


def test_two_processes_do_not_collect_one_task(tmp_path: Path) -> None:
    settings = episode_settings(TASKS[TASK], 0, 0.0, False)
    other = ChunkFolder(tmp_path / ".incomplete" / TASK, settings)
    before = contents(tmp_path)
    with pytest.raises(DataError, match=f"{TASK}: another process is collecting this task; wait for it or stop it"):
        collect([TASK], tmp_path, num_episodes=1, num_workers=1)
    assert contents(tmp_path) == before
    other.remove()


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored") / "d"
    collect([TASK], folder, num_episodes=3, seed=SEED, num_workers=1)
    return folder


def test_a_task_that_another_process_finished_meanwhile_is_not_replaced(stored: Path) -> None:
    """The second process had read, before the first finished, that nothing is stored, and wants fewer episodes."""
    before = contents(stored)
    options: dict[str, Any] = {"test_fraction": 0.1, "settings": episode_settings(TASKS[TASK], SEED, 0.0, False)}
    with pytest.raises(DataError, match="got episodes that another process has stored since; run the command again"):
        TaskProgress(TASKS[TASK], stored, num_episodes=1, stored=None, **options)
    assert {name: file for name, file in contents(stored).items() if ".incomplete" not in name} == before
    TaskProgress(TASKS[TASK], stored, num_episodes=4, stored=Collection.read(stored / TASK), **options).close()


def test_huge_seeds_are_those_of_the_episodes(stored: Path) -> None:
    described = Collection.read(stored / TASK)
    assert described is not None
    assert described.seeds == [SEED, SEED + 1, SEED + 2]
    assert f"--seed {SEED}" in (stored / "README.md").read_text()


# ---- atomic writes -------------------------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_the_file_and_names_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    code = (
        "import resource, signal\n"
        "from pathlib import Path\n"
        "from jat_engine.atomic_io import write_text\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9, 9))\n"
        f"try: write_text(Path({str(path)!r}), 'x' * 99)\n"
        "except OSError as error: print(error, error.errno)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == f"{path}: cannot be written: File too large 27\n"
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path}/gone/a: cannot be written: No such file"):
        write_text(tmp_path / "gone" / "a", "x")
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_killed_write_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "before")
    code = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from jat_engine.atomic_io import write_text\n"
        "Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"write_text(Path({str(path)!r}), 'after')"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert path.read_text() == "before"
    write_text(path, "after")
    assert path.read_text() == "after"


def test_a_link_stays_one_and_permissions_stay(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "real").write_text("before")
    (tmp_path / "store" / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("store/real")
    (tmp_path / "dead").symlink_to("store/new")
    write_text(tmp_path / "link", "after")
    write_text(tmp_path / "dead", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "store" / "real").read_text() == "after"
    assert (tmp_path / "store" / "real").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "store" / "new").read_text() == "new"
    assert sorted(file.name for file in (tmp_path / "store").iterdir()) == ["new", "real"]


def test_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    path, errors = tmp_path / "a.txt", []

    def write(letter: str) -> None:
        try:
            for _ in range(50):
                write_text(path, letter * 100_000)
                assert len(set(path.read_text())) == 1
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert list(tmp_path.iterdir()) == [path]
