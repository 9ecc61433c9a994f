"""The sampler's penalty and its check of proposals; the rest of it is in test_generate.py."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from burnish.compiler.generation.sampling import Sampler
from burnish.ir.errors import OptionError

P = np.array([0.5, 0.3, 0.15, 0.05])
LOGITS = np.log(P).astype(np.float32)


def shares(tokens: list[int]) -> np.ndarray:
    counts = Counter(tokens)
    return np.array([counts[token] / len(tokens) for token in range(len(P))])


def test_the_penalty_is_that_of_ctrl() -> None:
    logits = np.array([[2.0, -2.0, 1.0, 1.9]], np.float32)
    sampler = Sampler(repetition_penalty=1.25)
    got = sampler.penalized(logits, [np.array([0, 1, 0])])
    np.testing.assert_allclose(got, [[1.6, -2.5, 1.0, 1.9]], rtol=1e-6)
    assert logits[0, 0] == 2.0  # the runtime's memory is left alone
    assert sampler(logits, [np.array([0])]).tolist() == [3] and sampler(logits, [np.array([2])]).tolist() == [0]
    assert Sampler()(logits, [np.array([0])]).tolist() == [0]


@pytest.mark.parametrize("penalty", [0.0, -1.0, float("nan")])
def test_a_penalty_that_is_none(penalty: float) -> None:
    with pytest.raises(OptionError, match="repetition_penalty"):
        Sampler(repetition_penalty=penalty)


def test_greedy_keeps_what_it_would_have_said() -> None:
    rows = np.eye(4, dtype=np.float32)[[2, 1, 3]]
    none = np.array([0])
    assert Sampler().verify(rows, [2, 1], none) == [2, 1, 3]
    assert Sampler().verify(rows, [2, 0], none) == [2, 1]
    assert Sampler().verify(rows, [0, 1], none) == [2]
    assert Sampler().verify(rows[:1], [], none) == [2]


def test_a_penalty_counts_tokens_that_were_just_taken() -> None:
    rows = np.array([[0.0, 2.0, 1.8, 0.0]] * 2, np.float32)
    assert Sampler(repetition_penalty=2.0).verify(rows, [1], np.array([0])) == [1, 2]


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.9}, {"temperature": 0.5}])
@pytest.mark.parametrize("guess", range(4))
def test_proposals_do_not_change_the_distribution(guess: int, options: dict[str, Any]) -> None:
    options = {"temperature": 1.0, **options}
    rows = np.stack([LOGITS, LOGITS])
    plain, checked = Sampler(seed=0, **options), Sampler(seed=1, **options)
    wanted = shares([int(plain(LOGITS[None])[0]) for _ in range(6000)])
    got = shares([checked.verify(rows, [guess], np.array([0]))[0] for _ in range(6000)])
    assert np.abs(got - wanted).max() < 0.04  # four deviations of the difference of two draws of 6,000


def test_the_nucleus_of_a_large_vocabulary_is_that_of_a_sort() -> None:
    logits = np.random.default_rng(0).normal(0, 3, 5000)
    weights = np.sort(np.exp(logits) / np.exp(logits).sum())[::-1]
    for top_p in (0.1, 0.5, 0.9, 0.999, 1.0):
        tokens, kept = Sampler(1.0, top_p=top_p)._candidates(logits)
        count = int((weights.cumsum() - weights < top_p).sum())
        assert len(tokens) == count and abs(kept.sum() - 1) < 1e-12
        np.testing.assert_allclose(kept, weights[:count] / weights[:count].sum(), rtol=1e-9)
