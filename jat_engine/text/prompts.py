"""Check the prompts of a call, texts or tokens with or without images, before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..config import JatConfig
from ..errors import InputError
from .assets import TextAssets


@dataclass(frozen=True)
class Prompt:
    """A checked prompt.

    Attributes:
        name: for messages, such as "text[2]".
        index: among the prompts of the call.
        ids: int64 [S], tokens, without padding; not empty.
        pixel_values: float32 [num_channels, image_size, image_size], or None.
        num_padding: padding that was removed, which `max_length` and `min_length` count.
    """

    name: str
    index: int
    ids: np.ndarray
    pixel_values: np.ndarray | None = None
    num_padding: int = 0


@dataclass(frozen=True)
class Inputs:
    """The prompts of a call as they were given.

    Attributes:
        text: a string, or an iterable of strings.
        images: an image for one text, an iterable of images and None otherwise.
        input_ids: integers [B, S], or an iterable of sequences of integers.
        pixel_values: [B, num_channels, image_size, image_size], or an iterable of [num_channels, ...] and None.
        attention_mask: of the shape of `input_ids`; 0 for padding at either end.
    """

    text: Any = None
    images: Any = None
    input_ids: Any = None
    pixel_values: Any = None
    attention_mask: Any = None

    def check(self) -> None:
        """Check that fields were given that go together.

        Raises:
            InputError: they do not; the message names one of them.
        """
        if (self.text is None) == (self.input_ids is None):
            got = "neither" if self.text is None else "both"
            raise InputError(f"text: expected text or input_ids, got {got}")
        if self.images is not None and self.pixel_values is not None:
            raise InputError("images: expected images or pixel_values, got both")
        if self.attention_mask is not None and self.input_ids is None:
            raise InputError("attention_mask: expected along with input_ids, got it with text; leave it out")
        if isinstance(self.text, bytes | Mapping) or (self.text is not None and not isinstance(self.text, Iterable)):
            raise InputError(f"text: expected a string or strings, got {type(self.text).__name__}")

    @property
    def is_tensor(self) -> bool:
        """True if the tokens are a tensor or an array, whose rows stay rows of the result."""
        return isinstance(self.input_ids, torch.Tensor | np.ndarray)

    @property
    def is_lazy(self) -> bool:
        """True if the prompts can only be read one after the other, such as a generator's."""
        prompts = self.input_ids if self.text is None else self.text
        return not isinstance(prompts, str | list | tuple | torch.Tensor | np.ndarray)


class PromptReader:
    """Reader of the prompts of an engine."""

    def __init__(self, config: JatConfig, assets: TextAssets) -> None:
        """Store what prompts are read with.

        Args:
            config: of the model.
            assets: of the engine.
        """
        self._config = config
        self._assets = assets

    def num_positions(self, prompt: Prompt) -> int:
        """Return the model's positions for a prompt's text: all but those of its image."""
        patches = 0 if prompt.pixel_values is None else self._config.num_image_tokens
        return self._config.max_position_embeddings - patches

    def read(self, inputs: Inputs) -> list[Prompt]:
        """Check all prompts of a call.

        Raises:
            InputError: one is wrong; the message names its field and index.
        """
        inputs.check()
        if inputs.text is not None:
            single = isinstance(inputs.text, str)
            texts = [inputs.text] if single else list(inputs.text)
            names = ["text"] if single else [f"text[{i}]" for i in range(len(texts))]
            rows = [self._encode(name, text) for name, text in zip(names, texts, strict=True)]
            field = "text"
        else:
            rows, field = _rows(inputs.input_ids), "input_ids"
            names = [f"input_ids[{i}]" for i in range(len(rows))]
        if not rows:
            raise InputError(f"{field}: expected at least one prompt, got none")

        masks = _masks(inputs.attention_mask, rows)
        pixels = self._pixels(inputs.images, inputs.pixel_values, len(rows), isinstance(inputs.text, str))
        prompts = []
        for i, (name, row, mask, values) in enumerate(zip(names, rows, masks, pixels, strict=True)):
            ids = row if mask is None else row[_valid_part(f"attention_mask[{i}]", mask)]
            self._check_ids(name, ids)
            prompts.append(Prompt(name, i, ids, values, len(row) - len(ids)))
        return prompts

    def read_lazily(self, inputs: Inputs) -> Iterator[Prompt | InputError]:
        """Check the prompts of a call one after the other; an error stands in the place of a prompt that is wrong.

        Raises:
            InputError: the fields do not go together.
        """
        inputs.check()
        if inputs.attention_mask is not None:
            raise InputError("attention_mask: expected none with prompts that are read one after the other")
        prompts = inputs.input_ids if inputs.text is None else inputs.text
        pictures = inputs.images if inputs.pixel_values is None else inputs.pixel_values
        if pictures is not None and not isinstance(pictures, Iterable):
            raise InputError(f"images: expected one for each prompt, got {type(pictures).__name__}")
        return self._read_each(inputs, iter(prompts), None if pictures is None else iter(pictures))

    def _read_each(
        self, inputs: Inputs, prompts: Iterator[Any], pictures: Iterator[Any] | None
    ) -> Iterator[Prompt | InputError]:
        for i, given in enumerate(prompts):
            name = f"{'input_ids' if inputs.text is None else 'text'}[{i}]"
            try:
                ids = self._encode(name, given) if inputs.text is not None else _row(name, given)
                self._check_ids(name, ids)
                values = None
                if pictures is not None:
                    picture = next(pictures, pictures)
                    if picture is pictures:
                        raise InputError(f"images: expected one for each prompt, got {i} and more prompts")
                    many = None if picture is None else [picture]
                    is_image = inputs.pixel_values is None
                    values = self._pixels(many if is_image else None, None if is_image else many, 1, False)[0]
                yield Prompt(name, i, ids, values)
            except InputError as error:
                yield InputError(*error.args)

    def _encode(self, name: str, text: Any) -> np.ndarray:
        if not isinstance(text, str):
            raise InputError(f"{name}: expected a string, got {type(text).__name__}")
        self._assets.tokenizer.check("text")
        return np.array(self._assets.tokenizer.encode(text), np.int64)

    def _check_ids(self, name: str, ids: np.ndarray) -> None:
        if not len(ids):
            raise InputError(f"{name}: expected at least one token, got an empty prompt; begin with the end token")
        if ids.min() < 0 or ids.max() >= self._config.vocab_size:
            wrong = ids.min() if ids.min() < 0 else ids.max()
            raise InputError(f"{name}: expected tokens in [0, vocab_size={self._config.vocab_size}), got {wrong}")

    def _pixels(self, images: Any, pixel_values: Any, count: int, is_single: bool) -> list[np.ndarray | None]:
        """Return the pixel values of each prompt; None for prompts without an image."""
        field, given = ("images", images) if pixel_values is None else ("pixel_values", pixel_values)
        if given is None:
            return [None] * count
        if is_single and not (isinstance(given, list | tuple) and len(given) == 1):
            given = [given] if field == "images" or getattr(given, "ndim", 4) == 3 else given
        if not isinstance(given, Iterable) or (getattr(given, "ndim", 4) < 4 and count != 1):
            raise InputError(f"{field}: expected one for each of {count} prompts, got {_describe(given)}")
        if getattr(given, "ndim", 4) < 4:
            given = [given]
        items: list[Any] = list(given)
        if len(items) != count:
            raise InputError(f"{field}: expected one for each of {count} prompts, got {len(items)}")

        places = [i for i, item in enumerate(items) if item is not None]
        if field == "images":
            values = self._assets.pictures.convert([items[i] for i in places]) if places else []
        else:
            values = [self._assets.pictures.check_values(f"pixel_values[{i}]", items[i]) for i in places]
        found: list[np.ndarray | None] = [None] * count
        for place, value in zip(places, values, strict=True):
            found[place] = value
        return found


