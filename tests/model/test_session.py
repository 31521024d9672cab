"""Sessions of a model are independent, and invalid input leaves a session unchanged."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers.checkpointing import enable_checkpointing

from jat_engine import InputError, JatModel, JatProcessor, ModelSession, SessionError
from jat_engine.testing import golden

pytestmark = pytest.mark.versions

EPISODE = {episode.name: episode for episode in golden.EPISODES}
CONTINUOUS = EPISODE["continuous_cw16"]  # 27 numbers, Box(8)
BABYAI = EPISODE["babyai_greedy_full"]
ATARI = EPISODE["atari_greedy_full"]
BOX8 = spaces.Box(-1, 1, (8,))


def step(
    session: ModelSession,
    processor: JatProcessor,
    episode: golden.Episode,
    t: int,
    observation: dict[str, Any] | None = None,
) -> np.ndarray:
    """Take one step of a golden episode, and return the prediction."""
    prediction = session.get_next_action(
        processor,
        **(episode.observation(t) if observation is None else observation),
        action_space=episode.space,
        reward=episode.reward(t),
        deterministic=True,
        context_window=episode.context_window,
        return_prediction=True,
    )[1]
    assert isinstance(prediction, np.ndarray)
    return prediction


def test_sessions_do_not_mix(tiny_model: JatModel, tiny_processor: JatProcessor) -> None:
    episodes = [CONTINUOUS, BABYAI, ATARI]
    together = {e.name: tiny_model.open_session() for e in episodes}
    results: dict[str, list[np.ndarray]] = {e.name: [] for e in episodes}
    for t in range(10):
        for e in episodes:
            results[e.name].append(step(together[e.name], tiny_processor, e, t))
    for e in episodes:
        assert golden.relative_error(results[e.name], e.predictions[:10]) <= 1e-5


def test_drop_in_call_opens_its_own_session(tiny_folder: Any, tiny_processor: JatProcessor) -> None:
    model = JatModel.from_pretrained(tiny_folder)
    arguments = {"action_space": CONTINUOUS.space, "context_window": 16}
    first = model.get_next_action(tiny_processor, **CONTINUOUS.observation(0), **arguments)
    second = model.get_next_action(
        tiny_processor, **CONTINUOUS.observation(1), **arguments, reward=CONTINUOUS.reward(1)
    )
    assert golden.relative_error([first, second], CONTINUOUS.predictions[:2]) <= 1e-5
    model.reset_rl()
    again = model.get_next_action(tiny_processor, **CONTINUOUS.observation(0), **arguments)
    assert again == first
    assert not any("session" in name for name in model.state_dict())
    copy.deepcopy(model).reset_rl()
    assert model.get_next_action(
        tiny_processor, **CONTINUOUS.observation(1), **arguments, reward=CONTINUOUS.reward(1)
    ) == pytest.approx(second, rel=1e-6)


def test_return_values(tiny_model: JatModel, tiny_processor: JatProcessor) -> None:
    action, prediction = tiny_model.open_session().get_next_action(
        tiny_processor, **CONTINUOUS.observation(0), action_space=BOX8, return_prediction=True
    )
    assert isinstance(action, list)
    assert prediction.shape == (8,)
    assert prediction.dtype == np.float32
    assert action == prediction.tolist()
    action, prediction = tiny_model.open_session().get_next_action(
        tiny_processor, **ATARI.observation(0), action_space=ATARI.space, deterministic=True, return_prediction=True
    )
    assert type(action) is int
    assert prediction.shape == (18,)
    assert action == prediction.argmax()


def test_equivalent_inputs_give_the_same_action(tiny_model: JatModel, tiny_processor: JatProcessor) -> None:
    """Inputs may be lists, tensors or arrays of other precision; the action space needs no gymnasium."""

    class Box(SimpleNamespace):
        pass

    values = CONTINUOUS.observation(0)["continuous_observation"]
    expected = tiny_model.open_session().get_next_action(
        tiny_processor, continuous_observation=values, action_space=BOX8, reward=0.0
    )
    for given, space in [
        (values.tolist(), BOX8),
        (values.astype(np.float64), Box(shape=(8,))),
        (torch.from_numpy(values), BOX8),
    ]:
        assert expected == tiny_model.open_session().get_next_action(
            tiny_processor, continuous_observation=given, action_space=space
        )


def test_long_missions_are_cut(tiny_model: JatModel, tiny_processor: JatProcessor) -> None:
    mission = "go to the red ball, then pick up the blue key behind the door that is next to the box"
    observation = BABYAI.observation(0) | {"text_observation": mission}
    assert len(tiny_processor.tokenizer(mission)["input_ids"]) > 64
    cut = observation | {"text_observation": mission[:64]}  # a byte is a token here
    space = BABYAI.space
    predictions = [
        tiny_model.open_session().get_next_action(
            tiny_processor, **given, action_space=space, deterministic=True, return_prediction=True
        )[1]
        for given in (observation, cut)
    ]
    assert np.array_equal(*predictions)


OBS27 = np.zeros(27, np.float32)
INTS = np.zeros(148, np.int64)
FRAME = np.zeros((84, 84, 4), np.uint8)
BAD: list[tuple[str, golden.Episode, dict[str, Any], type[Exception], str]] = [
    ("no observation", CONTINUOUS, {"continuous_observation": None}, InputError, "got none of them"),
    ("two kinds", CONTINUOUS, {"image_observation": FRAME}, InputError, "continuous_observation \\+ image_obs"),
    ("text alone", BABYAI, {"discrete_observation": None}, InputError, "got text_observation"),
    ("other modality", CONTINUOUS, {"continuous_observation": None, "image_observation": FRAME}, SessionError,
     "expected continuous_observation as before in this episode, got image_observation"),
    ("text left out", BABYAI, {"text_observation": None, "discrete_observation": np.zeros(212, np.int64)},
     SessionError, "expected discrete_observation \\+ text_observation"),
    ("size changed", CONTINUOUS, {"continuous_observation": OBS27[:26]}, SessionError, "expected 27 values .* got 26"),
    ("two dimensions", CONTINUOUS, {"continuous_observation": OBS27[None]}, InputError, r"got shape \(1, 27\)"),
    ("empty", CONTINUOUS, {"continuous_observation": []}, InputError, "1 to 376 finite numbers"),
    ("too many", CONTINUOUS, {"continuous_observation": np.zeros(377)}, InputError, r"1 to 376 .* got shape \(377,\)"),
    ("ragged", CONTINUOUS, {"continuous_observation": [[1.0], [1.0, 2.0]]}, InputError, "continuous_observation"),
    ("strings", CONTINUOUS, {"continuous_observation": ["a"] * 27}, InputError, "finite numbers, got list"),
    ("nan", CONTINUOUS, {"continuous_observation": np.where(np.arange(27) == 5, np.nan, 0)}, InputError, "nan at 5"),
    ("overflow", CONTINUOUS, {"continuous_observation": np.full(27, 1e300)}, InputError, "got inf at 0"),
    ("nan reward", CONTINUOUS, {"reward": float("nan")}, InputError, "reward: expected a finite number"),
    ("text reward", CONTINUOUS, {"reward": "1"}, InputError, "reward: expected a finite number or None, got str '1'"),
    ("vector reward", CONTINUOUS, {"reward": [1.0, 2.0]}, InputError, "reward"),
    ("negative id", BABYAI, {"discrete_observation": INTS - 1}, InputError, r"in \[0, 257\), got -1 to -1"),
    ("large id", BABYAI, {"discrete_observation": INTS + 257}, InputError, r"in \[0, 257\), got 257 to 257"),
    ("wrong length", BABYAI, {"discrete_observation": np.zeros(212, int)}, InputError, "expected 1 to 148 integers"),
    ("floats", BABYAI, {"discrete_observation": INTS + 0.5}, InputError, "got dtype float64"),
    ("mission as tokens", BABYAI, {"text_observation": [1, 2]}, InputError, "text_observation: expected a string"),
    ("float frame", ATARI, {"image_observation": FRAME / 255}, InputError, "uint8 .* dtype float64"),
    ("channel first", ATARI, {"image_observation": FRAME.transpose(2, 0, 1)}, InputError, r"got shape \(4, 84, 84\)"),
    ("no space", CONTINUOUS, {"action_space": None}, InputError, "pass action_space=env.action_space"),
    ("unsupported space", CONTINUOUS, {"action_space": spaces.MultiDiscrete([2, 2])}, InputError, "Box or Discrete"),
    ("matrix box", CONTINUOUS, {"action_space": spaces.Box(-1, 1, (2, 2))}, InputError, r"Box of shape \(A,\)"),
    ("large box", CONTINUOUS, {"action_space": spaces.Box(-1, 1, (378,))}, InputError, "1 <= A <= 377"),
    ("other size", CONTINUOUS, {"action_space": spaces.Box(-1, 1, (7,))}, SessionError, "continuous of size 8"),
    ("other kind", CONTINUOUS, {"action_space": spaces.Discrete(4)}, SessionError, "got discrete of size 4"),
    ("large discrete", ATARI, {"action_space": spaces.Discrete(258)}, InputError, "1 <= n <= 257"),
    ("start", ATARI, {"action_space": spaces.Discrete(4, start=1)}, InputError, "that starts at 0"),
    ("window 0", CONTINUOUS, {"context_window": 0}, InputError, "context_window: expected None or an integer >= 1"),
    ("window 1.5", CONTINUOUS, {"context_window": 1.5}, InputError, "got 1.5"),
]  # fmt: skip


@pytest.mark.parametrize(("episode", "change", "kind", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_leaves_the_session_unchanged(
    episode: golden.Episode,
    change: dict[str, Any],
    kind: type[Exception],
    message: str,
    tiny_model: JatModel,
    tiny_processor: JatProcessor,
) -> None:
    session = tiny_model.open_session()
    predictions = [step(session, tiny_processor, episode, t) for t in range(2)]
    arguments = {**episode.observation(2), "action_space": episode.space, "reward": episode.reward(2), **change}
    with pytest.raises(kind, match=message):
        session.get_next_action(tiny_processor, **arguments)
    predictions += [step(session, tiny_processor, episode, t) for t in range(2, 4)]
    assert golden.relative_error(predictions, episode.predictions[:4]) <= 1e-5


def test_failing_processor_leaves_the_session_unchanged(tiny_model: JatModel, tiny_processor: JatProcessor) -> None:
    session = tiny_model.open_session()
    step(session, tiny_processor, CONTINUOUS, 0)

    def failing(**inputs: Any) -> Any:
        raise OSError("out of order")

    with pytest.raises(OSError, match="out of order"):
        session.get_next_action(failing, **CONTINUOUS.observation(1), action_space=BOX8)
    assert golden.relative_error(step(session, tiny_processor, CONTINUOUS, 1), CONTINUOUS.predictions[1]) <= 1e-5


def test_cached_tokens_stay_within_the_limits(tiny_model: JatModel, tiny_processor: JatProcessor) -> None:
    for window, limit in [(None, 44), (9, 9), (1, 1), (1000, 44)]:
        session = tiny_model.open_session()
        lengths = []
        for t in range(30):
            session.get_next_action(
                tiny_processor, **CONTINUOUS.observation(t), action_space=BOX8, context_window=window
            )
            lengths.append(session.num_cached_tokens)
        assert lengths == [min(2 * t, limit) for t in range(30)]


@pytest.mark.parametrize("episode", [CONTINUOUS, BABYAI, ATARI], ids=["continuous", "discrete", "image"])
def test_environments_may_reuse_their_arrays(
    episode: golden.Episode, tiny_model: JatModel, tiny_processor: JatProcessor
) -> None:
    """s_{t-1} is fed again in the next step, so a session must copy its inputs."""
    session, buffers, predictions = tiny_model.open_session(), {}, []
    for t in range(5):
        observation = episode.observation(t)
        for key, value in observation.items():
            if isinstance(value, np.ndarray):
                buffers.setdefault(key, np.empty_like(value))[...] = value
                observation[key] = buffers[key]
        predictions.append(step(session, tiny_processor, episode, t, observation))
        for buffer in buffers.values():
            buffer[...] = 7
    assert golden.relative_error(predictions, episode.predictions[:5]) <= 1e-5


@pytest.mark.parametrize("change", [{"continuous_observation": np.full(27, 3e38)}, {"reward": 3e38}])
def test_values_too_large_to_compute_with(
    change: dict[str, Any], tiny_model: JatModel, tiny_processor: JatProcessor
) -> None:
    session = tiny_model.open_session()
    predictions = [step(session, tiny_processor, CONTINUOUS, 0)]
    with pytest.raises(InputError, match="prediction that is not finite"):
        session.get_next_action(tiny_processor, **{**CONTINUOUS.observation(1), "action_space": BOX8, **change})
    predictions += [step(session, tiny_processor, CONTINUOUS, t) for t in range(1, 4)]
    assert golden.relative_error(predictions, CONTINUOUS.predictions[:4]) <= 1e-5


def test_acting_during_training(tiny_folder: Any, tiny_processor: JatProcessor) -> None:
    """Training mode gives the same results if dropout is 0. With gradient checkpointing there is no cache: an error."""
    model = JatModel.from_pretrained(tiny_folder).train()
    model.config.return_dict = False
    session = model.open_session()
    predictions = [step(session, tiny_processor, CONTINUOUS, t) for t in range(3)]
    assert golden.relative_error(predictions, CONTINUOUS.predictions[:3]) <= 1e-5
    enable_checkpointing(model)
    with pytest.raises(SessionError, match="expected eval mode"):
        step(session, tiny_processor, CONTINUOUS, 3)
    model.eval()
    assert golden.relative_error(step(session, tiny_processor, CONTINUOUS, 3), CONTINUOUS.predictions[3]) <= 1e-5
