"""`JatEngine` against the recorded answers of the published implementation, and sessions beside each other."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
import torch
from golden import relative_error
from gymnasium import spaces

from jat_engine import (
    AgentSession,
    BatchError,
    CacheFullError,
    CheckpointError,
    InputError,
    JatEngine,
    JatModel,
    JatProcessor,
    SessionError,
)
from jat_engine.backends.choice import native_module

NATIVE = native_module()[0]
INSTRUCTION_SETS = NATIVE.instruction_sets() if NATIVE else []
native = pytest.mark.skipif(NATIVE is None, reason=f"no native module: {native_module()[1]}")
TOLERANCE = 1e-5

EPISODE = {episode.name: episode for episode in golden.EPISODES}
BOX8 = spaces.Box(-1, 1, (8,))

Load = Callable[..., JatEngine]


@pytest.fixture(scope="module")
def load(tiny_folder: Path) -> Load:
    """Engines with the golden weights, each made once."""
    made: dict[tuple[Any, ...], JatEngine] = {}

    def load(**options: Any) -> JatEngine:
        key = tuple(sorted(options.items()))
        if key not in made:
            made[key] = JatEngine.from_pretrained(tiny_folder, device="cpu", **options)
        return made[key]

    return load


def variants(*dtypes: str) -> list[Any]:
    """Every backend and every version of the native kernels that this processor has."""
    cases: list[dict[str, Any]] = [{"backend": "torch", "dtype": dtype} for dtype in dtypes]
    for name in INSTRUCTION_SETS:
        cases += [{"backend": "cpu", "instruction_set": name, "dtype": dtype} for dtype in dtypes]
    return [pytest.param(case, id="-".join(case.values())) for case in cases]


def play(session: AgentSession, episode: golden.Episode, t: int, action: Any = None) -> tuple[Any, np.ndarray]:
    """A step of a golden episode. `action`: what the next step shall take for the one that was chosen."""
    chosen, prediction = session.get_next_action(
        **episode.observation(t),
        action_space=episode.space,
        reward=episode.reward(t),
        deterministic=episode.deterministic,
        return_prediction=True,
    )
    if action is not None:
        assert session.last is not None
        action = action if isinstance(action, int) else np.asarray(action, np.float32)
        session.last = session.last._replace(action=action)
    return chosen, prediction


# ---- parity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", variants("float32"))
@pytest.mark.parametrize("episode", golden.EPISODES, ids=lambda e: e.name)
def test_golden_episode(episode: golden.Episode, options: dict[str, Any], load: Load) -> None:
    """Through the published drop-in call: the same predictions, and the same actions, sampled ones included."""
    engine = load(**options)
    engine.reset_rl()
    torch.manual_seed(episode.seed)
    actions, predictions = [], []
    for t in range(episode.steps):
        action, prediction = engine.get_next_action(
            None,
            **episode.observation(t),
            action_space=episode.space,
            reward=episode.reward(t),
            deterministic=episode.deterministic,
            context_window=episode.context_window,
            return_prediction=True,
        )
        assert prediction.dtype == np.float32
        actions.append(action)
        predictions.append(prediction)
    if episode.actions is not None:
        assert actions == episode.actions
        assert all(type(action) is int for action in actions)
    else:
        assert actions == np.asarray(predictions).tolist()
    assert relative_error(predictions, episode.predictions) <= TOLERANCE


PUBLISHED_BF16 = 1.1e-2
"""About the error of the published implementation in bfloat16 over these episodes."""

LOW_PRECISION_BOUNDS = {"bfloat16": PUBLISHED_BF16, "int8": 6e-2}


@pytest.mark.parametrize("options", variants("bfloat16", "int8"))
def test_low_precision(options: dict[str, Any], load: Load) -> None:
    """Error over all episodes, each step given the recorded action, so that one choice does not lead elsewhere."""
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
    assert (
        relative_error(np.concatenate(predictions), np.concatenate(expected)) <= LOW_PRECISION_BOUNDS[options["dtype"]]
    )
    assert np.mean(agreed) >= 0.95


@native
def test_int8_is_exact_integer_arithmetic(load: Load) -> None:
    """The native int8 kernels and the plain torch ones round the same numbers: what differs is float32 rounding."""
    episode = EPISODE["continuous_cw16"]
    results = []
    for options in ({"backend": "torch"}, {"backend": "cpu", "instruction_set": "generic"}):
        with load(dtype="int8", **options).open_session(16) as session:
            results.append([play(session, episode, t, episode.predictions[t].tolist())[1] for t in range(20)])
    assert relative_error(*results) <= 1e-2  # a value that falls on the other side of a rounding is 1 of 127 away


def test_equal_to_the_model_at_other_sizes(tmp_path: Path) -> None:
    """Head sizes and widths that fill no vector, an odd MLP, more layers local than global."""
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


@pytest.mark.parametrize("options", variants("float32", "bfloat16", "int8"))
def test_contents_of_unused_memory_do_not_matter(options: dict[str, Any], tiny_folder: Path) -> None:
    """Pages that are new, or come from another session, hold NaN."""
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
    """Which episodes take a step together: they join and leave at random until all are over."""
    rng = np.random.default_rng(seed)
    steps = [0] * len(golden.EPISODES)
    while open_ := [i for i, episode in enumerate(golden.EPISODES) if steps[i] < episode.steps]:
        chosen = [i for i in open_ if rng.random() < 0.6] or [open_[0]]
        rng.shuffle(chosen)
        for i in chosen:
            steps[i] += 1
        yield chosen


@pytest.mark.parametrize("options", variants("float32", "bfloat16", "int8"))
def test_a_batch_gives_each_session_its_lone_result(options: dict[str, Any], load: Load) -> None:
    """All modalities and kinds of action, fresh beside saturated: bitwise on the native backend."""
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
    assert engine.cache_stats.reserved == (engine._drop_in.pages.max_pages if engine._drop_in else 0)


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
            broken = [observations[0], {**observations[1], "discrete_observation": [1, 2]}, observations[2]]
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
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    first = actions(None)
    torch.manual_seed(5)
    assert actions(None) == first
    for seed in (-1, 1.5, True, 2**63):
        with pytest.raises(InputError, match="seed: expected"):
            engine.open_session(seed=seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["torch", pytest.param("cpu", marks=native)])
def test_work_is_done_once(backend: str, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each observation is encoded in its own step alone, also when it is fed again; each mission is tokenised once."""
    engine = JatEngine.from_pretrained(tiny_folder, device="cpu", dtype="float32", backend=backend)
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
    assert engine._missions._cached.cache_info().misses == len(texts)


