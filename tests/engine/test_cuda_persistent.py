"""Single agents' steps in the persistent kernel, through the engine, compiled from the kernel's own source.

On a GPU by `jat_engine._cuda`; elsewhere that module is built so that the kernel executes on the CPU.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from helpers import spaces
from helpers.engines import EPISODE, TOLERANCE, play

from jat_engine import InputError, JatEngine
from jat_engine.testing import golden
from jat_engine.testing.golden import relative_error

pytest.importorskip("triton", reason="the CUDA backend's kernels are Triton's")

from jat_engine.backends.cuda import backend as cuda_backend
from jat_engine.backends.cuda.graph import GraphStep
from jat_engine.backends.cuda.path_choice import time_paths
from jat_engine.backends.cuda.persistent import PersistentStep
from jat_engine.checkpoint.reader import find_weight_files
from jat_engine.checkpoint.weights import CheckpointWeights
from jat_engine.config import JatConfig

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
pytestmark = [pytest.mark.gpu] if ON_GPU else []

Load = Callable[..., JatEngine]


@pytest.fixture(scope="module", autouse=True)
def _module(request: pytest.FixtureRequest) -> Any:
    if ON_GPU:
        yield
        return
    module: ModuleType = request.getfixturevalue("cuda_emulator_module")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "jat_engine._cuda", module)
        patch.setattr("jat_engine._cuda", module, raising=False)  # the real one is there once it was imported
        yield


@pytest.fixture(scope="module")
def persistent(tiny_folder: Path) -> Load:
    made: dict[Any, JatEngine] = {}

    def load(**options: Any) -> JatEngine:
        key = tuple(options.items())
        if key not in made:
            made[key] = _load(tiny_folder, **options)
        return made[key]

    return load


def _load(folder: Path, **options: Any) -> JatEngine:
    options = {"device": DEVICE, "backend": "cuda", "max_cached_tokens": 256, **options}
    return JatEngine.from_pretrained(folder, persistent=True, **options)


@pytest.mark.parametrize("episode", golden.EPISODES, ids=lambda episode: episode.name)
def test_golden_episode(episode: golden.Episode, persistent: Load) -> None:
    """Play whole episodes, with windows that slide and windows that do not."""
    engine = persistent(dtype="float32")
    golden.check_episode(engine, None, episode, TOLERANCE)
    assert engine.memory["persistent"] > 0  # still in use


# JatModel in bfloat16 has 1.28e-2 over all recorded episodes, as the benchmarks report.
@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 1.28e-2), ("float16", 2e-3)])
def test_low_precision(dtype: str, bound: float, persistent: Load) -> None:
    engine = persistent(dtype=dtype)
    predictions, expected, agreed = [], [], []
    for name in ("continuous_full", "continuous_cw16", "continuous_discrete_action", "discrete_only"):
        episode = EPISODE[name]
        with engine.open_session(episode.context_window) as session:
            for t in range(episode.steps):
                recorded = episode.actions[t] if episode.actions else episode.predictions[t].tolist()
                _, prediction = play(session, episode, t, recorded)
                predictions.append(prediction)
                expected.append(episode.predictions[t])
                if episode.actions:
                    agreed.append(prediction.argmax() == episode.predictions[t].argmax())
    assert relative_error(np.concatenate(predictions), np.concatenate(expected)) <= bound
    assert np.mean(agreed) >= 0.95


@pytest.mark.parametrize("scale", [1e19, 1e38])
def test_an_overflow_is_refused(scale: float, persistent: Load) -> None:
    engine, episode = persistent(dtype="float32"), EPISODE["continuous_cw9"]
    with engine.open_session(9) as session:
        play(session, episode, 0)
        with pytest.raises(InputError, match=r"continuous_observation: expected values of a size .* not finite"):
            session.get_next_action(continuous_observation=np.full(4, scale), action_space=episode.space)
        assert relative_error(play(session, episode, 1)[1], episode.predictions[1]) <= TOLERANCE
    assert engine.memory["persistent"] > 0


def test_more_numbers_than_a_launch_takes(persistent: Load) -> None:
    """The widest observations and actions run in the persistent kernel; a wider prediction falls back to graphs."""
    engine = persistent(dtype="float32")
    size = engine.config.max_continuous_size
    with engine.open_session(3) as session:  # three rows a step from the third on
        for _ in range(4):
            action = session.get_next_action(
                continuous_observation=np.linspace(-1, 1, size - 1), action_space=spaces.Box(-1, 1, (size,))
            )
            assert len(action) == size
    backend: Any = engine._backend
    backend._persistent._max_values = 4
    with engine.open_session(3) as session:
        play(session, EPISODE["continuous_cw9"], 0)
    backend._persistent._max_values = 1152
    assert engine.persistent_reason == ""


def test_options_of_a_call(persistent: Load, load: Load) -> None:
    """Masks, temperature and top-k choose from the kernel's predictions what they choose from torch's."""
    episode = EPISODE["continuous_discrete_action"]
    mask = np.arange(episode.space.n) % 3 == 1
    box = spaces.Box(-0.01, 0.01, (3,))
    found = []
    for engine in (persistent(dtype="float32"), load(backend="torch", dtype="float32")):
        with engine.open_session(2, seed=0) as session, engine.open_session(2) as other:
            for t in range(4):
                observation = episode.observation(t)
                options: dict[str, Any] = {"action_mask": mask, "temperature": 2.0, "top_k": 2}
                choice = session.get_next_action(**observation, action_space=episode.space, **options)
                clipped = other.get_next_action(**observation, action_space=box, action_clip="box")
                assert mask[choice]
                assert np.abs(clipped).max() <= 0.01
                found.append((choice, clipped))
    for (choice, clipped), (expected_choice, expected_clipped) in zip(found[:4], found[4:], strict=True):
        assert choice == expected_choice
        assert np.allclose(clipped, expected_clipped, rtol=1e-4)


def test_a_step_is_bitwise_repeatable(persistent: Load) -> None:
    engine = persistent(dtype="float32")
    episode = EPISODE["continuous_cw9"]
    runs = []
    for _ in range(3):
        with engine.open_session(9) as session:
            runs.append([play(session, episode, t)[1] for t in range(12)])
    assert np.array_equal(runs[0], runs[1])
    assert np.array_equal(runs[0], runs[2])


def test_a_batch_of_many_and_one_agent_share_a_cache(persistent: Load) -> None:
    """An agent alternates between steps alone and with others: two paths over the same pages."""
    engine, episode = persistent(dtype="float32"), EPISODE["continuous_cw9"]
    with engine.open_session(9) as session, engine.open_session(9) as other:
        for t in range(8):
            arguments = {"deterministic": True, "return_prediction": True}
            if t % 3 == 2:
                observations = [episode.observation(t), episode.observation(t)]
                rewards = [episode.reward(t)] * 2
                result = engine.get_next_actions(
                    [session, other], observations, rewards, episode.space, True, return_predictions=True
                )[0]
            else:
                result = session.get_next_action(
                    **episode.observation(t), reward=episode.reward(t), action_space=episode.space, **arguments
                )
            assert relative_error(result[1], episode.predictions[t]) <= TOLERANCE


@pytest.mark.skipif(ON_GPU, reason="a block is left out of the launch on the CPU alone")
def test_a_launch_that_does_not_end_is_given_up(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If blocks never arrive, this step and all later ones run as CUDA graphs, and no state is lost."""
    monkeypatch.setattr("jat_engine.backends.cuda.persistent.TIMEOUT_US", 20_000)
    engine = _load(tiny_folder, dtype="float32")
    backend: Any = engine._backend
    episode = EPISODE["continuous_cw9"]
    with engine.open_session(9) as session:
        for t in range(3):
            play(session, episode, t)
        backend._persistent._step.missing_cluster = 0
        with pytest.warns(RuntimeWarning, match="the persistent kernel is given up for CUDA graphs: timed out"):
            prediction = play(session, episode, 3)[1]
        assert relative_error(prediction, episode.predictions[3]) <= TOLERANCE
        assert relative_error(play(session, episode, 4)[1], episode.predictions[4]) <= TOLERANCE
    assert "timed out" in engine.persistent_reason
    assert engine.memory["persistent"] == 0


