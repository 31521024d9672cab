"""`NextToken` chooses what transformers' processors and `torch.multinomial` choose, from numbers of every kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from jat_engine.text.next_token import NextToken, keep_top_p, sample
from jat_engine.text.options import GenerationOptions

SIZE = 5000
IDS = torch.zeros((1, 3), dtype=torch.int64)


def logits(seed: int, scale: float) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(SIZE) * scale).astype(np.float32)


@pytest.mark.parametrize("top_p", [0.0, 0.3, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("top_k", [None, 1, 50])
def test_top_p(top_p: float, top_k: int | None) -> None:
    for seed in range(10):
        scores = torch.from_numpy(logits(seed, 0.5 + seed)[None])
        if top_k is not None:
            scores = transformers.TopKLogitsWarper(top_k)(IDS, scores)
        expected = transformers.TopPLogitsWarper(top_p)(IDS, scores)
        assert torch.equal(keep_top_p(top_p, IDS, scores), expected)


def test_top_p_of_equal_scores() -> None:
    """As many are kept as transformers keeps."""
    scores = torch.zeros((1, 8))
    for top_p in (0.0, 0.2, 0.5, 0.8):
        expected = transformers.TopPLogitsWarper(top_p)(IDS, scores)
        assert keep_top_p(top_p, IDS, scores).isfinite().sum() == expected.isfinite().sum()


@pytest.mark.parametrize("num_kept", [1, 2, 50, SIZE // 4, SIZE])
def test_samples_are_those_of_multinomial(num_kept: int) -> None:
    for seed in range(50):
        scores = transformers.TopKLogitsWarper(num_kept)(IDS, torch.from_numpy(logits(seed, 2.0)[None]))
        probabilities = scores.softmax(-1)
        ours, theirs = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
        for _ in range(3):
            assert sample(probabilities, ours) == int(torch.multinomial(probabilities, 1, generator=theirs))
        assert torch.equal(ours.get_state(), theirs.get_state())


def test_samples_follow_the_distribution() -> None:
    probabilities = torch.zeros((1, 100))
    probabilities[0, [3, 50, 99]] = torch.tensor([0.5, 0.3, 0.2])
    generator = torch.Generator().manual_seed(0)
    drawn = np.array([sample(probabilities, generator) for _ in range(4000)])
    assert [abs((drawn == token).mean() - p) < 0.03 for token, p in ((3, 0.5), (50, 0.3), (99, 0.2))] == [True] * 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_no_token_can_be_drawn_from(value: float) -> None:
    def spoil(ids: Any, scores: Any) -> Any:
        return scores * value

    options = GenerationOptions(do_sample=True)
    choice = NextToken(options, 3, 0, torch.Generator().manual_seed(0), [spoil])
    with pytest.raises(RuntimeError):
        choice.choose(IDS, logits(0, 1.0))


def test_logits_are_not_changed() -> None:
    """By a processor that works in place, either."""

    def clear(ids: Any, scores: Any) -> Any:
        return scores.zero_()

    given = logits(0, 1.0)
    NextToken(GenerationOptions(), 3, 0, None, [clear]).choose(IDS, given)
    assert np.array_equal(given, logits(0, 1.0))
    assert NextToken(GenerationOptions(), 3, 0, None).choose(IDS, given) == (int(given.argmax()), None)