# ---- bad input -----------------------------------------------------------------------------------------------------

CONTINUOUS, BABYAI, ATARI = EPISODE["continuous_cw16"], EPISODE["babyai_greedy_full"], EPISODE["atari_greedy_full"]
BAD: list[tuple[str, golden.Episode, dict[str, Any], type[Exception], str]] = [
    ("no observation", CONTINUOUS, {"continuous_observation": None}, InputError, "got none of them"),
    ("text alone", BABYAI, {"discrete_observation": None}, InputError, "got text_observation"),
    ("wrong shape", CONTINUOUS, {"continuous_observation": np.zeros((27, 1))}, InputError, "got shape"),
    ("too long", CONTINUOUS, {"continuous_observation": np.zeros(377)}, InputError, "1 to 376"),
    ("strings", CONTINUOUS, {"continuous_observation": ["a"] * 27}, InputError, "finite numbers"),
    ("NaN", CONTINUOUS, {"continuous_observation": np.full(27, np.nan)}, InputError, "finite float32"),
    ("infinity", CONTINUOUS, {"continuous_observation": np.full(27, np.inf)}, InputError, "finite float32"),
    (
        "overflow",
        CONTINUOUS,
        {"continuous_observation": np.full(27, 3e38)},
        InputError,
        "prediction that is not finite",
    ),
    ("large reward", CONTINUOUS, {"reward": 3e38}, InputError, "prediction that is not"),
    (
        "square too large",
        CONTINUOUS,
        {"continuous_observation": np.full(27, 1e30)},
        InputError,
        "prediction that is not",
    ),
    ("surrogate", BABYAI, {"text_observation": "\ud800"}, InputError, "valid Unicode"),
    ("a list of flags", CONTINUOUS, {"deterministic": [True]}, InputError, "deterministic: expected True or False"),
    ("flag of another type", ATARI, {"return_prediction": 1}, InputError, "return_prediction: expected True or False"),
    ("NaN reward", CONTINUOUS, {"reward": np.nan}, InputError, "reward: expected a finite"),
    ("infinite reward", ATARI, {"reward": np.inf}, InputError, "reward: expected a finite"),
    ("another size", CONTINUOUS, {"continuous_observation": np.zeros(26)}, SessionError, "expected 27 values"),
    ("another action", CONTINUOUS, {"action_space": spaces.Discrete(3)}, SessionError, "expected continuous of size 8"),
    ("another size of action", CONTINUOUS, {"action_space": spaces.Box(-1, 1, (9,))}, SessionError, "of size 8"),
    ("too large an action", CONTINUOUS, {"action_space": spaces.Box(-1, 1, (378,))}, InputError, "A <= 377"),
    ("too many choices", ATARI, {"action_space": spaces.Discrete(258)}, InputError, "n <= 257"),
    ("unknown space", ATARI, {"action_space": spaces.MultiBinary(3)}, InputError, "Box or Discrete"),
    ("no space", ATARI, {"action_space": None}, InputError, "action_space=env.action_space"),
    ("negative integer", BABYAI, {"discrete_observation": np.full(148, -1)}, InputError, r"in \[0, 257\)"),
    ("integer too large", BABYAI, {"discrete_observation": np.full(148, 257)}, InputError, r"in \[0, 257\)"),
    ("floats", BABYAI, {"discrete_observation": np.zeros(148)}, InputError, "got dtype float64"),
    ("no text", BABYAI, {"text_observation": 5}, InputError, "expected a string"),
    ("float frame", ATARI, {"image_observation": np.zeros((84, 84, 4))}, InputError, "uint8"),
    ("channel first", ATARI, {"image_observation": np.zeros((4, 84, 84), np.uint8)}, InputError, "channel last"),
]


