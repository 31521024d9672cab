"""Options of a call: masks, temperature, top-k and clipping, for sessions, batches and the reference."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers.engines import BOX8, EPISODE, NATIVE, Load

from jat_engine import BatchError, InputError, JatEngine, JatModel, JatProcessor, SessionError
from jat_engine.action_options import parse_options

BACKENDS = ["torch", pytest.param("cpu", marks=pytest.mark.skipif(NATIVE is None, reason="no native module"))]
CHOICES = spaces.Discrete(9)
NUMBERS = np.random.default_rng(0).standard_normal((400, 4)).astype(np.float32)

Options = dict[str, Any]
Open = Callable[..., Any]


@pytest.fixture(params=[*BACKENDS, "model"])
def open_agent(
    request: pytest.FixtureRequest, load: Load, tiny_model: JatModel, tiny_processor: JatProcessor
) -> Callable[[], tuple[Any, Callable[..., Any]]]:
    """Return a function that opens an agent, and returns it with its `get_next_action`."""

    def open_one() -> tuple[Any, Callable[..., Any]]:
        if request.param == "model":
            session = tiny_model.open_session()
            return session, lambda **fields: session.get_next_action(tiny_processor, **fields)
        agent = load(backend=request.param, dtype="float32").open_session(16)
        return agent, agent.get_next_action

    return open_one


def probabilities(logits: np.ndarray, options: Options) -> torch.Tensor:
    """Return the distribution that a call samples from, for each row of logits, by another way than the package's."""
    rows = torch.tensor(logits)
    if "mask" in options:
        rows[~torch.tensor(options["mask"])] = -torch.inf
    if "top_k" in options:
        smallest = rows.topk(min(options["top_k"], rows.shape[-1])).values[..., -1:]
        rows[rows < smallest] = -torch.inf
    return (rows / options.get("temperature", 1.0)).softmax(-1)


def random_options(rng: np.random.Generator, shape: tuple[int, ...]) -> Options:
    """Return some of the options; a mask allows at least one choice in each row of `shape`."""
    options: Options = {}
    if rng.random() < 0.7:
        options["mask"] = rng.random(shape) < 0.5
        options["mask"][..., rng.integers(shape[-1])] = True
    if rng.random() < 0.5:
        options["temperature"] = float(rng.choice([0.2, 0.7, 1.0, 3.0]))
    if rng.random() < 0.5:
        options["top_k"] = int(rng.integers(1, shape[-1] + 3))
    return options


# ---- sampling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_sessions_draw_as_multinomial(backend: str, load: Load) -> None:
    """One draw per step, whatever the options; none with temperature 0."""
    rng, generator = np.random.default_rng(1), torch.Generator().manual_seed(7)
    with load(backend=backend, dtype="float32").open_session(16, seed=7) as session:
        for numbers in NUMBERS:
            options = random_options(rng, (9,))
            is_greedy = rng.random() < 0.2
            given = {name: value for name, value in options.items() if name != "mask"}
            action, logits = session.get_next_action(
                continuous_observation=numbers,
                action_space=CHOICES,
                return_prediction=True,
                action_mask=options.get("mask"),
                **{**given, **({"temperature": 0} if is_greedy else {})},
            )
            assert np.isfinite(logits).all()  # of all choices
            expected = probabilities(logits, options)
            if is_greedy:
                assert action == int(expected.argmax())
            else:
                assert action == int(torch.multinomial(expected, 1, generator=generator))


@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_draw_as_multinomial(backend: str, load: Load) -> None:
    """Thousands of samples, none of which is a masked choice."""
    rng, generator = np.random.default_rng(2), torch.Generator().manual_seed(8)
    engine = load(backend=backend, dtype="float32", max_cached_tokens=16 * 2 * 400)
    with engine.open_batch(400, 1, seed=8) as batch:
        for _ in range(10):
            options = random_options(rng, (400, 9))
            actions, logits = batch.get_next_actions(
                continuous_observations=NUMBERS,
                action_space=CHOICES,
                return_predictions=True,
                action_masks=options.get("mask"),
                temperature=options.get("temperature"),
                top_k=options.get("top_k"),
            )
            expected = torch.multinomial(probabilities(logits, options), 1, generator=generator)[:, 0]
            assert actions.tolist() == expected.tolist()
            if "mask" in options:
                assert options["mask"][np.arange(400), actions].all()


