"""Evaluation of the model on chapters and rooms that it did not learn, beside simple baselines."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ... import JatModel, JatProcessor
from .book import Book, passages
from .recipe import encode_chapters
from .rooms import Example, Room

PROMPTS = ("The fear of Jehovah", "A wise son", "Praise ye", "My soul", "Better is a", "Vanity of vanities")
"""Beginnings of verses that the model continues."""


def text_scores(model: JatModel, processor: JatProcessor, book: Book) -> dict[str, float]:
    """Return how well the held-out chapters are predicted.

    Returns:
        `perplexity`: per token, exp of the mean of -log p, over all tokens of a passage but its first;
        `unigram_perplexity`: the same, of the tokens' frequencies in the learned chapters;
        `learned_perplexity`: of as many learned passages; `bits_per_byte`: of the held-out passages.
    """
    held_out, learned = passages(book.held_out), passages(book.learned)
    learned = learned[:: max(len(learned) // len(held_out), 1)]
    counts = np.bincount(encode_chapters(processor, book.learned), minlength=model.config.vocab_size) + 1.0
    log_frequencies = np.log(counts / counts.sum())

    scores = log_likelihoods(model, processor, held_out)
    tokens = np.concatenate([processor.tokenizer(passage)["input_ids"][1:] for passage in held_out])
    first = [processor.tokenizer(passage)["input_ids"][0] for passage in held_out]
    num_bytes = sum(len(p.encode()) - len(processor.tokenizer.decode([t]).encode()) for p, t in zip(held_out, first))
    return {
        "perplexity": perplexity(scores),
        "unigram_perplexity": float(np.exp(-log_frequencies[tokens].mean())),
        "learned_perplexity": perplexity(log_likelihoods(model, processor, learned)),
        "bits_per_byte": float(-scores.sum() / math.log(2) / num_bytes),
        "num_tokens": len(tokens),
    }


def perplexity(log_likelihoods: np.ndarray) -> float:
    return float(np.exp(-log_likelihoods.mean()))


def log_likelihoods(model: JatModel, processor: JatProcessor, texts: Sequence[str]) -> np.ndarray:
    values = []
    for text in texts:
        ids = torch.tensor([processor.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            logits = model(input_ids=ids, return_loss=False, use_cache=False).logits
        log_probs = logits[0, :-1].log_softmax(-1)
        values.append(log_probs.gather(-1, ids[0, 1:, None])[:, 0].numpy())
    return np.concatenate(values)


def answers(model: JatModel, processor: JatProcessor, prompts: list[str], pictures: list[Any] | None, **options: Any) -> list[str]:
    out = []
    for i in range(0, len(prompts), 32):
        inputs = processor(prompts[i:i+32], images=None if pictures is None else pictures[i:i+32], padding=True, return_tensors="pt")
        ids = model.generate(**inputs, pad_token_id=processor.tokenizer.pad_token_id, **options)
        out += processor.tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
    return out


def picture_scores(model: JatModel, processor: JatProcessor, learned: Sequence[Room], held_out: Sequence[Room]) -> dict[str, Any]:
    common: dict[str, Counter[str]] = defaultdict(Counter)
    for room in learned:
        for e in room.examples():
            common[e.prompt][e.answer] += 1
    guess = {prompt: counter.most_common(1)[0][0] for prompt, counter in common.items()}

    asked = [(room, e) for room in held_out for e in room.examples()]
    given = answers(model, processor, [e.prompt for _, e in asked], [r.picture for r, _ in asked], max_new_tokens=24, do_sample=False)
    right: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    wrong=[]
    for (room, e), answer in zip(asked, given, strict=True):
        name = f"{e.kind} of {len(room.objects)}"
        for key in (e.kind, name):
            right[key].append((answer == e.answer, guess[e.prompt] == e.answer))
        if answer != e.answer: wrong.append((e.prompt, e.answer, answer))
    return {k: (*np.mean(v, axis=0).round(3).tolist(), len(v)) for k, v in sorted(right.items())}, wrong[:30]
