"""Native CPU parts of jat_engine, built from csrc/cpu.

Arrays are C-contiguous and of exactly the type that is named; another type raises TypeError. Wrong sizes and values
raise ValueError, which names the argument.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

PAGE_SIZE: int
"""Tokens in a page of the KV cache."""
MAX_STEP_TOKENS: int
"""Most new tokens of one session in a step."""
MAX_HEAD_DIM: int
compiler: str
"""Name and version of the compiler that built the module."""

def cpu_features() -> list[str]:
    """Return the instruction sets of the running processor that matter here, e.g. ['avx2', 'avx512_bf16']."""

def instruction_sets() -> list[str]:
    """Return the versions of the kernels that the running processor can run, best first."""

def read_bandwidth(num_bytes: int, num_threads: int, repeats: int = 5) -> float:
    """Return the bytes per second that the threads read together, the median of `repeats` passes over `num_bytes`."""

def dot_peak(dtype: str, num_threads: int, repeats: int = 9, instruction_set: str = "auto") -> float:
    """Return the most multiply-adds per second that the threads compute together, the median of `repeats`.

    They are dot products of registers, by the instructions that linear layers of `dtype` use: nothing is loaded but one
    word for each 4 to 16 of them. A multiplication and an addition count as one operation.

    Args:
        dtype: "float32", "bfloat16" or "int8".
        num_threads: the caller included.
        repeats: measurements of about a millisecond.
        instruction_set: one of `instruction_sets()`, or "auto".
    """

INT4_COLUMNS: int
"""Columns that share a scale and a minimum in int4."""
INT4_MINIMUM_UNIT: int
"""Row scales in a unit of a minimum."""

def round_int4(
    weight: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]:
    """Round `weight` [rows, columns] to 4 bits: row_scale * (scale * code - INT4_MINIMUM_UNIT * minimum).

    Returns:
        codes uint8 [rows, columns] below 16, scales and minima uint8 [rows, groups of INT4_COLUMNS], row_scales [rows].
    """

def fit_int4(
    weight: NDArray[np.float32], row_scales: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the scales and minima [rows] that fit one group of columns, `weight` [rows, at most INT4_COLUMNS]."""

class Linear:
    """Packed weights of a linear layer: "float32", "bfloat16", "int8", with one scale per row, or "int4"."""

    def __init__(self, dtype: str, rows: int, columns: int, has_bias: bool) -> None: ...
    def pack_rows(self, first: int, weight: NDArray[np.float32]) -> None:
        """Pack `weight` [count, columns] into the rows from `first` on."""

    def pack_codes(
        self,
        first: int,
        codes: NDArray[np.uint8],
        scales: NDArray[np.uint8],
        minima: NDArray[np.uint8],
        row_scales: NDArray[np.float32],
    ) -> None:
        """Pack weights of an int4 layer that are rounded already, see `round_int4`, into the rows from `first` on."""

    def pack_bytes(self, first: int, codes: NDArray[np.int8], row_scales: NDArray[np.float32]) -> None:
        """Pack weights of an int8 layer that are rounded already, row_scale * code, into the rows from `first` on.

        Args:
            first: number of a row.
            codes: [count, columns], at least -127.
            row_scales: [count].
        """

    def set_bias(self, bias: NDArray[np.float32]) -> None:
        """Set the bias [rows] of a layer that was made with `has_bias`."""

    @property
    def rows(self) -> int: ...
    @property
    def padded_rows(self) -> int:
        """The number of rows, rounded up to a multiple of 32."""

    @property
    def num_bytes(self) -> int: ...

