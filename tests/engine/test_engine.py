"""`JatEngine` against the recorded answers of the published implementation, alone and in batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.engines import (
    BOX8,
    EPISODE,
    INSTRUCTION_SETS,
    NATIVE,
    TOLERANCE,
    Load,
    kv_variants,
    native,
    play,
    variants,
)

from jat_engine import BatchError, InputError, JatEngine, JatModel, JatProcessor
from jat_engine.testing import golden
from jat_engine.testing.golden import relative_error

# ---- parity --------------------------------------------------------------------------------------------------------


@pytest.mark.versions
@pytest.mark.parametrize("options", variants("float32"))
@pytest.mark.parametrize("episode", golden.EPISODES, ids=lambda e: e.name)
def test_golden_episode(episode: golden.Episode, options: dict[str, Any], load: Load) -> None:
    """The drop-in call gives the recorded predictions and actions, sampled ones included."""
    golden.check_episode(load(**options), None, episode, TOLERANCE)


PUBLISHED_BF16 = 1.1e-2
"""About the error of the published implementation in bfloat16 over these episodes."""

LOW_PRECISION_BOUNDS = {"bfloat16": PUBLISHED_BF16, "int8": 6e-2, "int4": 0.4}
KV_BOUNDS = {"bfloat16": (1e-3, 4e-3), "int8": (4e-3, 9e-3)}
LEAST_AGREEMENT = {"bfloat16": 0.95, "int8": 0.95, "int4": 0.7}


@pytest.mark.parametrize("options", [*variants("bfloat16", "int8", "int4"), *kv_variants(*KV_BOUNDS)])
def test_low_precision(options: dict[str, Any], load: Load) -> None:
    """Force the recorded actions, so that one different choice does not change the rest of an episode."""
    engine = load(**options)
    predictions, expected, agreed = [], [], []
    for episode in golden.EPISODES:
        with engine.open_session(episode.context_window) as session:
            for t in range(episode.steps):
                recorded = episode.actions[t] if episode.actions else episode.predictions[t].tolist()
                action, prediction = play(session, episode, t, recorded)
                predictions.append(prediction)
                expected.append(episode.predictions[t])
                if episode.actions and episode.deterministic:
                    agreed.append(action == recorded)
    error = relative_error(np.concatenate(predictions), np.concatenate(expected))
    if "kv_dtype" in options:
        least, most = KV_BOUNDS[options["kv_dtype"]]
        assert least <= error <= most  # less would mean that they are not rounded
        assert np.mean(agreed) >= 0.98
    else:
        assert error <= LOW_PRECISION_BOUNDS[options["dtype"]]
        assert np.mean(agreed) >= LEAST_AGREEMENT[options["dtype"]]


@native
def test_pages_of_int8_are_smaller(load: Load) -> None:
    """Their bytes and, for each token and head, two scales and the sum of a key."""
    sizes = {kv: load(backend="cpu", dtype="bfloat16", kv_dtype=kv).cache_stats.page_bytes for kv in ("auto", "int8")}
    config, tokens = golden.CONFIG, 16
    elements = config["num_layers"] * 2 * tokens * config["hidden_size"]
    scales = config["num_layers"] * 3 * tokens * config["num_heads"]
    assert sizes == {"auto": 2 * elements, "int8": elements + 4 * scales}


@native
def test_native_int8_agrees_with_plain_torch(load: Load) -> None:
    """Native and plain torch kernels round to the same int8 numbers; they differ by float32 rounding only."""
    episode = EPISODE["continuous_cw16"]
    results = []
    for options in ({"backend": "torch"}, {"backend": "cpu", "instruction_set": "generic"}):
        with load(dtype="int8", **options).open_session(16) as session:
            results.append([play(session, episode, t, episode.predictions[t].tolist())[1] for t in range(20)])
    assert relative_error(*results) <= 1e-2  # a value that falls on the other side of a rounding is 1 of 127 away


def test_equal_to_the_model_at_other_sizes(tmp_path: Path) -> None:
    """Head sizes and widths that fill no vector, an odd MLP, more local layers than global ones."""
    from jat_engine import JatConfig

    for sizes in (
        {"hidden_size": 60, "num_heads": 5, "num_layers": 2, "intermediate_size": 70},
        {"hidden_size": 160, "num_heads": 2, "num_layers": 3, "attention_types": [[["global", "local", "local"], 1]]},
        {"hidden_size": 65, "num_heads": 5, "num_layers": 2},  # one more than whole panels of rows
        {"hidden_size": 51, "num_heads": 1, "num_layers": 1, "attention_types": [[["local"], 1]]},
    ):
        config = JatConfig(vocab_size=300, max_position_embeddings=40, window_size=7, **sizes)
        torch.manual_seed(1)
        model, processor = JatModel(config).eval(), JatProcessor.byte_level(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.2)
        for options in [{"backend": "torch"}, *({"backend": "cpu", "instruction_set": i} for i in INSTRUCTION_SETS)]:
            engine = JatEngine.from_model(model, processor, device="cpu", dtype="float32", **options)
            for episode in (EPISODE["continuous_full"], EPISODE["babyai_greedy_full"], EPISODE["atari_greedy_full"]):
                expected, session = model.open_session(), engine.open_session()
                for t in range(26):
                    arguments = {**episode.observation(t), "action_space": episode.space, "reward": episode.reward(t)}
                    arguments |= {"deterministic": True, "return_prediction": True}
                    want = expected.get_next_action(processor, **arguments)[1]
                    assert relative_error(session.get_next_action(**arguments)[1], want) <= 3e-5
                session.close()


@pytest.mark.parametrize("options", [*variants("float32", "bfloat16", "int8", "int4"), *kv_variants("int8")])
def test_contents_of_unused_memory_do_not_matter(options: dict[str, Any], tiny_folder: Path) -> None:
    """Fill pages with NaN, new ones and those that another session has used."""
    results = []
    for poison in (False, True):
        engine = JatEngine.from_pretrained(tiny_folder, device="cpu", max_cached_tokens=128, **options)
        backend: Any = engine._backend
        if poison and options["backend"] == "cpu":
            backend._pool[:] = 0xFF  # NaN in both formats
        elif poison:
            backend._cache.fill_(torch.nan)
        for name in ("continuous_cw9", "continuous_cw16"):
            with engine.open_session(EPISODE[name].context_window) as session:
                results.append([play(session, EPISODE[name], t)[1] for t in range(20)])
    assert np.array_equal(results[0], results[2])
    assert np.array_equal(results[1], results[3])
    assert np.isfinite(results[2]).all()


def test_threads_do_not_change_results(load: Load) -> None:
    if NATIVE is None:
        pytest.skip("no native module")
    episode, results = EPISODE["atari_greedy_full"], []
    for num_threads in (1, 2, 5):
        with load(backend="cpu", dtype="bfloat16", num_threads=num_threads).open_session() as session:
            results.append([play(session, episode, t)[1] for t in range(12)])
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


# ---- batches -------------------------------------------------------------------------------------------------------


def lone_runs(engine: JatEngine) -> dict[str, list[np.ndarray]]:
    runs = {}
    for number, episode in enumerate(golden.EPISODES):
        with engine.open_session(episode.context_window, seed=number) as session:
            runs[episode.name] = [play(session, episode, t)[1] for t in range(episode.steps)]
    return runs


def schedule(seed: int) -> Iterator[list[int]]:
    """Yield which episodes step together: they join and leave at random until all are over."""
    rng = np.random.default_rng(seed)
    steps = [0] * len(golden.EPISODES)
    while open_ := [i for i, episode in enumerate(golden.EPISODES) if steps[i] < episode.steps]:
        chosen = [i for i in open_ if rng.random() < 0.6] or [open_[0]]
        rng.shuffle(chosen)
        for i in chosen:
            steps[i] += 1
        yield chosen


@pytest.mark.parametrize("options", [*variants("float32", "bfloat16", "int8", "int4"), *kv_variants("int8")])
def test_a_batch_gives_each_session_its_lone_result(options: dict[str, Any], load: Load) -> None:
    """Mix modalities, kinds of action, new and full windows: bitwise equal on the native backend."""
    engine = load(**options)
    expected = lone_runs(engine)
    for seed in (0, 1):
        sessions = [engine.open_session(e.context_window, seed=i) for i, e in enumerate(golden.EPISODES)]
        steps = [0] * len(sessions)
        results: dict[str, list[np.ndarray]] = {e.name: [] for e in golden.EPISODES}
        for chosen in schedule(seed):
            # Greedy episodes and sampled ones are of one batch: a call has one `deterministic`, so two calls.
            for deterministic in (True, False):
                group = [i for i in chosen if golden.EPISODES[i].deterministic == deterministic]
                if not group:
                    continue
                answers = engine.get_next_actions(
                    [sessions[i] for i in group],
                    [golden.EPISODES[i].observation(steps[i]) for i in group],
                    rewards=[golden.EPISODES[i].reward(steps[i]) for i in group],
                    action_spaces=[golden.EPISODES[i].space for i in group],
                    deterministic=deterministic,
                    return_predictions=True,
                )
                for i, (_, prediction) in zip(group, answers, strict=True):
                    results[golden.EPISODES[i].name].append(prediction)
                    steps[i] += 1
        for session in sessions:
            session.close()
        for name, want in expected.items():
            if options["backend"] == "cpu":
                assert np.array_equal(results[name], want), name
            else:
                assert relative_error(results[name], want) <= 1e-6, name
    assert engine.cache_stats.reserved == (engine._drop_in.episodes.pages.num_pages if engine._drop_in else 0)


def test_a_bad_observation_costs_only_its_own_session(load: Load) -> None:
    engine = load(backend="auto", dtype="float32")
    names = ["continuous_cw16", "babyai_greedy_full", "atari_greedy_full"]
    episodes = [EPISODE[name] for name in names]
    sessions = [engine.open_session(episode.context_window) for episode in episodes]
    results: list[list[np.ndarray]] = [[], [], []]
    for t in range(6):
        observations = [episode.observation(t) for episode in episodes]
        rewards = [episode.reward(t) for episode in episodes]
        action_spaces = [episode.space for episode in episodes]
        if t == 3:
            broken = [observations[0], {**observations[1], "discrete_observation": [-1] * 148}, observations[2]]
            with pytest.raises(BatchError, match=r"sessions\[1\] of 3: discrete_observation") as caught:
                engine.get_next_actions(sessions, broken, rewards, action_spaces, True, True)
            assert list(caught.value.errors) == [1]
            assert isinstance(caught.value.errors[1], InputError)
            assert caught.value.actions[1] is None
            for i in (0, 2):
                results[i].append(caught.value.actions[i][1])
            answer = engine.get_next_actions(
                [sessions[1]], [observations[1]], [rewards[1]], [action_spaces[1]], True, True
            )
            results[1].append(answer[0][1])
            continue
        answers = engine.get_next_actions(sessions, observations, rewards, action_spaces, True, True)
        for i, (_, prediction) in enumerate(answers):
            results[i].append(prediction)
    for session, episode, result in zip(sessions, episodes, results, strict=True):
        assert relative_error(result, episode.predictions[:6]) <= TOLERANCE
        session.close()


def test_arguments_of_a_batch_must_fit_together(load: Load) -> None:
    engine = load(backend="auto", dtype="float32")
    with engine.open_session() as a, engine.open_session() as b:
        observation = {"continuous_observation": [1.0]}
        with pytest.raises(InputError, match="observations: expected one for each of 2 sessions, got 1"):
            engine.get_next_actions([a, b], [observation], action_spaces=BOX8)
        with pytest.raises(InputError, match="rewards: expected one for each of 2"):
            engine.get_next_actions([a, b], [observation] * 2, rewards=[1.0], action_spaces=BOX8)
        with pytest.raises(InputError, match="action_spaces: expected one for each of 2"):
            engine.get_next_actions([a, b], [observation] * 2, action_spaces=[BOX8])
        with pytest.raises(InputError, match="rewards: expected a sequence"):
            engine.get_next_actions([a, b], [observation] * 2, rewards=1.0, action_spaces=BOX8)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="deterministic: expected True or False, for all sessions alike"):
            engine.get_next_actions([a, b], [observation] * 2, None, BOX8, np.array([True, False]))  # type: ignore[arg-type]
        with pytest.raises(InputError, match="at most once"):
            engine.get_next_actions([a, a], [observation] * 2, action_spaces=BOX8)
        with pytest.raises(BatchError, match="expected a mapping with keys"):
            engine.get_next_actions([a], [{"observation": [1.0]}], action_spaces=BOX8)
        with pytest.raises(BatchError, match="expected a mapping with keys"):
            engine.get_next_actions([a], [[1.0]], action_spaces=BOX8)  # type: ignore[list-item]
        assert engine.get_next_actions([], []) == []
        assert len(engine.get_next_actions([a, b], [observation] * 2, action_spaces=BOX8)) == 2
    other = JatEngine.from_model(*_tiny_model())
    with other.open_session() as stranger, pytest.raises(BatchError, match="expected one that this engine opened"):
        engine.get_next_actions([stranger], [observation], action_spaces=BOX8)


def _tiny_model() -> tuple[JatModel, JatProcessor]:
    from jat_engine import JatConfig

    config = JatConfig(vocab_size=257, max_discrete_value=70, hidden_size=64, num_heads=4, num_layers=2)
    return JatModel(config), JatProcessor.byte_level(config)


def test_seeded_sessions_draw_their_own_numbers(load: Load) -> None:
    engine, episode = load(backend="auto", dtype="float32"), EPISODE["atari_sampled_cw8"]

    def actions(seed: int | None) -> list[int]:
        with engine.open_session(8, seed=seed) as session:
            return [play(session, episode, t)[0] for t in range(12)]

    before = torch.get_rng_state()
    assert actions(3) == actions(3)
    assert actions(3) != actions(4)
    assert actions(2**64 - 1) == actions(2**64 - 1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    first = actions(None)
    torch.manual_seed(5)
    assert actions(None) == first
    for seed in (-1, 1.5, True, 2**64):
        with pytest.raises(InputError, match="seed: expected"):
            engine.open_session(seed=seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["torch", pytest.param("cpu", marks=native)])
def test_work_is_done_once(backend: str, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each observation is encoded once, though it is fed twice; each mission is tokenised once."""
    engine = JatEngine.from_pretrained(tiny_folder, device="cpu", dtype="float32", backend=backend)
    # The general way: a quick step takes only the new observation.
    monkeypatch.setattr(engine._backend, "quick_step", lambda *_: None, raising=False)
    encoded: list[int] = []

    def count(name: str) -> None:
        encode = getattr(engine._backend, name)

        def counted(inputs: list[Any], *more: Any) -> Any:
            encoded.append(len(inputs))
            return encode(inputs, *more)

        monkeypatch.setattr(engine._backend, name, counted)

    count("embed_images")
    count("embed_discrete")
    for episode in (EPISODE["atari_sampled_cw8"], EPISODE["babyai_sampled"]):
        encoded.clear()
        with engine.open_session(episode.context_window) as session:
            for t in range(20):
                play(session, episode, t)
        assert encoded == [1] * 20
    texts = {EPISODE["babyai_sampled"].observation(t)["text_observation"] for t in range(20)}
    assert engine._runner._missions._cached.cache_info().misses == len(texts)
