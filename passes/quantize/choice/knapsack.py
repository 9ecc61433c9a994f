"""One option of each group, so that costs are least and losses within a budget (multiple-choice knapsack)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_BUCKETS = 4000


def total(options: Sequence[Sequence[float]], picks: Sequence[int]) -> float:
    """The sum of one option of each group."""
    return sum(values[pick] for values, pick in zip(options, picks, strict=True))


def solve(costs: Sequence[Sequence[float]], losses: Sequence[Sequence[float]], budget: float) -> list[int]:
    """One option of each group so that the costs are least and the losses within the budget, by dynamic programming.

    Losses are rounded up to 4,000ths of the budget, so the budget is kept and the costs are those of a budget that is
    smaller by at most one part in 4,000 for each group. The first option of each group must lose nothing.
    """
    best = np.zeros(_BUCKETS + 1)
    choices = np.zeros((len(costs), _BUCKETS + 1), np.int16)
    for at, (cost, loss) in enumerate(zip(costs, losses, strict=True)):
        options = np.full((len(cost), _BUCKETS + 1), np.inf)
        for option, (price, lost) in enumerate(zip(cost, loss, strict=True)):
            need = math.ceil(max(lost, 0.0) / budget * _BUCKETS - 1e-9)
            if need <= _BUCKETS:
                options[option, need:] = best[: _BUCKETS + 1 - need] + price
        choices[at] = options.argmin(axis=0)
        best = options.min(axis=0)
    picks, left = [0] * len(costs), _BUCKETS
    for at in reversed(range(len(costs))):
        picks[at] = int(choices[at, left])
        left -= math.ceil(max(losses[at][picks[at]], 0.0) / budget * _BUCKETS - 1e-9)
    return picks
