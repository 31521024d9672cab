"""Time a training step of a small model, ours and the published computation.

What it takes to bring data to it is measured by the repository's benchmarks/train_input.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ... import JatConfig, JatModel
from ..results import make_row
from ..runner import Contender, Context, take_turns
from ..workload import REWARD, SPACES

SUITE = "train"

MODEL: dict[str, Any] = {
    "hidden_size": 192,
    "num_layers": 4,
    "num_heads": 6,
    "max_continuous_size": 40,
    "vocab_size": 257,
    "resid_dropout": 0.0,
    "embed_dropout": 0.0,
    "attention_dropout": 0.0,
    "bos_token_id": 256,
    "eos_token_id": 256,
}

STEPS = 64
"""Time steps of a piece."""

PIECES = {"continuous": 8, "babyai": 16, "atari": 4}

_PUBLISHED, _OURS = "published computation", "jat-engine train"

_CHECKED = 4
"""Steps after which the losses must still agree."""

_TOLERANCE = 1e-2
"""Of the loss, relatively; attention and sums are ordered differently, in bfloat16."""


def run(context: Context) -> None:
    options = context.options
    for kind in options.observations:
        context.note(f"train: {kind} ...")
        batch = {name: value.to(context.torch_device) for name, value in random_batch(kind).items()}
        trainers = {
            f"{_PUBLISHED} bfloat16": Trainer(True, False, context.torch_device),
            f"{_OURS} bfloat16": Trainer(False, True, context.torch_device),
        }

        losses = {name: [trainer.step(batch) for _ in range(_CHECKED)][-1] for name, trainer in trainers.items()}
        contenders = {name: Contender(lambda _: batch, trainer.step) for name, trainer in trainers.items()}  # noqa: B023
        seconds = take_turns(contenders, min(options.num_iters, 10), num_warmup=options.num_iters_warmup)

        case: dict[str, str | int] = {"observation": kind, "pieces": PIECES[kind], "steps": STEPS}
        reference = next(iter(trainers))
        for name, values in seconds.items():
            is_reference = name == reference
            row = make_row(
                SUITE,
                case,
                name,
                values,
                reference=None if is_reference else seconds[reference],
                error=None if is_reference else abs(losses[name] / losses[reference] - 1),
                tolerance=None if is_reference else _TOLERANCE,
            )
            row.facts["pieces/s"] = PIECES[kind] / row.p50
            context.results.rows.append(row)
        context.save()


def random_batch(kind: str) -> dict[str, torch.Tensor]:
    """Return inputs of `JatModel.forward`."""
    rng = np.random.default_rng(0)
    shape = (PIECES[kind], STEPS)
    batch: dict[str, Any] = {
        "rewards": np.full(shape, REWARD, np.float32),
        "attention_mask": np.ones(shape, np.int64),
        "loss_weight": np.ones(shape, np.float32),
    }
    if kind == "continuous":
        batch["continuous_observations"] = rng.standard_normal((*shape, 27), np.float32)
    elif kind == "babyai":
        batch["discrete_observations"] = rng.integers(0, 8, (*shape, 212))
    else:
        batch["image_observations"] = rng.uniform(-1, 1, (*shape, 4, 84, 84)).astype(np.float32)
    space = SPACES[kind]
    if hasattr(space, "n"):
        batch["discrete_actions"] = rng.integers(0, space.n, shape)
    else:
        batch["continuous_actions"] = rng.standard_normal((*shape, *space.shape), np.float32)
    return {name: torch.from_numpy(value) for name, value in batch.items()}


class Trainer:
    """Forward, backward and AdamW, in bfloat16 by autocast."""

    def __init__(self, plain_attention: bool, loss_only: bool, device: torch.device) -> None:
        torch.manual_seed(0)
        self._model = JatModel(JatConfig(**MODEL)).train()
        self._model.transformer.plain_attention = plain_attention
        self._model.to(device)
        self._optimizer = torch.optim.AdamW(self._model.parameters())
        self._loss_only, self._device = loss_only, device

    def step(self, batch: dict[str, torch.Tensor]) -> float:
        """Train on a batch; return its loss."""
        with torch.autocast(self._device.type, torch.bfloat16):
            loss = self._model(**batch, loss_only=self._loss_only).loss
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(loss.detach())
