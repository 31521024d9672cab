"""Evaluate an engine on datasets of texts: perplexity as in the published training, and answers to questions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

from ..datasets.texts import Example
from ..engine.engine import JatEngine
from ..errors import DataError, InputError
from ..evaluation.answers import exact_match, first_answer, split_question, vqa_accuracy
from ..evaluation.text_tasks import QUESTIONS
from .text_results import AnswerCounts, TextResult

_TEXTS_AT_ONCE = 64
"""Texts, and images, that are in memory at a time."""


def evaluate_texts(
    engine: JatEngine,
    task: str,
    examples: Iterable[Example],
    max_new_tokens: int,
    show: Callable[[int], object] = lambda count: None,
) -> TextResult:
    """Score the texts of a dataset, and let the engine answer its questions.

    As in the published training, a text is cut into pieces of at most `max_position_embeddings` tokens, of which the
    first one is not scored, and of a text about an image the end is dropped that does not fit.

    Args:
        engine: that is evaluated.
        task: name of the dataset; ok-vqa has questions.
        examples: of the dataset.
        max_new_tokens: the most tokens of an answer.
        show: called with the number of texts that have been finished since the last call.

    Raises:
        DataError: a text of ok-vqa is not a question with its answer.
        InputError: the engine has no tokenizer, or an image cannot be read.
    """
    result = TextResult(task, answers=AnswerCounts() if task == QUESTIONS else None)
    remaining = iter(examples)
    while batch := list(itertools.islice(remaining, _TEXTS_AT_ONCE)):
        if task == QUESTIONS:
            _answer(engine, batch, result, max_new_tokens)
        elif batch[0].image is not None:
            _score_captions(engine, batch, result)
        else:
            _score_pieces(engine, batch, result)
        show(len(batch))
    return result


def _score_pieces(engine: JatEngine, batch: list[Example], result: TextResult) -> None:
    """Score texts of any length, in pieces."""
    longest, pieces = int(engine.config.max_position_embeddings), []
    for example in batch:
        tokens = engine.text_tokenizer.encode(example.text)
        found = [tokens[begin : begin + longest] for begin in range(0, len(tokens), longest)]
        found = [piece for piece in found if len(piece) > 1]
        result.texts += bool(found)
        result.skipped += not found
        pieces += found
    _add(result, engine.score(input_ids=pieces))


def _score_captions(engine: JatEngine, batch: list[Example], result: TextResult) -> None:
    """Score texts about images."""
    tokens = [engine.text_tokenizer.encode(example.text) for example in batch]
    kept = [index for index, each in enumerate(tokens) if len(each) > 1]
    result.skipped += len(batch) - len(kept)
    result.texts += len(kept)
    _add(
        result, _score_with_images(engine, [batch[index] for index in kept], [tokens[index] for index in kept], result)
    )


def _answer(engine: JatEngine, batch: list[Example], result: TextResult, max_new_tokens: int) -> None:
    """Score questions with their answers, and compare the answers that the engine writes."""
    counts = result.answers
    assert counts is not None, "the dataset has questions"
    parts = []
    for example in batch:
        found = split_question(example.text)
        if found is None:
            raise DataError(
                f"{example.where}: text: expected `Q: <question> A: <answer>`, as published, got {example.text!r:.80}"
            )
        parts.append(found)

    encode = engine.text_tokenizer.encode
    prompts = [encode(prompt) for prompt, _ in parts]
    room = int(engine.config.max_position_embeddings) - int(engine.config.num_image_tokens) - max_new_tokens
    for example, prompt in zip(batch, prompts, strict=True):
        if len(prompt) > room:
            raise DataError(
                f"{example.where}: text: expected a question of at most {room} tokens (max_position_embeddings, less "
                f"an image's patches and {max_new_tokens} tokens of an answer), got {len(prompt)}"
            )
    tokens = [encode(example.text) for example in batch]
    scores = _score_with_images(engine, batch, tokens, result)
    _add(result, scores)
    result.texts += len(batch)

    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False, "stop_strings": ["\n", " Q: "]}
    images = [example.image for example in batch]
    written = engine.generate([prompt for prompt, _ in parts], images, **options)
    for example, (_, reference), prompt, score, text in zip(batch, parts, prompts, scores, written, strict=True):
        answer = first_answer(text)
        num_tokens = len(score.tokens) - len(prompt)
        counts.questions += 1
        counts.exact += exact_match(answer, reference)
        counts.begun += bool(num_tokens and score.is_greedy[-num_tokens:].all())
        counts.logprob += float(score.logprobs[-num_tokens:].sum(dtype="float64"))
        counts.tokens += num_tokens
        if example.answers is not None:
            counts.accuracies.append(vqa_accuracy(answer, example.answers))


def _score_with_images(
    engine: JatEngine, batch: list[Example], tokens: list[list[int]], result: TextResult
) -> list[Any]:
    """Return the scores of texts, without the ends that do not fit beside the images."""
    if not batch:
        return []
    room = int(engine.config.max_position_embeddings) - int(engine.config.num_image_tokens)
    if room < 2:
        raise InputError(
            f"images: expected room for text next to the {engine.config.num_image_tokens} patches of an image, got "
            f"max_position_embeddings={engine.config.max_position_embeddings}"
        )
    result.shortened += sum(len(each) > room for each in tokens)
    scores: list[Any] = engine.score(
        input_ids=[each[:room] for each in tokens], images=[example.image for example in batch]
    )
    return scores


def _add(result: TextResult, scores: list[Any]) -> None:
    for score in scores:
        result.tokens += score.num_tokens
        result.logprob += score.total
