"""Compute steps in plain PyTorch on any device, with the arithmetic and the suffixes (x_TH) of `jat_engine.reference`.

This is the fallback, and what the native backend is compared with. int8 is computed as there (one scale per row of
weights, one per token of activations, exact sums of products), with the bytes widened to float32: it shows the error,
not the speed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..checkpoint.weights import (
    EMBEDDING,
    HEAD,
    PATCH_PROJECTION,
    Weights,
    block_parameters,
    check_heads,
    discrete_features,
    fold_cyclic,
    parameter_shapes,
)
from ..config import JatConfig
from ..errors import InputError
from ..model.modules import ImageEncoder
from ..observation import ActionSpace
from ..reference import attention, block, key_ages, layer_norm, quantize_int8
from .base import MAX_SIZES, PAGE_SIZE, Group, Result, TextRows, machine_memory_bytes, without_autocast
from .rows import Rows, encode, lay_out, make_results, patch_rows


class Linear:
    """A linear layer: weights [O, I] in a dtype, bias in float32. `linear(x)`: float32 [T, I] -> float32 [T, O]."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: str, device: torch.device) -> None:
        self._scale = None
        if dtype == "int8":
            weight, scale = quantize_int8(weight)
            self._scale = scale.to(device)
        else:
            weight = weight.to(getattr(torch, dtype))
        self._weight = weight.to(device)
        self._bias = bias.to(device) if bias is not None else None
        self.num_bytes = weight.nbytes + sum(x.nbytes for x in (bias, self._scale) if x is not None)

    def __call__(self, x_TI: Tensor) -> Tensor:
        """Return x W^T + b."""
        if self._scale is None:
            out_TO = _matmul(x_TI.to(self._weight.dtype), self._weight).float()
        else:
            scale = x_TI.abs().amax(dim=-1, keepdim=True) / 127
            quantized_TI = torch.nan_to_num((x_TI / scale).round())
            out_TO = _matmul(quantized_TI, self._weight.float()) * scale * self._scale
        return _add(out_TO, self._bias)


def _matmul(x_TI: Tensor, weight_OI: Tensor) -> Tensor:
    """Return x W^T; on a CPU 4 rows at a time, so that a session's result does not depend on its neighbours.

    Libraries sum in another order for other numbers of rows.
    """
    if x_TI.device.type != "cpu":
        return F.linear(x_TI, weight_OI)
    padded = F.pad(x_TI, (0, 0, 0, -len(x_TI) % 4))
    return torch.cat([F.linear(rows, weight_OI) for rows in padded.split(4)])[: len(x_TI)]


def _apply(x_TI: Tensor, matrix: Linear, bias_O: Tensor | None) -> Tensor:
    """Apply a matrix of a block, and add its bias, which the block stores separately."""
    return _add(matrix(x_TI), bias_O)


def _add(out_TO: Tensor, bias_O: Tensor | None) -> Tensor:
    return out_TO if bias_O is None else out_TO + bias_O


@dataclass(frozen=True)
class _Tokens:
    """One session's or text's part of a step.

    Attributes:
        rows: its new tokens in the step.
        positions: [T], of the new tokens.
        slots: [K], where keys and values of all its tokens lie, oldest first.
        new_slots: [T], the last of these.
    """

    rows: slice
    positions: Tensor
    slots: Tensor
    new_slots: Tensor


def attend_cached(
    cache: Tensor, window: int, agents: list[_Tokens], q_TND: Tensor, k_TND: Tensor, v_TND: Tensor
) -> Tensor:
    """Write the new keys and values to the cache, and return each agent's attention over its own keys, in float32.

    cache: [2, slots, N, D], one layer's keys and values.
    """
    q_TND, k_TND, v_TND = (x_TND.to(cache.dtype) for x_TND in (q_TND, k_TND, v_TND))
    attended = []
    for agent in agents:
        cache[0, agent.new_slots] = k_TND[agent.rows]
        cache[1, agent.new_slots] = v_TND[agent.rows]

        q, k, v = q_TND[agent.rows].float(), cache[0, agent.slots].float(), cache[1, agent.slots].float()
        attended.append(attention(q, k, v, key_ages(len(q), len(k), q.device), window))
    return torch.cat(attended)


