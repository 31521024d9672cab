"""Episodes -> a folder of arrays, made once: steps one after the other, and where each piece begins and ends."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config import MISSION_LENGTH, JatConfig
from ..errors import DataError
from .arrays import ArrayFolder
from .sources import Source
from .steps import Steps, decode_frames, read_steps

_VERSION = 1
"""Of the layout; folders of another are not used."""


@dataclass(frozen=True)
class PieceSettings:
    """What a folder of pieces depends on beside the data.

    Attributes:
        task, split: whose.
        length: steps of the longest pieces.
        vocab_size, discrete_size, continuous_size: what the model can take: actions and integers below the first,
            integers in an observation, and values (the reward counted).
        tokenizer: fingerprint of what missions become.
    """

    task: str
    split: str
    length: int
    vocab_size: int
    discrete_size: int
    continuous_size: int
    tokenizer: str

    @classmethod
    def of(cls, task: str, split: str, length: int, config: JatConfig, processor: Any) -> PieceSettings:
        return cls(
            task,
            split,
            length,
            config.vocab_size,
            config.max_discrete_value,
            config.max_continuous_size,
            tokenizer_fingerprint(processor.tokenizer),
        )


def tokenizer_fingerprint(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(f"{text} {tokenizer.pad_token_id}".encode()).hexdigest()


def prepare(
    source: Source,
    settings: PieceSettings,
    encode_mission: Callable[[str], list[int]],
    root: Path,
    progress: Callable[[int], object] | None = None,
) -> Path:
    """The folder of a split's pieces, made unless it is there; under a temporary name until it is complete.

    Args:
        source: the episodes.
        encode_mission: mission -> its 64 tokens.
        root: where such folders are kept.
        progress: called with the number of episodes that were just read.

    Raises:
        DataError: names file, row, column, what was expected and what came. Nothing is left behind then.
    """
    key = json.dumps([_VERSION, source.fingerprint, asdict(settings)], sort_keys=True)
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    folder = root / f"{settings.task}-{settings.split}-{digest}"
    if (folder / "pieces.json").exists():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    temporary = root / f".{folder.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        _write(source, settings, encode_mission, temporary, progress)
        try:
            temporary.rename(folder)
        except OSError:  # another process was faster
            if not (folder / "pieces.json").exists():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _write(
    source: Source,
    settings: PieceSettings,
    encode_mission: Callable[[str], list[int]],
    folder: Path,
    progress: Callable[[int], object] | None,
) -> None:
    missions: dict[str, int] = {}
    num_episodes = num_steps = 0
    kinds: list[str] = []
    with ArrayFolder(folder) as arrays:
        for rows in source.read():
            if not rows.table.num_rows:
                continue
            steps = read_steps(rows)
            columns = _model_columns(steps, settings, missions)
            kinds = kinds or list(columns)
            for name, column in columns.items():
                expected = arrays.row_shape(name)
                if kinds != list(columns) or expected not in (None, column.shape[1:]):
                    raise DataError(
                        f"{rows.where}: row {rows.first}: {name}: expected steps of shape {expected}, as in the rows "
                        f"before, got {column.shape[1:]}"
                    )
                arrays.append(name, column)
            if "image_observations" in steps.columns:
                for plane_index, planes in _planes(steps, arrays.num_rows("planes")):
                    arrays.append("plane_index", plane_index)
                    arrays.append("planes", planes)
            pieces = np.array(list(_pieces(steps, settings.length)), np.int64)
            arrays.append("piece_start", num_steps + pieces[:, 0])
            arrays.append("piece_length", pieces[:, 1])
            num_steps += int(steps.lengths.sum())
            num_episodes += len(steps.lengths)
            if progress is not None:
                progress(len(steps.lengths))
        if not num_episodes:
            raise DataError(f"{source.where}: {settings.split}: expected at least one episode, got none")
        if missions:
            arrays.append("missions", np.array([encode_mission(text) for text in missions], np.int32))
    (folder / "pieces.json").write_text(
        json.dumps({**asdict(settings), "num_episodes": num_episodes, "num_steps": num_steps, "source": source.where})
    )


def _pieces(steps: Steps, longest: int) -> Iterator[tuple[int, int]]:
    """Start and length of each piece of each episode: as long as allowed, the remainder as a further one."""
    start = 0
    mask = steps.columns.get("attention_mask")
    for length in steps.lengths.tolist():
        real = length if mask is None else int(mask[start : start + length].sum())
        for offset in range(0, real, longest):
            yield start + offset, min(longest, real - offset)
        start += length


def _model_columns(steps: Steps, settings: PieceSettings, missions: dict[str, int]) -> dict[str, np.ndarray]:
    """The arrays kept of each column but images: as the model takes them, in the smallest type that holds them."""
    columns: dict[str, np.ndarray] = {}
    for name, values in steps.columns.items():
        if name == "rewards":
            columns[name] = values if "attention_mask" in steps.columns else _shift(values, steps.lengths)
        elif name == "discrete_observations":
            expected = settings.discrete_size - (MISSION_LENGTH if "text_observations" in steps.columns else 0)
            if values.shape[1] != expected:
                raise DataError(f"{steps.at(0)}: {name}: expected {expected} integers, got {values.shape[1]}")
            columns[name] = _identifiers(name, values, steps, settings.vocab_size)
        elif name == "discrete_actions":
            columns[name] = _identifiers(name, values, steps, settings.vocab_size)
        elif name == "text_observations":
            for text in values:
                missions.setdefault(text, len(missions))
            columns["mission_index"] = np.array([missions[text] for text in values], np.int32)
        elif name in ("continuous_observations", "continuous_actions"):
            room = settings.continuous_size - (name == "continuous_observations")  # the reward is one more
            if not 1 <= values.shape[1] <= room:
                raise DataError(
                    f"{steps.at(0)}: {name}: expected 1 to {room} values (max_continuous_size), got {values.shape[1]}"
                )
            columns[name] = values
        elif name == "attention_mask":
            _check_mask(values, steps)
        elif name == "loss_weight":
            columns[name] = values
    return columns


def _shift(rewards: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[0] + rewards[:-1] of each episode: with an observation comes the reward of the action before."""
    shifted = np.concatenate((np.zeros(1, np.float32), rewards[:-1]))
    shifted[np.cumsum(lengths) - lengths] = 0
    return shifted


