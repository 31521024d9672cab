"""`jat-engine eval --ray`: the same bytes as without, on machines that are checked, whatever process ends."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="needs the ray extra")

from helpers.ray_clusters import OTHER_VERSION, actors, ray_cluster

from jat_engine.cli import main
from jat_engine.cli.agent import load_hashed_agents
from jat_engine.cli.arguments import ModelArguments
from jat_engine.envs import get_task
from jat_engine.envs.versions import task_versions
from jat_engine.runs.agents import ActOptions
from jat_engine.runs.cluster import ClusterOptions, Requirements, open_cluster
from jat_engine.runs.database import RunDatabase
from jat_engine.runs.plan import plan_items
from jat_engine.runs.ray_actors import Environments, Job, Ready
from jat_engine.runs.ray_package import MissingRayError, check_ray
from jat_engine.runs.results import results
from jat_engine.runs.run import Machines, RunOptions, ThisMachine, prepare_run, record
from jat_engine.runs.slots import PlayOptions

TASKS = ("atari-pong", "babyai-go-to-obj", "metaworld-reach", "mujoco-reacher")
SEED = 100
EVAL = ["eval", "--model_name_or_path", "jat-mini", "--use_cpu", "--seed", str(SEED), "--max_steps", "30"]
PLAY = PlayOptions(max_steps=30)
PLAYED = [get_task(name) for name in TASKS[1:]]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster with three nodes, one of which has another version of ale-py."""
    with ray_cluster(tmp_path_factory.mktemp("other"), with_other=True) as address:
        yield address


def evaluate(folder: Path, *flags: str, tasks: tuple[str, ...] = TASKS) -> bytes:
    """Play a run, and return its results."""
    assert main([*EVAL, "--output_dir", str(folder), "--tasks", *tasks, "--num_episodes", "3", *flags]) == 0
    return (folder / "results.json").read_bytes()


