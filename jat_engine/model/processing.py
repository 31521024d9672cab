"""`JatProcessor`, which converts text, images and RL sequences to inputs of `JatModel`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import BatchEncoding, CLIPImageProcessorPil, ProcessorMixin
from transformers.processing_utils import ImagesKwargs, TextKwargs
from transformers.utils import logging

from ..checkpoint.tokenizer import check_tokenizer_files
from ..checkpoint_files import HUB_OPTIONS, PROCESSOR_FILES, find_file, resolve, take_hub_options
from ..config import FRAME_SHAPE, MISSION_LENGTH, JatConfig
from ..errors import CheckpointError, InputError
from ..keywords import refuse_unknown
from .pictures import to_rgb

logger = logging.get_logger(__name__)

Encoding = dict[str, list[Any]]

_PATCH_SIZE = 16  # of the published checkpoints; a text is cut so that the image's patches fit into the sequence

_MORE_FILES = ("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja")

_LOADING_OPTIONS = (
    *HUB_OPTIONS,
    *("trust_remote_code", "backend", "use_fast", "config", "proxies", "resume_download", "local_dir_use_symlinks"),
    *("user_agent", "return_unused_kwargs", "code_revision", "tokenizer_type", "legacy", "from_slow", "use_auth_token"),
    *("model_max_length", "padding_side", "truncation_side", "chat_template", "model_input_names", "add_prefix_space"),
    *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
    *("additional_special_tokens", "extra_special_tokens", "clean_up_tokenization_spaces", "split_special_tokens"),
    *("add_bos_token", "add_eos_token", "max_length", "name_or_path"),
)
"""Keywords for finding files, of transformers' auto classes, and of tokenizers."""

_TEXT_OPTIONS = ("add_special_tokens", "is_split_into_words", "text_pair", "verbose")
"""Keywords that the tokenizer gets. Those below are accepted from programs that pass all of a tokenizer's keywords."""

_ARGUMENTS = (
    "text",
    "images",
    "continuous_observations",
    "discrete_observations",
    "text_observations",
    "image_observations",
    "continuous_actions",
    "discrete_actions",
    "rewards",
    "return_tensors",
    "padding",
    "padding_side",
    "truncation",
    "truncation_side",
    "max_length",
)
_NO_EFFECT = frozenset(TextKwargs.__annotations__) - {"padding", "truncation", "max_length", *_TEXT_OPTIONS}
_IMAGE_OPTIONS = frozenset(ImagesKwargs.__annotations__) - {"return_tensors"}


def truncate(encoding: Encoding, max_length: int, side: str = "right", preserve: bool = False) -> Encoding:
    """Cut every sequence to at most `max_length` steps.

    Args:
        encoding: field -> batch of sequences.
        max_length: at least 1.
        side: the end at which steps are cut off, "right" or "left".
        preserve: keep the steps that are cut off, as further sequences of the batch.

    Raises:
        ValueError: `side` or `max_length` is wrong.

    Example:
        >>> truncate({"x": [[1, 2, 3, 4, 5]]}, 2, preserve=True)
        {'x': [[1, 2], [3, 4], [5]]}
    """
    if side not in ("left", "right"):
        raise ValueError(f"Invalid truncation side: expected 'left' or 'right', got {side!r}")
    if max_length < 1:
        raise ValueError(f"max_length: expected room for at least one step, got {max_length}")

    def pieces(sequence: Any) -> list[Any]:
        n = len(sequence)
        if n <= max_length:
            return [sequence]
        if side == "right":
            cuts = [sequence[i : i + max_length] for i in range(0, n, max_length)]
        else:
            cuts = [sequence[max(0, i - max_length) : i] for i in range(n, 0, -max_length)]
        return cuts if preserve else cuts[:1]

    return {key: [piece for sequence in sequences for piece in pieces(sequence)] for key, sequences in encoding.items()}


