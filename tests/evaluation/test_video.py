"""Videos and grids, written by the encoder and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jat_engine.envs import get_task, make
from jat_engine.evaluation import MissingVideoError, VideoError, VideoWriter, gif, write_grid
from jat_engine.evaluation.gif import GifWriter
from jat_engine.evaluation.grid import GRID_WIDTH, count_columns, place_cells
from jat_engine.evaluation.tile import BACKGROUND, draw_tile, tile_size
from jat_engine.evaluation.video import check_video, read_video, video_rate

pytest.importorskip("imageio_ffmpeg", reason="needs the video extra")


def _frame(value: int, shape: tuple[int, int] = (32, 48)) -> np.ndarray:
    return np.full((*shape, 3), value, np.uint8)


def _write(path: Path, values: list[int], fps: float = 10, shape: tuple[int, int] = (32, 48)) -> Path:
    with VideoWriter(path, fps) as video:
        for value in values:
            video.append(_frame(value, shape))
    return path


# ---- one video -----------------------------------------------------------------------------------------------------


@pytest.mark.versions
def test_video_can_be_read_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "v.mp4"
    with VideoWriter(path, fps=20, title="a 'title'") as video:
        for i in range(12):
            video.append(_frame(20 * i, (33, 47)))
        video.append(_frame(220, (33, 47)), times=3)
    frames = list(read_video(path))
    assert len(frames) == video.num_frames == 15
    assert frames[0].shape == (34, 48, 3)  # even sizes, as H.264 needs
    means = [float(frame.mean()) for frame in frames]
    assert means == pytest.approx([20 * i for i in range(12)] + [220] * 3, abs=6)
    contents = path.read_bytes()
    assert contents[4:8] == b"ftyp"
    assert b"a 'title'" in contents
    with VideoWriter(path, fps=20) as video:
        video.append(_frame(0))
        with pytest.raises(ValueError, match="frame: expected uint8 of shape"):
            video.append(_frame(0, (64, 32)))


def test_tiles_of_babyai_stay_sharp(tmp_path: Path) -> None:
    """Coloured lines have neither a blurred edge nor a fringe in the encoded video."""
    pytest.importorskip("minigrid", reason="needs the babyai extra")
    env = make("babyai-go-to-local", render_mode="rgb_array")
    env.reset(seed=1)
    frame: Any = env.render()
    tile = draw_tile(frame, ("", ""), tile_size(256, 256))
    with VideoWriter(tmp_path / "v.mp4", fps=3) as video:
        video.append(tile, times=9)
    for shown in read_video(tmp_path / "v.mp4"):
        assert np.abs(shown.astype(int) - tile).max() < 64, "an edge between other pixels than pairs differs by 175"


def test_videos_need_the_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    with pytest.raises(MissingVideoError, match=r"pip install 'jat-engine\[video\]'"):
        VideoWriter(tmp_path / "v.mp4", fps=30)
    check_video("--video", tmp_path / "v.gif")  # which Pillow writes


def test_a_video_that_fails_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import imageio_ffmpeg

    path = _write(tmp_path / "v.mp4", [200] * 3)
    grid = write_grid([path], tmp_path / "replay.mp4")
    before = path.read_bytes(), grid.read_bytes()
    encoder = tmp_path / "ffmpeg"
    encoder.write_text('#!/bin/sh\nfor last; do :; done; echo half > "$last"; echo no codec >&2; exit 3\n')
    encoder.chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(encoder))
    with pytest.raises(VideoError, match=r"v\.mp4: ffmpeg failed with exit code 3: no codec"):
        _write(path, [200] * 200, 10, (512, 512))
    with pytest.raises(ValueError, match=r"^--video: videos cannot be encoded here: .*no codec"):
        check_video("--video", path)
    with pytest.raises(VideoError):
        write_grid([path], grid)
    assert (path.read_bytes(), grid.read_bytes()) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ffmpeg", "replay.mp4", "v.mp4"]


@pytest.mark.parametrize(
    ("task", "given", "shown"),
    [("mujoco-hopper", 125, 20), ("babyai-open", 10, 3), ("atari-pong", 30, 15), ("gym:CartPole-v1", 50, 30)],
)
def test_videos_are_slow_enough_for_the_eye(task: str, given: float, shown: float) -> None:
    import gymnasium

    env = gymnasium.make("CartPole-v1")
    env.metadata = {**env.metadata, "render_fps": given}
    assert video_rate(get_task(task), env) == shown
    env.metadata = {"render_fps": 12}
    assert video_rate(get_task("gym:CartPole-v1"), env) == 12


# ---- GIF -----------------------------------------------------------------------------------------------------------


def _pictures(path: Path) -> list[tuple[int, int]]:
    """Return the brightness and the milliseconds of each picture of a GIF."""
    with Image.open(path) as image:
        pictures = []
        for index in range(image.n_frames):
            image.seek(index)
            pictures.append((round(float(np.asarray(image.convert("RGB")).mean())), image.info["duration"]))
        return pictures


@pytest.mark.versions
def test_a_gif_can_be_read_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "v.gif"
    writer = GifWriter(path, fps=3, title="title")
    for value in (0, 50, 250):
        writer.append(_frame(value))
    writer.append(_frame(200), times=6)
    writer.close()
    writer.close()
    assert _pictures(path) == [(0, 340), (50, 340), (250, 340), (200, 2040)]
    with Image.open(path) as image:
        assert image.info["comment"] == b"title"
        assert image.info["loop"] == 0
    assert [file.name for file in path.parent.iterdir()] == ["v.gif"]

    fast = GifWriter(path, fps=125)
    with pytest.raises(ValueError, match="frame: expected uint8"):
        fast.append(np.zeros((4, 4), np.uint8))
    fast.append(_frame(7))
    with pytest.raises(ValueError, match="the same shape"):
        fast.append(_frame(7, (8, 8)))
    fast.close(keep=False)
    assert len(_pictures(path)) == 4, "the earlier one"
    fast.append(_frame(7))
    fast.close()
    assert _pictures(path) == [(7, 40)]


def test_a_long_gif_leaves_states_out_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gif, "MAX_PICTURES", 5)
    writer = GifWriter(tmp_path / "v.gif", fps=10)
    for value in range(0, 230, 10):  # the 23 states 0 to 22
        writer.append(_frame(value))
    writer.append(_frame(220), times=10)
    writer.close()
    assert [value // 10 for value, _ in _pictures(tmp_path / "v.gif")] == [0, 8, 16, 22]
    assert _pictures(tmp_path / "v.gif")[-1][1] == 1000


# ---- grids ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repeat", [False, True])
def test_a_grid_plays_each_video_at_its_own_speed(tmp_path: Path, repeat: bool) -> None:
    slow = _write(tmp_path / "slow.mp4", [10] * 10 + [250] * 10, fps=10, shape=(32, 32))  # 2 s, half of it white
    fast = _write(tmp_path / "fast.mp4", [10] * 30 + [250] * 30, fps=60, shape=(32, 32))  # 1 s
    frames = list(read_video(write_grid([slow, fast], tmp_path / "replay.mp4", repeat=repeat)))
    assert len(frames) == 60  # 2 s at 30 fps
    height, width = frames[0].shape[:2]
    assert (height, width) == (480, 960)
    left = [frame[240, 240].mean() > 128 for frame in frames]
    right = [frame[240, 720].mean() > 128 for frame in frames]
    assert left == [False] * 30 + [True] * 30
    assert right == ([False] * 15 + [True] * 15) * 2 if repeat else [False] * 15 + [True] * 45
    short = write_grid([slow], tmp_path / "one.mp4", max_seconds=1)
    assert len(list(read_video(short))) == 30


def test_a_grid_has_no_black_cells(tmp_path: Path) -> None:
    """The last row is centred, on the background of tiles; and a GIF is as good as a video."""
    videos = [_write(tmp_path / f"{i}.mp4", [200] * 3) for i in range(4)]
    writer = GifWriter(tmp_path / "4.gif", fps=10)
    writer.append(_frame(200), times=3)
    writer.close()
    frame = next(read_video(write_grid([*videos, tmp_path / "4.gif"], tmp_path / "replay.mp4")))
    assert frame.shape == (640, 1440, 3)
    is_video = (np.abs(frame.astype(int) - 200) < 16).all(2)
    is_free = (np.abs(frame.astype(int) - BACKGROUND) < 16).all(2)
    assert is_video[8:312].all()
    assert is_video[328:, 248:1192].all()
    assert is_free[328:, :232].all()
    assert is_free[328:, 1208:].all()


def test_grids_are_filled_and_even() -> None:
    assert [count_columns(n) for n in (1, 2, 3, 4, 5, 6, 7, 8, 10, 157)] == [1, 2, 3, 2, 3, 3, 4, 4, 5, 16]
    rng = np.random.default_rng(0)
    for number in (1, 2, 3, 5, 7, 20, 157):
        sizes = [(int(width), int(height)) for width, height in rng.integers(16, 1000, (number, 2))]
        (width, height), cells = place_cells(sizes)
        assert count_columns(number) * width <= GRID_WIDTH
        assert all(value % 2 == 0 for cell in [(width, height), *cells] for value in cell)
        assert len({cell[:2] for cell in cells}) == number
        assert all(w <= width and h <= height for _, _, w, h in cells)
        for (given, _), (_, _, shown, _) in zip(sizes, cells, strict=True):
            assert shown < given or shown % given < 2, "enlarged by whole numbers"
    tiles = [(320, 446), (512, 546), (704, 748), (640, 522)]
    assert [cell[2:] for cell in place_cells(tiles)[1]] == tiles, "two in a row are shown as they are"


def test_a_grid_needs_videos(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="videos: expected at least one"):
        write_grid([], tmp_path / "replay.mp4")
    with pytest.raises(ValueError, match=r"output: expected a name that ends in \.mp4"):
        write_grid([_write(tmp_path / "v.mp4", [0])], tmp_path / "replay.gif")
