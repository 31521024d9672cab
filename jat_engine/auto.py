"""`AutoConfig`, `AutoModelForCausalLM` and `AutoProcessor` for JAT checkpoints.

These classes read JAT checkpoints only and never run code from a checkpoint. transformers' classes of the same names
run such code with `trust_remote_code=True`. Importing this module also registers JAT with transformers' auto classes.

Example:
    >>> from jat_engine import AutoModelForCausalLM, AutoProcessor
    >>> processor = AutoProcessor.from_pretrained("jat-mini")
    >>> model = AutoModelForCausalLM.from_pretrained("jat-mini")
"""

from __future__ import annotations

import os
from typing import Any

import transformers

from .config import JatConfig
from .model.modeling import JatModel
from .model.processing import JatProcessor


class AutoConfig:
    """Loader of the configuration of a JAT checkpoint."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> JatConfig:
        """Return the checkpoint's `JatConfig`. Arguments and errors: see `JatConfig.from_pretrained`."""
        config: JatConfig = JatConfig.from_pretrained(pretrained_model_name_or_path, **kwargs)
        return config


class AutoModelForCausalLM:
    """Loader of the model of a JAT checkpoint, and maker of models with random weights."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *model_args: Any, **kwargs: Any
    ) -> JatModel:
        """Return the checkpoint's `JatModel`. Arguments and errors: see `JatModel.from_pretrained`."""
        model: JatModel = JatModel.from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        return model

    @classmethod
    def from_config(cls, config: JatConfig) -> JatModel:
        """Return a new `JatModel` with random weights."""
        return JatModel(config)


class AutoProcessor:
    """Loader of the processor of a JAT checkpoint."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> JatProcessor:
        """Return the checkpoint's `JatProcessor`. Arguments and errors: see `JatProcessor.from_pretrained`."""
        processor: JatProcessor = JatProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        return processor


transformers.AutoConfig.register("jat", JatConfig, exist_ok=True)
transformers.AutoModelForCausalLM.register(JatConfig, JatModel, exist_ok=True)
transformers.AutoProcessor.register(JatConfig, JatProcessor, exist_ok=True)

__all__ = ["AutoConfig", "AutoModelForCausalLM", "AutoProcessor"]
