"""Write the agent's step in plain torch for `torch.compile` on a GPU: a static cache, one shape for every step.

A step always computes three rows, [s_{t-1}, a_{t-1}, s_t]; the first [s_0, -, -]. Row i lies in slot
(first + C + i) mod N of a ring of N = W + 3 slots, C the cached tokens, and sees the keys j of the ring, counted from
the oldest, with C + i - window < j <= C + i. What rows beyond the last one leave behind is never seen and is written
over. No 1 / sqrt(head_dim), softmax in float32 (float64 for the float64 reference).

In bfloat16 and compiled (CUDA graphs by mode="reduce-overhead") it is the peer to beat; in float64 and eager the
reference of the parity section. `python -m benchmarks.gpu.compiled_peer WORK` only compiles, to fill the caches.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jat_engine import JatModel, JatProcessor, reference
from jat_engine.backends.base import STEP_TOKENS as ROWS
from jat_engine.bench.workload import SPACES, THE_WINDOW, step_arguments
from jat_engine.engine.missions import Missions
from jat_engine.model.modules import cyclic_expand
from jat_engine.observation import Limits, parse_action_space, parse_observation


class DenseStep(nn.Module):
    """Compute a prediction from an observation; keys and values [N, heads, head_dim] of each layer in place."""

    def __init__(self, model: JatModel, window: int) -> None:
        super().__init__()
        config = model.config
        self.model, self.config = model, config
        self.slots = window + ROWS
        head_dim = config.hidden_size // config.num_heads
        weight = model.continuous_decoder.weight
        self.dtype = weight.dtype
        # A buffer a layer: of views into a common one the compiler would copy the whole for every layer.
        for number in range(config.num_layers):
            for name in ("keys", "values"):
                zeros = torch.zeros(self.slots, config.num_heads, head_dim, dtype=weight.dtype, device=weight.device)
                self.register_buffer(f"{name}{number}", zeros, persistent=False)
        self.windows = [
            config.window_size if a == "local" else config.max_position_embeddings for a in config.attention_layers
        ]

    def encode(self, kind: str, values: Tensor, reward: Tensor) -> Tensor:
        """Return an observation's embedding, [H]. values: [X], int64 [212] or uint8 [84, 84, 4]; reward: [1]."""
        model, dtype = self.model, self.dtype
        if kind == "continuous":
            return self._continuous(torch.cat((values.to(dtype), reward.to(dtype))))
        if kind == "discrete":
            features = model.multi_discrete_encoder(values[None, None], model.transformer.wte)[0, 0]
            return torch.cat((features, reward.to(dtype)))
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        frames = ((values.permute(2, 0, 1).to(exact) / 255 - 0.5) / 0.5).to(dtype)
        return model.image_encoder.module(frames[None])[0]

    def _continuous(self, values: Tensor) -> Tensor:
        return self.model.continuous_encoder(cyclic_expand(values, self.config.max_continuous_size))

    def forward(
        self,
        kind: str,
        previous: Tensor,
        action: Tensor,
        values: Tensor,
        reward: Tensor,
        first: Tensor,
        context_len: Tensor,
        row: Tensor,
        size: int,
    ) -> tuple[Tensor, Tensor]:
        """Compute one step.

        Args:
            kind: "continuous", "discrete" or "image".
            previous: [H], the embedding of the observation before.
            action: int64 [1] or float32 [A], of the step before.
            values, reward: as `encode` takes them.
            first: int64 [1], the slot of the oldest token.
            context_len: int64 [1], the cached tokens.
            row: int64 [1], where s_t is: 0 in the first step, then 2.
            size: of the prediction.

        Returns:
            The prediction, float32 [size], and the observation's embedding, which the next step takes for `previous`.
        """
        model, config = self.model, self.config
        dtype = self.dtype
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        encoded = self.encode(kind, values, reward)
        is_choice = action.dtype == torch.int64
        acted = model.transformer.wte(action)[0] if is_choice else self._continuous(action.to(dtype))

        beginning = row == 0
        x = torch.stack((torch.where(beginning, encoded, previous), acted, encoded))
        index = context_len + torch.arange(ROWS, device=x.device)  # [3], position and index among the keys
        x = x + model.transformer.wpe(index)
        slots = (first + index) % self.slots
        age = index[:, None] - (torch.arange(self.slots, device=x.device) - first) % self.slots  # [3, N]

        for number, block in enumerate(model.transformer.h):
            attention = block.attn.attention
            normed = block.ln_1(x)
            q, k, v = (
                linear(normed).view(ROWS, config.num_heads, -1)
                for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            keys, cached = getattr(self, f"keys{number}"), getattr(self, f"values{number}")
            keys.index_copy_(0, slots, k)
            cached.index_copy_(0, slots, v)
            attended = reference.attention(q.to(exact), keys.to(exact), cached, age, self.windows[number])
            x = x + attention.out_proj(attended)
            x = x + block.mlp.c_proj(reference.gelu(block.mlp.c_fc(block.ln_2(x))))
        final = model.transformer.ln_f(x.index_select(0, row))[0]
        if is_choice:
            prediction = F.linear(final, model.single_discrete_decoder.weight[:size])
        else:
            decoder = model.continuous_decoder
            prediction = F.linear(final, decoder.weight[:size], decoder.bias[:size])
        return prediction.to(exact), encoded


class DenseAgent:
    """Act for one agent, with the interface of the engine's sessions.

    Args:
        window: tokens to look back on; None for as many as there can be.
        step: what to make of the module, for instance `torch.compile`; None to run it as it is.
    """

    def __init__(self, model: JatModel, processor: JatProcessor, window: int | None, step: Any = None) -> None:
        config = model.config
        limit = config.max_context_tokens
        self.window = limit if window is None else min(window, limit)
        self.module = DenseStep(model, self.window)
        self.step = step(self.module) if step else self.module
        self._is_compiled = step is not None
        self._limits = Limits.of(config)
        self._missions = Missions.of_processor(processor, config.vocab_size)
        self._device = model.continuous_decoder.weight.device
        self._first, self._cached = 0, 0
        self._action: Any = None
        self._previous = torch.zeros(
            config.hidden_size, dtype=model.continuous_decoder.weight.dtype, device=self._device
        )

    def _tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(values).to(self._device, non_blocking=True)

    def force_action(self, action: Any) -> None:
        """Let the next step follow on `action` instead of the one that was chosen."""
        self._action = action

    @torch.no_grad()
    def get_next_action(
        self,
        *,
        action_space: Any,
        reward: float | None = None,
        deterministic: bool = False,
        return_prediction: bool = False,
        **fields: Any,
    ) -> Any:
        observation = parse_observation(self._limits, fields, reward)
        space = parse_action_space(self._limits, action_space)
        kind = observation.modality.partition("+")[0]
        values = observation.values[0]
        if observation.texts is not None:
            values = np.concatenate((values, self._missions.encode(observation.texts[0])))

        is_choice = space.kind == "discrete"
        is_first = self._action is None
        action = self._action
        if is_first:
            action = 0 if is_choice else np.zeros(space.size, np.float32)
        action = np.array([action], np.int64) if is_choice else np.asarray(action, np.float32)

        if self._is_compiled:
            torch.compiler.cudagraph_mark_step_begin()
        prediction, embedding = self.step(
            kind,
            self._previous,
            self._tensor(action),
            self._tensor(values),
            self._tensor(np.array(observation.rewards, np.float32)),
            self._tensor(np.array([self._first])),
            self._tensor(np.array([self._cached])),
            self._tensor(np.array([0 if is_first else 2])),
            space.size,
        )
        self._previous.copy_(embedding)  # a compiled step's outputs live until its next run
        result = prediction.cpu().numpy()

        if not is_first:
            kept = min(self._cached + 2, self.window)
            self._first = (self._first + self._cached + 2 - kept) % self.module.slots
            self._cached = kept

        if not is_choice:
            chosen: Any = result.tolist()
            self._action = result
        elif deterministic:
            chosen = self._action = int(result.argmax())
        else:
            chosen = self._action = int(torch.multinomial(torch.from_numpy(result).softmax(-1), 1))
        return (chosen, result) if return_prediction else chosen


def load_model(folder: Path, dtype: torch.dtype, device: str) -> JatModel:
    """Return the checkpoint's model, frozen."""
    model = JatModel.from_pretrained(folder, dtype=torch.float32)
    return model.to(device, dtype).eval().requires_grad_(False)


class CompiledPeer:
    """Run the step compiled, with CUDA graphs: the peer to beat."""

    name = "compiled torch"

    def __init__(self, folder: Path, dtype: str, device: str) -> None:
        self.dtype = dtype
        self._model = load_model(folder, getattr(torch, dtype), device)
        self._processor = JatProcessor.from_pretrained(folder)

    def open(self, window: int | None) -> DenseAgent:
        return DenseAgent(
            self._model,
            self._processor,
            window,
            lambda module: torch.compile(module, mode="reduce-overhead", dynamic=False),
        )

    def close(self) -> None:
        del self._model


class Float64Peer:
    """Run the step in float64, eager: the reference of the parity section."""

    name, dtype = "plain torch", "float64"

    def __init__(self, folder: Path, device: str) -> None:
        self._model = load_model(folder, torch.float64, device)
        self._processor = JatProcessor.from_pretrained(folder)

    def open(self, window: int | None) -> DenseAgent:
        return DenseAgent(self._model, self._processor, window)

    def close(self) -> None:
        del self._model


def cudagraph_skips() -> int:
    """Return how often the compiler has not used CUDA graphs; anything but 0 makes the peer slower than it could be."""
    from torch._dynamo.utils import counters

    return int(counters["inductor"]["cudagraph_skips"])


def main() -> None:
    from .checkpoints import small_checkpoint

    peer = CompiledPeer(small_checkpoint(Path(sys.argv[1])), "bfloat16", "cuda")
    for kind in SPACES:
        began = time.perf_counter()
        agent = peer.open(THE_WINDOW)
        for step in range(5):
            agent.get_next_action(**step_arguments(kind, step))
        print(f"{kind}: {time.perf_counter() - began:.1f} s, {cudagraph_skips()} without CUDA graphs", flush=True)


if __name__ == "__main__":
    main()
