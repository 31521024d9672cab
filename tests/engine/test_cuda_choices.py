"""What the CUDA backend does without: slower paths, memory that is used up, kernels that compute something wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import spaces
from helpers.engines import BOX8, EPISODE, TOLERANCE, play

from jat_engine import JatEngine
from jat_engine.testing.golden import relative_error

pytest.importorskip("triton", reason="the CUDA backend's kernels are Triton's")

from jat_engine.backends.cuda import blocks, graph
from jat_engine.backends.cuda.backend import CudaBackend, FaultyKernelsError, cache_room
from jat_engine.backends.cuda.buckets import bucket, bucket_below, shape_of
from jat_engine.backends.cuda.graph import GraphStep
from jat_engine.backends.cuda.path_choice import PathTimes, time_paths

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
pytestmark = [pytest.mark.gpu] if ON_GPU else []


def make_engine(folder: Path, **options: Any) -> JatEngine:
    options = {"device": DEVICE, "backend": "cuda", "dtype": "float32", "max_cached_tokens": 640, **options}
    return JatEngine.from_pretrained(folder, **options)


# ---- the faster path -----------------------------------------------------------------------------------------------


class FakeClock:
    """Seconds that pass when a path is run."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def path(self, microseconds: Sequence[float]) -> Callable[[], None]:
        rest = list(microseconds)

        def run() -> None:
            self.now += rest.pop(0) * 1e-6

        return run


@pytest.mark.parametrize(
    ("graphs", "persistent", "is_persistent_faster"),
    [
        ([900] * 3 + [120, 110, 130], [900] * 3 + [100, 90, 95], True),
        ([900] * 3 + [120, 110, 130], [900] * 3 + [130, 140, 150], False),
        ([900] * 3 + [100, 100, 100], [900] * 3 + [98, 98, 98], False),  # not worth it
        ([900] * 3 + [120, 120, 120], [900] * 3 + [100, 5000, 100], True),  # one interruption
        ([10] * 3 + [120, 120, 120], [900] * 3 + [100, 100, 100], True),  # first steps do not count
    ],
)
def test_the_median_of_steps_in_turns_decides(
    graphs: list[float], persistent: list[float], is_persistent_faster: bool
) -> None:
    clock = FakeClock()
    times = time_paths(clock.path(graphs), clock.path(persistent), 256, clock, rounds=3)
    assert times.graphs_us == pytest.approx(np.median(graphs[3:]))
    assert times.persistent_us == pytest.approx(np.median(persistent[3:]))
    assert times.is_persistent_faster is is_persistent_faster


def test_each_path_begins_half_of_the_rounds() -> None:
    order: list[str] = []
    time_paths(lambda: order.append("graphs"), lambda: order.append("persistent"), 256, rounds=4)
    assert order[::2].count("graphs") in (3, 4)
    assert len(order) == 2 * 7


