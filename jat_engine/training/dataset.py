"""Batches of pieces: what the model's `forward` takes, gathered from arrays on disk by one indexing operation each."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .arrays import map_array
from .segments import Arrays

Batch = dict[str, Any]

TASK = "task"
"""Key of a batch under which the name of its task is; everything else is for `forward`."""


def gather(arrays: Arrays, pieces: np.ndarray, *, loss_weight: float, own_weight: bool, image_processor: Any) -> Batch:
    """A batch of B pieces, padded to the longest with each one's first step.

    Args:
        arrays: as `Cutter` makes them, and `missions`.
        loss_weight: of every step; with `own_weight` that of the data, if it has one.

    Returns:
        The columns as `JatModel.forward` takes them, [B, L, ...]: float32, int64; image_observations as uint8
        [B, L, 4, 84, 84]. attention_mask int64 [B, L]; loss_weight float32 [B, L].
    """
    starts, lengths = arrays["piece_start"][pieces], arrays["piece_length"][pieces]  # [B]
    offsets = np.arange(int(lengths.max()))  # [L]
    mask = offsets < lengths[:, None]  # [B, L]
    steps = starts[:, None] + np.where(mask, offsets, 0)  # [B, L]
    batch: Batch = {}
    for name in ("continuous_observations", "continuous_actions", "rewards"):
        if name in arrays:
            batch[name] = torch.from_numpy(arrays[name][steps])
    for name in ("discrete_observations", "discrete_actions", "input_ids"):
        if name in arrays:
            batch[name] = torch.from_numpy(arrays[name][steps].astype(np.int64))
    if "mission_index" in arrays:
        missions = torch.from_numpy(arrays["missions"][arrays["mission_index"][steps]].astype(np.int64))
        batch["discrete_observations"] = torch.cat((batch["discrete_observations"], missions), dim=-1)
    if "plane_index" in arrays:
        batch["image_observations"] = torch.from_numpy(arrays["planes"][arrays["plane_index"][steps]])
    if "image_start" in arrays:
        batch["pixel_values"] = _pixel_values(arrays, pieces, image_processor)
    batch["attention_mask"] = torch.from_numpy(mask.astype(np.int64))
    if "rewards" in arrays:
        if own_weight and "loss_weight" in arrays:
            batch["loss_weight"] = torch.from_numpy(arrays["loss_weight"][steps])
        else:
            batch["loss_weight"] = torch.full(mask.shape, loss_weight)
    return batch


def _pixel_values(arrays: Arrays, pieces: np.ndarray, image_processor: Any) -> Tensor:
    from PIL import Image

    images = []
    for start, length in zip(arrays["image_start"][pieces], arrays["image_length"][pieces], strict=True):
        with Image.open(io.BytesIO(arrays["image_bytes"][start : start + length].tobytes())) as image:
            images.append(image.convert("RGB"))
    pixels: Tensor = image_processor(images, return_tensors="pt").pixel_values
    return pixels


class Pieces:
    """The pieces of one task, from a folder that `prepare` made.

    Args:
        loss_weight: of every step.
        own_weight: take the weights of the data instead, if it has any.
        limit: use so many of the first pieces only.
        image_processor: for the images of captions.
    """

    def __init__(
        self,
        folder: Path,
        task: str,
        *,
        loss_weight: float = 1.0,
        own_weight: bool = True,
        limit: int | None = None,
        image_processor: Any = None,
    ) -> None:
        self.folder = folder
        self.task = task
        self.options = {"loss_weight": loss_weight, "own_weight": own_weight, "image_processor": image_processor}
        info = json.loads((folder / "pieces.json").read_text())
        self.num_episodes, self.num_steps = int(info["num_episodes"]), int(info["num_steps"])
        self._arrays: Arrays | None = None
        available = len(map_array(folder, "piece_start"))
        self._num_pieces = available if limit is None else min(limit, available)

    def __len__(self) -> int:
        return self._num_pieces

    @property
    def lengths(self) -> np.ndarray:
        """Steps of each piece, int64 [pieces]."""
        return map_array(self.folder, "piece_length")[: self._num_pieces]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": None}  # a worker maps the files itself

    def gather(self, pieces: np.ndarray) -> Batch:
        """A batch, as `gather` makes it, of pieces [B]."""
        if self._arrays is None:
            self._arrays = {path.stem: map_array(self.folder, path.stem) for path in self.folder.glob("*.npy")}
        return gather(self._arrays, pieces, **self.options)


class TaskDataset(Dataset[Batch]):
    """Pieces of several tasks, numbered one task after the other. `__getitems__` makes a batch of one task's."""

    def __init__(self, tasks: Iterable[Pieces]) -> None:
        self.tasks = list(tasks)
        self.first = np.cumsum([0, *map(len, self.tasks)])  # [tasks + 1], number of each task's first piece

    def __len__(self) -> int:
        return int(self.first[-1])

    def __getitem__(self, number: int) -> Batch:
        return self.__getitems__([number])

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        which = int(np.searchsorted(self.first, numbers[0], side="right")) - 1
        pieces = np.asarray(numbers) - self.first[which]
        assert ((pieces >= 0) & (pieces < len(self.tasks[which]))).all(), "a batch is of one task"
        return {**self.tasks[which].gather(pieces), TASK: self.tasks[which].task}


def as_batch(batch: Any) -> Any:
    """What a `DataLoader` does with what `__getitems__` gave: nothing."""
    return batch


def scale_frames(frames: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1], the numbers of `JatProcessor`."""
    # A tensor as divisor: a GPU divides by a Python number as a product with its reciprocal, which rounds otherwise.
    return (frames.float() / torch.full((), 255.0, device=frames.device) - 0.5) / 0.5
