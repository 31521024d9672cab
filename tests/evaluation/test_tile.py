"""Tiles of a video: one for every state of an episode, sharp, with the whole frame in it."""

from __future__ import annotations

import numpy as np
import pytest

from jat_engine.envs import TASKS, make
from jat_engine.evaluation.tile import RecordTiles, draw_tile


def test_every_state_of_an_episode_has_a_tile() -> None:
    """Also the first one; the last is held. A reset without a seed goes on with the episode."""
    pytest.importorskip("minigrid", reason="needs the babyai extra")
    tiles: list[np.ndarray] = []
    env = RecordTiles(make("babyai-go-to-obj", render_mode="rgb_array"), TASKS["babyai-go-to-obj"], tiles.append, 120)
    env.reset(seed=0)
    steps, done = 0, False
    while not done:
        _, _, terminated, truncated, _ = env.step(0)  # turns left until time is up
        steps, done = steps + 1, terminated or truncated
    assert steps > 4
    assert len(tiles) == 1 + steps
    assert not np.array_equal(tiles[0], tiles[4]), "after a whole turn the caption differs"
    assert np.array_equal(tiles[0][:100], tiles[4][:100]), "and the frame does not"
    env.reset()
    assert len(tiles) == 1 + steps

    env = RecordTiles(env.env, TASKS["babyai-go-to-obj"], tiles.append, 120, hold=3)
    env.reset(seed=0)
    for _ in range(steps):
        env.step(0)
    assert len(tiles) == 2 * (1 + steps) + 3


def test_a_recording_ends_after_so_many_tiles() -> None:
    pytest.importorskip("minigrid", reason="needs the babyai extra")
    task, tiles = TASKS["babyai-go-to-obj"], []
    env = RecordTiles(make(task.name, render_mode="rgb_array"), task, tiles.append, 120, max_tiles=2)
    env.reset(seed=0)
    for _ in range(4):
        env.step(0)
    assert len(tiles) == 2


@pytest.mark.parametrize("shape", [(2, 5), (400, 80), (300, 400)])
def test_a_frame_keeps_its_proportions_and_small_ones_stay_sharp(shape: tuple[int, int]) -> None:
    tile = draw_tile(np.full((*shape, 3), 255, np.uint8), "", 120)
    assert tile.shape == (120, 120, 3)
    white = (tile == 255).all(2)
    rows, columns = white.any(1).sum(), white.any(0).sum()
    assert white.sum() == rows * columns, "a rectangle without a blurred edge"
    assert rows <= 120 - 12
    if max(shape) < 100:
        assert (rows, columns) == (shape[0] * 24, shape[1] * 24)
    else:
        assert abs(rows / columns - shape[0] / shape[1]) < 0.1 * shape[0] / shape[1]
