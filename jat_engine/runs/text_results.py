"""Result file of texts, `text_results.json`: perplexity, and for questions how many answers were right."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..atomic_io import write_json

TEXT_RESULTS = "text_results.json"

_DIGITS = 9
"""Digits that are kept, since a processor may add numbers in another order; as in `results.json`."""


@dataclass
class AnswerCounts:
    """Counts over the questions of a dataset.

    Attributes:
        questions: number of them.
        exact: greedy answers that are the text's answer, both normalised.
        begun: questions for which every token of the text's answer is the most likely one: what is written begins with
            that answer.
        logprob: log-likelihood of all tokens of the texts' answers, given the questions.
        tokens: number of these.
        accuracies: of the greedy answers, for questions with people's answers.
    """

    questions: int = 0
    exact: int = 0
    begun: int = 0
    logprob: float = 0.0
    tokens: int = 0
    accuracies: list[float] = field(default_factory=list)


@dataclass
class TextResult:
    """Result of one dataset of texts.

    Attributes:
        task: name of the dataset.
        texts: number of texts that were scored.
        skipped: texts of less than two tokens, which predict nothing.
        shortened: texts whose end did not fit beside their image.
        tokens: number of tokens that were scored.
        logprob: log-likelihood of all of these.
        answers: counts of questions; None for other texts.
    """

    task: str
    texts: int = 0
    skipped: int = 0
    shortened: int = 0
    tokens: int = 0
    logprob: float = 0.0
    answers: AnswerCounts | None = None

    @property
    def loss(self) -> float | None:
        """Return the mean loss of a token; None without tokens."""
        return -self.logprob / self.tokens if self.tokens else None

    @property
    def perplexity(self) -> float | None:
        """Return e to the power of the mean loss; None without tokens."""
        return None if self.loss is None else _exp(self.loss)


def describe(result: TextResult) -> dict[str, Any]:
    """Return the part of the result file about one dataset."""
    found: dict[str, Any] = {
        "texts": result.texts,
        "skipped": result.skipped,
        "shortened": result.shortened,
        "tokens": result.tokens,
        "loss": _rounded(result.loss),
        "perplexity": _rounded(result.perplexity),
    }
    if result.answers is not None:
        found |= _describe_answers(result.answers)
    return found


def _describe_answers(counts: AnswerCounts) -> dict[str, Any]:
    count, accuracies = counts.questions, counts.accuracies
    found: dict[str, Any] = {
        "questions": count,
        "answer_perplexity": _rounded(_exp(-counts.logprob / counts.tokens)) if counts.tokens else None,
        "exact_match": _rounded(counts.exact / count) if count else None,
        "begins_with_answer": _rounded(counts.begun / count) if count else None,
        "accuracy": _rounded(math.fsum(accuracies) / count) if accuracies else None,
    }
    if not accuracies:
        found["accuracy_reason"] = "the dataset has no column `answers`"
    return found


def write_text_results(
    folder: Path, results: Mapping[str, TextResult], settings: Mapping[str, Any], *, complete: bool
) -> Path:
    """Write the result file atomically, and return its path.

    Args:
        folder: to write to.
        results: by the name of the dataset.
        settings: everything that the results depend on.
        complete: all datasets that were asked for are there.

    Raises:
        OSError: it cannot be written.
    """
    path = folder / TEXT_RESULTS
    content = {
        "complete": complete,
        "tasks": {name: describe(result) for name, result in sorted(results.items())},
        "settings": dict(settings),
    }
    write_json(path, content, indent=2)
    return path


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")
