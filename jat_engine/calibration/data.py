"""Draw segments of recorded episodes from a dataset."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..config import JatConfig
from ..datasets.sources import Source
from ..envs import Task
from ..errors import DataError
from ..training import recipe
from ..training.dataset import gather
from ..training.segments import START, Arrays, Cutter, SegmentSettings
from .model import Segment

_READS = 8
"""Most times that rows of a task are read, of 256 episodes or, with images, of 2."""


def draw_segments(
    sources: Mapping[str, Source],
    tasks: Mapping[str, Task],
    num_segments: int,
    seed: int,
    config: JatConfig,
    processor: Any,
) -> list[Segment]:
    """Draw segments, equally many of each task where it has enough, from the first episodes of each task.

    Args:
        sources: the episodes of each task.
        tasks: the tasks of the same names.
        num_segments: of all tasks together; at least one of each is drawn.
        seed: of the drawing.
        config: of the model; it determines the length of segments, as in training.
        processor: a `JatProcessor`; encodes missions.

    Returns:
        The segments, task after task.

    Raises:
        DataError: a task has no episodes, or ones that the model cannot take.
    """
    drawn: list[Segment] = []
    per_task = max(1, num_segments // len(sources))
    for number, (name, source) in enumerate(sources.items()):
        length = recipe.segment_length(tasks[name], config)
        cutter = Cutter(SegmentSettings.of(name, "train", length, config, processor), processor, tasks[name])
        pieces: list[tuple[Arrays, int]] = []  # arrays of a read, number of a segment
        for rows in itertools.islice(source.read(), _READS):
            if rows.table.num_rows:
                arrays = cutter.cut(rows)
                pieces += [(arrays, index) for index in range(len(arrays[START]))]
            if len(pieces) >= 4 * per_task:
                break
        if not pieces:
            raise DataError(f"{source.where}: expected at least one episode, got none")

        chosen = np.random.default_rng([seed, number]).permutation(len(pieces))[:per_task]
        for arrays, index in (pieces[i] for i in sorted(chosen)):
            whole = {**arrays, "missions": cutter.missions} if len(cutter.missions) else arrays
            drawn.append(gather(whole, np.array([index]), loss_weight=1.0, own_weight=False, image_processor=None))
    return drawn


def digest(segments: list[Segment]) -> str:
    """Return a hash of the contents of segments, SHA-256 in hexadecimal digits."""
    whole = hashlib.sha256()
    for segment in segments:
        for name in sorted(segment):
            whole.update(f"{name} {list(segment[name].shape)}\n".encode())
            whole.update(segment[name].contiguous().numpy().tobytes())
    return whole.hexdigest()
