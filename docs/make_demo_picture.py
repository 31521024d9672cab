"""Make docs/demo.webp, the moving picture of the README: jat-mini in a task or two of each domain.

    python docs/make_demo_picture.py

It needs all simulators and takes half a minute on two cores.
"""

from __future__ import annotations

import contextlib
import io
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from PIL import Image

from jat_engine import JatEngine
from jat_engine.envs import TASKS
from jat_engine.evaluation import run_episode
from jat_engine.evaluation.environment import evaluation_env
from jat_engine.evaluation.tile import RecordTiles

OUTPUT = Path(__file__).parent / "demo.webp"
MAX_BYTES = 2_000_000
TILE, FPS, SECONDS = 300, 10, 9

PARTS = {
    # tasks with the seed of their first episode; steps to one frame of the picture, or frames to one step
    "atari": ([("atari-pong", 0)], 2, 1),
    "babyai": ([("babyai-go-to-red-ball-grey", 0), ("babyai-open-red-door", 2), ("babyai-go-to-obj", 3)], 1, 4),
    "metaworld": ([("metaworld-drawer-open", 0), ("metaworld-door-close", 1)], 2, 1),
    "mujoco": ([("mujoco-reacher", 0), ("mujoco-reacher", 1), ("mujoco-reacher", 2)], 2, 1),
}
PONG_FROM = 150
"""Frames of Pong that are left out: the serve takes time."""


def main() -> None:
    """Record, compose and write the picture."""
    engine = JatEngine.from_pretrained("jat-mini", dtype="float32")
    parts = [record(engine, domain) for domain in PARTS]
    pictures = [compose(tiles) for tiles in zip(*parts, strict=True)]
    for quality in range(80, 10, -5):
        data = encode(pictures, quality)
        if len(data) <= MAX_BYTES:
            break
    OUTPUT.write_bytes(data)
    print(f"wrote {OUTPUT}: {len(pictures)} frames, {len(data) / 1e6:.2f} MB, quality {quality}")


def record(engine: JatEngine, domain: str) -> list[np.ndarray]:
    """Play the tasks of a domain and return the tiles of the whole picture, uint8 [TILE, TILE, 3] each."""
    episodes, every, repeat = PARTS[domain]
    count = FPS * SECONDS
    shown: list[np.ndarray] = []
    for name, seed in islice(cycle(episodes), 20):
        tiles: list[np.ndarray] = []
        task = TASKS[name]
        with contextlib.closing(evaluation_env(task, "rgb_array")) as env:
            recorded = RecordTiles(env, task, lambda tile, _, tiles=tiles: tiles.append(tile), (TILE, TILE))
            run_episode(engine, None, recorded, task=task, seed=seed, deterministic=True, max_steps=800)
        if domain == "atari":
            tiles = tiles[PONG_FROM:]
        shown += [tile for tile in [*tiles[:-1:every], tiles[-1]] for _ in range(repeat)]
        shown += [tiles[-1]] * (FPS // 2)  # the cut is seen
        if len(shown) >= count:
            return shown[:count]
    raise ValueError(f"{domain}: expected {count} frames, got {len(shown)}")


def compose(tiles: tuple[np.ndarray, ...]) -> Image.Image:
    """Return four tiles as one picture, two in a row."""
    first, second, third, fourth = tiles
    return Image.fromarray(np.vstack([np.hstack([first, second]), np.hstack([third, fourth])]))


def encode(pictures: list[Image.Image], quality: int) -> bytes:
    """Return the pictures as an animated WebP that repeats without end."""
    file = io.BytesIO()
    options = {"format": "WEBP", "save_all": True, "duration": 1000 // FPS, "loop": 0, "method": 4}
    pictures[0].save(file, append_images=pictures[1:], quality=quality, minimize_size=False, **options)
    return file.getvalue()


if __name__ == "__main__":
    main()
