"""Two hundred random prompts: greedy tokens of `JatModel.generate`, alone and in batches that join and leave."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.engines import native
from helpers.text_steps import GreedyText

from jat_engine import JatConfig, JatEngine, JatModel

pytestmark = pytest.mark.long

NUM_PROMPTS, NEW_TOKENS, CLOSE = 200, 8, 1e-4


class HashedText(GreedyText):
    """Keeps a hash of the logits after each token, and the margin of each choice, instead of the logits."""

    wants_prompt_logits = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.hashes: list[bytes] = []
        self.margins: list[float] = []

    def accept(self, logits: np.ndarray) -> int | None:
        self.hashes.append(hashlib.sha256(np.ascontiguousarray(logits)).digest())
        second, first = np.partition(logits, -2)[-2:]
        self.margins.append(float(first - second))
        self.tokens.append(int(logits.argmax()))
        return self.tokens[-1] if len(self.tokens) < self.max_new_tokens else None


def make_texts(config: JatConfig) -> list[HashedText]:
    """Prompts of 1 token up to as many as fit, every third one behind an image."""
    random, texts = np.random.default_rng(0), []
    room = config.max_position_embeddings - NEW_TOKENS + 1
    for index in range(NUM_PROMPTS):
        has_image = index % 3 == 2
        most = room - config.num_image_tokens if has_image else room
        length = (1, most)[index] if index < 2 else int(random.integers(1, most + 1))
        shape = config.num_channels, config.image_size, config.image_size
        pixels = random.standard_normal(shape).astype(np.float32) if has_image else None
        texts.append(HashedText(random.integers(0, min(config.vocab_size, 50000), length), NEW_TOKENS, pixels))
    return texts


def run_all(engine: JatEngine, texts: list[HashedText]) -> None:
    """Run texts that join at random, in chunks of random sizes."""
    random = np.random.default_rng(1)
    waiting = [texts[index] for index in random.permutation(len(texts))]
    running: list[HashedText] = []
    while waiting or running:
        while waiting and len(running) < 12 and random.random() < 0.6:
            running.append(waiting.pop())
            engine._texts.add(running[-1])
        engine._texts._prefill_chunk = int(random.integers(1, 257))
        engine._texts.advance(running)
        running = [text for text in running if not text.finished]


@native
@pytest.mark.parametrize("size", ["tiny", "published"])
def test_greedy_tokens_are_the_models(size: str, tmp_path: Path, tiny_folder: Path) -> None:
    folder = tiny_folder
    if size == "published":
        torch.manual_seed(0)
        JatModel(JatConfig()).save_pretrained(tmp_path)
        folder = tmp_path
    model = JatModel.from_pretrained(folder)
    engine = JatEngine.from_pretrained(folder, device="cpu", backend="cpu", dtype="float32")
    alone, together = make_texts(model.config), make_texts(model.config)
    for text in alone:
        engine._texts.add(text)
        while not text.finished:
            engine._texts.advance([text])
    run_all(engine, together)
    for text, other in zip(alone, together, strict=True):
        assert text.error is None
        assert text.hashes == other.hashes

    num_close = num_compared = 0
    for text in alone:
        ids = torch.from_numpy(text.prompt)[None]
        pixels = None if text.pixel_values is None else torch.from_numpy(text.pixel_values)[None]
        written = model.generate(
            input_ids=ids,
            pixel_values=pixels,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
        )
        expected = written[0, len(text.prompt) :].tolist()
        close = [index for index, margin in enumerate(text.margins) if margin < CLOSE]
        end = close[0] if close else NEW_TOKENS
        num_close += bool(close)
        num_compared += end
        assert text.tokens[:end] == expected[:end]
    print(f"\n{size}: {NUM_PROMPTS} prompts, {num_compared} tokens equal; {num_close} prompts reached a choice whose")
    print(f"two best logits are closer than {CLOSE:g}, and were compared up to it")
    assert num_compared > NUM_PROMPTS * NEW_TOKENS // 2
