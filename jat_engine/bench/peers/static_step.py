"""Write the agent's step for a compiler: a static cache, three rows a step, graphs without branches.

A step always computes [s_{t-1}, a_{t-1}, s_t]; the first [-, -, s_0]. The host, in numpy, makes token embeddings out of
what the encoders give, keeps keys and values in a ring of N = window slots, and applies the head. s_{t-1} is encoded
once. Shared by torch_compile.py, onnxruntime.py and openvino.py; what differs is who runs the graphs, a `Runtime`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ... import JatConfig, JatModel, JatProcessor
from ...backends.base import STEP_TOKENS
from ...engine.missions import Missions
from ...observation import Limits, parse_action_space, parse_observation, parse_observations

ROWS = STEP_TOKENS
GROUP_SIZE = 32
"""Columns of a row that share a scale in int4, as in the engine."""
HIDDEN = -1e9
"""Added by masks to scores that do not count. Finite, so that no row is empty of numbers in any arithmetic."""

# ---- graphs ----------------------------------------------------------------------------------------------------------


class Trunk(nn.Module):
    """The transformer. B and N are dynamic; the caches are read where they lie, never joined with the new keys."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        config, transformer = model.config, model.transformer
        self.num_heads, self.kinds = config.num_heads, config.attention_layers
        self.blocks: Any = transformer.h
        self.ln_f: Any = transformer.ln_f
        self.qkv: Any = nn.ModuleList(_joined(block.attn.attention) for block in self.blocks)  # one product, not three

    def forward(self, x: Tensor, mask_global: Tensor, mask_local: Tensor, *caches: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last row's hidden state and the new keys and values.

        Args:
            x: float32 [B, 3, H], embeddings with positions.
            mask_global, mask_local: float32 [3, N + 3], added to the scores.
            caches: [B, heads, N, D], keys and values in turn, one pair per layer.

        Returns:
            float32 [B, H], and [2 * layers, B, heads, 3, D] in the order of `caches`.
        """
        new = []
        hidden_size = x.shape[2]
        x = x.flatten(0, 1).to(self.ln_f.weight.dtype)  # [B * 3, H]: products of matrices with a bias are one kernel
        for number, block in enumerate(self.blocks):
            keys, values = caches[2 * number : 2 * number + 2]
            mask = mask_local if self.kinds[number] == "local" else mask_global
            qkv = self.qkv[number](block.ln_1(x)).view(-1, ROWS, 3, self.num_heads, hidden_size // self.num_heads)
            qkv = qkv.permute(2, 0, 3, 1, 4)  # [3, B, heads, 3, D]
            q, k, v = qkv.unbind()
            new.append(qkv[1:])
            if number == len(self.blocks) - 1:  # nothing reads the other rows any more
                q, mask, x = q[:, :, ROWS - 1 :], mask[ROWS - 1 :], x.view(-1, ROWS, hidden_size)[:, ROWS - 1]
            # No 1 / sqrt(head_dim): GPT-Neo omits it.
            scores = torch.cat((q @ keys.transpose(2, 3), q @ k.transpose(2, 3)), dim=-1).float() + mask
            shares = scores.softmax(dim=-1).to(x.dtype)
            attended = shares[..., :-ROWS] @ values + shares[..., -ROWS:] @ v
            x = x + block.attn.attention.out_proj(attended.transpose(1, 2).reshape(-1, hidden_size))
            inner = F.gelu(block.mlp.c_fc(block.ln_2(x)), approximate="tanh")
            x = x + block.mlp.c_proj(inner)
        return self.ln_f(x).float(), torch.cat(new)


def _joined(attention: Any) -> nn.Linear:
    weights = [linear.weight for linear in (attention.q_proj, attention.k_proj, attention.v_proj)]
    joined = nn.Linear(weights[0].shape[1], 3 * len(weights[0]), bias=False, dtype=weights[0].dtype)
    joined.weight = nn.Parameter(torch.cat(weights), requires_grad=False)
    return joined


class IntegerEncoder(nn.Module):
    """int64 [B, 212], rewards float32 [B, 1] -> float32 [B, H]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        reduce, self.mix = (model.multi_discrete_encoder.get_submodule(name) for name in ("1", "4"))
        # Every integer's features beforehand: a row of H // 50 to gather instead of one of H to reduce.
        self.features: Tensor
        self.register_buffer("features", F.relu(reduce(model.transformer.wte.weight)))

    def forward(self, values: Tensor, rewards: Tensor) -> Tensor:
        encoded = self.mix(F.embedding(values, self.features).flatten(1))
        return torch.cat((encoded.float(), rewards), dim=-1)


class FrameEncoder(nn.Module):
    """uint8 [B, 84, 84, 4] -> float32 [B, H]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder: Any = model.image_encoder.module

    def forward(self, values: Tensor) -> Tensor:
        frames = (values.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
        encoded: Tensor = self.encoder(frames.to(self.encoder.fc.weight.dtype))
        return encoded.float()


ENCODERS: dict[str, type[nn.Module]] = {"discrete": IntegerEncoder, "image": FrameEncoder}
"""By modality; continuous observations and actions take one small product, which the host does."""


def trunk_example(config: JatConfig, num_agents: int, window: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return inputs to trace `Trunk` with."""
    head_dim = config.hidden_size // config.num_heads
    mask = torch.zeros(ROWS, window + ROWS)
    caches = [
        torch.zeros(num_agents, config.num_heads, window, head_dim, dtype=dtype) for _ in range(2 * config.num_layers)
    ]
    return torch.zeros(num_agents, ROWS, config.hidden_size), mask, mask.clone(), *caches


def encoder_example(config: JatConfig, kind: str, num_agents: int) -> tuple[Tensor, ...]:
    """Return inputs to trace `ENCODERS[kind]` with."""
    if kind == "image":
        return (torch.zeros(num_agents, 84, 84, 4, dtype=torch.uint8),)
    return torch.zeros(num_agents, config.max_discrete_value, dtype=torch.int64), torch.zeros(num_agents, 1)


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Return the checkpoint's `JatModel`, frozen, with its weights cast to `dtype`."""
    model: Any = JatModel.from_pretrained(folder, dtype=torch.float32)
    return model.to(dtype).eval().requires_grad_(False)


# ---- host ------------------------------------------------------------------------------------------------------------

RunTrunk = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""x, mask_global, mask_local -> hidden states and new keys and values, as `Trunk`; they live until the next call."""


class Runtime(Protocol):
    """Run the graphs.

    Attributes:
        cache_dtype: of the cache; bfloat16 as uint16, which is what numpy can hold it in.
    """

    cache_dtype: Any

    def open_trunk(self, caches: np.ndarray) -> RunTrunk:
        """Return a function that runs `Trunk`.

        Args:
            caches: [2 * layers, B, heads, N, D]; read in each call, at this address.
        """

    def open_encoder(self, kind: str, num_agents: int) -> Callable[..., np.ndarray]:
        """Return a function that runs the encoder `ENCODERS[kind]`."""


class Host:
    """Compute, in numpy and float32, what is not in the graphs: small products, embeddings, heads."""

    def __init__(self, model: Any, processor: JatProcessor) -> None:
        self.config: JatConfig = model.config
        self.limits = Limits.of(self.config)
        self.missions = Missions.of_processor(processor, self.config.vocab_size)
        self.token_embeddings = _array(model.transformer.wte.weight)  # [V, H]
        self.positions = _array(model.transformer.wpe.weight)  # [P, H]
        self.choices = _array(model.single_discrete_decoder.weight)  # [V, H]
        decoder, encoder = model.continuous_decoder, model.continuous_encoder
        self.decoder, self.decoder_bias = _array(decoder.weight), _array(decoder.bias)  # [377, H], [377]
        self.encoder, self.encoder_bias = _array(encoder.weight), _array(encoder.bias)  # [H, 377], [H]
        self._folded: dict[int, np.ndarray] = {}

    def encode_continuous(self, values: np.ndarray) -> np.ndarray:
        """[B, X] -> [B, H]: W repeat(x) = W_folded x, column j of it the sum of those that x_j lands on."""
        size = values.shape[1]
        if size not in self._folded:
            columns = [self.encoder[:, j::size].sum(axis=1) for j in range(size)]
            self._folded[size] = np.ascontiguousarray(np.stack(columns))  # [X, H]
        encoded: np.ndarray = values @ self._folded[size] + self.encoder_bias
        return encoded

    def encode_actions(self, kind: str, actions: np.ndarray) -> np.ndarray:
        """int64 [B] or float32 [B, A] -> [B, H]."""
        return self.token_embeddings[actions] if kind == "discrete" else self.encode_continuous(actions)

    def predict(self, kind: str, size: int, hidden: np.ndarray) -> np.ndarray:
        """[B, H] -> [B, size]."""
        if kind == "discrete":
            scores: np.ndarray = hidden @ self.choices[:size].T
            return scores
        values: np.ndarray = hidden @ self.decoder[:size].T + self.decoder_bias[:size]
        return values


def _array(weight: Tensor) -> np.ndarray:
    return weight.detach().float().numpy()


@functools.lru_cache(maxsize=4096)
def masks(window: int, local_window: int, cached: int, oldest: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (mask_global, mask_local), float32 [3, window + 3], of a ring of `cached` tokens from slot `oldest` on.

    Row i has index cached + i, counted from the oldest; it sees what is not newer, and in local layers the keys j
    with cached + i - local_window < j. A full ring's local masks turn with it, so there are window / 2 of them.
    """
    order = (np.arange(window) - oldest) % window
    never = cached + ROWS
    keys = np.concatenate((np.where(order < cached, order, never), cached + np.arange(ROWS)))
    ages = cached + np.arange(ROWS)[:, None] - keys
    mask_global, mask_local = (
        np.where((ages >= 0) & (ages < limit), 0, HIDDEN).astype(np.float32) for limit in (never, local_window)
    )
    return mask_global, mask_local


@functools.lru_cache(maxsize=64)
def first_mask(window: int) -> np.ndarray:
    """Return the first step's mask, float32 [3, window + 3]: a row sees itself, so that s_0 in the last is alone."""
    mask = np.full((ROWS, window + ROWS), HIDDEN, np.float32)
    mask[:, window:][np.eye(ROWS, dtype=bool)] = 0
    return mask


class Lockstep:
    """Step B agents' episodes together: token embeddings in, hidden states of s_t out."""

    def __init__(self, host: Host, runtime: Runtime, num_agents: int, window: int) -> None:
        config = host.config
        self._positions, self._local_window = host.positions, config.window_size
        self.window = min(window, config.max_context_tokens)
        if self.window < 2 or self.window % 2:
            raise ValueError(f"window: expected an even number of tokens, two a step, got {window}")
        head_dim = config.hidden_size // config.num_heads
        shape = (2 * config.num_layers, num_agents, config.num_heads, self.window, head_dim)
        self._caches = np.zeros(shape, runtime.cache_dtype)
        self._run_trunk = runtime.open_trunk(self._caches)
        self._x = np.zeros((num_agents, ROWS, config.hidden_size), np.float32)
        self._observed = np.zeros((num_agents, config.hidden_size), np.float32)  # of the step before
        self.reset()

    def reset(self) -> None:
        self._cached, self._next = 0, 0  # tokens in the ring, and the slot to write
        self.is_first = True

    def step(self, observed: np.ndarray, acted: np.ndarray | None) -> np.ndarray:
        """[B, H] each -> hidden states [B, H], float32. acted: the actions of the step before; None in the first."""
        x, cached = self._x, self._cached
        if self.is_first:
            mask_global = mask_local = first_mask(self.window)
            x[:, :2] = 0
            np.add(observed, self._positions[0], out=x[:, 2])
        else:
            assert acted is not None, "every step but the first follows on an action"
            oldest = self._next if cached == self.window else 0
            mask_global, mask_local = masks(self.window, self._local_window, cached, oldest)
            np.add(self._observed, self._positions[cached], out=x[:, 0])
            np.add(acted, self._positions[cached + 1], out=x[:, 1])
            np.add(observed, self._positions[cached + 2], out=x[:, 2])
        hidden, new = self._run_trunk(x, mask_global, mask_local)
        if not self.is_first:  # s_t is fed again in the next step, so it is not kept
            self._caches[:, :, :, self._next : self._next + 2] = new[:, :, :, :2]
            self._next = (self._next + 2) % self.window
            self._cached = min(cached + 2, self.window)
        self._observed, self.is_first = observed.copy(), False
        return hidden


class _Acting:
    """Step B agents of one modality: arrays in, predictions out."""

    def __init__(self, host: Host, runtime: Runtime, num_agents: int, window: int) -> None:
        self._host, self._runtime, self._num_agents = host, runtime, num_agents
        self._lockstep = Lockstep(host, runtime, num_agents, window)
        self._encoders: dict[str, Callable[..., np.ndarray]] = {}
        self.actions: Any = None

    def reset(self) -> None:
        self._lockstep.reset()
        self.actions = None

    def _predict(self, modality: str, values: np.ndarray, rewards: np.ndarray, space: Any) -> np.ndarray:
        """values: [B, ...] with missions as integers; rewards: float32 [B] -> [B, size]."""
        host, kind = self._host, modality.partition("+")[0]
        if kind == "continuous":
            observed = host.encode_continuous(np.concatenate((values, rewards[:, None]), axis=1))
        else:
            if kind not in self._encoders:
                self._encoders[kind] = self._runtime.open_encoder(kind, self._num_agents)
            arguments = (values,) if kind == "image" else (values, rewards[:, None])
            observed = self._encoders[kind](*arguments)
        acted = None if self._lockstep.is_first else host.encode_actions(space.kind, self.actions)
        return host.predict(space.kind, space.size, self._lockstep.step(observed, acted))


class StaticAgent(_Acting):
    """One agent: `get_next_action` with the arguments of the engine's sessions."""

    def __init__(self, host: Host, runtime: Runtime, window: int) -> None:
        super().__init__(host, runtime, 1, window)

    def get_next_action(
        self,
        *,
        action_space: Any,
        reward: float | None = None,
        deterministic: bool = False,
        return_prediction: bool = False,
        **fields: Any,
    ) -> Any:
        observation = parse_observation(self._host.limits, fields, reward)
        space = parse_action_space(self._host.limits, action_space)
        values = observation.values[0]
        if observation.texts is not None:
            values = np.concatenate((values, self._host.missions.encode(observation.texts[0])))
        rewards = np.array(observation.rewards, np.float32)
        predictions = self._predict(observation.modality, values[None], rewards, space)
        result = predictions[0]
        if space.kind == "continuous":
            action: Any = result.tolist()
            self.actions = predictions
        else:
            action = int(result.argmax()) if deterministic else int(_sample(predictions)[0])
            self.actions = np.array([action])
        return (action, result) if return_prediction else action

    def force_action(self, action: Any) -> None:
        self.actions = np.array([action], np.int64 if isinstance(action, int) else np.float32)


class StaticBatch(_Acting):
    """Agents of one modality in lockstep: the arguments of `AgentBatch.get_next_actions`."""

    def get_next_actions(
        self,
        *,
        action_space: Any,
        rewards: Any = None,
        deterministic: bool = False,
        return_predictions: bool = False,
        **fields: Any,
    ) -> Any:
        space = parse_action_space(self._host.limits, action_space)
        observations = parse_observations(self._host.limits, self._num_agents, fields, rewards)
        values = np.asarray(observations.values)
        if observations.texts is not None:
            missions = np.stack([self._host.missions.encode(text) for text in observations.texts])
            values = np.concatenate((values, missions), axis=1)
        predictions = self._predict(observations.modality, values, np.asarray(observations.rewards), space)
        if space.kind == "continuous":
            self.actions = predictions
        else:
            self.actions = predictions.argmax(axis=1) if deterministic else _sample(predictions)
        return (self.actions, predictions) if return_predictions else self.actions

    def close(self) -> None:
        """Give back the cache."""
        del self._lockstep


def _sample(predictions: np.ndarray) -> np.ndarray:
    return torch.multinomial(torch.from_numpy(predictions).softmax(-1), 1)[:, 0].numpy()


class StaticPeer:
    """Make a `BatchPeer` of a `Runtime`."""

    def __init__(self, name: str, dtype: str, host: Host, runtime: Runtime) -> None:
        self.name, self.dtype = name, dtype
        self._host: Host | None = host
        self._runtime: Runtime | None = runtime

    def open(self, window: int) -> StaticAgent:
        return StaticAgent(*self._opened(), window)

    def open_batch(self, num_agents: int, window: int, kind: str) -> StaticBatch:
        """Open agents that step together; of any modality, but all of the same."""
        return StaticBatch(*self._opened(), num_agents, window)

    def close(self) -> None:
        """Give up the graphs; what agents still hold goes with them."""
        self._host = self._runtime = None

    def _opened(self) -> tuple[Host, Runtime]:
        if self._host is None or self._runtime is None:
            raise ValueError(f"{self.name}: expected an open peer, got one that was closed")
        return self._host, self._runtime
