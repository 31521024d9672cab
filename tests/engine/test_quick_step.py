"""The usual step of one agent in two native calls: the same results and errors as by `parse` and `run`, bit for bit."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from helpers import spaces
from helpers.engines import EPISODE, Load, native, play

import jat_engine
from jat_engine import AgentSession, BatchError, InputError, JatEngine, SessionError
from jat_engine.engine.sampling import DRAWS_AHEAD, Sampler
from jat_engine.testing.spaces import Box, Discrete

pytestmark = native

Play = Callable[[JatEngine, AgentSession, dict[str, Any]], Any]
WINDOW, STEPS = 9, 60


class Numbers(np.ndarray):
    """A subclass, whose methods could do anything."""


def apart(x: np.ndarray) -> np.ndarray:
    """Return the same numbers, not contiguous."""
    return np.repeat(x, 2, axis=0)[::2]


def unaligned(x: np.ndarray) -> np.ndarray:
    """Return the same numbers at an odd address."""
    memory = np.zeros(x.nbytes + 1, np.uint8)[1:]
    memory[:] = np.frombuffer(x.tobytes(), np.uint8)
    return memory.view(x.dtype).reshape(x.shape)


SAME: list[Callable[[np.ndarray], Any]] = [
    lambda x: x,
    apart,
    unaligned,
    lambda x: x[::-1][::-1],
    lambda x: x.view(Numbers),
    lambda x: x.tolist(),
    lambda x: tuple(x.tolist()),
    lambda x: x.astype(x.dtype.newbyteorder(">")),
    np.asfortranarray,
    lambda x: torch.from_numpy(x.copy()),
]
"""Forms of one observation."""


def bad_numbers(x: np.ndarray, rng: np.random.Generator) -> Any:
    wrong = x.astype(np.float64)
    wrong[rng.integers(len(x))] = rng.choice([np.nan, np.inf, -np.inf, 1e39, 3e38])  # the last one overflows later
    with np.errstate(over="ignore"):
        narrow = wrong.astype(np.float32)
    choices: list[Any] = [wrong, narrow, x[:-1], x[None], "text", None]
    return choices[rng.integers(len(choices))]


def bad_integers(x: np.ndarray, rng: np.random.Generator) -> Any:
    wrong = x.copy()
    wrong[rng.integers(len(x))] = rng.choice([-1, 10**6, np.iinfo(np.int64).min])
    choices: list[Any] = [wrong, x[:-1], x.astype(np.float32), x[None], None]
    return choices[rng.integers(len(choices))]


def bad_frame(x: np.ndarray, rng: np.random.Generator) -> Any:
    choices: list[Any] = [x.transpose(2, 0, 1), x[:-1], x.astype(np.float32), x.astype(np.int8), x.ravel(), None]
    return choices[rng.integers(len(choices))]


REWARDS = [None, 0.5, -3, True, np.float64(1.25), np.float32(0.1), np.int64(2), np.array(0.5), torch.tensor(0.75)]
REWARDS += [2**53 + 1, 1e-50, -0.0]
BAD_REWARDS = [np.nan, np.inf, 1e39, 10**400, -(2**200), "much", [1.0, 2.0], np.zeros(2), 1j]


def script(kind: str, seed: int) -> list[dict[str, Any]]:
    """Return arguments of steps, most of them usual, with a restart now and then as an empty dict."""
    rng = np.random.default_rng(seed)
    steps = []
    for _ in range(STEPS):
        usual = rng.random() < 0.6
        bad = "" if usual else rng.choice(["", "", "observation", "reward", "space", "fields"])
        given: dict[str, Any] = {"action_space": Discrete(5), "deterministic": bool(rng.integers(2))}
        if kind == "continuous":
            key, wrong = "continuous_observation", bad_numbers
            value: Any = rng.standard_normal(6).astype(rng.choice([np.float32, np.float64]))
            given["action_space"] = Box(-1, 1, (3,))
        elif kind == "image":
            key, wrong = "image_observation", bad_frame
            value = rng.integers(0, 256, (84, 84, 4), dtype=np.uint8)
        else:
            key, wrong = "discrete_observation", bad_integers
            value = rng.integers(0, 8, 6 if kind == "text" else 5)
            if kind == "text":
                given["text_observation"] = "go to the red ball" if usual or rng.random() < 0.7 else "open the door"

        given[key] = value if usual else SAME[rng.integers(len(SAME))](value)
        given["reward"] = REWARDS[rng.integers(2 if usual else len(REWARDS))]
        if not usual and not bad and rng.random() < 0.5:
            options = {"action_clip": "box"} if kind == "continuous" else {"temperature": 0.5, "top_k": 2}
            given |= options if rng.random() < 0.5 or kind == "continuous" else {"action_mask": [1, 0, 1, 1, 0]}
        if bad == "observation":
            given[key] = wrong(value, rng)
        elif bad == "reward":
            given["reward"] = BAD_REWARDS[rng.integers(len(BAD_REWARDS))]
        elif bad == "space":
            others = [Discrete(4), Discrete(5, start=1), Box(-1, 1, (2,)), None, "Discrete", Discrete(10**9)]
            given["action_space"] = others[rng.integers(len(others))]
            given["reward"] = 0.5 if rng.random() < 0.5 else np.nan  # an error of the observation comes first
        elif bad == "fields":
            given["image_observation" if key != "image_observation" else "text_observation"] = "more"
        steps.append({} if rng.random() < 0.1 else given)
    return steps


def by_session(engine: JatEngine, session: AgentSession, arguments: dict[str, Any]) -> Any:
    return session.get_next_action(**arguments, return_prediction=True)


def by_engine(engine: JatEngine, session: AgentSession, arguments: dict[str, Any]) -> Any:
    """Take a step by the general way, which several agents go together."""
    fields = {key: value for key, value in arguments.items() if key.endswith("_observation")}
    options = {key: arguments[key] for key in ("temperature", "top_k", "action_clip") if key in arguments}
    try:
        (result,) = engine.get_next_actions(
            [session],
            [fields],
            [arguments["reward"]],
            arguments["action_space"],
            arguments["deterministic"],
            return_predictions=True,
            action_masks=[arguments["action_mask"]] if "action_mask" in arguments else None,
            **options,
        )
    except BatchError as error:
        raise error.errors[0] from None
    return result


def run(engine: JatEngine, seed: int | None, steps: list[dict[str, Any]], step: Play) -> tuple[list[Any], int]:
    """Return what each step gives or raises and the tokens then cached, and how many of the steps were quick."""
    torch.manual_seed(1)
    seen, num_quick = [], 0
    with engine.open_session(WINDOW, seed=seed) as session:
        for arguments in steps:
            if not arguments:
                session.reset()
                continue
            before = session.episodes.state
            try:
                action, prediction = step(engine, session, arguments)
                outcome: Any = type(action), repr(action), prediction.dtype, prediction.tobytes()
            except (InputError, SessionError) as error:
                outcome = type(error), str(error)
            after = session.episodes.state
            # Only a quick step keeps the observation of the step before.
            num_quick += (
                after is not before
                and None not in (before.last, after.last)
                and (
                    after.last.observations is before.last.observations  # type: ignore[union-attr]
                )
            )
            seen.append((outcome, session.num_cached_tokens, after.num_draws))
    return [*seen, torch.get_rng_state().numpy().tobytes()], num_quick


@pytest.mark.parametrize("seed", [3, None])
@pytest.mark.parametrize("kind", ["continuous", "discrete", "text", "image"])
def test_same_results_and_errors(kind: str, seed: int | None, load: Load) -> None:
    engine = load(backend="cpu", dtype="float32")
    for number in range(2):
        steps = script(kind, number)
        expected, none_quick = run(engine, seed, steps, by_engine)
        outcomes, num_quick = run(engine, seed, steps, by_session)
        assert none_quick == 0
        assert num_quick > STEPS // 6
        for step, (outcome, wanted) in enumerate(zip(outcomes, expected, strict=True)):
            assert outcome == wanted, f"script {number}, step {step}: {steps[min(step, STEPS - 1)]}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("name", ["continuous_cw9", "babyai_sampled", "image_box"])
def test_both_ways_in_turn(name: str, dtype: str, load: Load) -> None:
    """A quick step continues an episode of others, forced actions included, and is continued by them."""
    engine, episode = load(backend="cpu", dtype=dtype), EPISODE[name]
    rng = np.random.default_rng(0)

    def play_on(is_quick: list[bool]) -> list[Any]:
        with engine.open_session(WINDOW, seed=2) as session:
            seen = []
            for t, quick in enumerate(is_quick):
                arguments = {**episode.observation(t), "action_space": episode.space, "reward": episode.reward(t)}
                arguments["deterministic"] = episode.deterministic
                action, prediction = (by_session if quick else by_engine)(engine, session, arguments)
                seen.append((action, prediction.tobytes()))
                if t % 4 == 3:
                    session.force_action(action)
        return seen

    steps = 14
    expected = play_on([False] * steps)
    for _ in range(3):
        assert play_on(rng.integers(0, 2, steps).astype(bool).tolist()) == expected
    assert play_on([True] * steps) == expected


def test_a_mutated_input_counts_as_it_is(load: Load) -> None:
    """Nothing is remembered by the identity of what a caller may change in place."""
    engine = load(backend="cpu", dtype="float32")
    space, numbers = spaces.Discrete(5), np.zeros(6, np.float32)
    with engine.open_session(WINDOW) as session:
        for _ in range(3):
            session.get_next_action(continuous_observation=numbers, action_space=space)
        space.n = np.int64(3)
        _, logits = session.get_next_action(continuous_observation=numbers, action_space=space, return_prediction=True)
        assert logits.shape == (3,)
        numbers[2] = np.nan
        with pytest.raises(InputError, match="continuous_observation: expected finite float32 values, got nan at 2"):
            session.get_next_action(continuous_observation=numbers, action_space=space)


def test_results_belong_to_the_caller(load: Load) -> None:
    """A caller may write to an action and a prediction; the agent's history is another copy."""
    engine, episode = load(backend="cpu", dtype="float32"), EPISODE["continuous_cw9"]
    seen = []
    for writes in (False, True):
        with engine.open_session(WINDOW) as session:
            for t in range(4):
                action, prediction = play(session, episode, t)
                if writes:
                    action[0] = 7.0
                    prediction[:] = 7.0
            seen.append(play(session, episode, 4)[0])
    assert seen[0] == seen[1]