def test_sampling_follows_the_restricted_distribution(load: Load) -> None:
    engine = load(backend="auto", dtype="float32", max_cached_tokens=16 * 2 * 3000)
    options: Options = {"mask": np.tile(np.arange(9) != 4, (3000, 1)), "temperature": 0.5, "top_k": 5}
    with engine.open_batch(3000, 1, seed=0) as batch:
        actions, logits = batch.get_next_actions(
            continuous_observations=np.ones((3000, 4)),
            action_space=CHOICES,
            return_predictions=True,
            action_masks=options["mask"],
            temperature=0.5,
            top_k=5,
        )
    expected = probabilities(logits, options)[0].numpy()
    frequencies = np.bincount(actions, minlength=9) / 3000
    assert (expected > 0).sum() == 5
    assert not frequencies[expected == 0].any()
    assert np.abs(frequencies - expected).max() < 0.04


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_reference_chooses_alike(
    backend: str, load: Load, tiny_model: JatModel, tiny_processor: JatProcessor
) -> None:
    """In drop-in calls, for the same state of torch's global generator."""
    engine, rng = load(backend=backend, dtype="float32"), np.random.default_rng(3)
    engine.reset_rl()
    tiny_model.reset_rl()
    for t, numbers in enumerate(NUMBERS[:100]):
        options = random_options(rng, (9,))
        fields = {
            "continuous_observation": numbers,
            "action_space": CHOICES,
            "context_window": 12,
            "action_mask": options.get("mask"),
            "temperature": options.get("temperature"),
            "top_k": options.get("top_k"),
            "deterministic": bool(t % 5 == 0),
        }
        chosen = []
        for act in (engine.get_next_action, tiny_model.get_next_action):
            torch.manual_seed(t)
            chosen.append(act(tiny_processor, **fields))
        assert chosen[0] == chosen[1]
        assert "mask" not in options or options["mask"][chosen[0]]


def test_masks_of_any_agent(open_agent: Open) -> None:
    """Sampled and greedy; as bools, as an environment's int8, as a list and as a tensor."""
    _, act = open_agent()
    rng = np.random.default_rng(4)
    for t, numbers in enumerate(NUMBERS[:100]):
        mask = rng.permutation(9) < 1 + t % 3
        given = [mask, mask.astype(np.int8), mask.tolist(), torch.tensor(mask)][t % 4]
        fields = {"continuous_observation": numbers, "action_space": CHOICES, "return_prediction": True}
        action, logits = act(**fields, action_mask=given, deterministic=t % 2 == 0)
        assert type(action) is int
        assert mask[action]
        if t % 2 == 0:
            assert action == np.flatnonzero(mask)[logits[mask].argmax()]


@pytest.mark.parametrize("temperature", [1e-300, 1e-38, 1e38, 1e300, 10**400, np.float32(1e-45)])
def test_extreme_temperatures(temperature: Any, open_agent: Open) -> None:
    """Small ones take the most likely choice, great ones any; numbers overflow nowhere, if numpy raises."""
    _, act = open_agent()
    mask, chosen = np.arange(9) != 2, set()
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        for numbers in NUMBERS[:60]:
            fields = {"continuous_observation": numbers, "action_space": CHOICES, "return_prediction": True}
            action, logits = act(**fields, action_mask=mask, temperature=temperature)
            assert mask[action]
            chosen.add(action)
            if temperature < 1:
                assert action == np.where(mask, logits, -np.inf).argmax()
    if temperature > 1:
        assert chosen == set(np.flatnonzero(mask))


def test_a_prediction_that_overflows_is_refused(open_agent: Open) -> None:
    """As without a mask, also if numpy raises at operations on infinities."""
    agent, act = open_agent()
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        with pytest.raises(InputError, match="prediction that is not finite"):
            act(continuous_observation=np.full(4, 1e38), action_space=CHOICES, action_mask=np.arange(9) < 3)
    assert agent.num_cached_tokens == 0


