"""The CUDA backend through the engine: on a GPU compiled, elsewhere with kernels interpreted on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import spaces
from helpers.batches import check_like_sessions, observations
from helpers.engines import EPISODE, TOLERANCE, play

from jat_engine import InputError, JatEngine
from jat_engine.backends import select as choices
from jat_engine.backends.cuda.inputs import StepInputs, StepShape
from jat_engine.testing import golden
from jat_engine.testing.golden import relative_error

pytest.importorskip("triton", reason="the CUDA backend's kernels are Triton's")

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
pytestmark = [pytest.mark.gpu] if ON_GPU else []

Load = Callable[..., JatEngine]


@pytest.fixture(scope="module")
def graphs(tiny_folder: Any) -> Load:
    """Make engines that run CUDA graphs only; without a GPU their kernels are interpreted."""
    made: dict[str, JatEngine] = {}

    def load(dtype: str) -> JatEngine:
        if dtype not in made:
            made[dtype] = JatEngine.from_pretrained(
                tiny_folder, device=DEVICE, backend="cuda", dtype=dtype, persistent=False, max_cached_tokens=1024
            )
        return made[dtype]

    return load


def test_values_of_another_type_are_not_written() -> None:
    """They are copied as bytes, so that float64 would be taken for twice as many numbers."""
    shape = StepShape(sessions=1, values=64, capacity=32, frames=False, integers=False)
    inputs = StepInputs(shape, max_pages=2, num_integers=1, device=torch.device("cpu"))
    values = np.arange(3, dtype=np.float32)
    inputs.write_values([values, values.tobytes()], 6)
    assert inputs.host["values"][:7].tolist() == [0, 1, 2, 0, 1, 2, 0]
    with pytest.raises(ValueError, match="memoryview"):
        inputs.write_values([values.astype(np.float64)], 3)


# Modalities, kinds of action, sampled and greedy, an odd window; interpreting takes half a second a step, so that
# there are two steps or three with a full window.
BEGINNINGS = {"continuous_cw9": 6, "babyai_sampled": 8, "image_box": 7}
EPISODES = golden.EPISODES if ON_GPU else [EPISODE[name].beginning(steps) for name, steps in BEGINNINGS.items()]


@pytest.mark.parametrize("episode", EPISODES, ids=lambda e: e.name)
def test_golden_episode(episode: golden.Episode, graphs: Load) -> None:
    golden.check_episode(graphs("float32"), None, episode, TOLERANCE)


def test_a_batch_is_each_session_alone(graphs: Load) -> None:
    """With mixed modalities and lengths, and sessions that join late, results equal recorded ones of one agent."""
    engine = graphs("float32")
    names = ("atari_greedy_full", "continuous_cw9", "babyai_greedy_full", "discrete_only")
    steps = 4
    sessions = {name: engine.open_session(EPISODE[name].context_window, seed=1) for name in names}
    done = dict.fromkeys(names, 0)
    for t in range(steps + 1):
        here = [name for index, name in enumerate(names) if index - 2 < t and done[name] < steps]
        results = engine.get_next_actions(
            [sessions[name] for name in here],
            [EPISODE[name].observation(done[name]) for name in here],
            [EPISODE[name].reward(done[name]) for name in here],
            [EPISODE[name].space for name in here],
            deterministic=True,
            return_predictions=True,
        )
        for name, (_, prediction) in zip(here, results, strict=True):
            if name != "discrete_only" or done[name] == 0:  # its actions alone were sampled
                assert relative_error(prediction, EPISODE[name].predictions[done[name]]) <= TOLERANCE
            done[name] += 1
    for session in sessions.values():
        session.close()


def test_sessions_with_full_windows_step_together(graphs: Load, load: Load) -> None:
    """The fourth step feeds s_{t-1} again: numbers, or an embedding that an earlier step has written."""
    names = ("image_box", "continuous_cw9", "babyai_greedy_full", "continuous_discrete_action")
    found = []
    for engine in (graphs("float32"), load(backend="torch", dtype="float32")):
        sessions = [engine.open_session(2) for _ in names]
        for t in range(4):
            results = engine.get_next_actions(
                sessions,
                [EPISODE[name].observation(t) for name in names],
                [EPISODE[name].reward(t) for name in names],
                [EPISODE[name].space for name in names],
                deterministic=True,
                return_predictions=True,
            )
        found.append([prediction for _, prediction in results])
        for session in sessions:
            session.close()
    for prediction, expected in zip(*found, strict=True):
        assert relative_error(prediction, expected) <= TOLERANCE


def test_neighbours_change_nothing_within_a_bucket(graphs: Load) -> None:
    """A session's rows are computed independently of the others': results are bitwise equal."""
    engine = graphs("float32")
    episode, other = EPISODE["continuous_cw16"], EPISODE["continuous_cw9"]
    results = []
    for scale in (1.0, 3.0):
        with engine.open_session(16) as first, engine.open_session(9) as second:
            for t in range(2):
                observations = [episode.observation(t), other.observation(t)]
                observations[1]["continuous_observation"] *= np.float32(scale)
                result = engine.get_next_actions(
                    [first, second], observations, None, [episode.space, other.space], return_predictions=True
                )
                results.append(result[0][1])
    assert np.array_equal(results[:2], results[2:])


def test_contents_of_unused_memory_do_not_matter(graphs: Load) -> None:
    engine = graphs("float32")
    episode = EPISODE["continuous_cw9"]
    results = []
    for poison in (False, True):
        if poison:
            backend: Any = engine._backend
            backend._cache.pages[:, : engine.cache_stats.total].fill_(torch.nan)  # but for the startup check's pages
        with engine.open_session(9) as session:
            results.append([play(session, episode, t)[1] for t in range(5)])
    assert np.array_equal(*results)


@pytest.mark.parametrize("scale", [1e19, 1e38])
def test_an_overflow_is_refused(scale: float, graphs: Load) -> None:
    """Refuse it even if LayerNorm would make the result finite; the session continues as if it had not happened."""
    engine, episode = graphs("float32"), EPISODE["continuous_cw9"]
    large = np.full(4, scale)
    with engine.open_session(9) as session:
        play(session, episode, 0)
        with pytest.raises(InputError, match=r"continuous_observation: expected values of a size .* not finite"):
            session.get_next_action(continuous_observation=large, action_space=episode.space, reward=0.0)
        assert relative_error(play(session, episode, 1)[1], episode.predictions[1]) <= TOLERANCE


def test_graphs_are_bounded(tiny_folder: Any, monkeypatch: pytest.MonkeyPatch, load: Load) -> None:
    """Use more shapes than graphs are kept for, and a batch that grows within an episode: same predictions."""
    from jat_engine.backends.cuda import graph_cache

    monkeypatch.setattr(graph_cache, "_MAX_GRAPHS", 2)
    options: dict[str, Any] = {"device": DEVICE, "backend": "cuda", "dtype": "float32", "persistent": False}
    results = []
    for engine in (
        JatEngine.from_pretrained(tiny_folder, max_cached_tokens=640, **options),
        load(backend="torch", dtype="float32"),
    ):
        sessions = [engine.open_session(4) for _ in range(9)]
        predictions = []
        for count, size in ((1, 4), (9, 4), (2, 4), (1, 100)):
            for session in sessions if size == 100 else []:
                session.reset()
            observations = [{"continuous_observation": np.linspace(-1, 1, size) + i} for i in range(count)]
            space = EPISODE["continuous_cw9"].space
            result = engine.get_next_actions(sessions[:count], observations, None, space, return_predictions=True)
            predictions += [prediction for _, prediction in result]
            made = getattr(engine._backend, "_graphs", ())
            assert len(made) <= 2
        results.append(np.concatenate(predictions))
    assert relative_error(*results) <= TOLERANCE


def test_int8_weights(graphs: Load) -> None:
    """The error is that of rounding the weights alone."""
    episode = EPISODE["continuous_cw9"]
    with graphs("int8").open_session(9) as session:
        predictions = [play(session, episode, t, episode.predictions[t].tolist())[1] for t in range(5)]
    assert relative_error(predictions, episode.predictions[:5]) <= 4e-2


needs_float8 = pytest.mark.skipif(
    ON_GPU and torch.cuda.get_device_capability() < (8, 9), reason="float8 needs compute capability 8.9"
)


@needs_float8
def test_float8_keys_and_values(tiny_folder: Any) -> None:
    """The error is that of rounding them to 3 bits; a window that moves on reads what was quantised before."""
    engine = JatEngine.from_pretrained(
        tiny_folder, device=DEVICE, backend="cuda", dtype="float32", kv_dtype="float8_e4m3", max_cached_tokens=256
    )
    assert "float8_e4m3" in engine.persistent_reason
    episode = EPISODE["continuous_cw9"]
    with engine.open_session(9) as session:
        predictions = [play(session, episode, t, episode.predictions[t].tolist())[1] for t in range(8)]
    error = relative_error(predictions, episode.predictions[:8])
    assert 1e-4 < error <= 4e-2

    stats, memory = engine.cache_stats, engine.memory
    assert stats.page_bytes == 4 * 2 * 16 * (64 + 4)  # layers, keys and values, tokens, width and heads
    assert memory["cache"] == stats.total * stats.page_bytes


@needs_float8
def test_neighbours_change_nothing_with_float8(tiny_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With split keys that the attention combines, in a padded bucket: results are bitwise equal."""
    from jat_engine.backends.cuda import graph as graph_step

    monkeypatch.setattr(graph_step, "_ATTENTION_WARPS", 32)
    engine = JatEngine.from_pretrained(
        tiny_folder, device=DEVICE, backend="cuda", dtype="float32", kv_dtype="float8_e4m3", max_cached_tokens=256
    )
    episode = EPISODE["continuous_cw9"]
    results = []
    for scale in (1.0, 3.0):
        with engine.open_batch(3, 9) as batch:
            for t in range(2):
                step = observations(episode, [t + i for i in range(3)])
                seen = step["continuous_observations"]
                step["continuous_observations"] = [seen[0], *(scale * values for values in seen[1:])]
                results.append(batch.get_next_actions(**step, action_space=episode.space)[0])
    assert np.array_equal(results[:2], results[2:])