def pad(encoding: Encoding, length: int, side: str = "right", filler: Any = None) -> Encoding:
    """Pad every sequence to `length`, and add an `attention_mask` (1 at real steps).

    Steps that a given `attention_mask` masks stay masked.

    Args:
        encoding: field -> batch of sequences.
        length: of the padded sequences; longer ones stay as they are.
        side: the end at which steps are added, "right" or "left".
        filler: the element that is added; None for the first element of each sequence.

    Raises:
        ValueError: a sequence is empty, and there is no filler.

    Example:
        >>> pad({"x": [[1, 2], [3, 4, 5]]}, 3)
        {'x': [[1, 2, 1], [3, 4, 5]], 'attention_mask': [[1, 1, 0], [1, 1, 1]]}
    """

    def extend(sequence: Any, element: Any) -> list[Any]:
        more = [element] * (length - len(sequence))
        return [*more, *sequence] if side == "left" else [*sequence, *more]

    padded: Encoding = {}
    mask: list[list[int]] = []
    for key, sequences in encoding.items():
        if key == "attention_mask":
            continue
        if filler is None and any(len(sequence) == 0 for sequence in sequences):
            raise ValueError(f"{key}: expected sequences of at least one step, got an empty one")
        padded[key] = [extend(s, s[0] if filler is None else filler) for s in sequences]
        mask = [extend([1] * len(s), 0) for s in sequences]
    if "attention_mask" in encoding:
        mask = [
            [int(a) * int(b) for a, b in zip(row, extend(old, 0), strict=False)]
            for row, old in zip(mask, encoding["attention_mask"], strict=True)
        ]
    return {**padded, "attention_mask": mask}