@pytest.mark.parametrize("backend", ["torch", pytest.param("cpu", marks=native)])
@pytest.mark.parametrize(("episode", "change", "error", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_is_refused_and_changes_nothing(
    episode: golden.Episode, change: dict[str, Any], error: type[Exception], message: str, backend: str, load: Load
) -> None:
    """Twelve steps, the windows full at the end; before each of them the bad call."""
    engine = load(backend=backend, dtype="float32")
    with engine.open_session(episode.context_window) as session:
        predictions = [play(session, episode, 0)[1]]
        for t in range(1, 12):
            arguments = {**episode.observation(t), "action_space": episode.space, "reward": episode.reward(t), **change}
            with pytest.raises(error, match=message):
                session.get_next_action(**arguments)
            predictions.append(play(session, episode, t)[1])
        assert relative_error(predictions, episode.predictions[:12]) <= TOLERANCE


def test_windows(load: Load) -> None:
    engine = load(backend="auto", dtype="float32")
    for window in (0, -1, 1.5, True, "8"):
        with pytest.raises(InputError, match="context_window: expected None or an integer >= 1"):
            engine.open_session(window)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="context_window: expected None or an integer >= 1"):
            engine.get_next_action(continuous_observation=[1.0], action_space=BOX8, context_window=window)  # type: ignore[arg-type]
    for window, limit in [(None, 44), (9, 9), (1, 1), (10**30, 44)]:
        with engine.open_session(window) as session:
            lengths = []
            for t in range(30):
                session.get_next_action(**CONTINUOUS.observation(t), action_space=BOX8)
                lengths.append(session.num_cached_tokens)
        assert lengths == [min(2 * t, limit) for t in range(30)]


def test_the_drop_in_agent_takes_another_window_at_any_step(
    load: Load, tiny_model: JatModel, tiny_processor: JatProcessor
) -> None:
    engine = load(backend="auto", dtype="float32")
    engine.reset_rl()
    tiny_model.reset_rl()
    rng = np.random.default_rng(0)
    for t in range(60):
        window = [None, 5, 12, 3, 40][rng.integers(5)] if t % 4 == 0 else None
        arguments = {**CONTINUOUS.observation(t), "action_space": BOX8, "reward": 0.5, "context_window": window}
        if t % 7 == 6:  # a refused call takes no window over
            with pytest.raises(InputError):
                engine.get_next_action(**{**arguments, "reward": np.nan, "context_window": 1})
        expected = tiny_model.get_next_action(tiny_processor, **arguments)
        assert relative_error(engine.get_next_action(**arguments), expected) <= TOLERANCE


def test_action_spaces_may_change_in_place(load: Load) -> None:
    engine, space = load(backend="auto", dtype="float32"), spaces.Discrete(18)
    with engine.open_session() as session:
        for n in (18, 4, 9):
            space.n = np.int64(n)
            arguments = {**ATARI.observation(0), "action_space": space, "return_prediction": True}
            assert session.get_next_action(**arguments)[1].shape == (n,)


def test_many_sizes_do_not_add_up(tiny_folder: Path) -> None:
    """What an engine makes for a size of observation or action is bounded, and made again when it is needed."""
    engine = JatEngine.from_pretrained(tiny_folder, device="cpu", dtype="float32")
    before = engine.weight_bytes
    for size in [*range(1, 150), 8]:
        with engine.open_session(8) as session:
            arguments = {"continuous_observation": np.ones(size), "action_space": spaces.Box(-1, 1, (size,))}
            assert len(session.get_next_action(**arguments)) == size
    backend: Any = engine._backend
    assert max(len(backend._heads), len(backend._continuous_encoders)) <= 64
    assert engine.weight_bytes == before


def test_closed_sessions(load: Load) -> None:
    engine = load(backend="auto", dtype="float32")
    session = engine.open_session()
    play(session, CONTINUOUS, 0)
    used = engine.cache_stats.used
    session.close()
    session.close()
    assert engine.cache_stats.used == used - 1
    for call in (session.reset, session.__enter__, lambda: play(session, CONTINUOUS, 1)):
        with pytest.raises(SessionError, match="expected an open one"):
            call()


# ---- the cache -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["torch", pytest.param("cpu", marks=native)])
def test_a_full_cache_refuses_the_newcomer_alone(backend: str, tiny_folder: Path) -> None:
    engine = JatEngine.from_pretrained(
        tiny_folder, device="cpu", dtype="float32", backend=backend, max_cached_tokens=6 * 16
    )
    assert engine.cache_stats.total == 6
    first = engine.open_session(16)  # 16 + 3 tokens, anywhere in a page: three pages
    assert engine.cache_stats.reserved == 3
    second = engine.open_session(16)
    results: list[np.ndarray] = []
    for t in range(CONTINUOUS.steps):
        with pytest.raises(CacheFullError, match="expected room for 2 pages of 16 tokens, got 0 of 6"):
            engine.open_session(1)
        with pytest.raises(CacheFullError):
            engine.get_next_action(**CONTINUOUS.observation(t), action_space=BOX8)
        results.append(play(first, CONTINUOUS, t)[1])
        play(second, CONTINUOUS, t)
    assert relative_error(results, CONTINUOUS.predictions) <= TOLERANCE
    assert engine.cache_stats.used <= 6
    second.close()
    third = engine.open_session(16)
    again = [play(third, CONTINUOUS, t)[1] for t in range(CONTINUOUS.steps)]
    assert np.array_equal(again, results)
    third.reset()
    assert np.array_equal([play(third, CONTINUOUS, t)[1] for t in range(5)], results[:5])


def test_counters(load: Load, tiny_folder: Path) -> None:
    engine = JatEngine.from_pretrained(tiny_folder, device="cpu", max_cached_tokens=160)
    stats = engine.cache_stats
    assert (stats.total, stats.used, stats.free, stats.reserved, stats.peak) == (10, 0, 10, 0, 0)
    assert stats.page_size == 16
    sessions = [engine.open_session(14), engine.open_session(14)]
    for t in range(40):
        for session in sessions:
            play(session, CONTINUOUS, t)
        stats = engine.cache_stats
        assert stats.used + stats.free == stats.total
        assert stats.used <= stats.reserved == 4
    assert engine.cache_stats.peak == 4
    sessions[0].reset()
    assert engine.cache_stats.used == sessions[1].pages.num_pages
    del session
    sessions.clear()  # dropped without being closed
    gc.collect()
    stats = engine.cache_stats
    assert (stats.used, stats.reserved, stats.peak) == (0, 0, 4)


def test_sizes_of_the_cache(tiny_folder: Path) -> None:
    page_bytes = JatEngine.from_pretrained(tiny_folder, dtype="float32").cache_stats.page_bytes
    assert page_bytes == 4 * 2 * 16 * 64 * 4  # layers, keys and values, tokens, width, bytes
    engine = JatEngine.from_pretrained(tiny_folder, dtype="float32", max_cache_bytes=10 * page_bytes + 5)
    assert engine.cache_stats.total == 10
    assert JatEngine.from_pretrained(tiny_folder).cache_stats.total == 64 * 4  # 64 windows of 44 tokens and a step
    for options in ({"max_cache_bytes": 10}, {"max_cache_bytes": 10**30}, {"max_cached_tokens": 10**12}):
        with pytest.raises(InputError, match=f"{next(iter(options))}: expected room for at least one page"):
            JatEngine.from_pretrained(tiny_folder, **options)
    with pytest.raises(InputError, match="expected one of them, got both"):
        JatEngine.from_pretrained(tiny_folder, max_cache_bytes=10**6, max_cached_tokens=100)


# ---- loading -------------------------------------------------------------------------------------------------------


def test_choices(tiny_folder: Path) -> None:
    for options, message in [
        ({"dtype": "float16"}, "dtype: expected one of auto, float32"),
        ({"backend": "onnx"}, "backend: expected one of auto, torch"),
        ({"device": "nowhere"}, "device: expected auto or a device"),
        ({"device": "meta", "backend": "cpu"}, "backend: expected torch on device meta"),
        ({"num_threads": 0}, "num_threads: expected an integer >= 1"),
        ({"num_threads": 5000}, "num_threads: expected at most 1024, got 5000"),
        ({"spin_us": 10**30}, "spin_us: expected at most 1000000"),
        ({"spin_us": -1}, "spin_us: expected an integer >= 0"),
        ({"threads": 2}, "threads: expected an engine option, one of num_threads"),
    ]:
        with pytest.raises(InputError, match=message):
            JatEngine.from_pretrained(tiny_folder, **options)  # type: ignore[arg-type]
    engine = JatEngine.from_pretrained(tiny_folder, dtype=torch.bfloat16, backend="torch", trust_remote_code=True)
    assert (engine.choice.backend, engine.choice.dtype) == ("torch", "bfloat16")
    assert repr(engine) == "JatEngine(backend='torch', dtype='bfloat16', device='cpu')"


@native
def test_auto_takes_the_native_backend(tiny_folder: Path) -> None:
    engine = JatEngine.from_pretrained(tiny_folder)
    assert (engine.choice.backend, engine.choice.dtype, engine.choice.device.type) == ("cpu", "bfloat16", "cpu")
    with pytest.raises(
        InputError, match=r"instruction_set: expected one of auto, .*generic on this processor, got 'sse9'"
    ):
        JatEngine.from_pretrained(tiny_folder, instruction_set="sse9")


def test_without_the_native_module_plain_torch_is_taken(monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jat_engine._cpu", None)
    monkeypatch.delattr("jat_engine._cpu", raising=False)
    engine = JatEngine.from_pretrained(tiny_folder, device="cpu")
    assert (engine.choice.backend, engine.choice.dtype) == ("torch", "float32")
    assert "does not load" in engine.choice.reason
    with pytest.raises(InputError, match="a C\\+\\+ compiler at install time builds it"):
        JatEngine.from_pretrained(tiny_folder, device="cpu", backend="cpu")


def test_checkpoints_of_all_forms(tmp_path: Path, tiny_folder: Path) -> None:
    """Aliases of the embedding, bfloat16, shards: the same engine. Damage is refused, unneeded parameters may lack."""
    tensors = golden.weights()
    embedding = tensors.pop("transformer.wte.weight")
    renamed = golden.write_checkpoint(tmp_path / "renamed", {**tensors, "single_discrete_encoder.weight": embedding})
    tensors["transformer.wte.weight"] = embedding
    JatModel.from_pretrained(tiny_folder).save_pretrained(tmp_path / "sharded", max_shard_size="200KB")
    (tmp_path / "sharded" / "tokenizer.json").write_text((tiny_folder / "tokenizer.json").read_text())
    few = golden.write_checkpoint(
        tmp_path / "few", {k: v for k, v in tensors.items() if not k.startswith(("image_decoder", "vit_encoder"))}
    )
    expected = None
    for folder in (tiny_folder, renamed, tmp_path / "sharded", few):
        with JatEngine.from_pretrained(folder, dtype="float32").open_session() as session:
            results = [play(session, CONTINUOUS, t)[1] for t in range(3)]
        expected = results if expected is None else expected
        assert np.array_equal(results, expected)

    def refused(name: str, change: dict[str, np.ndarray | None], message: str) -> None:
        changed = {k: v for k, v in {**tensors, **change}.items() if v is not None}
        folder = golden.write_checkpoint(tmp_path / name, changed)
        with pytest.raises(CheckpointError, match=message):
            JatEngine.from_pretrained(folder)

    bias = tensors["transformer.h.1.mlp.c_fc.bias"]
    refused("missing", {"transformer.h.1.mlp.c_fc.bias": None}, "missing parameter transformer.h.1.mlp.c_fc.bias")
    refused("shape", {"transformer.h.1.mlp.c_fc.bias": bias[1:]}, "expected shape")
    refused("nan", {"transformer.h.1.mlp.c_fc.bias": bias * np.nan}, "c_fc.bias: expected finite")
    head = tensors["single_discrete_decoder.weight"].copy()
    head[200, 3] = np.inf
    refused("head", {"single_discrete_decoder.weight": head}, "single_discrete_decoder.weight: expected finite")
    refused("twins", {"single_discrete_encoder.weight": embedding + 1}, "both name the one embedding")


def test_engine_of_a_model_keeps_its_weights(tiny_folder: Path, tiny_processor: JatProcessor) -> None:
    """Training goes on; the engine is of the moment it was made."""
    model = JatModel.from_pretrained(tiny_folder)
    engine = JatEngine.from_model(model, tiny_processor, dtype="float32")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for episode in (BABYAI, CONTINUOUS):
        with engine.open_session(episode.context_window) as session:
            predictions = [play(session, episode, t)[1] for t in range(8)]
        assert relative_error(predictions, episode.predictions[:8]) <= TOLERANCE
    with JatEngine.from_model(model).open_session() as session, pytest.raises(InputError, match="made without"):
        play(session, BABYAI, 0)


def test_missions(tiny_folder: Path, load: Load, tiny_processor: JatProcessor) -> None:
    """The engine's own tokens are the processor's; long missions are cut with a warning."""
    missions = load(backend="auto", dtype="float32")._missions
    for text in (*golden.MISSIONS, "", "Größe: 3 €", "go  to\nthe door", "<|endoftext|>"):
        assert missions.encode(text).tolist() == tiny_processor.encode_mission(text)
    with pytest.warns(UserWarning, match="at most 64 tokens, got 70; the rest is cut off"):
        assert missions.encode("x" * 70).tolist() == tiny_processor.encode_mission("x" * 70)


# ---- threads and processes -----------------------------------------------------------------------------------------


def test_two_engines_and_many_threads(tiny_folder: Path) -> None:
    """Sessions of two engines are played by eight threads at once."""
    engines = [JatEngine.from_pretrained(tiny_folder, dtype="float32", spin_us=spin) for spin in (0, 200)]
    failures: list[str] = []

    def run(number: int) -> None:
        episode = [CONTINUOUS, BABYAI, ATARI, EPISODE["image_box"]][number % 4]
        with engines[number % 2].open_session(episode.context_window) as session:
            predictions = [play(session, episode, t)[1] for t in range(12)]
        if relative_error(predictions, episode.predictions[:12]) > TOLERANCE:
            failures.append(episode.name)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert failures == []


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_processes(method: str, tiny_folder: Path) -> None:
    """An engine works in a new process; and, though threads do not live on in it, in a forked one."""
    import multiprocessing

    engine = JatEngine.from_pretrained(tiny_folder, dtype="float32", num_threads=2) if method == "fork" else None
    if engine is not None:
        with engine.open_session(16) as session:
            play(session, CONTINUOUS, 0)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_act, args=(queue, engine, tiny_folder))
    process.start()
    predictions = queue.get(timeout=60)
    process.join(timeout=60)
    assert process.exitcode == 0
    assert relative_error(predictions, CONTINUOUS.predictions[:4]) <= TOLERANCE


def _act(queue: Any, engine: JatEngine | None, folder: Path) -> None:
    if engine is None:
        engine = JatEngine.from_pretrained(folder, dtype="float32", num_threads=2)
    with engine.open_session(16) as session:
        queue.put([play(session, CONTINUOUS, t)[1] for t in range(4)])
