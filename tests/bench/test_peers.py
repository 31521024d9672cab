"""The peers of the bench: each computes what `JatModel` does, so that what is timed is the same work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jat_engine import JatModel, JatProcessor
from jat_engine.bench.peers import Unavailable, open_peer, torch_compile
from jat_engine.bench.peers.registry import EXPORTED
from jat_engine.bench.peers.static_step import masks
from jat_engine.bench.workload import SPACES, observation, step_arguments
from jat_engine.testing.golden import relative_error

WINDOW, STEPS = 16, 26  # the ring is full after 9 steps and turns; local layers see 12 tokens
IN_FLOAT32 = [name for name, peer in EXPORTED.items() if "float32" in peer.dtypes]
KEYS = {
    "continuous_observation": "continuous_observations",
    "discrete_observation": "discrete_observations",
    "text_observation": "text_observations",
    "image_observation": "image_observations",
}


@pytest.fixture(scope="module")
def opened(tiny_folder: Path) -> Iterator[Callable[[str], Any]]:
    """Peers in float32, each made once."""
    made: dict[str, Any] = {}

    def opened(name: str) -> Any:
        if name not in made:
            try:
                if name == "torch.compile":  # compiling takes a minute
                    made[name] = torch_compile.open_peer(tiny_folder, "float32", backend="eager")
                else:
                    made[name] = open_peer(name, tiny_folder, "float32")
            except Unavailable as reason:
                pytest.skip(str(reason))
        return made[name]

    yield opened
    for peer in made.values():
        peer.close()


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("name", IN_FLOAT32)
def test_like_the_model(name: str, kind: str, tiny_folder: Path, opened: Callable[[str], Any]) -> None:
    """Past a full ring, with actions that are not the ones it chose; and again after `reset`."""
    agent = opened(name).open(WINDOW)
    model, processor = JatModel.from_pretrained(tiny_folder).eval(), JatProcessor.from_pretrained(tiny_folder)
    rng = np.random.default_rng(0)
    for steps in (STEPS, 2):
        session = model.open_session()
        agent.reset()
        predictions, expected = [], []
        for step in range(steps):
            arguments = step_arguments(kind, step)
            predictions.append(agent.get_next_action(**arguments, return_prediction=True)[1])
            _, prediction = session.get_next_action(
                processor, **arguments, context_window=WINDOW, return_prediction=True
            )
            expected.append(prediction)
            action: Any = rng.standard_normal(8).astype(np.float32).tolist()
            if kind != "continuous":
                action = int(rng.integers(SPACES[kind].n))
            agent.force_action(action)
            session.force_action(action)
        assert relative_error(predictions, expected) < 1e-4


@pytest.mark.parametrize("name", [name for name, peer in EXPORTED.items() if "int4" in peer.dtypes])
def test_four_bits_are_near_the_model_and_not_it(name: str, tiny_folder: Path) -> None:
    """Of every kind of observation, whose encoders have 4 bits, too."""
    model, processor = JatModel.from_pretrained(tiny_folder).eval(), JatProcessor.from_pretrained(tiny_folder)
    try:
        peer = open_peer(name, tiny_folder, "int4")
    except Unavailable as reason:
        pytest.skip(str(reason))
    for kind in SPACES:
        agent, session = peer.open(WINDOW), model.open_session()
        predictions, expected = [], []
        for step in range(8):
            arguments = step_arguments(kind, step)
            predictions.append(agent.get_next_action(**arguments, return_prediction=True)[1].copy())
            action, prediction = session.get_next_action(
                processor, **arguments, context_window=WINDOW, return_prediction=True
            )
            expected.append(prediction)
            agent.force_action(action)
        assert 0.02 < relative_error(np.concatenate(predictions), np.concatenate(expected)) < 0.6
    peer.close()


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("name", IN_FLOAT32)
def test_batch_like_single_agents(name: str, kind: str, opened: Callable[[str], Any]) -> None:
    peer = opened(name)
    seeds = (0, 1, 2)
    batch, agents = peer.open_batch(len(seeds), 4, kind), [peer.open(4) for _ in seeds]
    for step in range(5):
        seen = [observation(kind, step, seed) for seed in seeds]
        stacked = {KEYS[key]: [one[key] for one in seen] for key in seen[0]}
        arguments = {"action_space": SPACES[kind], "deterministic": True}
        actions, predictions = batch.get_next_actions(
            **stacked, **arguments, rewards=[0.1, 0.2, 0.3], return_predictions=True
        )
        for index, agent in enumerate(agents):
            action, prediction = agent.get_next_action(
                **seen[index], **arguments, reward=(index + 1) / 10, return_prediction=True
            )
            assert relative_error(predictions[index], prediction) < 1e-4
            assert np.allclose(actions[index], action, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "dtype", "package"),
    [
        ("onnxruntime", "float32", "onnxruntime"),
        ("openvino", "bfloat16", "openvino"),
        ("openvino", "int8", "nncf"),
        ("openvino", "int4", "nncf"),
        ("onnxruntime-g128", "int4", "onnxruntime"),
    ],
)
def test_a_missing_package_is_told(
    name: str, dtype: str, package: str, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # its import fails
    with pytest.raises(Unavailable, match=rf"pip install .*{package}"):
        open_peer(name, tiny_folder, dtype)


@pytest.mark.parametrize(("name", "dtype"), [("torch.compile", "int4"), ("onnxruntime", "bfloat16")])
def test_dtypes_a_peer_has_not(name: str, dtype: str, tiny_folder: Path) -> None:
    with pytest.raises(Unavailable, match=dtype):
        open_peer(name, tiny_folder, dtype)


def test_masks() -> None:
    """A full ring of 4 with its oldest token in slot 2: indices 2 3 0 1, then 4 5 6. Local rows see 3 tokens."""
    mask_global, mask_local = masks(4, 3, 4, 2)
    assert (mask_global == 0).tolist() == [[True] * n + [False] * (7 - n) for n in (5, 6, 7)]
    assert [np.flatnonzero(row == 0).tolist() for row in mask_local] == [[0, 1, 4], [1, 4, 5], [4, 5, 6]]
