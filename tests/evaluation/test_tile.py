"""Tiles of a video: one for every state of an episode, sharp, with the whole frame in it."""

from __future__ import annotations

import numpy as np
import pytest

from jat_engine.envs import TASKS, make
from jat_engine.evaluation.tile import BACKGROUND, EpisodeTiles, RecordTiles, draw_tile, held_frames, tile_size

TASK = TASKS["babyai-go-to-obj"]


class Video:
    """Sink of tiles: each with the number of times that it is shown."""

    def __init__(self) -> None:
        self.tiles: list[np.ndarray] = []
        self.times: list[int] = []

    def __call__(self, tile: np.ndarray, times: int) -> None:
        self.tiles.append(tile)
        self.times.append(times)


def test_every_state_of_an_episode_has_a_tile() -> None:
    """Also the first one. A reset without a seed goes on with the episode."""
    pytest.importorskip("minigrid", reason="needs the babyai extra")
    video = Video()
    env = RecordTiles(make(TASK.name, render_mode="rgb_array"), TASK, video, (120, 120))
    env.reset(seed=0)
    steps, done = 0, False
    while not done:
        _, _, terminated, truncated, _ = env.step(0)  # turns left until time is up
        steps, done = steps + 1, terminated or truncated
    assert steps > 4
    assert video.times == [1] * (1 + steps)
    assert not np.array_equal(video.tiles[0], video.tiles[4]), "after a whole turn the caption differs"
    assert np.array_equal(video.tiles[0][:100], video.tiles[4][:100]), "and the frame does not"
    env.reset()
    assert len(video.tiles) == 1 + steps


def test_the_last_state_is_held() -> None:
    """For a second, or until the episode was shown for three; also of an episode that is stopped."""
    pytest.importorskip("minigrid", reason="needs the babyai extra")
    video = Video()
    env = RecordTiles(make(TASK.name, render_mode="rgb_array", max_episode_steps=8), TASK, video, fps=2)
    env.reset(seed=0)
    for _ in range(8):
        env.step(0)
    assert video.times == [1] * 9 + [2]
    assert np.array_equal(video.tiles[-1], video.tiles[-2])

    env.reset(seed=1)
    env.step(0)
    env.reset(seed=2)
    env.step(0)
    env.close()
    assert video.times[10:] == [1, 1, 4] * 2


def test_a_recording_ends_after_so_many_tiles() -> None:
    pytest.importorskip("minigrid", reason="needs the babyai extra")
    video = Video()
    env = RecordTiles(make(TASK.name, render_mode="rgb_array"), TASK, video, fps=10, max_tiles=2)
    env.reset(seed=0)
    for _ in range(4):
        env.step(0)
    env.close()
    assert video.times == [1, 1]


def test_a_last_state_is_shown_long_enough() -> None:
    assert [held_frames(shown, 30) for shown in (1, 60, 61, 1000)] == [89, 30, 30, 30]
    assert held_frames(1, 0.5) == 1


@pytest.mark.parametrize("shape", [(2, 5), (400, 80), (300, 400)])
def test_a_frame_keeps_its_proportions_and_small_ones_stay_sharp(shape: tuple[int, int]) -> None:
    tile = draw_tile(np.full((*shape, 3), 255, np.uint8), ("", ""), (120, 120))
    assert tile.shape == (120, 120, 3)
    white = (tile == 255).all(2)
    rows, columns = white.any(1).sum(), white.any(0).sum()
    assert white.sum() == rows * columns, "a rectangle without a blurred edge"
    assert rows <= 120 - 12
    if max(shape) < 100:
        assert (rows, columns) == (shape[0] * 24, shape[1] * 24)
        assert np.argmax(white.any(1)) % 2 == np.argmax(white.any(0)) % 2 == 0, "pairs of pixels share a colour"
    else:
        assert abs(rows / columns - shape[0] / shape[1]) < 0.1 * shape[0] / shape[1]


@pytest.mark.parametrize(
    ("frame", "tile"),
    [
        ((160, 210), (320, 446)),  # Atari: twice as large
        ((256, 256), (512, 546)),  # a room of BabyAI
        ((704, 704), (704, 748)),  # nine rooms: as it is
        ((640, 480), (640, 522)),
        ((1920, 1080), (960, 598)),  # reduced
        ((33, 47), (396, 592)),  # enlarged by 12
        ((1, 900), (160, 918)),  # there is room for the text
        ((901, 3), (902, 58)),
    ],
)
def test_a_tile_fits_its_frame(frame: tuple[int, int], tile: tuple[int, int]) -> None:
    assert tile_size(*frame) == tile
    drawn = draw_tile(np.full((frame[1], frame[0], 3), 255, np.uint8), ("", ""), tile)
    assert drawn.shape == (tile[1], tile[0], 3)
    if max(frame) <= 960:
        assert (drawn == 255).all(2).sum() == frame[0] * frame[1] * max(1, 640 // max(frame) // 2 * 2) ** 2


def test_captions_have_task_step_and_return() -> None:
    """The text stays in its place while the numbers change, and is never wider than the tile."""
    frame = np.full((60, 60, 3), 255, np.uint8)
    tiles = EpisodeTiles(TASKS["metaworld-peg-unplug-side"], (300, 324))
    strips = [tiles.first(frame)[300:]] + [tiles.next(frame, reward)[300:] for reward in (0.5, 99_999.0)]
    text = [(strip != BACKGROUND).any(2) for strip in strips]
    width = next(x for x in range(20, 300) if not text[0][:, x : x + 12].any())  # of the task's name
    assert all(np.array_equal(strip[:, :width], strips[0][:, :width]) for strip in strips)
    assert not np.array_equal(strips[0], strips[1])
    assert all(min(mask.any(0).argmax(), mask.any(0)[::-1].argmax()) >= 4 for mask in text), "margins are free"
    assert np.array_equal(tiles.first(frame)[300:], strips[0]), "the next episode begins with zeros"
