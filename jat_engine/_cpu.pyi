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
    def decode(
        self,
        embeddings: NDArray[np.float32],
        first_token: NDArray[np.int32],
        context_lens: NDArray[np.int32],
        start_offsets: NDArray[np.int32],
        page_table: NDArray[np.int32],
        pool: NDArray[np.uint8],
        heads: list[Linear],
        out: NDArray[np.float32],
    ) -> None:
        """A step. embeddings: [T, H]; first_token: [S + 1]; page_table: [S, P]; out: [S, at least padded_rows]."""

    def apply(self, linear: Linear, x: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """x: [T, columns], out: [T, padded_rows]."""

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

    def encode(self, model: Model, frames: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
        """frames: [B, size, size, channels], out: [B, padded_rows]."""
