"""`TextAssets`: what an engine has besides weights to read and write texts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..checkpoint_files import find_file, read_json
from ..config import JatConfig
from .pictures import Pictures
from .tokenizer import TextTokenizer


@dataclass(frozen=True)
class TextAssets:
    """Tokenizer, image processor and defaults of generation.

    Attributes:
        tokenizer: from texts to tokens and back.
        pictures: from images to pixel values.
        defaults: fields of the checkpoint's `GenerationConfig`.
    """

    tokenizer: TextTokenizer
    pictures: Pictures
    defaults: Mapping[str, Any]

    @classmethod
    def of_checkpoint(cls, source: str | os.PathLike[str], hub: dict[str, Any], config: JatConfig) -> TextAssets:
        """Read a checkpoint's files.

        Args:
            source: the checkpoint's folder or hub repository.
            hub: options that say where to look for the repository.
            config: of the model.

        Raises:
            CheckpointError: a file is damaged, or two files of the tokenizer disagree.
        """
        path = find_file(source, "generation_config.json", hub)
        defaults = _of_config(config) if path is None else read_json(path)
        tokenizer = TextTokenizer.of_checkpoint(source, hub)
        return cls(tokenizer, Pictures.of_checkpoint(source, hub, config), defaults)

    @classmethod
    def of_model(cls, model: Any, processor: Any) -> TextAssets:
        """Take what a `JatModel` and a `JatProcessor`, or None, have.

        Raises:
            InputError: `processor` is neither a processor with a tokenizer nor None.
        """
        config: JatConfig = model.config
        given = getattr(model, "generation_config", None)
        defaults = _of_config(config) if given is None else given.to_dict()
        return cls(TextTokenizer.of_processor(processor), Pictures.of_processor(processor, config), defaults)


def _of_config(config: JatConfig) -> dict[str, Any]:
    """Return the defaults where there is no file of them: the special tokens of the model."""
    return {"eos_token_id": config.eos_token_id, "pad_token_id": config.pad_token_id}
