"""The same step in plain torch operations, on any device: the fallback, and what the native backend is held against.

int8 is computed as the native backend does (a scale a row of weights, a scale a token of activations, exact sums of
products), with the bytes widened to float32: it shows the error, not the speed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..checkpoint.weights import EMBEDDING, HEAD, Weights, check_heads, discrete_features, fold_cyclic, parameter_shapes
from ..config import JatConfig
from ..model.modules import ImageEncoder
from ..observation import ActionSpace
from .base import Group, Result, machine_memory_bytes, remember
from .rows import Rows, encode, lay_out, make_results


class Linear:
    """Weights [rows, columns] in a dtype, bias in float32. `linear(x)`: float32 [T, columns] -> float32 [T, rows]."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: str, device: torch.device) -> None:
        self._scale = None
        if dtype == "int8":
            scale = weight.abs().amax(dim=1) / 127
            self._scale = scale.to(device)
            weight = (weight / scale.clamp(min=1e-30)[:, None]).round().to(torch.int8)
        else:
            weight = weight.to(getattr(torch, dtype))
        self._weight = weight.to(device)
        self._bias = bias.to(device) if bias is not None else None
        self.num_bytes = weight.nbytes + sum(x.nbytes for x in (bias, self._scale) if x is not None)

    def __call__(self, x: Tensor) -> Tensor:
        if self._scale is None:
            out = _matmul(x.to(self._weight.dtype), self._weight).float()
        else:
            scale = x.abs().amax(dim=-1, keepdim=True) / 127
            quantized = torch.nan_to_num((x / scale).round())
            out = _matmul(quantized, self._weight.float()) * scale * self._scale
        return out if self._bias is None else out + self._bias


