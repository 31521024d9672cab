"""Rows -> pieces: the arrays that batches are gathered from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import MISSION_LENGTH, JatConfig
from ..datasets.schema import TEXT_COLUMNS, check_belong
from ..envs.tasks import TASKS
from ..errors import DataError
from .episodes import Steps, decode_frames, read_steps
from .sources import Rows

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class PieceSettings:
    """What pieces depend on beside the data.

    Attributes:
        task, split: whose.
        length: steps of the longest pieces of an RL task, tokens of those of a text.
        vocab_size, discrete_size, continuous_size: what the model can take: actions and integers below the first,
            integers in an observation, and values (the reward counted).
        image_tokens: tokens that an image beside a text takes.
        tokenizer: fingerprint of what texts become.
    """

    task: str
    split: str
    length: int
    vocab_size: int
    discrete_size: int
    continuous_size: int
    image_tokens: int
    tokenizer: str

    @classmethod
    def of(cls, task: str, split: str, length: int, config: JatConfig, processor: Any) -> PieceSettings:
        tokenizer = processor.tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        text = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
        return cls(
            task,
            split,
            length,
            config.vocab_size,
            config.max_discrete_value,
            config.max_continuous_size,
            config.num_image_tokens,
            hashlib.sha256(f"{text} {tokenizer.pad_token_id}".encode()).hexdigest(),
        )


class Cutter:
    """Cuts a split's rows into pieces.

    `cut` gives arrays of some rows: what the model takes, [steps, ...], in the smallest type that holds it, and

        piece_start, piece_length: [pieces], int64: which of the steps a piece is.
        mission_index: [steps], int32: row of `missions`, in the place of a text observation.
        planes: [P, 84, 84], uint8, and plane_index: [steps, 4], int32, in the place of images. A frame is a stack of
            four pictures, three of which the step before had, too.
        image_bytes: [bytes], uint8, and image_start, image_length: [pieces], int64: the image file beside a text.
    """

    def __init__(self, settings: PieceSettings, processor: Any) -> None:
        self.settings = settings
        self.processor = processor
        self.num_episodes = 0
        self._missions: dict[str, int] = {}
        self._mission_tokens: list[list[int]] = []

    @property
    def missions(self) -> np.ndarray:
        """[missions, 64], int32: tokens of every mission so far."""
        return np.array(self._mission_tokens, np.int32).reshape(-1, MISSION_LENGTH)

    def cut(self, rows: Rows) -> Arrays:
        """Pieces of some rows; counted from the first of these rows, but for `mission_index`.

        Raises:
            DataError: names file, row, column, what was expected and what came.
        """
        self.num_episodes += rows.table.num_rows
        names = rows.table.column_names
        if self.settings.task in TASKS:
            check_belong(names, self.settings.task, source=rows.where)
        if set(TEXT_COLUMNS).intersection(names):
            return self._cut_texts(rows)
        steps = read_steps(rows)
        arrays = self._columns(steps)
        starts, lengths = _cut(_real_lengths(steps), self.settings.length, steps.lengths)
        return {**arrays, "piece_start": starts, "piece_length": lengths}

    # ---- RL ------------------------------------------------------------------------------------------------------

    def _columns(self, steps: Steps) -> Arrays:
        columns: Arrays = {}
        for name, values in steps.columns.items():
            if name == "rewards":
                # Tokenized data has them shifted.
                columns[name] = values if "attention_mask" in steps.columns else _shift(values, steps.lengths)
            elif name == "discrete_observations":
                expected = self.settings.discrete_size
                expected -= MISSION_LENGTH if "text_observations" in steps.columns else 0
                if values.shape[1] != expected:
                    raise DataError(f"{steps.at(0)}: {name}: expected {expected} integers, got {values.shape[1]}")
                columns[name] = self._identifiers(name, values, steps)
            elif name == "discrete_actions":
                columns[name] = self._identifiers(name, values, steps)
            elif name == "text_observations":
                for text in dict.fromkeys(values):
                    if text not in self._missions:
                        self._missions[text] = len(self._missions)
                        self._mission_tokens.append(self.processor.encode_mission(text))
                columns["mission_index"] = np.array([self._missions[text] for text in values], np.int32)
            elif name == "image_observations":
                columns.update(_planes(steps))
            elif name in ("continuous_observations", "continuous_actions"):
                room = self.settings.continuous_size - (name == "continuous_observations")  # the reward is one more
                if not 1 <= values.shape[1] <= room:
                    raise DataError(
                        f"{steps.at(0)}: {name}: expected 1 to {room} values (max_continuous_size), "
                        f"got {values.shape[1]}"
                    )
                columns[name] = values
            elif name == "loss_weight":
                columns[name] = values
        return columns

    def _identifiers(self, name: str, values: np.ndarray, steps: Steps) -> np.ndarray:
        size = self.settings.vocab_size
        wrong = (values < 0) | (values >= size)
        if wrong.any():
            step = int(np.argmax(wrong.reshape(len(wrong), -1).any(axis=1)))
            got = values[step][wrong[step]].flat[0]
            raise DataError(f"{steps.at(step)}: {name}: expected 0 to {size - 1} (vocab_size - 1), got {got}")
        return values.astype(_token_type(size))

    # ---- texts and captions --------------------------------------------------------------------------------------

    def _cut_texts(self, rows: Rows) -> Arrays:
        """Tokens one text after the other. A text is cut into pieces; one beside an image keeps its beginning."""
        if "text" not in rows.table.column_names:
            raise DataError(f"{rows.where}: text: expected this column, got {', '.join(rows.table.column_names)}")
        texts = rows.table["text"].to_pylist()
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(f"{rows.where}: row {rows.first + row}: text: expected a string, got {text!r}")
        tokens = self.processor.tokenizer(texts, verbose=False)["input_ids"]
        with_images = "images" in rows.table.column_names
        limit = self.settings.length
        if with_images:
            limit -= self.settings.image_tokens
            if limit < 2:
                raise DataError(
                    f"{rows.where}: images: expected room for text beside the {self.settings.image_tokens} tokens of "
                    f"an image, got max_position_embeddings={self.settings.length}"
                )
            tokens = [text[:limit] for text in tokens]
        kept = [row for row, text in enumerate(tokens) if len(text) > 1]  # one token predicts nothing
        all_lengths = np.array([len(tokens[row]) for row in kept], np.int64)
        starts, lengths = _cut(all_lengths, limit, all_lengths)
        flat = [token for row in kept for token in tokens[row]]
        arrays: Arrays = {"input_ids": np.array(flat, _token_type(self.settings.vocab_size))}
        arrays |= {"piece_start": starts[lengths > 1], "piece_length": lengths[lengths > 1]}
        if with_images:
            arrays |= _image_files(rows, kept)
        return arrays


def _token_type(vocab_size: int) -> Any:
    return np.uint16 if vocab_size <= 2**16 else np.int32


def _real_lengths(steps: Steps) -> np.ndarray:
    """[episodes], steps that are no padding; only tokenized data has any.

    Raises:
        DataError: a mask is not ones and then zeros.
    """
    mask = steps.columns.get("attention_mask")
    if mask is None:
        return steps.lengths
    starts = np.cumsum(steps.lengths) - steps.lengths
    wrong = ~np.isin(mask, (0, 1))
    wrong[1:] |= mask[1:] > mask[:-1]
    wrong[starts] = mask[starts] != 1
    if wrong.any():
        step = int(np.argmax(wrong))
        raise DataError(f"{steps.at(step)}: attention_mask: expected ones and then zeros, got {mask[step]}")
    return np.add.reduceat(mask, starts)


def _cut(real: np.ndarray, longest: int, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Start and length of each piece: as long as allowed, the remainder as a further one.

    Args:
        real: [sequences], steps of each that count.
        stored: [sequences], steps of each that are there.
    """
    counts = -(-real // longest)
    which = np.repeat(np.arange(len(real)), counts)  # [pieces], its sequence
    number = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = (np.cumsum(stored) - stored)[which] + number * longest
    return starts, np.minimum(real[which] - number * longest, longest)


def _shift(rewards: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[0] + rewards[:-1] of each episode: with an observation comes the reward of the action before."""
    shifted = np.concatenate((np.zeros(1, np.float32), rewards[:-1]))
    shifted[np.cumsum(lengths) - lengths] = 0
    return shifted


def _planes(steps: Steps) -> Arrays:
    ends = set(np.cumsum(steps.lengths).tolist())
    seen: dict[bytes, int] = {}
    planes: list[np.ndarray] = []
    index: list[list[int]] = []
    for number, frame in enumerate(decode_frames(steps)):
        if number in ends:
            seen = {}  # planes of other episodes: too many to remember
        stack = []
        for plane in np.ascontiguousarray(frame.transpose(2, 0, 1)):
            digest = hashlib.blake2b(plane.data, digest_size=16).digest()
            if digest not in seen:
                seen[digest] = len(planes)
                planes.append(plane)
            stack.append(seen[digest])
        index.append(stack)
    return {"planes": np.stack(planes), "plane_index": np.array(index, np.int32)}


def _image_files(rows: Rows, kept: list[int]) -> Arrays:
    images = rows.table["images"].to_pylist()
    files = []
    for row in kept:
        data = images[row].get("bytes") if isinstance(images[row], dict) else None
        if not data:
            raise DataError(f"{rows.where}: row {rows.first + row}: images: expected an image, got {images[row]!r:.80}")
        files.append(data)
    lengths = np.array([len(data) for data in files], np.int64)
    return {
        "image_bytes": np.frombuffer(b"".join(files), np.uint8),
        "image_start": np.cumsum(lengths) - lengths,
        "image_length": lengths,
    }