def _identifiers(name: str, values: np.ndarray, steps: Steps, vocab_size: int) -> np.ndarray:
    wrong = (values < 0) | (values >= vocab_size)
    if wrong.any():
        step = int(np.argmax(wrong.reshape(len(wrong), -1).any(axis=1)))
        got = values[step][wrong[step]][0] if values.ndim > 1 else values[step]
        raise DataError(f"{steps.at(step)}: {name}: expected 0 to {vocab_size - 1} (vocab_size - 1), got {got}")
    return values.astype(np.uint16 if vocab_size <= 2**16 else np.int32)


def _check_mask(mask: np.ndarray, steps: Steps) -> None:
    """Tokenized data: real steps come first."""
    rising = np.flatnonzero(mask[1:] > mask[:-1]) + 1
    starts = np.cumsum(steps.lengths) - steps.lengths
    wrong = np.setdiff1d(rising, starts)
    if len(wrong) or not np.isin(mask, (0, 1)).all() or not mask[starts].all():
        step = int(wrong[0]) if len(wrong) else int(np.argmax(~np.isin(mask, (0, 1))))
        raise DataError(f"{steps.at(step)}: attention_mask: expected ones and then zeros, got {mask[step]}")


def _planes(steps: Steps, first: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For every step which four planes it is, [1, 4], and those of them that are new, [n, 84, 84].

    A frame is a stack of four pictures, three of which the step before had, too.
    """
    ends = set(np.cumsum(steps.lengths).tolist())
    seen: dict[bytes, int] = {}
    for number, frame in enumerate(decode_frames(steps)):
        if number in ends:
            seen = {}  # planes of other episodes: too many to remember
        stack, new = [], []
        for plane in np.ascontiguousarray(frame.transpose(2, 0, 1)):
            digest = hashlib.blake2b(plane.data, digest_size=16).digest()
            if digest not in seen:
                seen[digest] = first
                first += 1
                new.append(plane)
            stack.append(seen[digest])
        yield np.array([stack], np.int32), np.array(new, np.uint8).reshape(-1, *frame.shape[:2])
