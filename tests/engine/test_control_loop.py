"""An agent at a fixed rate: `warm_up`, `stats`, `rate.Loop`, and observations passed as the processor."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.engines import BOX8, EPISODE, Load, native, play, variants

from jat_engine import CacheFullError, InputError, JatConfig, JatEngine, JatModel
from jat_engine.backends import choose_backend
from jat_engine.backends.options import EngineOptions
from jat_engine.checkpoint.reader import find_weight_files
from jat_engine.checkpoint.weights import CheckpointWeights
from jat_engine.engine.missions import Missions
from jat_engine.rate import Loop

KINDS = ("continuous_cw16", "babyai_sampled", "atari_sampled_cw8")


# ---- warm_up -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", variants("float32"))
@pytest.mark.parametrize("kind", KINDS)
def test_warm_up_changes_nothing(kind: str, options: dict[str, Any], load: Load) -> None:
    """Sessions, before and within an episode, and random generators stay as they were."""
    engine, episode = load(**options), EPISODE[kind]

    def run(warm: bool) -> list[Any]:
        torch.manual_seed(7)
        found: list[Any] = []
        with engine.open_session(episode.context_window) as session, engine.open_session(16, seed=3) as seeded:
            for t in range(12):
                if warm and t in (0, 5):
                    engine.warm_up(**episode.observation(0), action_space=episode.space, num_agents=1 + t % 2)
                found += [play(session, episode, t), play(seeded, episode, t)]
        return found

    for (action, prediction), (expected, wanted) in zip(run(True), run(False), strict=True):
        assert action == expected
        assert (prediction == wanted).all()


class CountedWeights(CheckpointWeights):
    """Weights that record which parameters are read."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.read: list[str] = []

    def get(self, name: str) -> Any:
        self.read.append(name)
        return super().get(name)

    def rows(self, name: str, count: int) -> Any:
        self.read.append(name)
        return super().rows(name, count)