def test_equal_logits(tiny_folder: Path, tiny_processor: JatProcessor) -> None:
    """The top k are exactly k, the first of equals; with k = 1 the choice is the deterministic one."""
    model = JatModel.from_pretrained(tiny_folder)
    with torch.no_grad():
        model.single_discrete_decoder.weight.zero_()
    engine = JatEngine.from_model(model, tiny_processor, device="cpu", dtype="float32", backend="torch")
    mask = np.arange(9) >= 3
    fields = {"continuous_observation": NUMBERS[0], "action_space": CHOICES, "action_mask": mask}
    with engine.open_session(4, seed=0) as session:
        reference = model.open_session()
        torch.manual_seed(0)
        for k, expected in [(1, {3}), (2, {3, 4}), (100, {3, 4, 5, 6, 7, 8})]:
            assert {session.get_next_action(**fields, top_k=k) for _ in range(60)} == expected
            assert {reference.get_next_action(tiny_processor, **fields, top_k=k) for _ in range(60)} == expected
        assert session.get_next_action(**fields, deterministic=True) == 3
        with torch.no_grad():
            model.single_discrete_decoder.weight.fill_(1e12)
        assert reference.get_next_action(tiny_processor, **fields, temperature=1e-30) >= 3  # logits / T would overflow


# ---- several sessions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_sessions_together_are_each_alone(backend: str, load: Load) -> None:
    """Options for all apply to the sessions whose actions they fit; masks are each session's own."""
    engine = load(backend=backend, dtype="float32")
    names = ["continuous_discrete_action", "continuous_cw9", "babyai_sampled"]
    episodes = [EPISODE[name] for name in names]
    masks = [np.arange(episodes[0].space.n) % 2 == 0, None, [0, 0, 1] + [1] * (episodes[2].space.n - 3)]
    box = spaces.Box(-0.01, 0.01, episodes[1].space.shape)
    action_spaces = [episodes[0].space, box, episodes[2].space]

    together = [engine.open_session(9, seed=seed) for seed in range(3)]
    alone = [engine.open_session(9, seed=seed) for seed in range(3)]
    for t in range(8):
        actions = engine.get_next_actions(
            together,
            [episode.observation(t) for episode in episodes],
            [episode.reward(t) for episode in episodes],
            action_spaces,
            action_masks=masks,
            temperature=2.0,
            top_k=3,
            action_clip="box",
        )
        for index, (session, episode) in enumerate(zip(alone, episodes, strict=True)):
            options: Options = {"action_mask": masks[index], "temperature": 2.0, "top_k": 3}
            expected = session.get_next_action(
                **episode.observation(t),
                reward=episode.reward(t),
                action_space=action_spaces[index],
                **({"action_clip": "box"} if index == 1 else options),
            )
            assert actions[index] == expected
        assert np.abs(actions[1]).max() <= 0.01
    for session in [*together, *alone]:
        session.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_session_can_have_options_of_its_own(backend: str, load: Load) -> None:
    engine = load(backend=backend, dtype="float32")
    episodes = [EPISODE[name] for name in ("babyai_sampled", "babyai_sampled", "continuous_cw9")]
    boxes = [spaces.Box(-0.01, 0.01, episode.space.shape) for episode in episodes[2:]]
    action_spaces = [episodes[0].space, episodes[1].space, *boxes]
    together = [engine.open_session(40, seed=seed) for seed in range(3)]
    alone = [engine.open_session(40, seed=seed) for seed in range(3)]
    for t in range(10):
        inputs = {"observations": [episode.observation(t) for episode in episodes], "action_spaces": action_spaces}
        actions = engine.get_next_actions(
            together,
            **inputs,
            rewards=[episode.reward(t) for episode in episodes],
            deterministic=[False, t % 2 == 0, False],
            temperature=[0.5, None, None],
            top_k=(3, None, None),
            action_clip=[None, None, "box"],
            context_windows=[None, 6, None],
        )
        for index, (session, episode) in enumerate(zip(alone, episodes, strict=True)):
            own: Options = [{"temperature": 0.5, "top_k": 3}, {}, {"action_clip": "box"}][index]
            options = parse_options(None, own.get("temperature"), own.get("top_k"), own.get("action_clip"))
            window, deterministic = 6 if index == 1 else None, index == 1 and t % 2 == 0
            step = episode.observation(t), episode.reward(t), action_spaces[index], deterministic, False
            assert actions[index] == session.step(*step, window, options)

    inputs = {"observations": [episode.observation(10) for episode in episodes], "action_spaces": action_spaces}
    with pytest.raises(BatchError) as caught:
        engine.get_next_actions(together, **inputs, deterministic=[True, 1, True], context_windows=[None, None, 50])
    assert isinstance(caught.value.actions[0], int)
    assert "deterministic: expected True or False" in str(caught.value.errors[1])
    assert "context_window: expected at most 40" in str(caught.value.errors[2])
    with pytest.raises(BatchError) as caught:
        engine.get_next_actions(together, **inputs, top_k=[0, None, None])
    assert list(caught.value.errors) == [0]
    with pytest.raises(InputError, match="temperature: expected one for each of 3 sessions, got 2"):
        engine.get_next_actions(together, **inputs, temperature=[1.0, 1.0])
    for session in [*together, *alone]:
        session.close()