def test_float8_elsewhere_is_refused(tiny_folder: Any) -> None:
    for backend, names in (("torch", "'auto'"), ("cpu", "'auto' or 'bfloat16' or 'int8'")):
        with pytest.raises(
            InputError, match=f"kv_dtype: expected {names} on the {backend} backend, got 'float8_e4m3', which the cuda"
        ):
            JatEngine.from_pretrained(tiny_folder, device="cpu", backend=backend, kv_dtype="float8_e4m3")
    with pytest.raises(InputError, match="kv_dtype: expected one of auto, bfloat16, int8, float8_e4m3, got 'float8'"):
        JatEngine.from_pretrained(tiny_folder, kv_dtype="float8")
    with pytest.raises(InputError, match=r"persistent: .* got True; it reads keys and values of the weights' dtype"):
        JatEngine.from_pretrained(
            tiny_folder, device=DEVICE, backend="cuda", dtype="float32", kv_dtype="float8_e4m3", persistent=True
        )


def test_memory_is_reported(graphs: Load) -> None:
    engine = graphs("float32")
    memory = engine.memory
    assert memory["weights"] == engine.weight_bytes
    assert memory["cache"] == engine.cache_stats.total * engine.cache_stats.page_bytes
    assert 0 < memory["scratch"] < 2**23
    assert 0 < memory["graphs"] < 2**22


