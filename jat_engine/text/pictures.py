"""`Pictures`: convert the images of prompts to the pixel values that the model reads, as `JatProcessor` does."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoint_files import PROCESSOR_FILES, find_file
from ..config import JatConfig
from ..errors import CheckpointError, InputError, one_line
from .options import is_iterable

_HELP = "pass pixel_values"


class Pictures:
    """Images to pixel values, by the image processor of a checkpoint or of a `JatProcessor`, made when first needed."""

    def __init__(self, config: JatConfig, make: Callable[[], Any]) -> None:
        """Store the processor's maker.

        Args:
            config: of the model.
            make: function that returns the image processor. Raises `InputError` if there is none.
        """
        self._shape = (config.num_channels, config.image_size, config.image_size)
        self._make = functools.cache(make)

    @classmethod
    def of_checkpoint(cls, source: str | os.PathLike[str], hub: dict[str, Any], config: JatConfig) -> Pictures:
        """Take the image processor that a checkpoint describes; it is read when the first image comes.

        Args:
            source: the checkpoint's folder or hub repository.
            hub: options that say where to look for the repository.
            config: of the model.
        """
        if isinstance(source, Path):
            source = source.absolute()  # the working directory may be another one by then
        return cls(config, functools.partial(_read, source, dict(hub)))

    @classmethod
    def of_processor(cls, processor: Any, config: JatConfig) -> Pictures:
        """Take a `JatProcessor`'s image processor; without a processor images are refused."""

        def make() -> Any:
            found = getattr(processor, "image_processor", None)
            if found is None:
                raise InputError(f"images: expected an engine with a processor, got one made without; {_HELP}")
            return found

        return cls(config, make)

    def of_prompts(
        self, images: Any, pixel_values: Any, count: int, is_single: bool = False
    ) -> list[np.ndarray | None]:
        """Return the pixel values of each prompt.

        Args:
            images: one for each prompt, or None for those without; None for none at all. See `convert`.
            pixel_values: instead of `images`, arrays as for `check_values`.
            count: of prompts.
            is_single: True if an image may be given as it is, and not in a list.

        Returns:
            For each prompt float32 [num_channels, image_size, image_size], or None without an image.

        Raises:
            InputError: an image is wrong, there is another number of them, or both arguments are given.
        """
        if images is not None and pixel_values is not None:
            raise InputError("images: expected images or pixel_values, got both")
        field, given = ("images", images) if pixel_values is None else ("pixel_values", pixel_values)
        if given is None:
            return [None] * count
        if is_single and not (isinstance(given, list | tuple) and len(given) == 1):
            given = [given] if field == "images" or getattr(given, "ndim", 4) == 3 else given
        if not is_iterable(given) or (getattr(given, "ndim", 4) < 4 and count != 1):
            raise InputError(f"{field}: expected one for each of {count} prompts, got {_describe(given)}")
        if getattr(given, "ndim", 4) < 4:
            given = [given]
        items: list[Any] = list(given)
        if len(items) != count:
            raise InputError(f"{field}: expected one for each of {count} prompts, got {len(items)}")

        places = [i for i, item in enumerate(items) if item is not None]
        if field == "images":
            values = self.convert([items[i] for i in places]) if places else []
        else:
            values = [self.check_values(f"pixel_values[{i}]", items[i]) for i in places]
        found: list[np.ndarray | None] = [None] * count
        for place, value in zip(places, values, strict=True):
            found[place] = value
        return found

    def convert(self, images: Sequence[Any]) -> list[np.ndarray]:
        """Convert images, one for each prompt.

        Args:
            images: each a PIL image, a file name, or an array or tensor [H, W], [H, W, C] or [C, H, W] with 1 to 4
                channels of uint8, bool, uint16 or floats in 0..1 or 0..255; see `JatProcessor`.

        Returns:
            For each float32 [num_channels, image_size, image_size].

        Raises:
            InputError: one is not an image, or several, or there is no image processor.
        """
        from ..model.pictures import to_rgb  # PIL and transformers' image functions

        processor = self._make()
        try:
            pictures, _ = to_rgb(list(images))
        except ValueError as error:
            remedy = 'pass input_data_format="channels_last" or "channels_first"'  # of `JatProcessor`
            raise InputError(one_line(error).replace(remedy, f"pass a PIL image, or {_HELP}")) from None
        if len(pictures) != len(images):
            raise InputError(f"images: expected one for each of {len(images)} prompts, got {len(pictures)}")
        values = [np.asarray(one, np.float32) for one in processor(pictures).pixel_values]
        for array in values:
            if array.shape != self._shape:
                raise InputError(
                    f"images: expected an image processor that makes {list(self._shape)}, as the model reads, got "
                    f"{list(array.shape)}; {_HELP}"
                )
        return values

    def check_values(self, name: str, values: Any) -> np.ndarray:
        """Return pixel values as float32 [num_channels, image_size, image_size].

        Args:
            name: of the argument, for the message.
            values: an array, a tensor or nested lists.

        Raises:
            InputError: they have another shape, or are no finite numbers.
        """
        if isinstance(values, torch.Tensor):
            values = values.detach().to("cpu", torch.float32)
        try:
            array = np.asarray(values)
        except (ValueError, TypeError):  # rows of different lengths
            array = np.empty(0, object)
        if array.dtype.kind not in "fiu" or array.shape != self._shape:
            raise InputError(
                f"{name}: expected numbers of shape {list(self._shape)}, as the processor makes them, got "
                f"{array.dtype} of shape {list(array.shape)}"
            )
        array = np.ascontiguousarray(array, np.float32)
        if not np.isfinite(array).all():
            raise InputError(f"{name}: expected finite numbers, got NaN or infinity")
        return array


def _describe(given: Any) -> str:
    shape = getattr(given, "shape", None)
    return type(given).__name__ if shape is None else f"an array of shape {list(shape)}"


def _read(source: str | os.PathLike[str], hub: dict[str, Any]) -> Any:
    from transformers import CLIPImageProcessorPil

    paths = [find_file(source, name, hub) for name in PROCESSOR_FILES[:2]]
    found = next((path for path in paths if path is not None), None)
    if found is None:
        raise InputError(
            f"images: expected an engine with an image processor, got one of {source}, which has no "
            f"{PROCESSOR_FILES[0]}; save the processor there (processor.save_pretrained), or {_HELP}"
        )
    try:
        return CLIPImageProcessorPil.from_pretrained(found.parent)
    except Exception as error:  # transformers' checks of fields raise many classes
        raise CheckpointError(f"{found}: expected an image processor, got {one_line(error):.200}") from error