def test_a_mask_costs_only_its_own_session(load: Load) -> None:
    engine = load(backend="torch", dtype="float32")
    observations = [{"continuous_observation": NUMBERS[0]}] * 3
    sessions = [engine.open_session(9, seed=0) for _ in range(3)]
    masks = [np.arange(9) == 5, np.zeros(9, bool), np.ones(8, bool)]
    with pytest.raises(BatchError) as caught:
        engine.get_next_actions(sessions, observations, action_spaces=CHOICES, action_masks=masks)
    assert caught.value.actions == [5, None, None]
    assert "at least one allowed action, got none of 9" in str(caught.value.errors[1])
    assert r"of shape (9,)" in str(caught.value.errors[2])
    with pytest.raises(InputError, match="action_masks: expected one for each of 3 sessions, got 2"):
        engine.get_next_actions(sessions, observations, action_spaces=CHOICES, action_masks=masks[:2])
    with pytest.raises(InputError, match="top_k: expected None or an integer >= 1, got 0"):
        engine.get_next_actions(sessions, observations, action_spaces=CHOICES, top_k=0)
    with pytest.raises(BatchError, match="action_mask: expected a Discrete for action_space"):
        engine.get_next_actions(sessions[1:], observations[1:], action_spaces=BOX8, action_masks=[None, masks[0]])
    for session in sessions:
        session.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_is_each_session(backend: str, load: Load) -> None:
    engine, rng = load(backend=backend, dtype="float32"), np.random.default_rng(5)
    box = spaces.Box(np.float32([-0.02, -np.inf]), np.float32([0.01, 0.0]))
    for space in (CHOICES, box):
        sessions = [engine.open_session(6) for _ in range(3)]
        with engine.open_batch(3, 6) as batch:
            for t in range(8):
                rows, masks = NUMBERS[3 * t : 3 * t + 3], rng.random((3, 9)) < 0.5
                masks[:, t] = True
                options: Options = {"action_clip": "box"} if space is box else {"temperature": 0}
                own = options if space is box else {**options, "action_masks": masks}
                actions = batch.get_next_actions(continuous_observations=rows, action_space=space, **own)
                for index, session in enumerate(sessions):
                    own = options if space is box else {**options, "action_mask": masks[index]}
                    action = session.get_next_action(continuous_observation=rows[index], action_space=space, **own)
                    assert np.array_equal(action, actions[index])
        for session in sessions:
            session.close()


# ---- clipping ------------------------------------------------------------------------------------------------------


def test_clipped_actions_are_those_of_the_history(open_agent: Open) -> None:
    """Without the option, an action is the prediction."""
    low = np.array([-0.02, -np.inf, -0.05, -np.inf, 0.5, -3, -3, -3], np.float32)
    high = np.array([0.01, 0.0, np.inf, np.inf, 0.75, 3, 3, -0.5], np.float32)
    box = spaces.Box(low, high)
    (_, act), (forced, act_forced) = open_agent(), open_agent()
    for numbers in NUMBERS[:20]:
        fields = {"continuous_observation": numbers, "action_space": box, "return_prediction": True}
        action, prediction = act(**fields, action_clip="box")
        unclipped, expected = act_forced(**fields)
        assert isinstance(action, list)
        assert np.array_equal(prediction, expected)
        assert unclipped == expected.tolist()
        assert action == np.clip(expected, low, high).tolist()
        assert action != unclipped
        forced.force_action(action)


def test_clipped_actions_are_in_the_box(open_agent: Open) -> None:
    """Bounds that float32 does not have are rounded inwards."""
    bound = np.array([0.1, 1e-3, 1 / 3, 0.7, 0.9, 1e-9, 0.3, 0.15])
    sides = np.where(np.arange(8) < 4, -bound, bound)
    wide = np.where(np.arange(8) < 1, 1e300, 1e-60)  # of these, float32 has infinity and 0
    for low, high in [(-bound, bound), (np.minimum(sides, 2 * sides), np.maximum(sides, 2 * sides)), (-wide, wide)]:
        box = spaces.Box(low, high, dtype=np.float64)
        _, act = open_agent()
        for numbers in NUMBERS[:10]:
            with np.errstate(all="raise"):
                action = act(continuous_observation=numbers, action_space=box, action_clip="box")
            assert box.contains(np.array(action))