def _describe(given: Any) -> str:
    shape = getattr(given, "shape", None)
    return type(given).__name__ if shape is None else f"an array of shape {list(shape)}"


def _rows(input_ids: Any) -> list[np.ndarray]:
    """Return the rows of tokens, int64 [S] each."""
    if isinstance(input_ids, torch.Tensor | np.ndarray):
        array = input_ids.detach().cpu().numpy() if isinstance(input_ids, torch.Tensor) else input_ids
        if array.ndim != 2 or array.dtype.kind not in "iu":
            raise InputError(
                f"input_ids: expected integers of shape [B, S], got {array.dtype} of shape {list(array.shape)}"
            )
        return list(array.astype(np.int64))
    if isinstance(input_ids, str | bytes | Mapping) or not isinstance(input_ids, Iterable):
        raise InputError(f"input_ids: expected [B, S] or lists of tokens, got {type(input_ids).__name__}")
    return [_row(f"input_ids[{i}]", row) for i, row in enumerate(input_ids)]


def _row(name: str, row: Any) -> np.ndarray:
    array = row.detach().cpu().numpy() if isinstance(row, torch.Tensor) else row
    is_sequence = isinstance(array, Iterable) and not isinstance(array, str | bytes | Mapping)
    try:
        array = np.asarray(array if isinstance(array, np.ndarray) or not is_sequence else list(array))
    except (ValueError, OverflowError):
        array = np.empty(0, object)
    if not is_sequence or array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise InputError(
            f"{name}: expected a list of tokens, got {row!r:.60}; pass prompts as [B, S] or lists of lists"
        )
    return array.astype(np.int64)


def _masks(attention_mask: Any, rows: list[np.ndarray]) -> list[np.ndarray | None]:
    if attention_mask is None:
        return [None] * len(rows)
    if isinstance(attention_mask, torch.Tensor):
        attention_mask = attention_mask.detach().cpu().numpy()
    if not isinstance(attention_mask, Iterable) or len(masks := list(attention_mask)) != len(rows):
        raise InputError("attention_mask: expected the shape of input_ids, got another number of rows")
    arrays = [np.asarray(mask.cpu() if isinstance(mask, torch.Tensor) else mask) for mask in masks]
    for i, (mask, row) in enumerate(zip(arrays, rows, strict=True)):
        if mask.shape != row.shape or not np.isin(mask, (0, 1)).all():
            raise InputError(
                f"attention_mask[{i}]: expected zeros and ones of shape [{len(row)}], as the tokens, got shape "
                f"{list(mask.shape)}"
            )
    return [mask.astype(bool) for mask in arrays]


def _valid_part(name: str, mask: np.ndarray) -> slice:
    places = np.flatnonzero(mask)
    if not len(places):
        return slice(0, 0)
    first, last = int(places[0]), int(places[-1])
    if last - first + 1 != len(places):
        raise InputError(f"{name}: expected zeros for padding at the beginning or end, got some between tokens")
    return slice(first, last + 1)