class Model:
    """The transformer, its threads and its scratch memory. One call at a time; H is the hidden size."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        kv_dtype: str,
        position_table: NDArray[np.float32],
        num_threads: int,
        spin_us: int,
        instruction_set: str,
    ) -> None:
        """
        Args:
            kv_dtype: type of keys and values, "float32", "bfloat16", or "int8" with one scale per token and head.
            position_table: [positions, H].
            num_threads: the caller included.
            spin_us: microseconds that an idle worker spins before it sleeps.
            instruction_set: one of `instruction_sets()`, or "auto".

        Raises:
            RuntimeError: the system does not allow that many threads.
        """

    def add_layer(
        self,
        norm1_weight: NDArray[np.float32],
        norm1_bias: NDArray[np.float32],
        qkv: Linear,
        out_proj: Linear,
        norm2_weight: NDArray[np.float32],
        norm2_bias: NDArray[np.float32],
        mlp_in: Linear,
        mlp_out: Linear,
        window: int,
    ) -> None:
        """Append a layer.

        Args:
            norm1_weight, norm1_bias, norm2_weight, norm2_bias: [H].
            qkv: [3 H, H].
            out_proj: [H, H].
            mlp_in: [inner, H].
            mlp_out: [H, inner].
            window: tokens that a query sees, itself included.
        """

    def set_final_norm(self, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
        """Set the final LayerNorm [H]. Call it once, after the last layer has been added."""

    @property
    def page_bytes(self) -> int:
        """Bytes of a page of the KV cache: keys and values of PAGE_SIZE tokens in all layers."""

    @property
    def instruction_set(self) -> str: ...
    @property
    def num_threads(self) -> int: ...
    @property
    def seconds(self) -> float:
        """Cumulative seconds in native calls; wall time minus this is Python overhead."""

    def decode(
        self,
        embeddings: list[NDArray[np.float32]],
        num_new: list[int],
        context_lens: list[int],
        start_offsets: list[int],
        page_tables: list[NDArray[np.int32]],
        pool: NDArray[np.uint8],
        heads: list[Linear],
    ) -> list[tuple[NDArray[np.float32], bool]]:
        """Run one step of S sessions: append their new tokens to the cache and predict after each session's last one.

        Args:
            embeddings: one [H] for each new token, session by session.
            num_new: [S], new tokens of each session, 1 to MAX_STEP_TOKENS.
            context_lens: [S], tokens of the session in the cache before these.
            start_offsets: [S], slots of the session's first page before its oldest token.
            page_tables: [S], the session's pages, oldest first.
            pool: the KV cache, `page_bytes` for each page; updated in place.
            heads: [S], applied to the final hidden state of the session's last token.

        Returns:
            [S], the prediction [rows of the head] and whether all of it is finite.
        """

    def decode_text(
        self,
        embeddings: list[NDArray[np.float32]],
        num_new: list[int],
        context_lens: list[int],
        page_tables: list[NDArray[np.int32]],
        pool: NDArray[np.uint8],
        num_predicted: list[int],
        head: Linear,
    ) -> NDArray[np.float32]:
        """Run one step of S texts: append their new tokens to the cache and predict after some of the newest.

        Args:
            embeddings: one [H] for each new token or image patch, text by text.
            num_new: [S], of each text, at least 1.
            context_lens: [S], tokens and patches of the text in the cache before these.
            page_tables: [S], the text's pages, oldest first; its oldest token is at the beginning of the first page.
            pool: the KV cache, `page_bytes` for each page; updated in place.
            num_predicted: [S], the newest tokens to predict after, 0 or more.
            head: [vocab_size, H].

        Returns:
            The logits [sum of num_predicted, vocab_size].
        """

    def apply(self, linear: Linear, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the layer's results [T, rows] for `x` [T, columns]."""

    def embed(self, linear: Linear, values: NDArray[np.float32], last: float = ...) -> NDArray[np.float32]:
        """Return the embedding [padded_rows] of `values` [X], followed by `last` if that is given."""

class DiscreteEncoder:
    """Integers of BabyAI -> embeddings."""

    def __init__(self, features: NDArray[np.float32], linear: Linear) -> None:
        """Take features [vocab_size, width] and linear [H, integers * width], whose last row, the reward's, is zero."""

    def encode(
        self,
        model: Model,
        values: list[NDArray[np.int64]],
        missions: list[NDArray[np.int64] | None],
        rewards: list[float],
    ) -> list[NDArray[np.float32]]:
        """Return the embeddings [padded_rows] of B observations; element H - 1 is the reward."""

class ImageEncoder:
    """Frames of Atari -> embeddings."""

    def add_stage(
        self,
        in_size: int,
        weight: NDArray[np.float32],
        gate_in: NDArray[np.float32],
        gate_out: NDArray[np.float32],
    ) -> None:
        """Append a stage: weight [out, in, 3, 3], gate_in [out / 8, out], gate_out [out, out / 8]."""

    def set_linear(self, linear: Linear) -> None:
        """Set the last layer, whose columns are ordered by pixel, then by channel. Call it once, after the stages."""

    def encode(self, model: Model, frames: list[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """Return the embeddings [padded_rows] of B frames [size, size, channels]."""

class QuickStep:
    """A step of one agent with one kind of observation and one action space, for the usual input.

    Agents share it: it keeps nothing of a step. A is the number of values of an action, or of choices.
    """

    def __init__(
        self,
        model: Model,
        encoder: Linear | DiscreteEncoder | ImageEncoder,
        action_encoder: Linear | NDArray[np.float32],
        head: Linear,
        pool: NDArray[np.uint8],
        num_values: int,
        has_mission: bool,
    ) -> None:
        """
        Args:
            encoder: of the observation, a `Linear` [H, num_values + 1] for a continuous one.
            action_encoder: `Linear` [H, A], or the embeddings of the choices [A, H].
            head: [A, H].
            pool: the KV cache, as in `Model.decode`.
            num_values: of an observation, without reward and padding.
            has_mission: a discrete observation comes with a text.
        """

    def read(
        self, continuous: object, discrete: object, text: object, image: object, reward: object, last_text: str | None
    ) -> bool:
        """Check an observation and keep a copy for `run`.

        Args:
            continuous: the observation as a caller passed it, None where it is absent; the next three as well.
            discrete: as above.
            text: as above.
            image: as above; kept itself, not a copy.
            reward: as a caller passed it.
            last_text: of the step before.

        Returns:
            True for an exact `np.ndarray` of the usual dtype (float32 or float64, int64, contiguous uint8), the size of
            before, and valid values, with `last_text` again and a reward that is None, a float or an int. False for
            anything else, which may be valid.
        """

    def run(
        self, state: Any, mission: NDArray[np.int64] | None, noise: NDArray[np.float32] | None, window: int
    ) -> tuple[list[float] | int, NDArray[np.float32], Any] | None:
        """Take the step that was read.

        Args:
            state: `EpisodesState` of an agent that has taken a step in its episode; not changed.
            mission: tokens of the text, or None.
            noise: [1, A], subtracted from the logits before the argmax; None for 0.
            window: how many of the newest cached tokens the next step attends to.

        Returns:
            The action (A floats, or a choice), the prediction [A], and the state after the step, as
            `EpisodesState.after` returns it. None if the prediction is not finite.
        """
