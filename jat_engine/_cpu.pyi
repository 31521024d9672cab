"""Native CPU parts of jat_engine, built from csrc/cpu. Arrays are C-contiguous and of exactly the type named."""

import numpy as np
from numpy.typing import NDArray

PAGE_SIZE: int
MAX_HEAD_DIM: int
compiler: str

def cpu_features() -> list[str]:
    """Instruction sets of the running processor that matter here, e.g. ['avx2', 'avx512_bf16']."""

def instruction_sets() -> list[str]:
    """Versions of the kernels that the running processor can run, best first."""

def read_bandwidth(num_bytes: int, num_threads: int, repeats: int = 5) -> float:
    """Bytes per second that threads read from memory together; the median of `repeats` passes."""

class Linear:
    """A linear layer's packed weights: "float32", "bfloat16" or "int8" (a scale a row)."""

    def __init__(self, dtype: str, rows: int, columns: int, has_bias: bool) -> None: ...
    def pack_rows(self, first: int, weight: NDArray[np.float32]) -> None:
        """weight: [count, columns], the rows from `first` on."""

    def set_bias(self, bias: NDArray[np.float32]) -> None:
        """bias: [rows]."""

    @property
    def rows(self) -> int: ...
    @property
    def padded_rows(self) -> int: ...
    @property
    def num_bytes(self) -> int: ...

class Model:
    """The transformer, its threads and its scratch memory. One call at a time."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        kv_dtype: str,
        positions: NDArray[np.float32],
        num_threads: int,
        spin_us: int,
        instruction_set: str,
    ) -> None: ...
    def add_layer(
        self,
        norm1_weight: NDArray[np.float32],
        norm1_bias: NDArray[np.float32],
        qkv: Linear,
        attention_out: Linear,
        norm2_weight: NDArray[np.float32],
        norm2_bias: NDArray[np.float32],
        mlp_in: Linear,
        mlp_out: Linear,
        window: int,
    ) -> None: ...
    def set_final_norm(self, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
        """After the last layer was added."""

    @property
    def page_bytes(self) -> int: ...
    @property
    def instruction_set(self) -> str: ...
    @property
    def num_threads(self) -> int: ...
    @property
    def seconds(self) -> float:
        """Spent in this model's native calls so far."""

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
        """A step; the lists are of S sessions, embeddings of all new tokens [H]. Predictions, and are they finite."""

    def embed(self, linear: Linear, values: NDArray[np.float32], last: float = ...) -> NDArray[np.float32]:
        """[padded_rows] of the values [X], or of [X, last] if that is given."""

class DiscreteEncoder:
    """Integers of BabyAI -> embeddings."""

    def __init__(self, features: NDArray[np.float32], linear: Linear) -> None:
        """features: [vocab_size, width]; linear: [H, integers * width], its last row, the reward's, zero."""

    def encode(
        self,
        model: Model,
        values: list[NDArray[np.int64]],
        missions: list[NDArray[np.int64] | None],
        rewards: list[float],
    ) -> list[NDArray[np.float32]]:
        """Of B observations: [padded_rows] each, the reward last of the hidden size."""

class ImageEncoder:
    """Frames of Atari -> embeddings."""

    def add_stage(
        self,
        in_size: int,
        weight: NDArray[np.float32],
        gate_in: NDArray[np.float32],
        gate_out: NDArray[np.float32],
    ) -> None:
        """weight: [out, in, 3, 3]; gate_in: [out / 8, out]; gate_out: [out, out / 8]."""

    def set_linear(self, linear: Linear) -> None:
        """Its columns are pixels, then channels."""

    def encode(self, model: Model, frames: list[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """frames: B of [size, size, channels]. [padded_rows] each."""
