"""The one-launch step for one agent on GPUs from sm_90 on, built from csrc/cuda where nvcc is.

Addresses are of device memory unless said otherwise. W is the weight type, which is also the type of the cache.
"""

from collections.abc import Mapping, Sequence
from typing import Any

DEVICE: str
"""Where steps run: "cuda", or "cpu" for the build that executes the kernel there."""
MAX_ROWS: int
MAX_VALUES: int
"""Numbers of all continuous rows of a step."""
PAGE_SIZE: int
EXCHANGES_PER_LAYER: int
CLUSTER_BARRIERS_PER_HEAD: int

def device_facts(ordinal: int = 0) -> dict[str, Any]:
    """name, compute_capability, num_sms, shared_bytes_per_block, cooperative_launch; `reason` if steps cannot run,
    alone where there is no such device or no driver. Never raises for that.
    """

class Step:
    """A model's weights, cache and scratch memory, laid out over one device. One call at a time, always on one stream.

    Raises ValueError naming the argument for wrong sizes and addresses, RuntimeError where the device cannot run it.
    The caller keeps every memory alive whose address it gives.
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
        wpe: int,
        continuous_bias: int,
        kv_cache: int,
        num_pages: int,
        input: Mapping[str, int],
        output: int,
        capacity: int,
        fixed_order: bool = False,
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
            layers: a dict a layer. Multiples of 16: norm1_weight, norm1_bias, out_bias, norm2_weight, norm2_bias,
                proj_bias: float32 [H]; wqkv: W [3H, H]; w_out_heads: W [num_heads, H (output), head_dim];
                w_fc, w_proj_t: W [inner, H]. fc_bias: float32 [inner]. And window, a number of keys.
            final_norm_weight, final_norm_bias: float32 [H].
            wpe: float32 [max_positions, H].
            continuous_bias: float32 [H].
            kv_cache: W [num_layers, num_pages, 2, num_heads, 16, head_dim].
            input: addresses of host memory, read by `run`; one session. int32: query_start [2], context_lens [1],
                start_offsets [1], page_table, positions [3], slot_mapping [3], source_sizes [3], value_starts [3],
                head_sizes [1]; int64: source_ptrs [3], head_ptrs [1] (multiples of 16), head_bias_ptrs [1];
                float32: values.
            output: float32 [capacity], host memory that the device can write (pinned, mapped).
            fixed_order: sums in a fixed order: bitwise repeatable, with twice the exchanges.
            num_blocks, cluster_size, num_threads (that compute), max_slots: 0 or the default choose from the device.
            timeout_us: bound of one wait inside the step.
        """

    def run(self, stream: int = 0) -> str:
        """One step; returns when the prediction is in `output`: "", else why it is not. Then the new tokens' keys and
        values are undefined; the step can be run again. Waits without the GIL.
        """

    timeout_us: int

    def bytes_per_step(self, context_len: int) -> int:
        """Bytes that a step has to read from device memory: weights, vectors, visible keys and values."""

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
    def num_threads(self) -> int: ...
    @property
    def num_slots(self) -> int: ...
    @property
    def slot_bytes(self) -> int: ...
    @property
    def num_exchanges(self) -> int:
        """Times that all blocks wait for each other in a step."""
