"""`jat-mini`: small trained weights that come with the package, and the recipe they were made by."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

NAME = "jat-mini"

FOLDER = Path(__file__).parent / "checkpoint"
"""Weights, configuration, tokenizer, card and scores; made by `make train-mini`."""


def resolve(source: str | PathLike[str]) -> str | PathLike[str]:
    """Where a checkpoint is: `FOLDER` for "jat-mini", unless there is a folder of that name; else `source`."""
    return FOLDER if source == NAME and not Path(NAME).is_dir() else source


def is_there() -> bool:
    """Whether the weights are."""
    return (FOLDER / "model.safetensors").exists()