# ---- padding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [None, "go to the red ball"])
def test_fewer_integers_are_padded_with_zeros(text: str | None, open_agent: Open) -> None:
    size = 212 if text is None else 148
    mission = {} if text is None else {"text_observation": text}
    fields = {**mission, "action_space": CHOICES, "deterministic": True, "return_prediction": True}
    integers = np.random.default_rng(6).integers(1, 200, (12, 7))
    (agent, act), (_, act_padded) = open_agent(), open_agent()
    for row in integers:
        padded = np.pad(row, (0, size - 7))
        assert np.array_equal(
            act(discrete_observation=row, **fields)[1], act_padded(discrete_observation=padded, **fields)[1]
        )
    with pytest.raises(SessionError, match="expected 7 values as before in this episode, got 8"):
        act(discrete_observation=[*row, 0], **fields)
    with pytest.raises(SessionError, match=f"expected 7 values as before in this episode, got {size}"):
        act(discrete_observation=padded, **fields)
    agent.reset()
    for wrong in ([], [row], np.zeros(size + 1, int)):
        with pytest.raises(InputError, match=f"discrete_observation: expected 1 to {size} integers"):
            act(discrete_observation=wrong, **fields)
    for wrong in ([-1], [257]):
        with pytest.raises(InputError, match=r"discrete_observation: expected values in \[0, 257\)"):
            act(discrete_observation=wrong, **fields)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("text", [None, "go to the red ball"])
def test_batches_are_padded(text: str | None, backend: str, load: Load) -> None:
    size = 212 if text is None else 148
    mission = {} if text is None else {"text_observations": [text] * 3}
    fields = {**mission, "action_space": CHOICES, "deterministic": True, "return_predictions": True}
    integers = np.random.default_rng(6).integers(1, 200, (5, 3, 7))
    engine = load(backend=backend, dtype="float32")
    with engine.open_batch(3, 6) as batch, engine.open_batch(3, 6) as padded:
        for rows in integers:
            wide = np.pad(rows, ((0, 0), (0, size - 7)))
            given = batch.get_next_actions(discrete_observations=rows.astype(np.int16), **fields)
            expected = padded.get_next_actions(discrete_observations=wide, **fields)
            assert np.array_equal(given[1], expected[1])
        with pytest.raises(SessionError, match="expected 7 values as before in this episode, got 6"):
            batch.get_next_actions(discrete_observations=rows[:, 1:], **fields)
        batch.reset()
        for wrong in (np.zeros((3, 0), int), np.zeros((3, size + 1), int), rows[0], rows[:2]):
            with pytest.raises(InputError, match=rf"discrete_observations: expected \[3, 1 to {size}\] integers"):
                batch.get_next_actions(discrete_observations=wrong, **fields)


# ---- errors --------------------------------------------------------------------------------------------------------