def _matmul(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T. On a CPU always 4 rows at a time: libraries sum in another order for other numbers of rows, and a
    session's result shall not depend on its neighbours.
    """
    if x.device.type != "cpu":
        return F.linear(x, weight)
    rows = F.pad(x, (0, 0, 0, -len(x) % 4))
    return torch.cat([F.linear(piece, weight) for piece in rows.split(4)])[: len(x)]


class _Layer:
    def __init__(self, backend: TorchBackend, index: int) -> None:
        config = backend.config
        block = f"transformer.h.{index}."
        attention = f"{block}attn.attention."
        self.norm1 = backend.vector(f"{block}ln_1.weight"), backend.vector(f"{block}ln_1.bias")
        self.norm2 = backend.vector(f"{block}ln_2.weight"), backend.vector(f"{block}ln_2.bias")
        self.qkv = backend.linear(f"{attention}q_proj", f"{attention}k_proj", f"{attention}v_proj", bias=False)
        self.attention_out = backend.linear(f"{attention}out_proj")
        self.mlp_in = backend.linear(f"{block}mlp.c_fc")
        self.mlp_out = backend.linear(f"{block}mlp.c_proj")
        is_local = config.attention_layers[index] == "local"
        self.window = config.window_size if is_local else config.max_position_embeddings


@dataclass(frozen=True)
class _Tokens:
    """One session's part of a step.

    Attributes:
        rows: its new tokens in the step.
        positions: [T], of the new tokens.
        slots: [context + T], where keys and values of all its tokens lie, oldest first.
        new_slots: [T], the last of these.
    """

    rows: slice
    positions: Tensor
    slots: Tensor
    new_slots: Tensor


def _attend(q: Tensor, k: Tensor, v: Tensor, session: _Tokens, window: int) -> Tensor:
    """q: [T, heads, head_dim], k, v: [K, heads, head_dim] -> float32 [T, heads * head_dim]. Softmax in float32."""
    index = torch.arange(len(k), device=k.device)
    age = session.positions[:, None] - index  # [T, K]
    hidden = (age < 0) | (age >= window)
    # No 1 / sqrt(head_dim): GPT-Neo omits it.
    scores = torch.einsum("thd,khd->htk", q.float(), k.float()).masked_fill(hidden, -torch.inf)
    return torch.einsum("htk,khd->thd", scores.softmax(dim=-1), v.float()).flatten(1)


class TorchBackend:
    """See `Backend`. Embeddings are float32 [H] tensors on the device."""

    name = "torch"
    page_size = 16
    one_launch_reason = "the backend is torch"

    def __init__(self, config: JatConfig, weights: Weights, dtype: str, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.num_threads = torch.get_num_threads()
        self._dtype = dtype
        self._weights = weights
        self._linears: list[Linear] = []
        self._positions = weights.get("transformer.wpe.weight").to(device)
        self._layers = [_Layer(self, index) for index in range(config.num_layers)]
        self._final_norm = self.vector("transformer.ln_f.weight"), self.vector("transformer.ln_f.bias")
        self._continuous_weight = weights.get("continuous_encoder.weight").clone()
        self._continuous_bias = weights.get("continuous_encoder.bias").clone()
        self._continuous_encoders: dict[int, Linear] = {}
        self._choices: dict[int, Tensor] = {}
        self._heads: dict[ActionSpace, Linear] = {}
        self._discrete_features = discrete_features(weights).to(device)
        check_heads(weights)
        self._discrete_mixer = self.linear("multi_discrete_encoder.4")
        self._image_encoder = self._make_image_encoder()
        self._kv_dtype = torch.bfloat16 if dtype == "int8" else getattr(torch, dtype)
        self._cache = torch.empty(0)

    @property
    def weight_bytes(self) -> int:
        return sum(linear.num_bytes for linear in self._linears) + self._discrete_features.nbytes

    @property
    def page_bytes(self) -> int:
        config = self.config
        return config.num_layers * 2 * self.page_size * config.hidden_size * self._kv_dtype.itemsize

    @property
    def memory_bytes(self) -> int:
        return torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else machine_memory_bytes()

    @property
    def memory(self) -> dict[str, int]:
        return {"weights": self.weight_bytes, "cache": self._cache.nbytes}

    def allocate_cache(self, num_pages: int) -> None:
        config = self.config
        slots = num_pages * self.page_size
        head_dim = config.hidden_size // config.num_heads
        # [layers, keys and values, slots, heads, head_dim]
        self._cache = torch.empty(
            (config.num_layers, 2, slots, config.num_heads, head_dim), dtype=self._kv_dtype, device=self.device
        )

    # ---- embeddings ------------------------------------------------------------------------------------------------

    def embed_continuous(self, values: np.ndarray, reward: float | None) -> Tensor:
        if reward is not None:
            values = np.append(values, np.float32(reward))
        encoder = self._continuous_encoders.get(values.size)
        if encoder is None:
            folded = fold_cyclic(self._continuous_weight, values.size)
            encoder = Linear(folded, self._continuous_bias, "float32", self.device)
            remember(self._continuous_encoders, values.size, encoder)
        return encoder(torch.from_numpy(values).to(self.device)[None])[0]

    def embed_choice(self, choice: int, num_choices: int) -> Tensor:
        rows = self._choices.get(num_choices)
        if rows is None:
            rows = self._weights.rows(EMBEDDING, num_choices).to(self.device)
            remember(self._choices, num_choices, rows)
        return rows[choice]

    @torch.no_grad()
    def embed_discrete(
        self, values: list[np.ndarray], missions: list[np.ndarray | None], rewards: list[float]
    ) -> list[Tensor]:
        integers = [v if m is None else np.concatenate((v, m)) for v, m in zip(values, missions, strict=True)]
        features = self._discrete_features[torch.from_numpy(np.stack(integers)).to(self.device)].flatten(1)
        reward = torch.tensor(rewards, dtype=torch.float32, device=self.device)[:, None]
        return list(torch.cat((self._discrete_mixer(features), reward), dim=1))

    @torch.no_grad()
    def embed_images(self, frames: list[np.ndarray]) -> list[Tensor]:
        x = torch.from_numpy(np.stack(frames)).to(self.device).permute(0, 3, 1, 2).float()
        encoder, linear = self._image_encoder
        # One frame at a time on a CPU, for the reason that `_matmul` gives.
        batches = x.split(1) if self.device.type == "cpu" else [x]
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # float32 is float32
            features = [encoder.features((batch / 255 - 0.5) / 0.5) for batch in batches]
        return list(linear(torch.cat(features)))

    # ---- the step --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, groups: Sequence[Group]) -> list[Result]:
        """See `Backend.step`."""
        encoded = encode(self, groups)
        predictions = self._decode(lay_out(self, groups, encoded))
        finite = [bool(np.isfinite(values).all()) for values in predictions]
        return make_results(groups, encoded, predictions, finite)

    def _decode(self, rows: Rows) -> list[np.ndarray]:
        """Compute the rows, leave their keys and values in the cache, and predict at each agent's last row."""
        config = self.config
        ends = list(itertools.accumulate(rows.num_new))
        agents = [self._tokens(rows, index, end) for index, end in enumerate(ends)]
        positions = torch.cat([agent.positions for agent in agents])

        x = torch.stack(rows.embeddings) + self._positions[positions]
        for number, layer in enumerate(self._layers):
            cache = self._cache[number]
            qkv = layer.qkv(self._norm(x, layer.norm1)).unflatten(1, (3, config.num_heads, -1)).to(cache.dtype)
            attended = []
            for agent in agents:
                q, k, v = qkv[agent.rows].unbind(1)  # [T, heads, head_dim]
                cache[0, agent.new_slots] = k
                cache[1, agent.new_slots] = v
                attended.append(_attend(q, cache[0, agent.slots], cache[1, agent.slots], agent, layer.window))
            x = x + layer.attention_out(torch.cat(attended))
            inner = F.gelu(layer.mlp_in(self._norm(x, layer.norm2)), approximate="tanh")
            x = x + layer.mlp_out(inner)

        hidden = self._norm(x[[end - 1 for end in ends]], self._final_norm)
        return [self._head(space)(hidden[i : i + 1])[0].cpu().numpy() for i, space in enumerate(rows.spaces)]

    def _tokens(self, rows: Rows, index: int, end: int) -> _Tokens:
        context, count = rows.context_lens[index], rows.num_new[index]
        slot = np.arange(context + count) + rows.start_offsets[index]
        pages = rows.page_tables[index][slot // self.page_size].astype(np.int64)
        slots = torch.from_numpy(pages * self.page_size + slot % self.page_size).to(self.device)
        positions = torch.arange(context, context + count, device=self.device)
        return _Tokens(slice(end - count, end), positions, slots, slots[context:])

    def _norm(self, x: Tensor, parameters: tuple[Tensor, Tensor]) -> Tensor:
        normed = F.layer_norm(x, (self.config.hidden_size,), *parameters, self.config.layer_norm_epsilon)
        # A variance that overflowed would make every row its bias, finite and wrong: 0 * inf makes it NaN.
        return normed + 0 * x.square().sum(dim=-1, keepdim=True)

    # ---- packing ---------------------------------------------------------------------------------------------------

    def vector(self, name: str) -> Tensor:
        return self._weights.get(name).clone().to(self.device)

    def linear(self, *names: str, bias: bool = True) -> Linear:
        """The parameters `<name>.weight`, below each other."""
        weight = torch.cat([self._weights.get(f"{name}.weight") for name in names])
        return self._pack(self._dtype, weight, self._weights.get(f"{names[0]}.bias").clone() if bias else None)

    def _pack(self, dtype: str, weight: Tensor, bias: Tensor | None) -> Linear:
        linear = Linear(weight, bias, dtype, self.device)
        self._linears.append(linear)
        return linear

    def _head(self, space: ActionSpace) -> Linear:
        head = self._heads.get(space)
        if head is None:
            if space.kind == "continuous":
                weight = self._weights.rows("continuous_decoder.weight", space.size)
                bias = self._weights.rows("continuous_decoder.bias", space.size)
                head = Linear(weight, bias, "float32", self.device)
            else:
                head = Linear(self._weights.rows(HEAD, space.size), None, "float32", self.device)
            remember(self._heads, space, head)
        return head

    def _make_image_encoder(self) -> tuple[ImageEncoder, Linear]:
        """Convolutions in float32, the last layer in the chosen dtype."""
        prefix = "image_encoder.module."
        with torch.device("meta"):
            encoder = ImageEncoder(self.config.hidden_size)
        del encoder.fc
        names = [n.removeprefix(prefix) for n in parameter_shapes(self.config) if n.startswith(prefix)]
        encoder.load_state_dict(
            {name: self.vector(prefix + name) for name in names if not name.startswith("fc.")}, assign=True
        )
        return encoder.requires_grad_(False), self.linear(f"{prefix}fc")
