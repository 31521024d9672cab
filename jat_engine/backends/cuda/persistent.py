"""Run a single agent's step as one launch of the persistent kernel of `csrc/cuda`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...reference import BlockWeights
from ..base import STEP_TOKENS, Group
from .capture import synchronize
from .fragments import PackedLayer, pack_layer
from .inputs import StepInputs, StepShape
from .staging import num_values
from .weights import CudaWeights

_CAPACITY = 1024
"""Numbers a prediction may have; longer ones come from CUDA graphs."""

TIMEOUT_US = 100_000
"""Microseconds after which a step is given up; tools that watch a kernel may want more."""


def load_module() -> Any:
    """Import the compiled module `jat_engine._cuda`. Raises ImportError."""
    from ... import _cuda

    return _cuda


class PersistentStep:
    """Step of one agent, from embedding to prediction, as one launch.

    Attributes:
        inputs: written before `run`.
        predictions: float32 [capacity], after `run`.
    """

    def __init__(self, weights: CudaWeights, cache: Tensor, max_pages: int, module: Any) -> None:
        """Give the kernel the addresses of weights, cache and inputs.

        Args:
            weights: on the GPU.
            cache: [layers, num_pages, 2, heads, 16, head_dim].
            max_pages: of a session.
            module: `load_module()`.

        Raises:
            RuntimeError, ValueError: why the GPU, or the model, cannot be used so.
        """
        config, self._device = weights.config, weights.device
        shape = StepShape(1, STEP_TOKENS * (config.max_continuous_size + 1), _CAPACITY, frames=False, integers=False)
        # The module reads the pinned side; what a step needs travels as the kernel's argument.
        self.inputs = StepInputs(shape, max_pages, config.max_discrete_value, self._device)
        on_gpu = self._device.type == "cuda"
        predictions = torch.empty(_CAPACITY, device="cpu", dtype=torch.float32, pin_memory=on_gpu)
        self.predictions = predictions.numpy()

        heads = config.num_heads
        tensors = [layer.map(lambda matrix: matrix.weight, lambda vector: vector) for layer in weights.layers]
        self._packed = [pack_layer(block, heads) for block in tensors]
        layers = [layer_arguments(*layer) for layer in zip(tensors, self._packed, strict=True)]

        final_weight, final_bias = weights.final_norm
        self._step = module.Step(
            hidden=config.hidden_size,
            num_heads=heads,
            head_dim=config.hidden_size // heads,
            inner=self._packed[0].inner,
            num_layers=config.num_layers,
            max_positions=config.max_position_embeddings,
            weight_dtype=weights.dtype,
            layers=layers,
            final_norm_weight=final_weight.data_ptr(),
            final_norm_bias=final_bias.data_ptr(),
            position_table=weights.position_table.data_ptr(),
            continuous_bias=weights.continuous_bias.data_ptr(),
            kv_cache=cache.data_ptr(),
            num_pages=cache.shape[1],
            input={name: array.ctypes.data for name, array in self.inputs.host.items()},
            output=predictions.data_ptr(),
            capacity=_CAPACITY,
            timeout_us=TIMEOUT_US,
            device=self._device.index or 0,
        )
        self._stream = -1
        self._max_values = int(module.MAX_VALUES)
        self._kept = weights, cache, predictions  # the kernel has their addresses

    @property
    def num_bytes(self) -> int:
        """Return the bytes on the device that CUDA graphs do not share."""
        return sum(layer.num_bytes for layer in self._packed) + int(self._step.scratch_bytes)

    @property
    def geometry(self) -> dict[str, int]:
        """Return the layout of the step on the GPU, for reports."""
        names = ("num_blocks", "cluster_size", "num_threads", "shared_bytes", "num_grid_barriers")
        return {name: getattr(self._step, name) for name in names}

    def fits(self, group: Group) -> bool:
        """Return whether the step of a group of one agent can be run."""
        return group.space.size <= _CAPACITY and num_values([group]) <= self._max_values

    def run(self) -> str:
        """Compute the step of `inputs` behind what is on the current stream. Returns "", or why it did not end well."""
        if self._device.type != "cuda":
            return str(self._step.run(0))
        stream = torch.cuda.current_stream(self._device.index).cuda_stream  # an index is quicker than a device
        if stream != self._stream:
            # A kernel clears its counters after it has answered. The stream it ran on may no longer exist.
            synchronize(self._device)
            self._stream = stream
        return str(self._step.run(stream))


def layer_arguments(block: BlockWeights[Tensor, Tensor], packed: PackedLayer) -> dict[str, int]:
    """Return one of the `layers` of `_cuda.Step`: addresses, under the names of `BlockWeights`, and the window.

    Args:
        block: the vectors are used.
        packed: its matrices, on the same device.
    """
    tensors = {
        "norm1_weight": block.norm1[0],
        "norm1_bias": block.norm1[1],
        "qkv": packed.qkv,
        "out_proj": packed.out_proj,
        "out_proj_bias": block.out_proj_bias,
        "norm2_weight": block.norm2[0],
        "norm2_bias": block.norm2[1],
        "mlp_in": packed.mlp_in,
        "mlp_in_bias": packed.mlp_in_bias,
        "mlp_out": packed.mlp_out,
        "mlp_out_bias": block.mlp_out_bias,
    }
    return {name: tensor.data_ptr() for name, tensor in tensors.items()} | {"window": block.window}
