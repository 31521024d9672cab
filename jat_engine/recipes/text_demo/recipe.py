"""Stages of the recipe: tokenizer, model, training.

The seeds determine everything on one machine. Batches of text and batches of pictures alternate, and both have the
model's own loss: the cross entropy of each token after the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ... import JatConfig, JatModel, JatProcessor
from .rooms import Room

SEED = 0

MODEL: dict[str, Any] = {
    "hidden_size": 192,  # the size of jat-mini
    "num_layers": 4,
    "num_heads": 6,
    "max_position_embeddings": 256,
    "image_size": 96,  # 6 x 6 patches of 16 x 16 pixels: one per cell of a room
    "max_continuous_size": 8,  # this and the next: it does not act, so its encoders of observations are small
    "max_discrete_value": 65,
    "resid_dropout": 0.1,
    "embed_dropout": 0.1,
    "attention_dropout": 0.0,
}
VOCAB_SIZE = 1024

TEXT_BATCH, TEXT_TOKENS = 16, 128
PICTURE_BATCH = 32
LEARNING_RATE, WARMUP, WEIGHT_DECAY = 1.5e-3, 50, 0.05


def make_processor(texts: Sequence[str]) -> JatProcessor:
    """Return a processor whose tokenizer, a byte-level BPE, is trained on `texts`."""
    processor = JatProcessor.byte_level(JatConfig(**MODEL, bos_token_id=None, eos_token_id=None))
    processor.tokenizer = processor.tokenizer.train_new_from_iterator(texts, vocab_size=VOCAB_SIZE, show_progress=False)
    return processor


def make_model(processor: JatProcessor, **overrides: Any) -> JatModel:
    """Return the model before training.

    Args:
        processor: of `make_processor`.
        **overrides: fields of `MODEL` to replace.
    """
    end = processor.tokenizer.eos_token_id
    fields = {**MODEL, "vocab_size": len(processor.tokenizer), **overrides}
    torch.manual_seed(SEED)
    return JatModel(JatConfig(**fields, bos_token_id=end, eos_token_id=end, pad_token_id=end))


def train(
    model: JatModel,
    processor: JatProcessor,
    chapters: Sequence[str],
    rooms: Sequence[Room],
    num_steps: int,
    *,
    bf16: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> list[tuple[float, float]]:
    """Train the model, one batch of text and one of pictures in each step.

    Args:
        model: changed in place; in eval mode afterwards.
        processor: of the model.
        chapters: texts, each followed by the token of the end of a text.
        rooms: pictures with what is in them.
        num_steps: number of steps.
        bf16: compute in bfloat16 where PyTorch's autocast does.
        note: called with a line about the losses every 50 steps.

    Returns:
        Losses of the text and of the pictures in each step.
    """
    generator = np.random.default_rng(SEED)
    torch.manual_seed(SEED)
    tokens = encode_chapters(processor, chapters)
    optimizer = torch.optim.AdamW(_parameter_groups(model), lr=LEARNING_RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, num_steps))

    losses: list[tuple[float, float]] = []
    model.train()
    for step in range(num_steps):
        batches = (text_batch(tokens, generator), picture_batch(processor, rooms, generator))
        values = []
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = model(**batch, loss_only=True).loss
            loss.backward()
            values.append(float(loss.detach()))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()

        losses.append((values[0], values[1]))
        if (step + 1) % 50 == 0:
            text, pictures = np.mean(losses[-50:], axis=0)
            note(f"step {step + 1} of {num_steps}: loss of text {text:.3f}, of pictures {pictures:.3f}")
    model.eval()
    return losses


def encode_chapters(processor: JatProcessor, chapters: Sequence[str]) -> np.ndarray:
    """Return the tokens of all chapters, int64 [N], with the end of a text after each."""
    end = processor.tokenizer.eos_token
    encoded = processor.tokenizer([chapter + end for chapter in chapters], verbose=False)["input_ids"]
    return np.concatenate([np.asarray(tokens, np.int64) for tokens in encoded])


def text_batch(tokens: np.ndarray, generator: np.random.Generator) -> dict[str, torch.Tensor]:
    """Return `TEXT_BATCH` windows of `TEXT_TOKENS` tokens that begin anywhere, as inputs of the model."""
    length = min(TEXT_TOKENS, len(tokens))
    starts = generator.integers(0, len(tokens) - length + 1, size=TEXT_BATCH)
    return {"input_ids": torch.from_numpy(np.stack([tokens[start : start + length] for start in starts]))}


def picture_batch(processor: JatProcessor, rooms: Sequence[Room], generator: np.random.Generator) -> dict[str, Any]:
    """Return `PICTURE_BATCH` pictures, half of them with their caption and half with a question, as inputs."""
    chosen = [rooms[index] for index in generator.integers(0, len(rooms), size=PICTURE_BATCH)]
    texts = []
    for number, room in enumerate(chosen):
        caption, *questions = room.examples()
        example = caption if number % 2 == 0 else questions[int(generator.integers(0, len(questions)))]
        texts.append(example.prompt + example.answer + processor.tokenizer.eos_token)
    pictures = [room.picture for room in chosen]
    return dict(processor(texts, images=pictures, padding=True, padding_side="right", return_tensors="pt"))


def _parameter_groups(model: JatModel) -> list[dict[str, Any]]:
    """Return matrices with weight decay, and vectors without."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _rate(step: int, num_steps: int) -> float:
    """Return the factor of the learning rate: a linear warm-up, then a half cosine down to a tenth."""
    warmup = min(WARMUP, max(num_steps // 10, 1))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(num_steps - warmup, 1)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * done))