def test_a_closed_engine_is_freed(load: Load, tiny_folder: Any) -> None:
    """A session that is kept does not hold what a quick step needs."""
    engine = JatEngine.from_pretrained(tiny_folder, device="cpu", backend="cpu", dtype="float32")
    session = engine.open_session(WINDOW)
    for t in range(3):
        play(session, EPISODE["continuous_cw9"], t)
    last = session.episodes.state.last
    assert last is not None
    assert last.quick_step is not None
    backend = weakref.ref(engine._runner.backend)
    engine.close()
    gc.collect()
    assert backend() is None
    assert session.episodes.state.last is None


def test_draws_are_those_of_multinomial() -> None:
    """In blocks, and across changes of size."""
    sizes = [3] * (DRAWS_AHEAD + 5) + [7, 7, 3, 5] + [7] * (2 * DRAWS_AHEAD + 1)
    generator = torch.Generator().manual_seed(5)
    expected = [np.log(torch.empty(1, size).exponential_(generator=generator).numpy()) for size in sizes]

    sampler = Sampler(torch.Generator().manual_seed(5), 1)
    for number, size in enumerate(sizes):
        for _ in range(2):  # refused once
            assert np.array_equal(sampler.draw(number, size), expected[number]), number


@pytest.mark.parametrize("is_global", [False, True])
def test_no_draw_is_lost_by_an_interrupt(is_global: bool) -> None:
    """Whenever Ctrl-C comes: before a line of the sampler, or after a function in C that it calls."""
    sizes = [3] * (DRAWS_AHEAD + 2) + [5] * 2
    file = str(Path(jat_engine.__file__).parent / "engine" / "sampling.py")

    def draw(at: int) -> tuple[list[bytes], int]:
        """Return all draws, the `at`-th moment interrupted, and the number of moments."""
        generator = None if is_global else torch.Generator().manual_seed(5)
        torch.manual_seed(5)
        sampler, seen, draws = Sampler(generator, 1), 0, []

        def count(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal seen
            if frame.f_code.co_filename == file and event in ("line", "c_return"):
                seen += 1
                if seen == at:
                    raise KeyboardInterrupt
            return count

        for number, size in enumerate(sizes):
            while len(draws) == number:
                sys.settrace(count)
                sys.setprofile(count)
                try:
                    draws.append(sampler.draw(number, size).tobytes())
                except KeyboardInterrupt:
                    pass
                finally:
                    sys.setprofile(None)
                    sys.settrace(None)
        return draws, seen

    expected, num_moments = draw(0)
    assert num_moments > 100
    for at in range(1, num_moments + 1):
        assert draw(at)[0] == expected, f"moment {at}"


def test_nothing_is_drawn_ahead_from_the_global_generator() -> None:
    torch.manual_seed(5)
    expected = torch.empty(1, 3).exponential_()
    state = torch.get_rng_state()
    torch.manual_seed(5)
    with torch.inference_mode():
        noise = Sampler(None, 1).draw(0, 3)
    assert np.array_equal(noise, np.log(expected.numpy()))
    assert torch.equal(torch.get_rng_state(), state)


def test_draws_in_and_out_of_inference_mode() -> None:
    for generator in (None, torch.Generator().manual_seed(0)):
        sampler = Sampler(generator, 1)
        with torch.inference_mode():
            first = sampler.draw(0, 4).copy()
        assert not np.array_equal(sampler.draw(1, 4), first)
