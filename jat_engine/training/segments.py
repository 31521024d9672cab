"""Cut episodes and texts into segments, as arrays that batches are gathered from."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import MISSION_LENGTH, JatConfig
from ..datasets.arrow import NotUtf8Error, strings
from ..datasets.schema import TEXT_COLUMNS, check_belong
from ..datasets.sources import Rows
from ..envs import Task
from ..errors import DataError
from ..observation import Limits
from .episodes import Episodes, decode_frames, read_episodes

Arrays = dict[str, np.ndarray]

# Names on disk, where a segment is called a piece.
START, LENGTH = "piece_start", "piece_length"
INFO_FILE = "pieces.json"


@dataclass(frozen=True)
class SegmentSettings:
    """Everything that segments depend on, apart from the data.

    Attributes:
        task, split: names of the task or text dataset, and of its split.
        length: longest segment, in steps for RL tasks and in tokens for texts.
        vocab_size: discrete actions and integers of observations must be below it.
        discrete_size: integers of a discrete observation, mission tokens included.
        continuous_size: most values of a continuous observation, the reward included, or of an action.
        image_tokens: tokens that the image of a caption takes.
        tokenizer: SHA-256 of the tokenizer.
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
    def of(cls, task: str, split: str, length: int, config: JatConfig, processor: Any) -> SegmentSettings:
        """Return the settings of one split.

        Args:
            task, split: names of the task or text dataset, and of its split.
            length: longest segment, see the class.
            config: of the model, for its sizes.
            processor: a `JatProcessor`, for its tokenizer.
        """
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
    """Cut the rows of one split into segments.

    `cut` returns the columns of its rows, [steps, ...], in the smallest type that holds them, and:

        piece_start, piece_length: int64 [segments]; first step and number of steps of each segment.
        mission_index: int32 [steps]; row of `missions`, in place of a text observation.
        planes: uint8 [P, 84, 84], and plane_index: int32 [steps, 4], in place of images. A frame is a stack of four
            pictures, of which three are also in the step before, so each is stored once.
        image_bytes: uint8 [bytes], and image_start, image_length: int64 [segments]; the image files of captions.

    Args:
        settings: how to cut, and what the model can take.
        processor: a `JatProcessor`; encodes missions and texts.
        task: the RL task, whose columns the rows must have; None takes any columns.

    Attributes:
        num_episodes: rows cut so far.
    """

    def __init__(self, settings: SegmentSettings, processor: Any, task: Task | None = None) -> None:
        self.settings = settings
        self.processor = processor
        self.task = task
        self.num_episodes = 0
        self._limits = Limits(settings.continuous_size, settings.discrete_size, settings.vocab_size)
        self._missions: dict[str, int] = {}
        self._mission_tokens: list[list[int]] = []

    @property
    def missions(self) -> np.ndarray:
        """The tokens of every mission so far, int32 [missions, 64]."""
        return np.array(self._mission_tokens, np.int32).reshape(-1, MISSION_LENGTH)

    def cut(self, rows: Rows) -> Arrays:
        """Cut some rows into segments.

        Args:
            rows: consecutive rows of the split.

        Returns:
            The arrays that the class describes. Indices count from the first of these rows, except `mission_index`,
            which counts from the first row of all.

        Raises:
            DataError: malformed data, or data that the model cannot take. Names file, row, column, expected and got.
        """
        self.num_episodes += rows.table.num_rows
        names = rows.table.column_names
        if self.task is not None:
            check_belong(names, self.task, source=rows.where)
        if set(TEXT_COLUMNS).intersection(names):
            return self._cut_texts(rows)
        episodes = read_episodes(rows)
        arrays = self._columns(episodes)
        starts, lengths = _cut(_real_lengths(episodes), self.settings.length, episodes.lengths)
        return {**arrays, START: starts, LENGTH: lengths}

    # ---- RL ------------------------------------------------------------------------------------------------------

    def _columns(self, episodes: Episodes) -> Arrays:
        """Convert the published columns to those the model takes, [steps, ...]."""
        columns: Arrays = {}
        given = episodes.columns
        for name, values in given.items():
            if name == "rewards":
                # Rewards of tokenized data are shifted already.
                columns[name] = values if "attention_mask" in given else _shift(values, episodes.lengths)

            elif name == "discrete_observations":
                room = self._limits.num_integers("text_observations" in given)
                missing = room - values.shape[1]
                if missing < 0:
                    raise DataError(
                        f"{episodes.at(0)}: {name}: expected at most {room} integers (max_discrete_value"
                        f"{', less the mission' if room < self.settings.discrete_size else ''}), got {values.shape[1]}"
                    )
                identifiers = self._identifiers(name, values, episodes)
                columns[name] = np.pad(identifiers, ((0, 0), (0, missing)))  # as `get_next_action` does
            elif name == "discrete_actions":
                columns[name] = self._identifiers(name, values, episodes)

            elif name == "text_observations":
                for text in dict.fromkeys(values):
                    if text not in self._missions:
                        self._missions[text] = len(self._missions)
                        self._mission_tokens.append(self.processor.encode_mission(text))
                columns["mission_index"] = np.array([self._missions[text] for text in values], np.int32)
            elif name == "image_observations":
                columns.update(_planes(episodes))

            elif name in ("continuous_observations", "continuous_actions"):
                is_observed = name == "continuous_observations"
                room = self._limits.num_numbers if is_observed else self._limits.max_continuous_size
                if not 1 <= values.shape[1] <= room:
                    raise DataError(
                        f"{episodes.at(0)}: {name}: expected 1 to {room} values (max_continuous_size), "
                        f"got {values.shape[1]}"
                    )
                columns[name] = values
            elif name == "loss_weight":
                columns[name] = values
        return columns

    def _identifiers(self, name: str, values: np.ndarray, episodes: Episodes) -> np.ndarray:
        """Check that integers [steps] or [steps, n] are below the vocabulary's size, and return them as tokens."""
        size = self.settings.vocab_size
        wrong = (values < 0) | (values >= size)
        if wrong.any():
            step = int(np.argmax(wrong.reshape(len(wrong), -1).any(axis=1)))
            got = values[step][wrong[step]].flat[0]
            raise DataError(f"{episodes.at(step)}: {name}: expected 0 to {size - 1} (vocab_size - 1), got {got}")
        return values.astype(_token_type(size))

    # ---- texts and captions --------------------------------------------------------------------------------------

    def _cut_texts(self, rows: Rows) -> Arrays:
        """Tokenize texts and cut them into segments. The text of a caption is truncated instead."""
        if "text" not in rows.table.column_names:
            raise DataError(f"{rows.where}: text: expected this column, got {', '.join(rows.table.column_names)}")
        try:
            texts = strings(rows.table["text"], "text")
        except NotUtf8Error as error:
            raise DataError(f"{rows.where}: rows from {rows.first}: {error}") from None
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
                    f"{rows.where}: images: expected room for text next to the {self.settings.image_tokens} tokens of "
                    f"an image, got max_position_embeddings={self.settings.length}"
                )
            tokens = [text[:limit] for text in tokens]

        kept = [row for row, text in enumerate(tokens) if len(text) > 1]  # one token predicts nothing
        all_lengths = np.array([len(tokens[row]) for row in kept], np.int64)
        starts, lengths = _cut(all_lengths, limit, all_lengths)
        flat = [token for row in kept for token in tokens[row]]
        arrays: Arrays = {"input_ids": np.array(flat, _token_type(self.settings.vocab_size))}
        arrays |= {START: starts[lengths > 1], LENGTH: lengths[lengths > 1]}
        if with_images:
            arrays |= _image_files(rows, kept)
        return arrays


