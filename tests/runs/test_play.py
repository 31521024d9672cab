"""The loop of a run: episodes of any environments at once, deaths of processes, and how many environments there are."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.dice import BAD_REWARD, DEATHS, DICE, STEP_FAILS

from jat_engine.envs import Task
from jat_engine.errors import InputError
from jat_engine.runs import play
from jat_engine.runs.hosts import Host, HostEndedError, LocalHost, WorkerHost
from jat_engine.runs.plan import MAX_DEATHS, Item, WorkQueue
from jat_engine.runs.play import Finished, Player
from jat_engine.runs.records import Episode
from jat_engine.runs.slots import Observed, PlayOptions

TASKS = {"dice": DICE}


class Counting:
    """Agent that acts by the number of the step, refuses some seeds, and knows who is open."""

    def __init__(self, refuses_to_open: Sequence[int] = (), refuses_to_act: Sequence[int] = ()) -> None:
        self.seconds, self.steps = 0.0, 0
        self.open_now: dict[Hashable, list[int]] = {}
        self.batches: list[int] = []
        self._to_open, self._to_act = refuses_to_open, refuses_to_act

    def open(self, key: Hashable, task: Task, seed: int) -> None:
        if seed in self._to_open:
            raise InputError(f"task: does not fit seed {seed}")
        assert key not in self.open_now
        self.open_now[key] = [seed, 0]

    def close(self, key: Hashable) -> None:
        self.open_now.pop(key, None)

    def act(self, keys: Sequence[Hashable], observed: Sequence[Observed]) -> list[Any]:
        self.batches.append(len(keys))
        self.steps += len(keys)
        actions: list[Any] = []
        for key in keys:
            seed, step = self.open_now[key]
            self.open_now[key][1] += 1
            refuse = seed in self._to_act and step == 2
            actions.append(InputError(f"no action for seed {seed}") if refuse else (seed + step) % 3)
        return actions


def play_all(
    agents: Counting, hosts: Sequence[Host], seeds: Sequence[int], num_envs: int, **options: Any
) -> dict[int, Finished]:
    """Play an episode of each seed, and return the reports by seed."""
    items = [Item("dice", index, seed) for index, seed in enumerate(seeds)]
    player = Player(agents, hosts, WorkQueue(items, lambda _: 5.0), TASKS, num_envs, num_envs, **options)
    found: dict[int, Finished] = {}
    for finished in player.play():
        for one in finished:
            assert one.ended.episode.seed not in found
            found[one.ended.episode.seed] = one
    assert agents.open_now == {}
    assert player.running == []
    assert player.timing.episodes == len(seeds)
    player.close()
    return found


def episodes(found: dict[int, Finished]) -> list[Episode]:
    return [found[seed].ended.episode for seed in sorted(found)]


@pytest.fixture
def workers() -> Iterator[list[WorkerHost]]:
    started = [WorkerHost(number, TASKS, PlayOptions(), 4) for number in (1, 2)]
    yield started
    for host in started:
        host.close()


def local() -> LocalHost:
    return LocalHost(TASKS, PlayOptions())


def test_episodes_do_not_depend_on_how_many_play() -> None:
    alone, together = Counting(), Counting()
    expected = episodes(play_all(alone, [local()], range(7), 1))
    begun: list[Item] = []
    found = play_all(together, [local()], range(7), 3, on_begin=lambda items, host: begun.extend(items))
    assert episodes(found) == expected
    assert [one.length for one in expected] == [5] * 7
    assert len({one.digest for one in expected}) == 7
    assert set(alone.batches) == {1}
    assert max(together.batches) == 3
    assert [item.seed for item in begun] == list(range(7))


def test_failures_of_environments_and_agents_end_their_episodes_alone() -> None:
    seeds = [0, STEP_FAILS, 1, BAD_REWARD, 2, 3, 4]
    agents = Counting(refuses_to_open=[1], refuses_to_act=[2])
    found = play_all(agents, [local()], seeds, 3)
    errors = {seed: one.ended.episode.error for seed, one in found.items() if one.ended.episode.failed}
    assert set(errors) == {STEP_FAILS, BAD_REWARD, 1, 2}
    assert errors[1] == "InputError: task: does not fit seed 1"
    assert errors[2] == "InputError: no action for seed 2"
    assert found[2].ended.episode.length == 2
    expected = play_all(Counting(), [local()], [0, 3, 4], 1)
    for seed in expected:
        assert found[seed].ended.episode.digest == expected[seed].ended.episode.digest


def test_an_episode_that_ends_its_process_takes_no_others_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One ends it once, as when memory was short; another always does, and has failed in the end."""
    (tmp_path / "2").write_bytes(b".")
    (tmp_path / "5").write_bytes(b"." * 2 * MAX_DEATHS)
    monkeypatch.setenv(DEATHS, str(tmp_path))
    host = WorkerHost(1, TASKS, PlayOptions(), 4)
    found = play_all(Counting(), [host], range(8), 4)
    (failed,) = [one.ended.episode for one in found.values() if one.ended.episode.failed]
    assert failed.seed == 5
    assert failed.error == (f"the process that played it was ended by signal 9 (out of memory?), {MAX_DEATHS} times")
    assert len((tmp_path / "5").read_bytes()) == MAX_DEATHS
    monkeypatch.delenv(DEATHS)  # the rest is played in this process
    expected = play_all(Counting(), [local()], range(8), 1)
    assert [one for one in episodes(found) if one.seed != 5] == [one for one in episodes(expected) if one.seed != 5]


