"""Persistent kernel: one agent's step in one launch, on GPUs from sm_90 on. Built from csrc/cuda where nvcc is found.

Addresses are of device memory unless stated otherwise. W is the type of the weights and of the cache.
"""

from collections.abc import Mapping, Sequence
from typing import Any

DEVICE: str
"""The device that runs steps: "cuda", or "cpu" for the build that executes the kernel there."""
PAGE_SIZE: int
"""Tokens in a page of the KV cache."""
MAX_STEP_TOKENS: int
"""Most new tokens of a step."""
MAX_VALUES: int
"""Most numbers of all continuous observations of a step together."""
REDUCTIONS_PER_LAYER: int
"""Reductions over all blocks in a layer."""

def device_facts(ordinal: int = 0) -> dict[str, Any]:
    """Return name, compute_capability, num_sms, shared_bytes_per_block and cooperative_launch of a device.

    `reason` is added if it cannot run steps, and is alone if there is no such device or no driver. Never raises.
    """

class Step:
    """Step of one model, laid out over one device. One call at a time, always on the same stream.

    Raises ValueError, which names the argument, for wrong sizes and addresses, and RuntimeError if the device cannot
    run the step. The caller keeps all memory alive whose address it passes.
    """

    def __init__(
        self,
        *,
        hidden: int,
        num_heads: int,
        head_dim: int,
        inner: int,
        num_layers: int,
        max_positions: int,
        weight_dtype: str,
        layers: Sequence[Mapping[str, int]],
        final_norm_weight: int,
        final_norm_bias: int,
        position_table: int,
        continuous_bias: int,
        kv_cache: int,
        num_pages: int,
        input: Mapping[str, int],
        output: int,
        capacity: int,
        num_blocks: int = 0,
        cluster_size: int = 0,
        num_threads: int = 0,
        timeout_us: int = 100000,
        device: int = 0,
        max_slots: int = 64,
    ) -> None:
        """
        Args:
            weight_dtype: W: "float32", "bfloat16" or "float16".
            inner: neurons, a multiple of 8.
            layers: one dict per layer. Addresses that are multiples of 16: norm1_weight, norm1_bias, out_proj_bias,
                norm2_weight, norm2_bias, mlp_out_bias: float32 [H]; mlp_in_bias: float32 [inner]; qkv, out_proj,
                mlp_in, mlp_out: W, packed as `backends.cuda.fragments.PackedLayer`. And window, the keys that a query
                sees.
            final_norm_weight, final_norm_bias: float32 [H].
            position_table: float32 [max_positions, H].
            continuous_bias: float32 [H].
            kv_cache: W [num_layers, num_pages, 2, num_heads, 16, head_dim].
            input: addresses of host memory, read by `run`; one session. int32: query_start [2], context_lens [1],
                start_offsets [1], page_table, positions [3], slot_mapping [3], source_sizes [3], value_starts [3],
                head_sizes [1]; int64: source_ptrs [3], head_ptrs [1] (both multiples of 16), head_bias_ptrs [1];
                float32: values.
            output: float32 [capacity], host memory that the device can write (pinned, mapped).
            num_blocks, cluster_size, num_threads (that compute, a multiple of 96), max_slots: by default chosen for the
                device.
            timeout_us: limit of each wait inside the step, in microseconds.
        """

    def run(self, stream: int = 0) -> str:
        """Run one step, without the GIL.

        Return "" when the prediction is in `output`, else the reason why it is not. The keys and values of the new
        tokens are then undefined, and the step can be run again.
        """

    timeout_us: int

    def bytes_per_step(self, context_len: int) -> int:
        """Return the bytes that a step must read from device memory: weights, vectors, visible keys and values."""

    @property
    def scratch_bytes(self) -> int: ...
    @property
    def shared_bytes(self) -> int: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def cluster_size(self) -> int: ...
    @property
    def max_active_clusters(self) -> int: ...
    @property
    def cooperative(self) -> bool: ...
    @property
    def num_threads(self) -> int: ...
    @property
    def num_slots(self) -> int: ...
    @property
    def slot_bytes(self) -> int: ...
    @property
    def num_grid_barriers(self) -> int:
        """Reductions over all blocks in a step."""
