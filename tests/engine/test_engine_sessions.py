"""Sessions of an engine: input that is refused, windows, and the shared KV cache."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from helpers.engines import BOX8, EPISODE, TOLERANCE, Load, native, play

from jat_engine import CacheFullError, InputError, JatEngine, JatModel, JatProcessor, SessionError
from jat_engine.testing import golden
from jat_engine.testing.golden import relative_error

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
    """Make the bad call before each of twelve steps, by the end of which the windows are full."""
    engine = load(backend=backend, dtype="float32")
    with engine.open_session(episode.context_window) as session:
        predictions = [play(session, episode, 0)[1]]
        for t in range(1, 12):
            arguments = {**episode.observation(t), "action_space": episode.space, "reward": episode.reward(t), **change}
            with pytest.raises(error, match=message):
                session.get_next_action(**arguments)
            predictions.append(play(session, episode, t)[1])
        assert relative_error(predictions, episode.predictions[:12]) <= TOLERANCE


@pytest.mark.versions
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


@pytest.mark.versions
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
        if t % 7 == 6:  # a refused call does not set the window
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
    """Weights packed for sizes of observations and actions are bounded in number, and packed again when needed."""
    engine = JatEngine.from_pretrained(tiny_folder, device="cpu", dtype="float32")
    before = engine.weight_bytes
    for size in [*range(1, 150), 8]:
        with engine.open_session(8) as session:
            arguments = {"continuous_observation": np.ones(size), "action_space": spaces.Box(-1, 1, (size,))}
            assert len(session.get_next_action(**arguments)) == size
    backend: Any = engine._backend
    caches = backend._head, backend._continuous_encoder
    assert max(cache.cache_info().currsize for cache in caches) <= 64
    assert engine.weight_bytes == before


@pytest.mark.versions
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


@pytest.mark.versions
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
    assert 1 <= engine.cache_stats.used <= 2
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
