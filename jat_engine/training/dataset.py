"""Gather batches for `JatModel.forward` from arrays on disk, with one indexing operation per column."""

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

from ..errors import DataError
from ..model.pictures import to_rgb
from .arrays import map_array
from .segments import INFO_FILE, LENGTH, START, Arrays

Batch = dict[str, Any]

TASK = "task"
"""Key of a batch that holds the name of its task; all other keys are arguments of `forward`."""


def gather(
    arrays: Arrays, segments: np.ndarray, *, loss_weight: float, own_weight: bool, image_processor: Any
) -> Batch:
    """Gather B segments into one batch, padded to the longest of them.

    Padding repeats a segment's first step and is masked out.

    Args:
        arrays: the arrays of `Cutter.cut`, and `missions` int32 [missions, 64] if there are texts.
        segments: numbers of the segments, [B], any integer type.
        loss_weight: weight of every step's loss.
        own_weight: use the weights stored with the data instead, where there are any.
        image_processor: prepares the images of captions; may be None for other data.

    Returns:
        The arguments of `JatModel.forward`, L being the longest segment: continuous_observations [B, L, X],
        continuous_actions [B, L, A] and rewards [B, L], float32; discrete_observations [B, L, D], discrete_actions
        [B, L] and input_ids [B, L], int64; image_observations uint8 [B, L, 4, 84, 84]; pixel_values float32
        [B, 3, height, width]; attention_mask int64 [B, L]; loss_weight float32 [B, L]. Only the columns of the task.
    """
    starts, lengths = arrays[START][segments], arrays[LENGTH][segments]  # [B]
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

    # Columns that are stored once and referred to by index.
    if "mission_index" in arrays:
        missions = torch.from_numpy(arrays["missions"][arrays["mission_index"][steps]].astype(np.int64))
        batch["discrete_observations"] = torch.cat((batch["discrete_observations"], missions), dim=-1)
    if "plane_index" in arrays:
        batch["image_observations"] = torch.from_numpy(arrays["planes"][arrays["plane_index"][steps]])
    if "image_start" in arrays:
        batch["pixel_values"] = _pixel_values(arrays, segments, image_processor)

    batch["attention_mask"] = torch.from_numpy(mask.astype(np.int64))
    if "rewards" in arrays:
        if own_weight and "loss_weight" in arrays:
            batch["loss_weight"] = torch.from_numpy(arrays["loss_weight"][steps])
        else:
            batch["loss_weight"] = torch.full(mask.shape, loss_weight)
    return batch


def _pixel_values(arrays: Arrays, segments: np.ndarray, image_processor: Any) -> Tensor:
    """Decode the images of segments [B] and return them as float32 [B, 3, height, width].

    Raises:
        DataError: the file of an image is damaged; preparing reads headers only.
    """
    from PIL import Image

    images = []
    for segment, start, length in zip(
        segments, arrays["image_start"][segments], arrays["image_length"][segments], strict=True
    ):
        try:
            with Image.open(io.BytesIO(arrays["image_bytes"][start : start + length].tobytes())) as image:
                is_plain = image.mode in _EIGHT_BITS  # the usual case, without the copies of `to_rgb`
                images.append(image.convert("RGB") if is_plain else to_rgb(image)[0][0])
        except Exception as error:  # Pillow raises many kinds
            raise DataError(
                f"images: caption {segment} (from 0, without those of one token): expected the file of an image, got "
                f"{length} bytes: {error}; replace the image, or remove its row"
            ) from None
    pixels: Tensor = image_processor(images, return_tensors="pt").pixel_values
    return pixels


_EIGHT_BITS = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
"""Modes of PIL images that `convert("RGB")` converts as `to_rgb` does."""


class Segments:
    """Serve the segments of one task from a folder that `prepare` made.

    Pickles without the arrays: each worker of a data loader maps the files itself.

    Args:
        folder: the return value of `prepare`.
        task: name of the task.
        loss_weight: weight of every step's loss.
        own_weight: use the weights stored with the data instead, where there are any.
        limit: use only the first `limit` segments; None for all.
        image_processor: prepares the images of captions.

    Attributes:
        num_episodes, num_steps: totals of the folder, whatever `limit` is.
        digest: hash of the folder's arrays; None if it was prepared by a release that did not make one.
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
        info = json.loads((folder / INFO_FILE).read_text())
        self.num_episodes, self.num_steps = int(info["num_episodes"]), int(info["num_steps"])
        self.digest: str | None = info.get("digest")
        self._arrays: Arrays | None = None
        available = len(map_array(folder, START))
        self._num_segments = available if limit is None else min(limit, available)

    def __len__(self) -> int:
        return self._num_segments

    @property
    def lengths(self) -> np.ndarray:
        """The steps of each segment, int64 [segments]."""
        return map_array(self.folder, LENGTH)[: self._num_segments]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": None}

    def gather(self, segments: np.ndarray) -> Batch:
        """Gather the segments with these numbers, [B], into one batch; see `gather`."""
        if self._arrays is None:
            self._arrays = {path.stem: map_array(self.folder, path.stem) for path in self.folder.glob("*.npy")}
        return gather(self._arrays, segments, **self.options)


class TaskDataset(Dataset[Batch]):
    """Number the segments of several tasks consecutively, task after task.

    `__getitems__` gathers a batch in one call; its segments must belong to one task. The batch has the task's name
    under `TASK`.
    """

    def __init__(self, tasks: Iterable[Segments]) -> None:
        self.tasks = list(tasks)
        self.first = np.cumsum([0, *map(len, self.tasks)])  # [tasks + 1], number of each task's first segment

    def __len__(self) -> int:
        return int(self.first[-1])

    def __getitem__(self, number: int) -> Batch:
        return self.__getitems__([number])

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        which = int(np.searchsorted(self.first, numbers[0], side="right")) - 1
        segments = np.asarray(numbers) - self.first[which]
        assert ((segments >= 0) & (segments < len(self.tasks[which]))).all(), "a batch is of one task"
        return {**self.tasks[which].gather(segments), TASK: self.tasks[which].task}


def as_batch(batch: Any) -> Any:
    """Return the batch unchanged: the `collate_fn` of data that comes in batches."""
    return batch


def scale_frames(frames: Tensor) -> Tensor:
    """Scale frames of any shape from uint8 to float32 in [-1, 1], exactly as `JatProcessor` does."""
    # A tensor as divisor: a GPU divides by a Python number as a product with its reciprocal, which rounds otherwise.
    return (frames.float() / torch.full((), 255.0, device=frames.device) - 0.5) / 0.5
