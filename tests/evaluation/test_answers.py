"""Answers to questions: the normalisation and the accuracy of the VQA evaluation, computed by hand here."""

from __future__ import annotations

import itertools

import pytest

from jat_engine.evaluation.answers import (
    exact_match,
    first_answer,
    normalize_answer,
    split_question,
    vqa_accuracy,
)
from jat_engine.evaluation.text_tasks import find_text_tasks, needs_images


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("Yes", "yes"),
        ("  a\tdog \n", "dog"),
        ("The two Dogs!", "2 dogs"),
        ("none", "0"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("hes", "he's"),
        ("youve", "you've"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("yall'd've", "y'all'd've"),
        ("its", "its"),  # not among the contractions
        ("well", "well"),
        ("red/blue", "red blue"),
        ("red / blue", "red blue"),
        ("ten-year old", "10 year old"),
        ("yes, it is", "yes it is"),
        ("1,000", "1000"),
        ("1,000-year", "1000year"),  # as it is defined: all marks go beside such a number
        ("3.5 m.", "3.5 m"),
        ("U.S.", "us"),
        ("an", ""),
        ("", ""),
    ],
)
def test_normalisation(answer: str, normal: str) -> None:
    assert normalize_answer(answer) == normal
    assert exact_match(answer, normal)


def test_accuracy_is_the_mean_over_all_but_one() -> None:
    answers = ["Cat", "cat.", "the cat", "dog", "dog", "cow", "hen", "pig", "fox", "owl"]
    for given in ("cat", "dog", "a dog", "owl", "bee"):
        subsets = [[other for j, other in enumerate(answers) if j != i] for i in range(len(answers))]
        shares = [min(sum(exact_match(given, other) for other in subset) / 3, 1) for subset in subsets]
        assert vqa_accuracy(given, answers) == pytest.approx(sum(shares) / len(shares))
    assert [round(vqa_accuracy("cat", ["cat"] * n + ["dog"] * (10 - n)), 6) for n in range(6)] == [
        0,
        0.3,
        0.6,
        0.9,
        1,
        1,
    ]


def test_the_layout_of_questions() -> None:
    assert split_question("Q: What is it? A: a cat") == ("Q: What is it? A:", " a cat")
    assert split_question("Q: Is A: a letter? A: yes") == ("Q: Is A: a letter? A:", " yes")
    for text in ("What is it? A: cat", "Q: What is it?", "Q: What is it? A:", "Q: What is it? A:  ", ""):
        assert split_question(text) is None
    assert first_answer(" a cat\nQ: What") == first_answer(" a cat Q: What is") == first_answer("a cat") == "a cat"
    assert first_answer("") == ""


def test_names_of_texts() -> None:
    names = ["ok-vqa", "atari", "text:a", "text:", "wikipedia", "ok-vqa", "text:ok-vqa"]
    assert find_text_tasks(names) == (["ok-vqa", "a", "wikipedia"], ["atari", "text:"])
    asked = [needs_images(name) for name in ("ok-vqa", "conceptual-captions", "oscar", "a")]
    assert list(itertools.compress("abcd", asked)) == ["a", "b"]
