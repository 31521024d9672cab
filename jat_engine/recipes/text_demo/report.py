"""Measures of the model on chapters and rooms that it did not learn, through the engine, with simple baselines."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ... import JatEngine, JatModel, JatProcessor
from .book import Book, passages
from .drawing import draw_rooms
from .recipe import encode_chapters
from .rooms import Example, Room

PROMPTS = ("The fear of Jehovah", "A wise son", "Praise ye", "My soul", "Better is a", "Vanity of vanities")
"""Beginnings of verses that the model continues."""

SAMPLING: dict[str, Any] = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 64, "seed": 0}

LONGEST_ANSWER = 24
"""Tokens; the longest caption has fewer."""

NUM_COMPARED = 16
"""Beginnings of verses, and pictures, for which the greedy tokens of engine and `JatModel` are compared."""


def measure(folder: str | Path, book: Book, learned: Sequence[Room], held_out: Sequence[Room]) -> dict[str, Any]:
    """Return all measures of a trained model, and write `rooms.webp` into its folder: captions that it wrote.

    Args:
        folder: of the checkpoint.
        book: the text that it learned, and the chapters that were held out.
        learned: rooms that it learned.
        held_out: rooms that were held out.

    Returns:
        `text`, `pictures`, `samples`, `captions` and `agreement`, as the functions of these names return them.
    """
    engine = JatEngine.from_pretrained(folder, device="cpu", dtype="float32")
    processor = JatProcessor.from_pretrained(folder)
    given = ask(engine, held_out)
    shown = captions(given)
    image = draw_rooms([room.picture for room in held_out[: len(shown)]], [row["written"] for row in shown])
    image.save(Path(folder) / "rooms.webp", lossless=True)
    return {
        "text": text(engine, processor, book),
        "pictures": pictures(given, learned),
        "samples": samples(engine, book.learned),
        "captions": shown,
        "agreement": agreement(engine, folder, book, held_out),
    }


def text(engine: JatEngine, processor: JatProcessor, book: Book) -> dict[str, float]:
    """Return how well the held-out chapters are predicted, in passages of about 400 characters.

    Returns:
        `perplexity`: per token, of all tokens of a passage but its first. `unigram_perplexity`: the same, if tokens
        are predicted by their frequencies in the learned chapters. `learned_perplexity`: of as many passages that
        were learned. `bits_per_byte`: of the held-out passages. `num_tokens`: the number of tokens of the first two.
    """
    held_out, learned = passages(book.held_out), passages(book.learned)
    learned = learned[:: max(len(learned) // len(held_out), 1)]
    scores = engine.score(held_out)
    total, num_tokens = sum(score.total for score in scores), sum(score.num_tokens for score in scores)

    counts = np.bincount(encode_chapters(processor, book.learned), minlength=engine.config.vocab_size) + 1.0
    surprise = -np.log(counts / counts.sum())
    expected = np.concatenate([score.tokens[-score.num_tokens :] for score in scores])
    scored = [processor.tokenizer.decode(score.tokens[-score.num_tokens :]) for score in scores]

    learned_scores = engine.score(learned)
    learned_total = sum(score.total for score in learned_scores) / sum(score.num_tokens for score in learned_scores)
    return {
        "perplexity": math.exp(-total / num_tokens),
        "unigram_perplexity": float(np.exp(surprise[expected].mean())),
        "learned_perplexity": math.exp(-learned_total),
        "bits_per_byte": -total / math.log(2) / sum(len(passage.encode()) for passage in scored),
        "num_tokens": num_tokens,
    }


Answered = list[tuple[Room, Example, str]]
"""Rooms, what was asked about them, and the answers of the model."""


def ask(engine: JatEngine, rooms: Sequence[Room]) -> Answered:
    """Return the model's captions of rooms, and its answers to all questions about them."""
    asked = [(room, example) for room in rooms for example in room.examples()]
    answers = engine.generate(
        [example.prompt for _, example in asked],
        [room.picture for room, _ in asked],
        max_new_tokens=LONGEST_ANSWER,
        do_sample=False,
    )
    return [(room, example, answer) for (room, example), answer in zip(asked, answers, strict=True)]


