"""Score answers to questions about images: exact match, and the accuracy of the VQA evaluation (Antol et al. 2015)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_BETWEEN_DIGITS = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_ARTICLES = {"a", "an", "the"}
_NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}
_NUMBERS |= {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}

_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd've he's
how'd how'll how's I'd've I'm I've isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't
not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _misspelt() -> dict[str, str]:
    """Return contractions that lack an apostrophe -> the contractions."""
    found = {}
    for word in _CONTRACTIONS.lower().split():
        parts = word.split("'")
        for joints in itertools.product(("", "'"), repeat=len(parts) - 1):
            found["".join(itertools.chain.from_iterable(zip(parts, (*joints, ""), strict=True)))] = word
    return found


_SPELLING = _misspelt()


def normalize_answer(answer: str) -> str:
    """Return an answer as the VQA evaluation compares it.

    In lower case, without punctuation and articles; numbers up to ten as digits; apostrophes of contractions restored.

    Example:
        >>> normalize_answer("The two dogs!"), normalize_answer(" dont "), normalize_answer("1,000 B.C.")
        ('2 dogs', "don't", '1000 bc')
    """
    text = " ".join(answer.split())
    has_number = _BETWEEN_DIGITS.search(text) is not None
    cleaned = text
    for mark in _PUNCTUATION:
        if mark in text:
            # A mark between two letters separates words; marks next to a space go, as do all beside a long number.
            goes = f"{mark} " in text or f" {mark}" in text or has_number
            cleaned = cleaned.replace(mark, "" if goes else " ")
    cleaned = _PERIOD.sub("", cleaned)
    words = [_NUMBERS.get(word, word) for word in cleaned.lower().split()]
    return " ".join(_SPELLING.get(word, word) for word in words if word not in _ARTICLES)


def exact_match(answer: str, reference: str) -> bool:
    """Tell if an answer is the reference, both normalised."""
    return normalize_answer(answer) == normalize_answer(reference)


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """Return the accuracy of an answer: min(people who gave it / 3, 1), averaged over all but one of the people.

    Args:
        answer: to score.
        references: what people answered, one for each of at least 2 people.

    Example:
        >>> [round(vqa_accuracy("cat", ["cat"] * count + ["dog"] * (10 - count)), 9) for count in (1, 2, 3, 4)]
        [0.3, 0.6, 0.9, 1.0]
    """
    assert len(references) >= 2, "without one of them, an answer is left"
    given = normalize_answer(answer)
    same = [normalize_answer(reference) == given for reference in references]
    return sum(min((sum(same) - one) / 3, 1.0) for one in same) / len(same)


def split_question(text: str) -> tuple[str, str] | None:
    """Split a text in the published layout, `Q: <question> A: <answer>`, into the prompt and the answer.

    Returns:
        The prompt, up to and including `A:`, and the answer with its space before it; None for another layout.

    Example:
        >>> split_question("Q: What is it? A: a dog")
        ('Q: What is it? A:', ' a dog')
    """
    question, separator, answer = text.rpartition(" A: ")
    if not separator or not question.startswith("Q: ") or not answer.strip():
        return None
    return f"{question} A:", f" {answer}"


def first_answer(text: str) -> str:
    """Return what is written after a prompt, up to the end of its line or another question.

    The published texts have no mark at the end of an answer.
    """
    return re.split(r"\n| Q: ", text, maxsplit=1)[0].strip()