def test_a_cluster_gives_the_same_bytes_and_a_machine_that_differs_is_not_used(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = evaluate(tmp_path / "alone", "--num_workers", "0", "--num_envs", "1")
    printed = capsys.readouterr().out
    assert evaluate(tmp_path / "cluster", "--ray", address) == alone
    said = capsys.readouterr()
    assert said.out == printed
    assert "Ray: 2 machine(s), 2 process(es) with environments; 2 x JatEngine, backend cpu" in said.err
    (line,) = [line for line in said.err.splitlines() if "not used" in line]
    assert "it differs from the run: versions.ale-py " in line
    assert f", now {OTHER_VERSION}; --mixed_machines uses it" in line


def test_a_run_that_no_machine_can_go_on_with(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(tmp_path, tasks=TASKS[:1])
    with contextlib.closing(RunDatabase(tmp_path)) as database:
        database.set_settings(database.settings | {"instruction_set": "other"})
    before = (tmp_path / "results.json").read_bytes()
    assert (
        main([*EVAL, "--output_dir", str(tmp_path), "--tasks", TASKS[0], "--num_episodes", "5", "--ray", address]) == 2
    )
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("jat-engine: error: --ray: no machine of the cluster can play the run: 1")
    assert "instruction_set other, now " in last
    assert (tmp_path / "results.json").read_bytes() == before


def test_episodes_of_processes_that_end_are_played_again(address: str, tmp_path: Path) -> None:
    load = functools.partial(load_hashed_agents, ModelArguments("jat-mini", use_cpu=True), ActOptions())
    alone = play(tmp_path / "alone", ThisMachine(load(None)))
    kills, said = [("EnvironmentActor", 2), ("EngineActor", 6)], []

    def kill(num_played: int) -> None:
        if kills and num_played >= kills[0][1]:
            os.kill(actors(kills.pop(0)[0])[0], signal.SIGKILL)

    job = Job(load, {task.name: task for task in PLAYED}, PLAY, num_envs=1)
    requirements = Requirements({}, {task.name: task_versions(task) for task in PLAYED})
    with open_cluster(address, job, requirements, ClusterOptions(num_episodes=24), said.append) as cluster:
        assert play(tmp_path / "cluster", cluster, kill) == alone
    assert not kills
    assert ["lost, its episodes are played again: its process has ended" in line for line in said] == [True]


def play(folder: Path, machines: Machines, then: Callable[[int], None] = lambda num_played: None) -> dict[str, Any]:
    """Play a run, and return its results. Calls `then` with the number of episodes whenever some have ended."""
    folder.mkdir()
    counts = dict.fromkeys((task.name for task in PLAYED), 8)
    with contextlib.closing(RunDatabase(folder, create=True)) as database:
        prepare_run(database, machines.settings, PLAYED, counts)
        options, num_played = RunOptions(seed=SEED, play=PLAY), 0
        with machines.open_player(database, PLAYED, plan_items(counts, SEED), options) as player:
            for finished in record(database, player):
                num_played += len(finished)
                if finished:
                    then(num_played)
        assert player.timing.episodes >= num_played == 24
        assert not database.claims()
        return results(database.read())


# ---- checks --------------------------------------------------------------------------------------------------------

SETTINGS = {"weights_sha256": "w", "backend": "cpu", "instruction_set": "avx2", "versions": {"numpy": "2.4.6"}}
VERSIONS = {"atari-pong": {"ale-py": "0.12.1", "numpy": "2.4.6"}}
MACHINE = {"instruction_set": "avx2", "versions": {"numpy": "2.4.6"}}


@pytest.mark.parametrize(
    ("settings", "machine", "versions", "has_folder", "reason", "reason_if_mixed"),
    [
        ({}, {}, {}, True, "", ""),
        ({"instruction_set": "generic"}, {}, {}, True, "instruction_set avx2, now generic; --mixed_machines", ""),
        ({}, {"versions": {"numpy": "2.5"}}, {}, True, "versions.numpy 2.4.6, now 2.5; --mixed_machines", ""),
        ({}, {}, {"ale-py": "0.11"}, True, "versions.ale-py 0.12.1, now 0.11; --mixed_machines", ""),
        ({}, {}, {"ale-py": None}, True, "versions.ale-py 0.12.1, now None; --mixed_machines", ""),
        ({"weights_sha256": "v"}, {}, {}, True, "weights_sha256 w, now v", "weights_sha256 w, now v"),
        ({"backend": "cuda"}, {}, {}, True, "backend cpu, now cuda; --backend", "backend cpu, now cuda; --backend"),
        ({}, {}, {}, False, "the run's folder is not there", "the run's folder is not there"),
    ],
)
def test_machines_are_compared_with_the_run(
    settings: dict[str, Any],
    machine: dict[str, Any],
    versions: dict[str, str | None],
    has_folder: bool,
    reason: str,
    reason_if_mixed: str,
) -> None:
    found = {name: version for name, version in (VERSIONS["atari-pong"] | versions).items() if version}
    environments = [
        Environments(MACHINE, VERSIONS, has_folder=True),
        Environments(MACHINE | machine, {"atari-pong": found}, has_folder),
    ]
    ready = Ready(SETTINGS | settings, "cpu", environments, num_hosts=2, wanted=1)
    expected = SETTINGS | {"seed": 1}  # of the run alone
    for is_mixed, text in ((False, reason), (True, reason_if_mixed)):
        refusal = Requirements(expected, VERSIONS, is_mixed).refusal(ready)
        assert text in refusal
        assert bool(text) == bool(refusal)


@pytest.mark.parametrize("given", ["ray://127.0.0.1:10001", "127.0.0.1", "127.0.0.1:", "127.0.0.1:1", ":6379"])
def test_addresses_are_checked_before_anything_runs(
    given: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*EVAL, "--output_dir", str(tmp_path / "run"), "--tasks", TASKS[0], "--ray", given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("jat-engine: error: --ray: expected ")
    assert f"got {given}" in line
    assert not (tmp_path / "run").exists()


def test_ray_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingRayError, match=r"pip install 'jat-engine\[ray\]'"):
        check_ray("local")


def test_environments_need_a_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*EVAL, "--output_dir", str(tmp_path), "--tasks", TASKS[0], "--ray", "--num_workers", "0"]) == 2
    assert "--num_workers: expected auto or at least 1 with --ray, got 0" in capsys.readouterr().err


def test_ray_is_imported_only_when_it_is_used() -> None:
    code = "import sys, jat_engine.cli.evaluate; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