def test_an_engine_says_what_was_timed(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(backend: CudaBackend) -> None:
        backend.path_times = PathTimes(120, 140, 256)

    monkeypatch.setattr(CudaBackend, "_choose_path", choose)
    engine = make_engine(tiny_folder, max_cached_tokens=64, persistent=False)
    assert engine.choice.reason.endswith(
        "; one agent's step with 256 tokens takes 120 us by CUDA graphs, 140 us by the persistent kernel, "
        "and graphs are used"
    )


# ---- memory --------------------------------------------------------------------------------------------------------


def test_a_cache_leaves_memory_to_steps() -> None:
    assert cache_room(140 << 30) == (140 << 30) - (3 << 29)
    assert cache_room(4 << 30) == 3 << 30, "of a small GPU a quarter"


def test_memory_of_images_is_reported(tiny_folder: Path) -> None:
    engine, episode = make_engine(tiny_folder, persistent=False), EPISODE["image_box"]
    before = engine.memory["scratch"]
    with engine.open_session(episode.context_window) as session:
        play(session, episode, 0)
    assert engine.memory["scratch"] - before >= 42 * 42 * 32 * 4, "the activations of the first convolution"


def test_buckets() -> None:
    for num_agents in range(1, 1025):
        size = bucket(num_agents)
        below = bucket_below(num_agents)
        assert below < num_agents <= size == bucket(size)
        assert below == 0 or bucket(below + 1) == size, "there is no bucket between them"


class Limit:
    """Memory for graphs of up to `sessions` sessions."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, sessions: int) -> None:
        self.sessions = sessions
        make = GraphStep.__init__

        def limited(step: GraphStep, *arguments: Any) -> None:
            make(step, *arguments)
            if step.shape.sessions > self.sessions:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        monkeypatch.setattr(GraphStep, "__init__", limited)


def play_batch(engine: JatEngine, num_agents: int, steps: int) -> np.ndarray:
    """Return the predictions of agents with continuous observations, [steps, N, A], over a window that fills."""
    random = np.random.default_rng(0)
    found = []
    with engine.open_batch(num_agents, 2) as batch:  # full after three steps, when s_{t-1} is fed again
        for _ in range(steps):
            step = random.standard_normal((num_agents, 3)), random.standard_normal(num_agents)
            arrays = {"continuous_observations": step[0], "rewards": step[1]}
            found.append(batch.get_next_actions(**arrays, action_space=BOX8, return_predictions=True)[1])
    return np.array(found)


def test_without_memory_a_step_is_computed_in_parts(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, load: Callable[..., JatEngine]
) -> None:
    reference, engine = load(backend="torch", dtype="float32"), make_engine(tiny_folder, persistent=False)
    Limit(monkeypatch, 2)
    expected = play_batch(reference, 5, 4)
    with pytest.warns(RuntimeWarning, match="more than .* agents are computed in parts: CUDA out of memory") as warned:
        got = play_batch(engine, 5, 4)
    assert len(warned) == 2, "for 4 and for 2 agents, and not in each step"
    backend: Any = engine._backend
    assert backend._graphs._scratch.sessions == 2, "memory of the attempts is free again"
    assert relative_error(got, expected) <= TOLERANCE


def test_without_memory_sessions_of_any_kind_are_computed_in_parts(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(tiny_folder, persistent=False)
    Limit(monkeypatch, 1)
    names = "continuous_cw9", "babyai_greedy_full"
    sessions = [engine.open_session(EPISODE[name].context_window) for name in names]
    for t in range(2):
        with pytest.warns(RuntimeWarning, match="more than 1 agents") if t == 0 else contextlib.nullcontext():
            results = engine.get_next_actions(
                sessions,
                [EPISODE[name].observation(t) for name in names],
                [EPISODE[name].reward(t) for name in names],
                [EPISODE[name].space for name in names],
                deterministic=True,
                return_predictions=True,
            )
        for name, (_, prediction) in zip(names, results, strict=True):
            assert relative_error(prediction, EPISODE[name].predictions[t]) <= TOLERANCE


def test_without_any_memory_a_step_is_refused(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session is unchanged, and goes on when there is memory again."""
    engine, episode = make_engine(tiny_folder, persistent=False), EPISODE["babyai_greedy_full"]
    limit = Limit(monkeypatch, 0)
    with engine.open_session(episode.context_window) as session:
        with pytest.raises(torch.OutOfMemoryError, match=r"2\.00 GiB"):
            play(session, episode, 0)
        limit.sessions = 8
        for t in range(2):
            assert relative_error(play(session, episode, t)[1], episode.predictions[t]) <= TOLERANCE


# ---- kernels that compute something wrong --------------------------------------------------------------------------


def verifying(engine: JatEngine) -> JatEngine:
    """Let an engine check each new graph, as it does on a GPU."""
    backend: Any = engine._backend
    backend._verifies_graphs = True
    return engine


def test_wrong_kernels_of_large_buckets_are_not_used(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, load: Callable[..., JatEngine]
) -> None:
    """They show when such a bucket is captured, while the pages of other sessions are in use."""
    engine = verifying(make_engine(tiny_folder, persistent=False))
    episode = EPISODE["continuous_cw9"]
    right = blocks.linear_residual

    def wrong(a: torch.Tensor, *arguments: Any, **options: Any) -> None:
        right(a.roll(1, dims=1) if a.shape[0] > 6 else a, *arguments, **options)

    with engine.open_session(9) as session:
        play(session, episode, 0)
        monkeypatch.setattr(blocks, "linear_residual", wrong)
        with pytest.warns(RuntimeWarning, match="more than 2 agents .* in parts: its kernels do not compute"):
            got = play_batch(engine, 3, 2)
        assert relative_error(got, play_batch(load(backend="torch", dtype="float32"), 3, 2)) <= TOLERANCE
        assert relative_error(play(session, episode, 1)[1], episode.predictions[1]) <= TOLERANCE


def test_a_fault_of_the_last_rows_shows(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 47 of 48 is that of the 16th agent, in a bucket of 16."""
    backend: Any = verifying(make_engine(tiny_folder, persistent=False))._backend
    right = blocks.linear_residual

    def wrong(a: torch.Tensor, *arguments: Any, **options: Any) -> None:
        late = torch.arange(len(a), device=a.device)[:, None] == 47
        right(torch.where(late, a.roll(16, dims=0), a), *arguments, **options)

    monkeypatch.setattr(blocks, "linear_residual", wrong)
    with pytest.raises(FaultyKernelsError, match="its kernels do not compute"):
        backend._graph(shape_of([backend._check.group(16)]))


def test_a_fault_of_the_last_images_shows(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, right = verifying(make_engine(tiny_folder, persistent=False)), graph.encode_images
    episode = EPISODE["image_box"]

    def wrong(frames: torch.Tensor, *arguments: Any, **options: Any) -> None:
        late = torch.arange(len(frames), device=frames.device)[:, None, None, None] == 3
        right(torch.where(late, frames.roll(2, dims=0), frames), *arguments, **options)

    monkeypatch.setattr(graph, "encode_images", wrong)
    sessions = [engine.open_session(episode.context_window) for _ in range(3)]
    with pytest.warns(RuntimeWarning, match="images are encoded in plain torch: its kernels do not compute"):
        engine.get_next_actions(
            sessions, [episode.observation(0)] * 3, [episode.reward(0)] * 3, [episode.space] * 3, deterministic=True
        )


@pytest.mark.parametrize(
    ("kernel", "name", "what"),
    [
        ("encode_discrete", "babyai_greedy_full", "integers are"),
        ("encode_images", "image_box", "images are"),
    ],
)
def test_wrong_encoders_are_replaced(
    kernel: str, name: str, what: str, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, episode = verifying(make_engine(tiny_folder, persistent=False)), EPISODE[name]
    right = getattr(graph, kernel)

    def wrong(values: torch.Tensor, *arguments: Any, **options: Any) -> None:
        right(values.roll(1, dims=1), *arguments, **options)

    monkeypatch.setattr(graph, kernel, wrong)
    with engine.open_session(episode.context_window, seed=0) as session:
        with pytest.warns(RuntimeWarning, match=f"{what} encoded in plain torch: its kernels do not compute"):
            predictions = [play(session, episode, 0)[1]]
        predictions.append(play(session, episode, 1)[1])
    count = 2 if episode.deterministic or episode.space.__class__.__name__ == "Box" else 1
    assert relative_error(predictions[:count], episode.predictions[:count]) <= TOLERANCE


def test_large_buckets_that_cannot_be_captured_are_not_used(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, load: Callable[..., JatEngine]
) -> None:
    """In mid-episode a compiler may refuse what it has not met before; it raises no RuntimeError."""
    engine = make_engine(tiny_folder, persistent=False)
    right = GraphStep.__init__

    def failing(step: GraphStep, *arguments: Any) -> None:
        right(step, *arguments)
        if step.shape.sessions > 2:
            raise ValueError("ptxas failed")

    monkeypatch.setattr(GraphStep, "__init__", failing)
    with pytest.warns(RuntimeWarning, match="more than 2 agents are computed in parts: ptxas failed"):
        got = play_batch(engine, 3, 1)
    assert relative_error(got, play_batch(load(backend="torch", dtype="float32"), 3, 1)) <= TOLERANCE


def test_encoders_that_cannot_be_captured_are_replaced(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, episode = make_engine(tiny_folder, persistent=False), EPISODE["babyai_greedy_full"]

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of resource: shared memory")

    monkeypatch.setattr(graph, "encode_discrete", fail)
    made = GraphStep.__init__  # as on a GPU, kernels run when a graph is made

    def captured(step: GraphStep, *arguments: Any) -> None:
        made(step, *arguments)
        step._run()

    monkeypatch.setattr(GraphStep, "__init__", captured)
    with engine.open_session(episode.context_window) as session:
        with pytest.warns(RuntimeWarning, match="integers are encoded in plain torch: out of resource"):
            predictions = [play(session, episode, 0)[1]]
        predictions.append(play(session, episode, 1)[1])
    assert relative_error(predictions, episode.predictions[:2]) <= TOLERANCE


# ---- packed weights that make room for others ----------------------------------------------------------------------


def test_more_sizes_in_a_step_than_stay_packed(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, load: Callable[..., JatEngine]
) -> None:
    """Encoders that are dropped within a step stay where the step reads them."""
    monkeypatch.setattr("jat_engine.backends.cuda.weights.MAX_SIZES", 2)
    boxes = [spaces.Box(-1, 1, (size,)) for size in (2, 3, 4)]
    found = []
    for engine in (make_engine(tiny_folder, persistent=False), load(backend="torch", dtype="float32")):
        random = np.random.default_rng(0)
        sessions = [engine.open_session(4) for _ in boxes]
        predictions = []
        for _ in range(2):
            observations = [{"continuous_observation": random.standard_normal(6 - i)} for i in range(len(boxes))]
            results = engine.get_next_actions(sessions, observations, None, boxes, return_predictions=True)
            predictions += [prediction for _, prediction in results]
        found.append(np.concatenate(predictions))
        for session in sessions:
            session.close()
    assert relative_error(found[0], found[1]) <= TOLERANCE


# ---- warm_up -------------------------------------------------------------------------------------------------------


def test_warm_up_prepares_each_bucket_once(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest first, since scratch memory that grows costs the graphs that use it."""
    engine = make_engine(tiny_folder, persistent=False)
    counts: list[int] = []
    monkeypatch.setattr(JatEngine, "_warm_up", lambda engine, count, *example: counts.append(count))
    engine.warm_up(continuous_observation=[1.0], action_space=BOX8, num_agents=range(1, 71))
    assert counts == [70, 64, 48, 32, 16, 8, 4, 2, 1]