def _token_type(vocab_size: int) -> Any:
    return np.uint16 if vocab_size <= 2**16 else np.int32


def _real_lengths(episodes: Episodes) -> np.ndarray:
    """Return the steps of each episode that are not padding, int64 [episodes]. Only tokenized data is padded.

    Raises:
        DataError: a mask is not ones followed by zeros.
    """
    mask = episodes.columns.get("attention_mask")
    if mask is None:
        return episodes.lengths
    starts = np.cumsum(episodes.lengths) - episodes.lengths
    wrong = ~np.isin(mask, (0, 1))
    wrong[1:] |= mask[1:] > mask[:-1]
    wrong[starts] = mask[starts] != 1
    if wrong.any():
        step = int(np.argmax(wrong))
        raise DataError(f"{episodes.at(step)}: attention_mask: expected ones and then zeros, got {mask[step]}")
    return np.add.reduceat(mask, starts)


def _cut(real: np.ndarray, longest: int, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut sequences into segments of `longest` steps; the remainder of each is a further, shorter segment.

    Args:
        real: int64 [sequences], steps of each without padding.
        longest: steps of the longest segment.
        stored: int64 [sequences], steps of each with padding.

    Returns:
        Start and length of each segment, int64 [segments].
    """
    counts = -(-real // longest)
    which = np.repeat(np.arange(len(real)), counts)  # [segments], sequence of each
    number = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = (np.cumsum(stored) - stored)[which] + number * longest
    return starts, np.minimum(real[which] - number * longest, longest)


def _shift(rewards: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return [0] + rewards[:-1] of each episode: an observation comes with the reward of the action before it."""
    shifted = np.concatenate((np.zeros(1, np.float32), rewards[:-1]))
    shifted[np.cumsum(lengths) - lengths] = 0
    return shifted


def _planes(episodes: Episodes) -> Arrays:
    """Store each picture of stacked frames once; see `Cutter` for the arrays."""
    ends = set(np.cumsum(episodes.lengths).tolist())
    seen: dict[bytes, int] = {}
    planes: list[np.ndarray] = []
    index: list[list[int]] = []
    for number, frame in enumerate(decode_frames(episodes)):
        if number in ends:
            seen = {}  # pictures repeat within an episode; those of all episodes would take too much memory

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
    """Return the image files of some rows, one after the other, with the start and length of each."""
    from PIL import Image

    images = rows.table["images"].to_pylist()
    files = []
    for row in kept:
        data = images[row].get("bytes") if isinstance(images[row], dict) else images[row]
        where = f"{rows.where}: row {rows.first + row}: images"
        if not isinstance(data, bytes) or not data:
            raise DataError(f"{where}: expected an image, got {images[row]!r:.80}; store the bytes of its file")
        try:
            with Image.open(io.BytesIO(data)) as image:  # reads the header alone
                mode = image.mode
        except Exception as error:  # Pillow raises many kinds
            raise DataError(
                f"{where}: expected the file of an image, got {len(data)} bytes: {type(error).__name__}"
            ) from None
        if mode in ("I", "F"):  # as `to_rgb`
            raise DataError(f"{where}: expected an image of 8 or 16 bits per channel, got mode {mode!r}; convert it")
        files.append(data)
    lengths = np.array([len(data) for data in files], np.int64)
    return {
        "image_bytes": np.frombuffer(b"".join(files), np.uint8),
        "image_start": np.cumsum(lengths) - lengths,
        "image_length": lengths,
    }