def test_a_worker_that_is_killed_while_another_plays(workers: list[WorkerHost]) -> None:
    expected = episodes(play_all(Counting(), [local()], range(12), 1))
    killed = []

    class Killing(Counting):
        def act(self, keys: Sequence[Hashable], observed: Sequence[Observed]) -> list[Any]:
            if self.steps > 8 and not killed:
                killed.append(workers[0])
                workers[0]._process.kill()
            return super().act(keys, observed)

    found = play_all(Killing(), workers, range(12), 2)
    assert killed
    assert episodes(found) == expected
    assert {one.host for one in found.values()} == {"worker 1", "worker 2"}


class Vanishing(LocalHost):
    """Host whose process ends each time that it is used."""

    def receive(self) -> Any:
        raise HostEndedError("the process that played it ended with exit code 1")


def test_what_was_played_is_said_of_an_episode_that_ends_its_process() -> None:
    found = play_all(Counting(), [Vanishing(TASKS, PlayOptions())], [0], 2)
    assert found[0].ended.episode.length == 0
    assert found[0].ended.episode.error.endswith(f"ended with exit code 1, {MAX_DEATHS} times")


# ---- the number of environments ------------------------------------------------------------------------------------


class Clock:
    """Time that passes only when a test says so."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


def grow(monkeypatch: pytest.MonkeyPatch, rates: dict[int, float], most: int) -> list[int]:
    """Return the numbers of environments that are tried, by the rates in steps per second that each would have."""
    clock = Clock()
    monkeypatch.setattr(play, "time", clock)
    limit = play._Growing(most)
    tried = [limit.value]
    for _ in range(100):
        clock.now += 1.0
        limit.note(int(rates[limit.value]), is_full=True)
        if limit.value != tried[-1]:
            tried.append(limit.value)
    return tried


@pytest.mark.parametrize(
    ("rates", "tried"),
    [
        ({8: 100, 16: 200, 32: 400, 64: 800}, [8, 16, 32, 64]),
        ({8: 100, 16: 200, 32: 201}, [8, 16, 32]),
        ({8: 100, 16: 200, 32: 150}, [8, 16, 32, 16]),
        ({8: 100, 16: 90}, [8, 16, 8]),
    ],
    ids=["as long as it gains", "until it gains nothing", "back from a loss", "back to the first"],
)
def test_the_number_of_environments_grows(
    rates: dict[int, float], tried: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert grow(monkeypatch, rates, 64) == tried


def test_the_number_of_environments_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert grow(monkeypatch, {8: 100, 12: 200}, 12) == [8, 12]
    assert grow(monkeypatch, {3: 100}, 3) == [3]


def test_the_end_of_a_run_says_nothing_about_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Environments that find no more episodes make the run slower, whatever their number."""
    clock = Clock()
    monkeypatch.setattr(play, "time", clock)
    limit = play._Growing(64)
    for _ in range(50):
        clock.now += 1.0
        limit.note(1, is_full=False)
    assert limit.value == 8