@dataclass(frozen=True)
class _TextWeights:
    """Weights that texts need besides the blocks.

    Attributes:
        embedding: of tokens, float32 [vocab_size, H].
        head: predicts tokens, in the engine's dtype.
        patch_encoder: of images, float32.
    """

    embedding: Tensor
    head: Linear
    patch_encoder: Linear


class TorchBackend:
    """`Backend` in plain torch operations. Embeddings are float32 [H] tensors on the device."""

    name = "torch"
    page_size = PAGE_SIZE
    persistent_reason = "the backend is torch"
    timing = ""
    max_text_rows = 256
    prompt_rows_beside_agents = 16

    def __init__(self, config: JatConfig, weights: Weights, dtype: str, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.num_threads = torch.get_num_threads()
        self._dtype = dtype
        self._weights = weights
        self._linears: list[Linear] = []
        self._position_table = self._vector("transformer.wpe.weight")
        blocks = [block_parameters(config, index) for index in range(config.num_layers)]
        self._blocks = [names.map(self._pack, self._vector) for names in blocks]
        self._final_norm = self._vector("transformer.ln_f.weight"), self._vector("transformer.ln_f.bias")

        self._discrete_features = discrete_features(weights).to(device)
        check_heads(weights)
        self._discrete_mixer = self._linear("multi_discrete_encoder.4")
        self._image_encoder = self._make_image_encoder()
        continuous = weights.get("continuous_encoder.weight").clone(), weights.get("continuous_encoder.bias").clone()
        cached = lru_cache(maxsize=MAX_SIZES)
        # Functions, not methods: a cache with a reference to `self` would form a cycle and free its memory late.
        self._continuous_encoder: Callable[[int], Linear] = cached(partial(_pack_continuous, *continuous, device))
        self._choices: Callable[[int], Tensor] = cached(partial(_read_choices, weights, device))
        self._head: Callable[[ActionSpace], Linear] = cached(partial(_pack_head, weights, device))

        self._kv_dtype = torch.bfloat16 if dtype == "int8" else getattr(torch, dtype)
        self._cache = torch.empty(0, device=device, dtype=torch.float32)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights, without those that are packed for a size of observation or action."""
        num_bytes = sum(linear.num_bytes for linear in self._linears) + self._discrete_features.nbytes
        return num_bytes + (self._text.embedding.nbytes if "_text" in vars(self) else 0)

    @property
    def page_bytes(self) -> int:
        """Bytes per page of the KV cache, all layers."""
        config = self.config
        return config.num_layers * 2 * self.page_size * config.hidden_size * self._kv_dtype.itemsize

    @property
    def memory_bytes(self) -> int:
        """Bytes of free memory of a GPU, or of the machine's memory."""
        return torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else machine_memory_bytes()

    @property
    def memory(self) -> dict[str, int]:
        """Bytes allocated for "weights" and "cache"."""
        return {"weights": self.weight_bytes, "cache": self._cache.nbytes}

    def allocate_cache(self, num_pages: int) -> None:
        """Allocate the KV cache's pages."""
        config = self.config
        slots = num_pages * self.page_size
        head_dim = config.hidden_size // config.num_heads
        # [layers, keys and values, slots, heads, head_dim]
        self._cache = torch.empty(
            (config.num_layers, 2, slots, config.num_heads, head_dim), dtype=self._kv_dtype, device=self.device
        )

    def num_agents_to_warm_up(self, counts: Iterable[int]) -> list[int]:
        """See `Backend`: the largest alone."""
        return [max(counts)]

    def read_pages(self, pages: np.ndarray) -> np.ndarray:
        """Return a copy of pages, uint8 [n, page_bytes], see `Backend.read_pages`."""
        slots = self._cache.unflatten(2, (-1, self.page_size))[:, :, torch.from_numpy(pages.astype(np.int64))]
        data = slots.movedim(2, 0).contiguous().view(torch.uint8).reshape(len(pages), self.page_bytes)
        found: np.ndarray = data.cpu().numpy()
        return found

    def write_pages(self, pages: np.ndarray, data: np.ndarray) -> None:
        """Write pages, see `Backend.write_pages`."""
        cache = self._cache.unflatten(2, (-1, self.page_size))
        layers, two, _, *rest = cache.shape
        values = torch.from_numpy(data.copy()).view(self._kv_dtype).view(len(pages), layers, two, *rest)
        cache[:, :, torch.from_numpy(pages.astype(np.int64))] = values.movedim(0, 2).to(self.device)

    def read_embedding(self, embeddings: Any) -> np.ndarray:
        """Return the embedding of a single agent's observation, float32 [H]."""
        found: np.ndarray = embeddings[0].cpu().numpy()
        return found

    def make_embedding(self, embedding: np.ndarray | None) -> list[Tensor]:
        """Return the embeddings of a single agent."""
        if embedding is None:
            raise InputError("snapshot: expected the embedding of the last observation, got none")
        return [torch.from_numpy(embedding.copy()).to(self.device)]

    # ---- embeddings ------------------------------------------------------------------------------------------------

    def embed_continuous(self, values: np.ndarray, reward: float | None) -> Tensor:
        """Encode a continuous observation, float32 [X], with its reward, or a continuous action without one."""
        if reward is not None:
            values = np.append(values, np.float32(reward))
        encoder = self._continuous_encoder(values.size)
        return encoder(torch.from_numpy(values).to(self.device)[None])[0]

    def embed_choice(self, choice: int, num_choices: int) -> Tensor:
        """Return the embedding of a discrete action."""
        return self._choices(num_choices)[choice]

    @torch.no_grad()
    def embed_discrete(
        self, values: list[np.ndarray], missions: list[np.ndarray | None], rewards: list[float]
    ) -> list[Tensor]:
        """Encode discrete observations, see `Encoder.embed_discrete`."""
        integers = [v if m is None else np.concatenate((v, m)) for v, m in zip(values, missions, strict=True)]
        features = self._discrete_features[torch.from_numpy(np.stack(integers)).to(self.device)].flatten(1)
        reward = torch.tensor(rewards, dtype=torch.float32, device=self.device)[:, None]
        return list(torch.cat((self._discrete_mixer(features), reward), dim=1))

    @torch.no_grad()
    def embed_images(self, frames: list[np.ndarray]) -> list[Tensor]:
        """Encode image observations, uint8 [84, 84, 4] each."""
        x = torch.from_numpy(np.stack(frames)).to(self.device).permute(0, 3, 1, 2).float()
        encoder, linear = self._image_encoder
        # On a CPU one frame at a time, for the same reason as in `_matmul`.
        batches = x.split(1) if self.device.type == "cpu" else [x]
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # float32 is float32
            features = [encoder.features((batch / 255 - 0.5) / 0.5) for batch in batches]
        return list(linear(torch.cat(features)))

    # ---- the step --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, groups: Sequence[Group]) -> list[Result]:
        """Run one step, see `Backend.step`."""
        with without_autocast(self.device):
            encoded = encode(self, groups)
            predictions = self._decode(lay_out(self, groups, encoded))
        finite = [bool(np.isfinite(values).all()) for values in predictions]
        return make_results(groups, encoded, predictions, finite)

    def _decode(self, rows: Rows) -> list[np.ndarray]:
        """Run the layers on all rows, write their keys and values, and predict at each agent's last row."""
        ends = list(itertools.accumulate(rows.num_new))
        parts = zip(ends, rows.num_new, rows.context_lens, rows.start_offsets, rows.page_tables, strict=True)
        x_TH = self._run_blocks(torch.stack(rows.embeddings), [self._tokens(*part) for part in parts])
        hidden = layer_norm(x_TH[[end - 1 for end in ends]], *self._final_norm)
        return [self._head(space)(hidden[i : i + 1])[0].cpu().numpy() for i, space in enumerate(rows.spaces)]

    def _run_blocks(self, embeddings_TH: Tensor, agents: list[_Tokens]) -> Tensor:
        """Return the residual stream after the last block; keys and values are written."""
        x_TH = embeddings_TH + self._position_table[torch.cat([agent.positions for agent in agents])]
        for weights, cache in zip(self._blocks, self._cache, strict=True):
            attend = partial(attend_cached, cache, weights.window, agents)
            x_TH = block(x_TH, weights, self.config.num_heads, attend, _apply)
        return x_TH

    def _tokens(self, end: int, count: int, context: int, start_offset: int, page_table: np.ndarray) -> _Tokens:
        """Locate `count` tokens, whose rows end before row `end`."""
        slot = np.arange(context + count) + start_offset
        pages = page_table[slot // self.page_size].astype(np.int64)
        slots = torch.from_numpy(pages * self.page_size + slot % self.page_size).to(self.device)
        positions = torch.arange(context, context + count, device=self.device)
        return _Tokens(slice(end - count, end), positions, slots, slots[context:])

    # ---- texts -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def embed_picture(self, pixel_values: np.ndarray) -> Tensor:
        """Return the embeddings of an image's patches, float32 [P, H], see `Backend.embed_picture`."""
        patches = torch.from_numpy(patch_rows(pixel_values, self.config.patch_size)).to(self.device)
        with without_autocast(self.device):
            return self._text.patch_encoder(patches)

    @torch.no_grad()
    def run_text(self, texts: Sequence[TextRows]) -> list[np.ndarray]:
        """Compute rows of texts, see `Backend.run_text`."""
        with without_autocast(self.device):
            ends = list(itertools.accumulate(text.num_rows for text in texts))
            embeddings = []
            for text in texts:
                embeddings += [] if text.patches is None else [text.patches]
                embeddings.append(self._text.embedding[torch.from_numpy(text.tokens).to(self.device)])
            agents = [
                self._tokens(end, text.num_rows, text.context_len, 0, text.page_table)
                for end, text in zip(ends, texts, strict=True)
            ]
            x_TH = self._run_blocks(torch.cat(embeddings), agents)

            counts = [text.num_predicted for text in texts]
            predicted = [i for end, count in zip(ends, counts, strict=True) for i in range(end - count, end)]
            logits = self._text.head(layer_norm(x_TH[predicted], *self._final_norm)).cpu()
        return [rows.numpy() for rows in logits.split(counts)]

    @cached_property
    def _text(self) -> _TextWeights:
        """Pack the weights that texts alone need."""
        projection = self._weights.get(f"{PATCH_PROJECTION}.weight").flatten(1)
        bias = self._vector(f"{PATCH_PROJECTION}.bias")
        return _TextWeights(
            self._vector(EMBEDDING), self._pack((HEAD,)), Linear(projection, bias, "float32", self.device)
        )

    # ---- packing ---------------------------------------------------------------------------------------------------

    def _vector(self, name: str) -> Tensor:
        """Copy a parameter to the device, so that its file does not stay mapped."""
        return self._weights.get(name).clone().to(self.device)

    def _linear(self, name: str) -> Linear:
        """Pack `<name>.weight` in the chosen dtype, and `<name>.bias`."""
        return self._pack((f"{name}.weight",), self._vector(f"{name}.bias"))

    def _pack(self, names: tuple[str, ...], bias: Tensor | None = None) -> Linear:
        """Pack parameters in the chosen dtype, one below the other."""
        weight = torch.cat([self._weights.get(name) for name in names])
        linear = Linear(weight, bias, self._dtype, self.device)
        self._linears.append(linear)
        return linear

    def _make_image_encoder(self) -> tuple[ImageEncoder, Linear]:
        """Return convolutions in float32, and the last layer in the chosen dtype."""
        prefix = "image_encoder.module."
        with torch.device("meta"):
            encoder = ImageEncoder(self.config.hidden_size)
        del encoder.fc
        names = [n.removeprefix(prefix) for n in parameter_shapes(self.config) if n.startswith(prefix)]
        encoder.load_state_dict(
            {name: self._vector(prefix + name) for name in names if not name.startswith("fc.")}, assign=True
        )
        return encoder.requires_grad_(False), self._linear(f"{prefix}fc")


def _pack_continuous(weight: Tensor, bias: Tensor, device: torch.device, size: int) -> Linear:
    """Pack the continuous encoder for `size` numbers, in float32."""
    return Linear(fold_cyclic(weight, size), bias, "float32", device)


def _read_choices(weights: Weights, device: torch.device, num_choices: int) -> Tensor:
    """Return the embeddings of discrete actions, float32 [num_choices, H]."""
    return weights.rows(EMBEDDING, num_choices).to(device)


def _pack_head(weights: Weights, device: torch.device, space: ActionSpace) -> Linear:
    """Pack the rows of the head that an action space needs, in float32."""
    if space.kind == "discrete":
        return Linear(weights.rows(HEAD, space.size), None, "float32", device)
    rows = weights.rows("continuous_decoder.weight", space.size)
    return Linear(rows, weights.rows("continuous_decoder.bias", space.size), "float32", device)
