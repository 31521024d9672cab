"""All that an engine holds of a checkpoint on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ...checkpoint.weights import EMBEDDING, HEAD, Weights, check_heads, discrete_features, fold_cyclic
from ...config import JatConfig
from ...kernels.image_weights import pack_image_weights
from ...observation import ActionSpace
from ..base import remember
from .packing import pack, pack_layer


class CudaWeights:
    """Packed weights on `device`, and what single sizes of observations and actions need, made when they first come.

    Attributes:
        activation_dtype: what activations are rounded to before a product.
        kv_dtype: of cached keys and values.
        pdl: whether kernels are launched while the one before still runs (sm_90 and newer).
    """

    def __init__(self, config: JatConfig, weights: Weights, dtype: str, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.dtype = dtype
        self._weights = weights
        on_gpu = device.type == "cuda"
        reduced = torch.bfloat16 if on_gpu else torch.float32  # the interpreter multiplies bfloat16 wrongly
        self.activation_dtype = reduced if dtype == "int8" else getattr(torch, dtype)
        self.kv_dtype = self.activation_dtype
        self.pdl = on_gpu and torch.cuda.get_device_capability(device) >= (9, 0)
        properties = torch.cuda.get_device_properties(device) if on_gpu else None
        # Interpreted, keys are split as well, so that the kernels for that are seen at work.
        self.num_multiprocessors = properties.multi_processor_count if properties else 2 * config.num_heads

        self.layers = [pack_layer(config, weights, index, dtype, device) for index in range(config.num_layers)]
        self.final_norm = self._vector("transformer.ln_f.weight"), self._vector("transformer.ln_f.bias")
        self.positions = self._vector("transformer.wpe.weight")
        self.continuous_bias = self._vector("continuous_encoder.bias")
        self.discrete_table = discrete_features(weights).to(device)
        self.discrete_mixer = pack(weights.get("multi_discrete_encoder.4.weight"), dtype, device)
        self.discrete_bias = self._vector("multi_discrete_encoder.4.bias")
        prefix = "image_encoder.module."
        names = [f"conv{i}.{kind}" for i in (1, 2, 3) for kind in ("weight", "bias")]
        names += [f"att{i}.fc.{gate}.weight" for i in (1, 2, 3) for gate in (0, 2)] + ["fc.weight", "fc.bias"]
        state = {name: weights.get(prefix + name).to(device) for name in names}
        self.images = pack_image_weights(state, getattr(torch, dtype))
        check_heads(weights)
        self._continuous_weight = weights.get("continuous_encoder.weight").clone()
        self._continuous_encoders: dict[int, Tensor] = {}
        self._choices: dict[int, Tensor] = {}
        self._heads: dict[ActionSpace, tuple[Tensor, Tensor | None]] = {}

    @property
    def inner_size(self) -> int:
        return self.layers[0].fc.weight.shape[0]

    @property
    def num_bytes(self) -> int:
        """Of all that does not depend on sizes of observations and actions."""
        encoders = self.images.num_bytes + self.discrete_mixer.num_bytes + self.discrete_table.nbytes
        return sum(layer.num_bytes for layer in self.layers) + encoders

    def continuous_encoder(self, size: int) -> Tensor:
        """Folded for `size` inputs: float32 [size, H]."""
        encoder = self._continuous_encoders.get(size)
        if encoder is None:
            encoder = fold_cyclic(self._continuous_weight, size).t().contiguous().to(self.device)
            remember(self._continuous_encoders, size, encoder)
        return encoder

    def choices(self, num_choices: int) -> Tensor:
        """Embeddings of discrete actions, float32 [num_choices, H]."""
        rows = self._choices.get(num_choices)
        if rows is None:
            rows = self._own(self._weights.rows(EMBEDDING, num_choices))
            remember(self._choices, num_choices, rows)
        return rows

    def head(self, space: ActionSpace) -> tuple[Tensor, Tensor | None]:
        """The rows an action space needs, float32 [n, H], and their bias."""
        found = self._heads.get(space)
        if found is None:
            if space.kind == "continuous":
                rows = self._own(self._weights.rows("continuous_decoder.weight", space.size))
                found = rows, self._own(self._weights.rows("continuous_decoder.bias", space.size))
            else:
                found = self._own(self._weights.rows(HEAD, space.size)), None
            remember(self._heads, space, found)
        return found

    def _vector(self, name: str) -> Tensor:
        return self._own(self._weights.get(name))

    def _own(self, tensor: Tensor) -> Tensor:
        """On the device, in memory of its own: what is read of a file lies anywhere, kernels need it aligned."""
        return torch.empty_like(tensor, device=self.device).copy_(tensor)
