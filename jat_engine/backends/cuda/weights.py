"""Hold the weights that an engine needs on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor

from ...checkpoint.weights import EMBEDDING, HEAD, Weights, check_heads, discrete_features, fold_cyclic
from ...config import JatConfig
from ...kernels.image_weights import pack_image_weights
from ...observation import ActionSpace
from ..base import MAX_SIZES
from .agent_layout import AgentLayout, make_layout
from .packing import pack, pack_block, pad_features
from .text_weights import TextWeights, read_text_weights


class CudaWeights:
    """Packed weights on `device`, and what single sizes of observations and actions need, packed when one first comes.

    Attributes:
        hidden_size: H.
        row_bytes: of an embedding, float32 [H].
        activation_dtype: what activations are rounded to before a product.
        kv_dtype: of cached keys and values.
        is_kv_quantized: whether they have scales.
        pdl: whether kernels are launched while the one before still runs (sm_90 and newer).
        continuous_encoder: size X of an observation with its reward, or of an action -> its folded encoder, float32
            [X, H].
        choices: number of choices n -> embeddings of discrete actions, float32 [n, H].
        head: action space -> the rows it needs, float32 [n, H], and their bias [n] or None.
        layout: last four arguments of `make_layout` -> the layout of steps of this kind.
        image_parameters: reads the image encoder's published parameters, by name, float32.
        read_text: reads the weights that texts alone need.
    """

    def __init__(
        self, config: JatConfig, weights: Weights, dtype: str, device: torch.device, kv_dtype: str = "auto"
    ) -> None:
        self.config = config
        self.hidden_size = config.hidden_size  # quicker to read, each step, than the config's
        self.row_bytes = config.hidden_size * torch.float32.itemsize
        self.device = device
        self.dtype = dtype
        on_gpu = device.type == "cuda"
        # As `kernels.launch.compute_dtype`, whose module cannot be imported without Triton.
        self.activation_dtype = torch.bfloat16 if dtype == "int8" else getattr(torch, dtype)
        self.is_kv_quantized = kv_dtype == "float8_e4m3"
        self.kv_dtype = torch.float8_e4m3fn if self.is_kv_quantized else self.activation_dtype
        self.pdl = on_gpu and torch.cuda.get_device_capability(device) >= (9, 0)
        properties = torch.cuda.get_device_properties(device) if on_gpu else None
        # Interpreted, float8 keys of a single agent are split, so that the kernels for that are seen at work.
        self.num_multiprocessors = properties.multi_processor_count if properties else -(-config.num_heads // 2)

        own = partial(_own, device)
        self.layers = [pack_block(config, weights, index, dtype, device) for index in range(config.num_layers)]
        self.final_norm = own(weights.get("transformer.ln_f.weight")), own(weights.get("transformer.ln_f.bias"))
        self.position_table = own(weights.get("transformer.wpe.weight"))

        self.continuous_bias = own(weights.get("continuous_encoder.bias"))
        table, mixer = pad_features(discrete_features(weights), weights.get("multi_discrete_encoder.4.weight"))
        self.discrete_table = table.to(device, self.activation_dtype)
        self.discrete_mixer = pack(mixer, dtype, device)
        self.discrete_bias = own(weights.get("multi_discrete_encoder.4.bias"))
        self.images = pack_image_weights(
            _image_parameters(weights, device), getattr(torch, dtype), self.activation_dtype
        )

        check_heads(weights)
        cached = lru_cache(maxsize=MAX_SIZES)
        encoder_weight = weights.get("continuous_encoder.weight").clone()
        # Functions of what they read, not methods: a cache that held `self` would keep the GPU's memory in a circle.
        self.continuous_encoder: Callable[[int], Tensor] = cached(partial(_fold, encoder_weight, device))
        self.choices: Callable[[int], Tensor] = cached(partial(_choices, weights, device))
        self.head: Callable[[ActionSpace], tuple[Tensor, Tensor | None]] = cached(partial(_head, weights, device))
        # Layouts hold the encoders and heads that they name; an agent's task has about three.
        self.layout: Callable[[int, int, ActionSpace | None, ActionSpace], AgentLayout] = lru_cache(4 * MAX_SIZES)(
            partial(make_layout, self.continuous_encoder, self.choices, self.head)
        )
        self.image_parameters: Callable[[], dict[str, Tensor]] = partial(_image_parameters, weights, device)
        self.read_text: Callable[[], TextWeights] = partial(read_text_weights, weights, dtype, device)

    @property
    def inner_size(self) -> int:
        """Return the width inside the MLPs."""
        return self.layers[0].mlp_in.weight.shape[0]

    @property
    def block_bytes(self) -> int:
        """Return the bytes of the blocks' matrices, which every step reads."""
        return sum(matrix.num_bytes for layer in self.layers for matrix in layer.matrices)

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all that does not depend on sizes of observations and actions."""
        return self.block_bytes + self.images.num_bytes + self.discrete_mixer.num_bytes + self.discrete_table.nbytes


def _image_parameters(weights: Weights, device: torch.device) -> dict[str, Tensor]:
    names = [f"conv{i}.{kind}" for i in (1, 2, 3) for kind in ("weight", "bias")]
    names += [f"att{i}.fc.{gate}.weight" for i in (1, 2, 3) for gate in (0, 2)] + ["fc.weight", "fc.bias"]
    return {name: weights.get(f"image_encoder.module.{name}").to(device) for name in names}


def _own(device: torch.device, tensor: Tensor) -> Tensor:
    """Copy to the device, to memory of its own: what is read of a file lies anywhere, kernels need it aligned."""
    return torch.empty_like(tensor, device=device).copy_(tensor)


def _fold(weight: Tensor, device: torch.device, size: int) -> Tensor:
    return fold_cyclic(weight, size).t().contiguous().to(device)


def _choices(weights: Weights, device: torch.device, num_choices: int) -> Tensor:
    return _own(device, weights.rows(EMBEDDING, num_choices))


def _head(weights: Weights, device: torch.device, space: ActionSpace) -> tuple[Tensor, Tensor | None]:
    if space.kind == "discrete":
        return _own(device, weights.rows(HEAD, space.size)), None
    rows = weights.rows("continuous_decoder.weight", space.size)
    return _own(device, rows), _own(device, weights.rows("continuous_decoder.bias", space.size))