@pytest.mark.parametrize("backend", ["torch", pytest.param("cpu", marks=native)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_call_after_warm_up_prepares_nothing(kind: str, backend: str, tiny_folder: Any) -> None:
    """After `warm_up` an episode reads no weights and tokenises no mission; without it, it does."""
    config, episode = JatConfig.from_pretrained(tiny_folder), EPISODE[kind]
    weights = CountedWeights(find_weight_files(tiny_folder, None, {}), config)
    choice = choose_backend("cpu", "float32", backend, config.hidden_size // config.num_heads)

    def make_engine() -> JatEngine:
        missions = Missions.of_checkpoint(tiny_folder, {}, config.vocab_size)
        engine = JatEngine(config, weights, choice, EngineOptions(), missions)
        weights.read.clear()
        return engine

    with make_engine().open_session(8) as session:
        play(session, episode, 0)
    assert weights.read, "the counter sees what a first step reads"

    engine = make_engine()
    engine.warm_up(**episode.observation(0), action_space=episode.space)
    weights.read.clear()
    with engine.open_session(8) as session:
        for _ in range(8):
            play(session, episode, 0)
    assert not weights.read
    assert engine.stats.calls == 8, "steps of warm_up are no calls"
    tokenised = engine._runner._missions._cached.cache_info()
    assert tokenised.misses == (1 if kind.startswith("babyai") else 0)


def test_no_graph_is_captured_after_warm_up(tiny_folder: Any) -> None:
    pytest.importorskip("triton", reason="needs Triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    engine = JatEngine.from_pretrained(tiny_folder, device=device, backend="cuda", dtype="float32", persistent=False)
    step = {
        "continuous_observation": np.zeros(90),
        "action_space": BOX8,
    }  # larger than the startup check's
    before = engine.memory["graphs"]
    engine.warm_up(**step)
    captured = engine.memory["graphs"]
    assert captured > before
    with engine.open_session(4) as session:
        for _ in range(5):
            session.get_next_action(**step)
    assert engine.memory["graphs"] == captured


def test_warm_up_for_a_task_leaves_global_generators(load: Load) -> None:
    pytest.importorskip("minigrid", reason="needs the babyai extra")
    engine = load(dtype="float32")
    before = random.getstate(), torch.get_rng_state().tolist()
    engine.warm_up(task="babyai-go-to-local", num_agents=range(1, 3))
    assert (random.getstate(), torch.get_rng_state().tolist()) == before


def test_warm_up_refuses_and_leaves_no_session(load: Load) -> None:
    engine = load(dtype="float32")
    reserved = engine.cache_stats.reserved
    for arguments, expected in [
        ({}, "got none of them"),
        ({"continuous_observation": [1.0]}, "action_space: expected"),
        ({"continuous_observation": [1.0], "action_space": BOX8, "num_agents": 0}, "num_agents"),
        ({"continuous_observation": [1.0], "action_space": BOX8, "num_agents": [2, 0]}, "num_agents"),
        ({"continuous_observation": [1.0], "action_space": BOX8, "num_agents": []}, "num_agents: .* got none"),
        ({"continuous_observation": [1.0], "action_space": BOX8, "num_agents": b"12"}, "num_agents: .* got b'12'"),
        ({"continuous_observation": [1.0], "action_space": BOX8, "num_agents": np.array(0)}, "num_agents: .* array"),
        ({"task": 3}, "task: expected a published task or its name, got 3"),
        ({"task": "mujoco-ant", "action_space": BOX8}, "task: expected it alone"),
        ({"task": "mujoco-aunt"}, "mujoco-ant"),
    ]:
        with pytest.raises(ValueError, match=expected):
            engine.warm_up(**arguments)
    assert engine.cache_stats.reserved == reserved


def test_warm_up_of_more_agents_than_there_is_room_for(tiny_folder: Any) -> None:
    engine = JatEngine.from_pretrained(tiny_folder, device="cpu", dtype="float32", max_cached_tokens=32)
    with pytest.raises(CacheFullError):
        engine.warm_up(continuous_observation=[1.0], action_space=BOX8, num_agents=100)
    assert engine.cache_stats.reserved == 0


# ---- stats -------------------------------------------------------------------------------------------------------


def test_stats_count_calls_of_all_kinds(tiny_folder: Any) -> None:
    engine = JatEngine.from_pretrained(tiny_folder, device="cpu", dtype="float32")
    empty = engine.stats
    assert (empty.calls, empty.p50_us, empty.p99_us, empty.used_pages) == (0, None, None, 0)
    step = {"continuous_observation": np.zeros(27, np.float32)}
    engine.get_next_action(**step, action_space=BOX8)
    with engine.open_session(16) as session:
        session.get_next_action(**step, action_space=BOX8)
        engine.get_next_actions([session], [step], action_spaces=BOX8)
        with pytest.raises(InputError):
            session.get_next_action(continuous_observation=[np.nan], action_space=BOX8)
        stats = engine.stats
        assert stats.calls == 3, "what was refused is no call"
        assert stats.p50_us is not None
        assert stats.p99_us is not None
        assert 0 < stats.p50_us <= stats.p99_us
        assert stats.used_pages == engine.cache_stats.used == 2
        assert stats.used_pages + stats.free_pages == engine.cache_stats.total
    with engine.open_batch(3, 16) as batch:
        batch.get_next_actions(continuous_observations=np.zeros((3, 27)), action_space=BOX8)
    assert engine.stats.calls == 4


def test_stats_are_read_during_calls(load: Load) -> None:
    """Another thread reads `stats` during more calls than latencies are kept for."""
    engine = load(dtype="float32")
    before, counts, errors = engine.stats.calls, [], []
    done = threading.Event()

    def watch() -> None:
        try:
            while not done.is_set():
                counts.append(engine.stats.calls)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        with engine.open_session(2) as session:
            for _ in range(1100):
                session.get_next_action(continuous_observation=[1.0], action_space=BOX8)
    finally:
        done.set()
        thread.join()
    assert not errors
    assert counts == sorted(counts)
    assert engine.stats.calls == before + 1100


# ---- an observation in the place of the processor ----------------------------------------------------------------


class Image:
    """Stand-in for an image of PIL: NumPy can convert it to an array."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.zeros((84, 84, 4), np.uint8)


OBSERVATIONS = [
    (np.zeros(27, np.float32), "got ndarray of shape (27,) and dtype float32; pass an observation as continuous_obs"),
    (torch.zeros(27), "pass an observation as continuous_observation=..."),
    ([0.5, 1.0], "got list [0.5, 1.0]; pass an observation as continuous_observation=..."),
    ((0.5,), "pass an observation as continuous_observation=..."),
    (3.0, "pass an observation as continuous_observation=..."),
    (np.zeros(212, np.int64), "discrete_observation=... if its integers are categories"),
    (np.zeros((84, 84, 4), np.uint8), "pass an observation as image_observation=..."),
    (Image(), "pass an observation as image_observation=..."),
    ("go to the red ball", "pass an observation as text_observation=..."),
    ({"continuous_observation": [1.0]}, "pass an observation as keyword arguments, **observation"),
    ({"position": [1.0]}, "pass an observation as continuous_observation=... or discrete_observation=... or"),
    ([[1.0], [1.0, 2.0]], "pass an observation as continuous_observation=... or discrete_observation=... or"),
]


@pytest.mark.parametrize(("observation", "expected"), OBSERVATIONS, ids=lambda value: type(value).__name__)
def test_an_observation_that_is_passed_as_processor(
    observation: Any, expected: str, load: Load, tiny_model: JatModel
) -> None:
    engine = load(dtype="float32")
    for agent, wanted in ((engine, "a JatProcessor or nothing"), (tiny_model, "a JatProcessor")):
        with pytest.raises(InputError) as caught:
            agent.get_next_action(observation, action_space=BOX8)
        assert str(caught.value).startswith(f"processor: expected {wanted}, got ")
        assert expected in str(caught.value)
    with pytest.raises(InputError, match="processor: expected a JatProcessor, got None"):
        tiny_model.get_next_action(None, continuous_observation=[1.0], action_space=BOX8)


# ---- rate.Loop ---------------------------------------------------------------------------------------------------


class Simulation:
    """Clock that moves only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.oversleep = 0.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds + self.oversleep

    def loop(self, hz: float = 100, **options: Any) -> Loop:
        return Loop(hz, clock=self.clock, sleep=self.sleep, **options)


def take_steps(simulation: Simulation, loop: Loop, bodies: list[float]) -> list[tuple[int, float]]:
    """Run a loop; return number and time, in milliseconds since the start, of each step."""
    begun, start = [], simulation.now
    for body, tick in zip(bodies, loop, strict=False):
        begun.append((tick, round((simulation.now - start) * 1e3, 6)))
        simulation.now += body
    return begun


def test_steps_begin_on_the_grid() -> None:
    simulation = Simulation()
    simulation.oversleep = 0.0003
    loop = simulation.loop()
    begun = take_steps(simulation, loop, [0.004] * 50)
    assert begun == [(0, 0.0), *((tick, 10.0 * tick + 0.3) for tick in range(1, 50))], "lateness does not add up"
    stats = loop.stats
    assert (stats.steps, stats.missed) == (50, 0)
    assert stats.late_p50_us == pytest.approx(300)
    assert stats.late_max_us == pytest.approx(300)
    assert stats.busy_p50_us == pytest.approx(4000)


def test_a_step_that_is_late_skips_to_the_next_time_of_the_grid() -> None:
    simulation = Simulation()
    loop = simulation.loop()
    begun = take_steps(simulation, loop, [0.004, 0.034, 0.004, 0.012, 0.004])
    assert begun == [(0, 0.0), (1, 10.0), (5, 50.0), (6, 60.0), (8, 80.0)]
    assert loop.stats.missed == 3 + 1
    assert loop.stats.busy_max_us == pytest.approx(34_000)


def test_waiting_in_a_loop_of_another_condition() -> None:
    simulation, ticks = Simulation(), []
    with simulation.loop(50) as loop:
        for _ in range(3):
            simulation.now += 0.001
            ticks.append(loop.wait())
        simulation.now += 0.045  # the last step, which nothing waits for, counts as well
    assert ticks == [1, 2, 3]
    assert (loop.stats.steps, loop.stats.missed) == (4, 2)


def test_a_pause_that_does_not_count() -> None:
    simulation = Simulation()
    loop = simulation.loop()
    for tick in loop:
        if tick == 2:
            simulation.now += 0.004
            loop.start()
            assert loop.wait() == 1
            break
    assert loop.stats.missed == 0
    simulation.now += 5.0  # not running
    take_steps(simulation, loop, [0.001] * 3)
    assert loop.stats.missed == 0


def test_a_spinning_loop_sleeps_less() -> None:
    slept: list[float] = []
    simulation = Simulation()

    def clock() -> float:
        simulation.now += 1e-6
        return simulation.now

    loop = Loop(100, spin_us=500, clock=clock, sleep=lambda seconds: (slept.append(seconds), simulation.sleep(seconds)))
    for tick in loop:
        if tick == 3:
            break
    assert len(slept) == 3
    assert all(0.009 < seconds < 0.0095 for seconds in slept)


def test_the_systems_clock() -> None:
    loop = Loop(200, spin_us=100)
    ticks = [tick for tick, _ in zip(loop, range(5), strict=False)]
    stats = loop.stats
    assert ticks == sorted(set(ticks))
    assert stats.steps >= 5
    assert stats.late_p50_us is not None
    assert stats.busy_p99_us is not None
    assert Loop(200).stats.late_max_us is None


@pytest.mark.parametrize("make", [lambda: Loop(0), lambda: Loop(True), lambda: Loop("100"), lambda: Loop(float("nan"))])
def test_rates_that_are_none(make: Callable[[], Loop]) -> None:
    with pytest.raises(InputError, match="hz: expected a positive number"):
        make()
    with pytest.raises(InputError, match="spin_us: expected microseconds >= 0, got -1"):
        Loop(100, spin_us=-1)
