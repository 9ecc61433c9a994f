"""One option of each group within a budget, against all combinations."""

from __future__ import annotations

import itertools

from burnish.passes.quantize.choice.knapsack import solve
from hypothesis import given, settings
from hypothesis import strategies as st

OPTION = st.tuples(st.floats(0.0, 10.0), st.floats(0.001, 2.0))
GROUPS = st.lists(st.lists(OPTION, min_size=1, max_size=4), min_size=1, max_size=5)


@settings(max_examples=150, deadline=None)
@given(GROUPS)
def test_nothing_better_fits(groups: list[list[tuple[float, float]]]) -> None:
    costs = [[10.0, *(cost for cost, _ in group)] for group in groups]
    losses = [[0.0, *(loss for _, loss in group)] for group in groups]
    picks = solve(costs, losses, 1.0)
    total = sum(costs[i][pick] for i, pick in enumerate(picks))
    assert sum(losses[i][pick] for i, pick in enumerate(picks)) <= 1.0 + 1e-9
    # Losses are rounded up to 4,000ths of the budget.
    slack = 1.0 - len(groups) / 4000
    best = min(
        sum(costs[i][pick] for i, pick in enumerate(combination))
        for combination in itertools.product(*(range(len(cost)) for cost in costs))
        if sum(losses[i][pick] for i, pick in enumerate(combination)) <= slack
    )
    assert total <= best + 1e-9


def test_a_large_budget_takes_the_cheapest_and_none_the_first() -> None:
    costs, losses = [[5.0, 1.0, 3.0]] * 3, [[0.0, 0.2, 0.1]] * 3
    assert solve(costs, losses, 1.0) == [1, 1, 1]
    assert solve(costs, losses, 0.01) == [0, 0, 0]
    assert sorted(solve(costs, losses, 0.3)) in ([0, 0, 1], [0, 1, 2], [2, 2, 2], [0, 2, 1])
