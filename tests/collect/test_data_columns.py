"""Check rows of a dataset: every fault is named with its place."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import pytest

from jat_engine import DataError
from jat_engine.config import FRAME_SHAPE
from jat_engine.datasets.schema import FRAMES_SHAPE, check_columns, check_episode, task_columns, task_features
from jat_engine.envs import TASKS

pytestmark = pytest.mark.versions


def continuous(**changed: Any) -> dict[str, Any]:
    columns = {
        "continuous_observations": [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]],
        "continuous_actions": np.zeros((3, 1), np.float32),
        "rewards": [0, 1, 2],
    }
    return {name: value for name, value in {**columns, **changed}.items() if value is not None}


def discrete(**changed: Any) -> dict[str, Any]:
    columns = {
        "text_observations": ["go", "go"],
        "discrete_observations": np.ones((2, 148), np.int64),
        "discrete_actions": [0, 6],
        "rewards": [0.0, 0.5],
    }
    return {**columns, **changed}


def image(**changed: Any) -> dict[str, Any]:
    columns = {
        "image_observations": np.zeros((2, 84, 84, 4), np.uint8),
        "discrete_actions": [0, 6],
        "rewards": [0.0, 0.5],
    }
    return {**columns, **changed}


def test_columns_and_types_of_tasks_are_those_published() -> None:
    assert FRAMES_SHAPE == FRAME_SHAPE
    assert task_columns(TASKS["atari-pong"]) == ("image_observations", "discrete_actions", "rewards")
    assert task_columns(TASKS["mujoco-ant"]) == ("continuous_observations", "continuous_actions", "rewards")
    names = ("text_observations", "discrete_observations", "discrete_actions", "rewards")
    assert task_columns(TASKS["babyai-open"]) == names
    number, integer = datasets.Value("float32"), datasets.Value("int64")
    assert task_features(TASKS["atari-pong"]) == datasets.Features(
        {
            "image_observations": datasets.Sequence(datasets.Image()),
            "discrete_actions": datasets.Sequence(integer),
            "rewards": datasets.Sequence(number),
        }
    )
    assert task_features(TASKS["metaworld-reach"])["continuous_actions"] == datasets.Sequence(datasets.Sequence(number))
    features = task_features(TASKS["babyai-open"])
    assert features["discrete_observations"] == datasets.Sequence(datasets.Sequence(integer))
    assert features["text_observations"] == datasets.Sequence(datasets.Value("string"))


def test_a_good_episode_comes_back_in_the_stored_types() -> None:
    episode = check_episode(continuous(), source="x", task=TASKS["mujoco-pendulum"])
    assert {name: (value.shape, value.dtype.name) for name, value in episode.items()} == {
        "continuous_observations": ((3, 2), "float32"),
        "continuous_actions": ((3, 1), "float32"),
        "rewards": ((3,), "float32"),
    }
    given = discrete()
    episode = check_episode(dict(reversed(given.items())), source="x", task=TASKS["babyai-open"])
    assert list(episode) == list(given)
    assert episode["text_observations"] == ["go", "go"]
    assert episode["discrete_observations"] is given["discrete_observations"]  # right already: no copy
    assert check_episode(image(), source="x")["image_observations"].shape == (2, 84, 84, 4)


def without(columns: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in columns.items() if key != name}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (continuous(rewards=None), "column 'rewards' is missing.*got continuous_observations, continuous_actions"),
        (continuous(extra=[1]), "column 'extra': expected only continuous_observations"),
        (continuous(continuous_observations=None), "observation columns: expected .* got none of them"),
        (continuous(image_observations=[1]), "observation columns: .* got continuous_observations, image_observations"),
        (continuous(discrete_actions=[1, 1, 1]), "action columns: .* got continuous_actions, discrete_actions"),
        (without(discrete(), "discrete_observations"), "observation columns: .* got text_observations"),
        (continuous(rewards=[0, 1]), "number of steps in every column, got .*continuous_actions 3, rewards 2"),
        (continuous(rewards=[]), "column rewards: expected at least one step, got none"),
        (continuous(rewards=3.0), r"column rewards: expected numbers \[steps\], got float"),
        (continuous(rewards=[0, np.nan, 1]), "column rewards, step 1: expected a finite number, got nan"),
        (continuous(rewards=[0, 1e300, 1]), "column rewards, step 1: expected a finite number, got inf"),
        (continuous(rewards=["a", "b", "c"]), "column rewards: expected .* as float32, got <U1"),
        (continuous(rewards=[0, None, 1]), "column rewards, step 1: .* got no value"),
        (continuous(rewards=[[0], [1], [2]]), r"column rewards: expected numbers \[steps\], got shape \[3, 1\]"),
        (
            continuous(continuous_observations=[[0, 1], [2], [3, 4]]),
            r"column continuous_observations, step 1: expected shape \[2\] as in step 0, got \[1\]",
        ),
        (
            continuous(continuous_observations=[[0, 1], [2, 3], [3, None]]),
            "column continuous_observations, step 2: .* missing values",
        ),
        (
            continuous(continuous_actions=np.array([[0.0], [1.0], [np.inf]])),
            r"column continuous_actions, step 2 \(element 0\): expected a finite number, got inf",
        ),
        (continuous(continuous_observations=[[], [], []]), r"continuous_observations: expected .* got shape \[3, 0\]"),
        (discrete(discrete_actions=[0, -1]), "column discrete_actions, step 1: expected an integer of at least 0"),
        (discrete(discrete_actions=[0.0, 1.0]), "column discrete_actions: .* as int64, got float64"),
        (discrete(text_observations="go"), "column text_observations: expected a list with a string for each step"),
        (discrete(text_observations=["go", None]), "column text_observations, step 1: .* got NoneType"),
        (image(image_observations=np.zeros((2, 4, 84, 84), np.uint8)), r"frames .* got shape \[2, 4, 84, 84\]"),
        (image(image_observations=np.zeros((2, 84, 84, 4))), "as uint8, got float64"),
    ],
)
def test_a_fault_is_named_with_its_place(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        check_episode(columns, source="a.parquet", row=7)
    assert str(error.value).startswith("a.parquet: row 7: ")


def test_a_tasks_own_columns_are_asked_for() -> None:
    with pytest.raises(DataError, match="column 'continuous_actions' is missing: expected the columns of mujoco-ant"):
        check_columns(["continuous_observations", "rewards"], source="d", task=TASKS["mujoco-ant"])
    with pytest.raises(DataError, match="column 'discrete_actions' does not belong to them"):
        check_columns(
            ["continuous_observations", "continuous_actions", "discrete_actions", "rewards"],
            source="d",
            task=TASKS["mujoco-ant"],
        )
    few = discrete(discrete_observations=np.ones((2, 147), np.int64))
    with pytest.raises(DataError, match=r"discrete_observations: expected 148 integers a step .* got 147"):
        check_episode(few, source="d", task=TASKS["babyai-open"])
    assert check_episode(few, source="d")["discrete_observations"].shape == (2, 147)