NINE, EIGHT = {"action_space": CHOICES}, {"action_space": BOX8}
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("shape", {**NINE, "action_mask": np.ones(8, bool)}, r"action_mask: expected bools of shape \(9,\).* got ndarray"),
    ("rows", {**NINE, "action_mask": np.ones((1, 9), bool)}, r"action_mask: expected bools of shape \(9,\)"),
    ("floats", {**NINE, "action_mask": np.ones(9)}, "action_mask: expected bools .* dtype float64"),
    ("indices", {**NINE, "action_mask": np.arange(9)}, "action_mask: expected bools .* got integers from 0 to 8"),
    ("word", {**NINE, "action_mask": "left"}, "action_mask: expected bools .* got str 'left'"),
    ("nothing", {**NINE, "action_mask": np.zeros(9, bool)}, "expected at least one allowed action, got none"),
    ("mask of a Box", {**EIGHT, "action_mask": np.ones(8, bool)}, "action_mask: expected a Discrete .* Box"),
    ("cold", {**NINE, "temperature": -0.5}, "temperature: expected None or a finite number >= 0, got -0.5"),
    ("NaN", {**NINE, "temperature": np.nan}, "temperature: expected None or a finite number"),
    ("infinite", {**NINE, "temperature": np.inf}, "temperature: expected None or a finite number"),
    ("flag", {**NINE, "temperature": True}, "temperature: expected None or a finite number"),
    ("text", {**NINE, "temperature": "1"}, "temperature: expected None or a finite number"),
    ("temperature of a Box", {**EIGHT, "temperature": 1.0}, "temperature: expected a Discrete .* continuous"),
    ("none of them", {**NINE, "top_k": 0}, "top_k: expected None or an integer >= 1, got 0"),
    ("half", {**NINE, "top_k": 1.5}, "top_k: expected None or an integer >= 1, got 1.5"),
    ("top_k flag", {**NINE, "top_k": True}, "top_k: expected None or an integer >= 1, got True"),
    ("top_k of a Box", {**EIGHT, "top_k": 3}, "top_k: expected a Discrete"),
    ("another word", {**EIGHT, "action_clip": "tanh"}, "action_clip: expected None or 'box', got 'tanh'"),
    ("bounds", {**EIGHT, "action_clip": (-1, 1)}, r"action_clip: expected None or 'box', got \(-1, 1\)"),
    ("clip of choices", {**NINE, "action_clip": "box"}, r"action_clip: expected a Box .* got Discrete\(9\).* discrete"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_options_change_nothing(fields: dict[str, Any], message: str, open_agent: Open) -> None:
    agent, act = open_agent()
    act(continuous_observation=NUMBERS[0], action_space=fields["action_space"])
    state = agent._episode.state if hasattr(agent, "_episode") else agent.episodes.state
    with pytest.raises(InputError, match=message):
        act(continuous_observation=NUMBERS[1], **fields)
    assert (agent._episode.state if hasattr(agent, "_episode") else agent.episodes.state) is state


def test_bad_options_of_batches(load: Load) -> None:
    engine = load(backend="torch", dtype="float32")
    good = np.ones((3, 9), bool)
    for space, options, message in [
        (CHOICES, {"action_masks": good[:2]}, r"action_masks: expected bools of shape \(3, 9\)"),
        (CHOICES, {"action_masks": good[0]}, r"action_masks: expected bools of shape \(3, 9\)"),
        (CHOICES, {"action_masks": [None, good[0], good[0]]}, "action_masks: expected bools"),
        (CHOICES, {"action_masks": good & [[True], [False], [False]]}, r"got none of 9 for agents \[1, 2\]"),
        (BOX8, {"action_masks": good}, "action_masks: expected a Discrete for action_space"),
        (BOX8, {"temperature": 2.0}, "temperature: expected a Discrete"),
        (CHOICES, {"top_k": -1}, "top_k: expected None or an integer >= 1"),
        (CHOICES, {"action_clip": "box"}, "action_clip: expected a Box"),
    ]:
        with engine.open_batch(3, 8) as batch:
            with pytest.raises(InputError, match=message):
                batch.get_next_actions(continuous_observations=NUMBERS[:3], action_space=space, **options)
            assert batch.num_cached_tokens.tolist() == [0, 0, 0]


def test_boxes_without_bounds(open_agent: Open) -> None:
    """Spaces are recognised by name: what is called a Box may have no bounds, or unusable ones."""

    class Box:
        shape = (8,)

    class Crossed(Box):
        low, high = np.full(8, 1.0), np.full(8, -1.0)

    class Short(Box):
        low, high = np.zeros(7), np.ones(7)

    class Unordered(Box):
        low, high = np.full(8, np.nan), np.ones(8)

    class Plain(Box):
        low, high = -0.01, 0.01

    _, act = open_agent()
    for space in (Box(), Crossed(), Short(), Unordered()):
        with pytest.raises(InputError, match=r"action_clip: expected an action_space with low <= high of shape \(8,\)"):
            act(continuous_observation=NUMBERS[0], action_space=space, action_clip="box")
    assert np.abs(act(continuous_observation=NUMBERS[0], action_space=Plain(), action_clip="box")).max() <= 0.01


def test_a_recorded_episode_with_options_that_allow_all(load: Load) -> None:
    """A mask of all choices, temperature 1 and a top k of all: bit for bit the published sampling."""
    engine, episode = load(backend="auto", dtype="float32"), EPISODE["babyai_sampled"]
    n = int(episode.space.n)
    found = []
    options: Options
    for options in ({}, {"action_mask": np.ones(n, bool), "temperature": 1, "top_k": n}):
        with engine.open_session(9, seed=0) as session:
            found.append(
                [
                    session.get_next_action(
                        **episode.observation(t), action_space=episode.space, reward=episode.reward(t), **options
                    )
                    for t in range(12)
                ]
            )
    assert found[0] == found[1]
