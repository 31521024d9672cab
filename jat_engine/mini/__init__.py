"""`jat-mini`: small trained weights that come with the package, and the recipe they were made by."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from ..errors import CheckpointError

NAME = "jat-mini"

FOLDER = Path(__file__).parent / "checkpoint"
"""Weights, configuration, tokenizer, card and scores; made by `make train-mini`."""


def resolve(source: str | PathLike[str]) -> str | PathLike[str]:
    """Where a checkpoint is: `FOLDER` for "jat-mini", unless there is a folder of that name; else `source`.

    Raises:
        CheckpointError: jat-mini's weights are not there.
    """
    if source != NAME or Path(NAME).is_dir():
        return source
    if not (FOLDER / "model.safetensors").exists():
        raise CheckpointError(f"{NAME}: its weights are not there; in a checkout `make train-mini` makes them")
    return FOLDER