def pictures(given: Answered, learned: Sequence[Room]) -> dict[str, dict[str, float]]:
    """Return how many answers are exactly right, for captions and each kind of question.

    Args:
        given: answers of the model.
        learned: rooms in which the most frequent answer to each question is counted, without the picture.

    Returns:
        Kind of question -> `exact`, the fraction that is right; `most_frequent`, the fraction if the most frequent
        answer is always given; `count`. Captions are also given by the number of objects.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for room in learned:
        for example in room.examples():
            counts[example.prompt][example.answer] += 1
    guesses = {prompt: counter.most_common(1)[0][0] for prompt, counter in counts.items()}

    rows: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for room, example, answer in given:
        row = (answer == example.answer, guesses.get(example.prompt) == example.answer)
        rows[example.kind].append(row)
        if example.kind == "caption":
            rows[f"caption of {len(room.objects)}"].append(row)
    return {
        kind: {"exact": exact, "most_frequent": guess, "count": len(rows[kind])}
        for kind in sorted(rows)
        for exact, guess in [np.mean(rows[kind], axis=0).tolist()]
    }


def samples(engine: JatEngine, learned: Sequence[str]) -> list[dict[str, Any]]:
    """Return texts that the model writes after `PROMPTS`, and the longest run of words of each that it learned."""
    known = " ".join(" ".join(learned).split())
    written = engine.generate(list(PROMPTS), **SAMPLING)
    return [
        {"text": prompt + text, "copied": copied_words(prompt + text, known)}
        for prompt, text in zip(PROMPTS, written, strict=True)
    ]


def copied_words(text: str, known: str) -> int:
    """Return the length of the longest run of words of `text` that is in `known`, whose words have one space between.

    Example:
        >>> copied_words("the cat sat on a hat", "a cat sat on a mat")
        4
    """
    words, best = text.split(), 0
    for start in range(len(words)):
        while start + best < len(words) and f" {' '.join(words[start : start + best + 1])} " in f" {known} ":
            best += 1
    return best


def captions(given: Answered, most: int = 8) -> list[dict[str, str]]:
    """Return true and written captions of the first rooms."""
    pairs = [(example.answer, answer) for _, example, answer in given if example.kind == "caption"]
    return [{"true": true.strip(), "written": written.strip()} for true, written in pairs[:most]]


def agreement(engine: JatEngine, folder: str | Path, book: Book, rooms: Sequence[Room]) -> dict[str, int]:
    """Return for how many prompts the engine writes the greedy tokens of `JatModel`.

    Args:
        engine: with the checkpoint's weights, in float32.
        folder: of the checkpoint.
        book: the beginnings of passages that were held out are continued.
        rooms: their captions are written.
    """
    model, processor = JatModel.from_pretrained(folder), JatProcessor.from_pretrained(folder)
    beginnings = [passage[:40] for passage in passages(book.held_out)[:NUM_COMPARED]]
    asked: list[tuple[str, Any]] = [(beginning, None) for beginning in beginnings]
    asked += [(room.examples()[0].prompt, [room.picture]) for room in rooms[:NUM_COMPARED]]

    equal = 0
    options: dict[str, Any] = {"max_new_tokens": LONGEST_ANSWER, "do_sample": False}
    for prompt, images in asked:
        inputs = dict(processor([prompt], images=images, return_tensors="pt"))
        expected = model.generate(**inputs, pad_token_id=model.config.pad_token_id, **options)
        equal += torch.equal(engine.generate(**inputs, **options), expected)
    return {"equal": equal, "count": len(asked)}


def lines(report: dict[str, Any]) -> list[str]:
    """Return the report to print."""
    text, agreement = report["text"], report["agreement"]
    printed = [
        f"held-out text: perplexity {text['perplexity']:.1f} per token, {text['bits_per_byte']:.2f} bits per byte; "
        f"unigram {text['unigram_perplexity']:.1f}; learned text {text['learned_perplexity']:.1f}",
        *(
            f"{kind}: {row['exact']:.1%} exactly right, most frequent answer {row['most_frequent']:.1%}, "
            f"{row['count']} held out"
            for kind, row in report["pictures"].items()
        ),
        f"greedy tokens of engine and JatModel: equal for {agreement['equal']} of {agreement['count']} prompts",
        "",
        "captions, true -> written",
        *(f"  {row['true']} -> {row['written']}" for row in report["captions"]),
    ]
    for sample in report["samples"]:
        printed += ["", *(f"  {line}" for line in sample["text"].strip().splitlines())]
        printed += [f"  (longest run of words in the learned text: {sample['copied']})"]
    return printed
