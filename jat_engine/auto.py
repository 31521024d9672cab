"""`AutoConfig`, `AutoModelForCausalLM` and `AutoProcessor` for JAT checkpoints.

They read JAT checkpoints only, and never run code of a checkpoint: transformers' own classes of these names do, with
`trust_remote_code=True`. Importing this module also registers JAT with transformers' auto classes.
"""

from __future__ import annotations

import os
from typing import Any

import transformers

from .config import JatConfig
from .model.modeling import JatModel
from .model.processing import JatProcessor


class AutoConfig:
    """Load the configuration of a JAT checkpoint."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> JatConfig:
        """Load a `JatConfig`. See `JatConfig.from_pretrained`."""
        config: JatConfig = JatConfig.from_pretrained(pretrained_model_name_or_path, **kwargs)
        return config


class AutoModelForCausalLM:
    """Load the model of a JAT checkpoint, or make one with random weights."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *model_args: Any, **kwargs: Any
    ) -> JatModel:
        """Load a `JatModel`. See `JatModel.from_pretrained`."""
        model: JatModel = JatModel.from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        return model

    @classmethod
    def from_config(cls, config: JatConfig) -> JatModel:
        """Make a `JatModel` with random weights."""
        return JatModel(config)


class AutoProcessor:
    """Load the processor of a JAT checkpoint."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> JatProcessor:
        """Load a `JatProcessor`. See `JatProcessor.from_pretrained`."""
        processor: JatProcessor = JatProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        return processor


transformers.AutoConfig.register("jat", JatConfig, exist_ok=True)
transformers.AutoModelForCausalLM.register(JatConfig, JatModel, exist_ok=True)
transformers.AutoProcessor.register(JatConfig, JatProcessor, exist_ok=True)

__all__ = ["AutoConfig", "AutoModelForCausalLM", "AutoProcessor"]