def test_a_launch_that_computes_something_else_is_not_used(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jat_engine.backends.cuda.persistent import PersistentStep

    run = PersistentStep.run

    def wrong(step: PersistentStep) -> str:
        result = run(step)
        step.predictions += 1.0
        return result

    monkeypatch.setattr(PersistentStep, "run", wrong)
    with pytest.raises(InputError, match=r"persistent: expected what can be done here, got True; .* plain torch"):
        _load(tiny_folder, dtype="float32")
    options: dict[str, Any] = {"device": DEVICE, "backend": "cuda", "dtype": "float32", "max_cached_tokens": 64}
    with pytest.warns(RuntimeWarning, match="the persistent kernel is not used: its kernels do not compute what plain"):
        engine = JatEngine.from_pretrained(tiny_folder, **options)
    assert "plain torch" in engine.persistent_reason
    with engine.open_session(9) as session:
        prediction = play(session, EPISODE["continuous_cw9"], 0)[1]
    assert relative_error(prediction, EPISODE["continuous_cw9"].predictions[0]) <= TOLERANCE


def test_what_it_does_not_take_runs_through_graphs(tiny_folder: Path) -> None:
    with pytest.raises(InputError, match=r"persistent: expected what can be done here, got True; .*these are int8"):
        _load(tiny_folder, dtype="int8")
    engine = JatEngine.from_pretrained(tiny_folder, device=DEVICE, backend="cuda", dtype="int8")
    assert "int8" in engine.persistent_reason


def test_without_the_module_the_reason_is_given(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("jat_engine._cuda", raising=False)  # there once it was imported
    monkeypatch.setitem(sys.modules, "jat_engine._cuda", None)
    with pytest.raises(InputError, match=r"persistent: expected what can be done here, got True; .*_cuda"):
        _load(tiny_folder)
    with pytest.raises(InputError, match="persistent: expected True, False or None, got 1"):
        JatEngine.from_pretrained(tiny_folder, persistent=1)
    with pytest.raises(InputError, match="persistent: expected None or False on the torch backend, got True"):
        JatEngine.from_pretrained(tiny_folder, backend="torch", persistent=True)


# ---- the faster path -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("graphs_us", "persistent_us"), [(150, 90), (90, 150)])
def test_a_backend_keeps_the_faster_path(
    graphs_us: float, persistent_us: float, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes on when a path has run; 48 tokens are the window of the tiny model."""
    seconds = 0.0
    wait, run = GraphStep.wait, PersistentStep.run

    def timed_wait(step: GraphStep) -> None:
        nonlocal seconds
        wait(step)
        seconds += graphs_us * 1e-6

    def timed_run(step: PersistentStep) -> str:
        nonlocal seconds
        seconds += persistent_us * 1e-6
        return run(step)

    monkeypatch.setattr(GraphStep, "wait", timed_wait)
    monkeypatch.setattr(PersistentStep, "run", timed_run)
    monkeypatch.setattr(cuda_backend, "time_paths", functools.partial(time_paths, rounds=1))

    config = JatConfig.from_pretrained(tiny_folder)
    weights = CheckpointWeights(find_weight_files(str(tiny_folder), None, {}), config)
    backend = cuda_backend.CudaBackend(config, weights, "float32", torch.device(DEVICE), clock=lambda: seconds)
    backend.allocate_cache(8)

    measured = (
        f"one agent's step with 48 tokens takes {graphs_us} us by CUDA graphs, "
        f"{persistent_us} us by the persistent kernel"
    )
    if persistent_us < graphs_us:
        assert backend.persistent_reason == ""
        assert backend.memory["persistent"] > 0
        assert backend.timing == f"{measured}, which is used"
    else:
        assert backend.persistent_reason == f"it was not faster when the engine was made: {measured}"
        assert backend.memory["persistent"] == 0
        assert backend.timing == f"{measured}, and graphs are used"


@pytest.mark.skipif(ON_GPU, reason="there is a GPU, so paths are timed")
def test_without_a_gpu_no_time_decides(tiny_folder: Path) -> None:
    options: dict[str, Any] = {"device": DEVICE, "backend": "cuda", "dtype": "float32", "max_cached_tokens": 64}
    engine = JatEngine.from_pretrained(tiny_folder, **options)
    assert engine.persistent_reason == ""
    assert " us " not in engine.choice.reason
