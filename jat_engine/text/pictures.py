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
            raise InputError(one_line(error)) from None
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