class _NoKernel:
    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *arguments, **options: None


def test_a_step_allocates_nothing(graphs: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is allocated within a capture would be used by others while the graph still works on it."""
    engine = graphs("float32")
    for name in ("continuous_cw9", "babyai_sampled", "atari_greedy_full"):
        with engine.open_session(9) as session:
            play(session, EPISODE[name], 0)

    # Interpreting kernels allocates; on both sides of them a wrapper may.
    for module in [module for name, module in sys.modules.items() if name.startswith("jat_engine.kernels.")]:
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, _NoKernel())
    backend: Any = engine._backend
    with torch.profiler.profile(profile_memory=True) as profile:
        for step in backend._graphs._graphs.values():
            step._run()
    operations = {event.name for event in profile.events()}
    assert "aten::copy_" in operations
    assert not {name for name in operations if "empty" in name or "clone" in name or "zeros" in name}


# ---- what is chosen ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(ON_GPU, reason="there is a GPU")
def test_without_a_gpu_the_reason_is_given(monkeypatch: pytest.MonkeyPatch, tiny_folder: Any) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    reason = choices.why_no_gpu()
    assert reason
    with pytest.raises(InputError, match=r"backend: expected cpu or torch here, got 'cuda'; .*CUDA"):
        JatEngine.from_pretrained(tiny_folder, backend="cuda")
    assert reason in choices.choose_backend().reason


def test_a_model_its_kernels_do_not_take(tiny_folder: Any) -> None:
    for head_dim in (8, 160):
        with pytest.raises(InputError, match=f"got 'cuda'; its kernels take a head_dim of 16 to 128, got {head_dim}"):
            choices.choose_backend(DEVICE, backend="cuda", head_dim=head_dim)


def test_a_gpu_that_fails_is_replaced(monkeypatch: pytest.MonkeyPatch, tiny_folder: Any) -> None:
    """If the GPU fails, warn and use the CPU; if the GPU was requested, raise an error with the reason."""
    from jat_engine.backends.cuda import backend

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(backend, "CudaWeights", fail)
    chosen = choices.Choice(torch.device("cuda"), "cuda", "bfloat16", "there is a GPU")
    monkeypatch.setattr("jat_engine.engine.engine.choose_backend", lambda *_: chosen)
    with pytest.warns(RuntimeWarning, match="cuda is not used: CUDA out of memory.* 2.00 GiB; "):
        engine = JatEngine.from_pretrained(tiny_folder)
    assert engine.choice.device.type == "cpu"
    assert "cuda failed: CUDA out of memory" in engine.choice.reason

    asked = choices.Choice(torch.device("cuda"), "cuda", "bfloat16", "asked for", is_asked=True)
    monkeypatch.setattr("jat_engine.engine.engine.choose_backend", lambda *_: asked)
    with pytest.raises(InputError, match="device: expected one that can run this model, got cuda; CUDA out of memory"):
        JatEngine.from_pretrained(tiny_folder)


def test_kernels_that_compute_something_else_show_when_an_engine_is_made(
    monkeypatch: pytest.MonkeyPatch, tiny_folder: Any
) -> None:
    """The startup check compares a step with plain torch."""
    from jat_engine.backends.cuda import blocks

    right = blocks.linear_residual

    def wrong(a: torch.Tensor, *arguments: Any, **options: Any) -> None:
        right(a.roll(1, dims=1), *arguments, **options)

    monkeypatch.setattr(blocks, "linear_residual", wrong)
    options: dict[str, Any] = {"backend": "cuda", "persistent": False, "max_cached_tokens": 64, "dtype": "float32"}
    error = InputError if ON_GPU else RuntimeError
    with pytest.raises(error, match="do not compute what plain torch does"):
        JatEngine.from_pretrained(tiny_folder, device=DEVICE, **options)


def test_kernels_that_do_not_run_show_when_an_engine_is_made(monkeypatch: pytest.MonkeyPatch, tiny_folder: Any) -> None:
    from jat_engine.backends.cuda.graph import GraphStep

    def fail(*_: object) -> None:
        raise RuntimeError("PTX was compiled with an unsupported toolchain")

    monkeypatch.setattr(GraphStep, "launch", fail)
    options: dict[str, Any] = {"backend": "cuda", "persistent": False, "max_cached_tokens": 64}
    error = InputError if ON_GPU else RuntimeError  # a CPU is replaced by nothing
    with pytest.raises(error, match="unsupported toolchain"):
        JatEngine.from_pretrained(tiny_folder, device=DEVICE, **options)


@pytest.mark.parametrize("name", ["continuous_cw9", "babyai_greedy_full", "atari_greedy_full"])
def test_an_agent_batch_is_its_agents_alone(name: str, graphs: Load, load: Load) -> None:
    reference = load(backend="torch", dtype="float32")
    check_like_sessions(graphs("float32"), reference, name, steps=4, window=5, tolerance=TOLERANCE)


def test_sampling_in_a_batch(graphs: Load, load: Load) -> None:
    """Choices made on the device from the host's noise equal those of plain torch with the same seed."""
    episode = EPISODE["discrete_only"]
    chosen = []
    for engine in (graphs("float32"), load(backend="torch", dtype="float32")):
        with engine.open_batch(5, 10, seed=3) as batch:
            steps = [observations(episode, [t + i for i in range(5)]) for t in range(2)]
            chosen.append([batch.get_next_actions(**step, action_space=episode.space).tolist() for step in steps])
    assert chosen[0] == chosen[1]
    assert len(set(np.ravel(chosen[0]))) > 1


def test_options_of_a_call(graphs: Load, load: Load) -> None:
    """Masks, temperature and top-k choose from this backend's predictions what they choose from another's."""
    names = ("continuous_discrete_action", "continuous_cw9")
    episodes = [EPISODE[name] for name in names]
    mask = np.arange(episodes[0].space.n) % 3 == 1
    options: dict[str, Any] = {"action_masks": [mask, None], "temperature": 2.0, "top_k": 3, "action_clip": "box"}
    found = []
    for engine in (graphs("float32"), load(backend="torch", dtype="float32")):
        sessions = [engine.open_session(2, seed=seed) for seed in (0, 1)]
        action_spaces = [episodes[0].space, spaces.Box(-0.01, 0.01, episodes[1].space.shape)]
        actions = []
        for t in range(4):
            observations = [episode.observation(t) for episode in episodes]
            actions.append(engine.get_next_actions(sessions, observations, action_spaces=action_spaces, **options))
        found.append(actions)
        for session in sessions:
            session.close()
    for (choice, clipped), (expected_choice, expected_clipped) in zip(*found, strict=True):
        assert choice == expected_choice
        assert mask[choice]
        assert np.allclose(clipped, expected_clipped, rtol=1e-4)
        assert np.abs(clipped).max() <= 0.01
