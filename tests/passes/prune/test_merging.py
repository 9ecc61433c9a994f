"""Groups of experts: alike ones together, rarely used ones first, the change of weights as it is."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from burnish.passes.prune.merging import change, gram, groups, mixture

Array = np.ndarray[Any, Any]


def _stacks(seed: int, experts: int) -> list[Array]:
    generator = np.random.default_rng(seed)
    return [generator.standard_normal((experts, 6, 8)), 10 * generator.standard_normal((experts, 8, 3))]


def _changed(stacks: list[Array], found: list[list[int]], usage: Array) -> float:
    """What :func:`change` says, out of the weights themselves."""
    lost = power = 0.0
    for stack in stacks:
        scale = np.square(stack).sum(axis=(1, 2)).mean()
        for group in found:
            mean = np.average(stack[group], axis=0, weights=usage[group])
            for expert in group:
                lost += usage[expert] * np.square(stack[expert] - mean).sum() / scale
        power += float(usage @ np.square(stack).sum(axis=(1, 2))) / scale
    return lost / power


def test_copies_belong_together() -> None:
    stacks = [np.concatenate([s, s + 0.05 * np.random.default_rng(9).standard_normal(s.shape)]) for s in _stacks(0, 3)]
    usage = np.asarray([3.0, 1, 1, 1, 2, 1])
    found = groups(gram(stacks), usage, 3)
    assert found == [[0, 3], [1, 4], [2, 5]]
    assert change(gram(stacks), mixture(found, usage), usage) < 0.01


def test_the_change_is_that_of_the_weights() -> None:
    stacks, usage = _stacks(1, 5), np.asarray([1.0, 2, 3, 4, 5])
    for count in range(1, 6):
        found = groups(gram(stacks), usage, count)
        assert len(found) == count and sorted(itertools.chain(*found)) == [0, 1, 2, 3, 4]
        expected = _changed(stacks, found, usage)
        # float32 products
        assert change(gram(stacks), mixture(found, usage), usage) == pytest.approx(expected, abs=1e-6)


def test_one_step_is_the_best_there_is() -> None:
    """Of all pairs the one that changes least; rarely used experts go before often used ones that are as different."""
    stacks, usage = _stacks(2, 5), np.asarray([5.0, 5, 0.1, 5, 0.1])
    [pair] = [group for group in groups(gram(stacks), usage, 4) if len(group) > 1]
    assert pair == [2, 4]
    losses = {
        pair: _changed(stacks, [list(pair), *([e] for e in range(5) if e not in pair)], usage)
        for pair in itertools.combinations(range(5), 2)
    }
    assert min(losses, key=losses.__getitem__) == (2, 4)