class JatProcessor(ProcessorMixin):
    """Processor with a CLIP image processor, a byte-level BPE tokenizer, and methods for RL sequences.

    Sequences are nested lists or arrays, batch first, then time. RL sequences are cut at half of `max_length`, since
    a time step is two tokens.

    Example:
        >>> processor = JatProcessor.from_pretrained("jat-mini")
        >>> inputs = processor(
        ...     continuous_observations=[[[0.1, 0.2]]],
        ...     continuous_actions=[[[0.5]]],
        ...     rewards=[[0.0]],
        ...     return_tensors="pt",
        ... )
        >>> inputs["continuous_observations"].shape
        torch.Size([1, 1, 2])
    """

    def __init__(self, image_processor: Any, tokenizer: Any) -> None:
        super().__init__(image_processor, tokenizer)
        # An `auto_map` names code inside a checkpoint. That code is never run, so it is not saved again either.
        vars(image_processor).pop("auto_map", None)
        tokenizer.init_kwargs.pop("auto_map", None)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Load the processor of a checkpoint.

        Images are resized with Pillow, as in the training of the published model.

        Args:
            pretrained_model_name_or_path: a folder, a repository id on the hub, or "jat-mini".
            **kwargs: transformers' options (`revision`, `cache_dir`, `token`, `subfolder`, ...). `trust_remote_code`
                is accepted and ignored: code in a checkpoint is never run.

        Raises:
            CheckpointError: a file is missing or damaged, or the tokenizer's files contradict each other.
        """
        kwargs.pop("trust_remote_code", None)
        hub = take_hub_options(kwargs)
        own = [name for name in kwargs if not name.startswith("_")]  # others come from transformers' auto classes
        refuse_unknown(own, (*_LOADING_OPTIONS, *sorted(_IMAGE_OPTIONS)), "an option of JatProcessor.from_pretrained")
        source = resolve(pretrained_model_name_or_path, hub.get("subfolder"), ("config.json", *PROCESSOR_FILES))
        check_tokenizer_files(source, hub)

        # All files are found here, and transformers is given their folder: it would look for each of them on the hub.
        files = [find_file(source, name, hub) for name in (*PROCESSOR_FILES, *_MORE_FILES)]
        if not any(files[:2]):
            find_file(source, PROCESSOR_FILES[0], hub, required=True)
        if files[3] is None and find_file(source, "vocab.json", hub) is None:
            find_file(source, PROCESSOR_FILES[3], hub, required=True)
        folder = next(file for file in files if file is not None).parent
        try:
            processor = super().from_pretrained(folder, backend="pil", trust_remote_code=False, **kwargs)
        except Exception as error:  # also of the tokenizers library, which raises no other class
            lines = str(error).splitlines() or [""]
            raise CheckpointError(f"{source}: expected a processor, got {type(error).__name__}: {lines[0]}") from error
        processor.tokenizer.name_or_path = str(pretrained_model_name_or_path)
        return processor

    @classmethod
    def byte_level(cls, config: JatConfig) -> JatProcessor:
        """Return a processor that needs no files, for models that are trained from scratch.

        Every UTF-8 byte is one token. Token 256 marks the end of a text and is also used for padding. The published
        checkpoints have a tokenizer of their own.

        Args:
            config: configuration of the model; gives the image size and the longest text.
        """
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        end = "<|endoftext|>"
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE(vocab={**{c: i for i, c in enumerate(alphabet)}, end: 256}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()

        size = config.image_size
        return cls(
            CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size}),
            PreTrainedTokenizerFast(
                tokenizer_object=tokenizer,
                bos_token=end,
                eos_token=end,
                pad_token=end,
                unk_token=end,
                model_max_length=config.max_position_embeddings,
                model_input_names=["input_ids", "attention_mask"],
            ),
        )

    def __call__(
        self,
        text: Any = None,
        images: Any = None,
        continuous_observations: Any = None,
        discrete_observations: Any = None,
        text_observations: Any = None,
        image_observations: Any = None,
        continuous_actions: Any = None,
        discrete_actions: Any = None,
        rewards: Any = None,
        return_tensors: str | None = None,
        *,
        padding: bool | str = False,
        truncation: bool | str = False,
        truncation_side: str = "right",
        padding_side: str | None = None,
        max_length: int | None = None,
        **kwargs: Any,
    ) -> BatchEncoding:
        """Convert a batch of text, images or RL sequences to inputs of `JatModel.forward`.

        Args:
            text: a string or a list of strings.
            images: pictures of any size: PIL images of any mode, file names, arrays or tensors [H, W], [H, W, C] or
                [C, H, W] with 1 to 4 channels, of uint8, bool, uint16 or floats in 0..1 or 0..255, or lists of them.
                All of them are converted to RGB with 8 bits per channel first; alpha is dropped.
            continuous_observations: [B, L, X] numbers.
            discrete_observations: [B, L, N] integers.
            text_observations: [B, L] strings. Each becomes 64 tokens, appended to the step's discrete observation.
            image_observations: [B, L] arrays uint8 [84, 84, 4].
            continuous_actions: [B, L, A] numbers.
            discrete_actions: [B, L] integers.
            rewards: [B, L] numbers.
            return_tensors: "pt", "np" or None for lists.
            padding: True or "longest", "max_length", False or "do_not_pad". RL sequences are padded with their first
                step, at the end.
            truncation: True or "lossy", "preserve" (steps that are cut off become further sequences), False or
                "do_not_truncate".
            truncation_side: "right" or "left".
            padding_side: for text, "left", so that `generate` continues each prompt as if it were alone, or "right".
                By default "left" for `padding=True`, and "right", as published, for "max_length" and for the pieces of
                truncation "preserve", unless `tokenizer.padding_side` is "left". RL sequences take "right" alone.
            max_length: in tokens; by default the tokenizer's `model_max_length`.
            **kwargs: transformers' keywords for tokenizers (`add_special_tokens`, `return_attention_mask`,
                `pad_to_multiple_of`, ...) and for image processors (`do_resize`, `input_data_format`, ...).

        Returns:
            The given fields, with `input_ids` for text and `pixel_values` for images. With padding also
            `attention_mask` [B, L].

        Raises:
            ValueError: fields differ in batch size or length, have a wrong type, shape or value, or an option is wrong.
            InputError: a keyword is unknown, or would have no effect; the message names it.
        """
        text_options, image_options, own = _sort_options(kwargs)
        encoding: dict[str, Any] = {}
        if text is not None:
            texts = [text] if isinstance(text, str) else text
            encoding["input_ids"] = self.tokenizer(texts, **text_options)["input_ids"]
        if discrete_observations is not None:
            encoding["discrete_observations"] = self._discrete(discrete_observations, text_observations)
        elif text_observations is not None:
            raise ValueError("discrete_observations must be provided if text_observations is provided")

        if image_observations is not None:
            encoding["image_observations"] = [[_frame(f) for f in episode] for episode in image_observations]
        for key, values in (
            ("continuous_observations", continuous_observations),
            ("continuous_actions", continuous_actions),
            ("discrete_actions", discrete_actions),
        ):
            if values is not None:
                encoding[key] = [_to_list(episode) for episode in values]
        if rewards is not None:
            encoding["rewards"] = [[float(r) for r in episode] for episode in rewards]

        limit = max_length if max_length is not None else self.tokenizer.model_max_length
        if text is not None and images is not None:
            limit -= self._num_image_tokens()
        elif any(key.endswith("_observations") for key in encoding):
            limit //= 2  # a step is two tokens

        if encoding:
            side = self._padding_side(padding_side, padding, truncation, is_text=text is not None)
            multiple = own.get("pad_to_multiple_of") or 1
            encoding = self._truncate_and_pad(encoding, padding, truncation, truncation_side, limit, side, multiple)
            wants_mask = own.get("return_attention_mask")
            if wants_mask and "attention_mask" not in encoding:
                encoding["attention_mask"] = [[1] * len(s) for s in next(iter(encoding.values()))]
            elif wants_mask is False:
                encoding.pop("attention_mask", None)
        if images is not None:
            encoding["pixel_values"] = self._pixel_values(images, image_options)
        return BatchEncoding(encoding, tensor_type=return_tensors)

    def _pixel_values(self, images: Any, options: dict[str, Any]) -> Any:
        options = dict(options)
        pictures, is_unit = to_rgb(images, options.pop("input_data_format", None))
        if is_unit and (options.get("do_rescale") is False or options.get("rescale_factor") == 1):
            # Said of floats in 0..1, which are 8-bit numbers now.
            options.pop("do_rescale", None)
            options.pop("rescale_factor", None)
        return self.image_processor(pictures, **options).pixel_values

    def _padding_side(self, given: str | None, padding: Any, truncation: Any, is_text: bool) -> str:
        if given not in (None, "left", "right"):
            raise ValueError(f"padding_side: expected 'left' or 'right', got {given!r}")
        if not is_text:
            if given == "left":
                raise ValueError(
                    "padding_side: expected 'right' for RL sequences, whose positions count from the first step, got "
                    "'left'"
                )
            return "right"
        is_prompt = padding in (True, "longest") and truncation != "preserve"
        return given or ("left" if is_prompt or self.tokenizer.padding_side == "left" else "right")

    def pad(self, features: list[dict[str, Any]], **kwargs: Any) -> BatchEncoding:
        """Collate single examples into a batch. Tensors of one shape are stacked, lists are padded.

        Args:
            features: one mapping per example, all with the same keys. Keys with the value None are left out.
            **kwargs: `padding`, `padding_side`, `max_length`, `pad_to_multiple_of` and `return_tensors`, as in
                `__call__`.

        Raises:
            InputError: a keyword is unknown.
        """
        options = ("padding", "padding_side", "max_length", "pad_to_multiple_of", "return_tensors")
        refuse_unknown(kwargs, options, "an option of padding")
        keys = [key for key, value in features[0].items() if value is not None]
        batch: dict[str, Any] = {key: [feature[key] for feature in features] for key in keys}
        if all(isinstance(value, torch.Tensor) for value in batch[keys[0]]):
            batch = {key: torch.stack(values) for key, values in batch.items()}
        else:
            limit = kwargs.get("max_length") or self.tokenizer.model_max_length
            images = {"pixel_values": batch.pop("pixel_values")} if "pixel_values" in batch else {}
            padding = kwargs.get("padding", False)
            side = self._padding_side(kwargs.get("padding_side"), padding, False, is_text="input_ids" in batch)
            multiple = kwargs.get("pad_to_multiple_of") or 1
            batch = {**self._truncate_and_pad(batch, padding, False, "right", limit, side, multiple), **images}
        return BatchEncoding(batch, tensor_type=kwargs.get("return_tensors"))

    @property
    def model_input_names(self) -> list[str]:
        """Names of the inputs that `JatModel.forward` takes."""
        return [
            "input_ids",
            "attention_mask",
            "pixel_values",
            "continuous_observations",
            "discrete_observations",
            "image_observations",
            "continuous_actions",
            "discrete_actions",
            "rewards",
        ]

    def encode_mission(self, text: str) -> list[int]:
        """Return the 64 tokens of a mission, padded with the pad token. A longer mission is cut, with one warning.

        Raises:
            InputError: the tokenizer has no pad token.
        """
        if self.tokenizer.pad_token_id is None:
            raise InputError(
                "text_observation: expected a tokenizer with a pad_token, got one without; set "
                "processor.tokenizer.pad_token"
            )
        tokens: list[int] = self.tokenizer(text)["input_ids"]
        if len(tokens) > MISSION_LENGTH:
            logger.warning_once(
                f"text_observation: expected at most {MISSION_LENGTH} tokens, got {len(tokens)}; the rest is cut off"
            )
        return (tokens + [self.tokenizer.pad_token_id] * MISSION_LENGTH)[:MISSION_LENGTH]

    def _discrete(self, observations: Any, texts: Any) -> list[Any]:
        observations = [_to_list(episode) for episode in observations]
        if texts is None:
            return list(observations)
        return [
            [[*step, *self.encode_mission(text)] for step, text in zip(episode, missions, strict=True)]
            for episode, missions in zip(observations, texts, strict=True)
        ]

    def _num_image_tokens(self) -> int:
        crop = self.image_processor.crop_size
        return int(crop["height"] // _PATCH_SIZE) * int(crop["width"] // _PATCH_SIZE)

    def _truncate_and_pad(
        self,
        encoding: Encoding,
        padding: bool | str,
        truncation: bool | str,
        truncation_side: str,
        limit: int,
        padding_side: str,
        multiple: int,
    ) -> Encoding:
        lengths = {key: [len(sequence) for sequence in sequences] for key, sequences in encoding.items()}
        if len({tuple(value) for key, value in lengths.items() if key != "attention_mask"}) > 1:
            raise ValueError(f"sequences: expected fields of the same batch and lengths, got {lengths}")

        if truncation in (True, "lossy", "preserve"):
            encoding = truncate(encoding, limit, truncation_side, preserve=truncation == "preserve")
        elif truncation not in (False, "do_not_truncate"):
            raise ValueError(f"Invalid truncation strategy:{truncation}")

        if padding in (True, "longest", "max_length"):
            longest = max((len(s) for sequences in encoding.values() for s in sequences), default=0)
            length = -(-(limit if padding == "max_length" else longest) // multiple) * multiple
            filler = self.tokenizer.pad_token_id if padding_side == "left" else None
            encoding = pad(encoding, length, padding_side, filler)
        elif padding not in (False, "do_not_pad"):
            raise ValueError(f"Invalid padding strategy:{padding}")

        if "image_observations" in encoding:
            encoding["image_observations"] = _stack_frames(encoding["image_observations"])
        return encoding


def _sort_options(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Sort keywords of a processor into those of the tokenizer, of the image processor, and its own.

    Raises:
        InputError: a keyword is unknown, or asks for what the processor does not do.
    """
    own = {"return_attention_mask", "pad_to_multiple_of"}
    silent = {*_NO_EFFECT, "audio", "videos"} - own
    known = (*_ARGUMENTS, *_TEXT_OPTIONS, *sorted(own | _IMAGE_OPTIONS), *sorted(silent))
    refuse_unknown(given, known, "an option of JatProcessor")
    for name in sorted(silent & given.keys()):
        if given[name]:
            raise InputError(
                f"{name}: expected to be left out, since JatProcessor does without, got {given[name]!r:.80}"
            )
    parts = set(_TEXT_OPTIONS), _IMAGE_OPTIONS, own
    text, image, rest = ({name: given[name] for name in given if name in part} for part in parts)
    return text, image, rest


def _to_list(values: Any) -> Any:
    """Convert nested arrays, tensors and tuples to nested lists."""
    if hasattr(values, "tolist"):
        return values.tolist()
    return [_to_list(value) for value in values] if isinstance(values, list | tuple) else values


def _stack_frames(episodes: list[Any]) -> Any:
    """Stack the frames of episodes of equal length to one tensor [B, L, 4, 84, 84]; other episodes stay lists."""
    if len({len(episode) for episode in episodes}) != 1:
        return episodes
    return torch.stack([torch.stack([torch.as_tensor(frame) for frame in episode]) for episode in episodes])


def _frame(frame: Any) -> np.ndarray:
    """Convert a frame, uint8 [84, 84, 4], to float32 [4, 84, 84] in [-1, 1]."""
    array = np.asarray(frame)
    if array.dtype != np.uint8 or array.shape != FRAME_SHAPE:
        raise ValueError(
            f"image_observations: expected uint8 frames of shape {FRAME_SHAPE}, "
            f"got shape {array.shape} and dtype {array.dtype}"
        )
    scaled = array.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    return (scaled - np.float32(0.5)) / np.float32(0.5)
