"""Choices under a budget that trials decide, whose losses are not what was expected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from burnish.passes.quantize.choice.search import search
from burnish.passes.quantize.scheme import NAMED, Scheme
from hypothesis import given, settings
from hypothesis import strategies as st

COARSE, FINE, EIGHT = NAMED["w4a16"], replace(NAMED["w4a16"], group_size=32), NAMED["w8a16"]
OPTIONS: list[Scheme | None] = [None, EIGHT, COARSE, FINE]
COSTS = [32.0, 8.6, 4.3, 4.6]


class Model:
    """Units that lose by each option, and more or less of it than was expected by scheme.

    ``bend`` makes what a choice loses out of it and of what it would lose else.
    """

    def __init__(
        self,
        sensitive: Sequence[float],
        real: dict[Scheme, float],
        compound: float = 1.0,
        bend: Callable[[Sequence[int], float], float] = lambda picks, loss: loss,
    ) -> None:
        self.schemes = [OPTIONS] * len(sensitive)
        self.costs = [COSTS] * len(sensitive)
        self.losses = [[0.0, 0.01 * one, one, 0.6 * one] for one in sensitive]
        self._real, self._compound, self._bend = real, compound, bend
        self.tried: list[list[int]] = []

    def trial(self, picks: Sequence[int]) -> float:
        self.tried.append(list(picks))
        return self._bend(picks, self.exact(picks))

    def exact(self, picks: Sequence[int]) -> float:
        found = zip(self.losses, picks, strict=True)
        return sum(losses[pick] * self._factor(pick) for losses, pick in found) ** self._compound

    def _factor(self, pick: int) -> float:
        scheme = OPTIONS[pick]
        return 1.0 if scheme is None else self._real.get(scheme, 1.0)

    def cost(self, picks: Sequence[int]) -> float:
        return sum(COSTS[pick] for pick in picks)

    def search(self, budget: float) -> tuple[list[int], float]:
        return search(self.schemes, self.costs, self.losses, self.trial, budget)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(0.01, 1.0), min_size=2, max_size=12),
    st.fixed_dictionaries({COARSE: st.floats(0.3, 3.0), FINE: st.floats(0.3, 3.0), EIGHT: st.floats(0.3, 3.0)}),
    st.floats(0.7, 1.6),
    st.floats(0.05, 1.2),
)
def test_the_budget_is_kept_and_no_single_scheme_is_better(
    sensitive: list[float], real: dict[Scheme, float], compound: float, share: float
) -> None:
    model = Model(sensitive, real, compound)
    budget = share * Model(sensitive, real, compound).trial([2] * len(sensitive))
    picks, lost = model.search(budget)
    assert lost <= budget and (not any(picks) or lost == model.trial(picks))
    for whole in ([2] * len(sensitive), [3] * len(sensitive)):
        if whole in model.tried and model.trial(whole) <= budget:
            assert model.cost(picks) <= model.cost(whole)


def test_a_scheme_that_loses_less_than_expected_is_preferred() -> None:
    sensitive = [0.1 * (one + 1) for one in range(10)]
    # Layer by layer finer groups save two fifths, in the whole model more.
    model = Model(sensitive, {FINE: 0.7})
    picks, lost = model.search(0.43 * sum(sensitive))
    blind = Model(sensitive, {})
    expected, _ = blind.search(0.43 * sum(sensitive))
    assert lost <= 0.43 * sum(sensitive)
    assert model.cost(picks) < 0.9 * model.cost(expected)
    assert 1 not in picks and 1 in expected


def test_a_layer_that_cannot_have_a_scheme_does_not_blur_what_it_loses() -> None:
    model = Model([0.1] * 9, {FINE: 0.2})
    model.schemes = [*model.schemes, [None, COARSE]]
    model.costs = [*([COSTS] * 9), [32.0, 4.3]]
    model.losses = [*model.losses, [0.0, 5.0]]
    budget = 1.05 * 0.2 * 0.06 * 9
    picks, lost = model.search(budget)
    assert picks == [3] * 9 + [0] and lost <= budget
    # At once: all of the finer groups were tried without the last layer.
    assert model.tried[-1] == picks and len(model.tried) <= 3


def test_a_scheme_that_loses_far_too_much_says_nothing_of_the_layers_that_may_have_it() -> None:
    """Estimates to second order end where a model is ruined: together two layers lose 1, not 200."""
    model = Model([0.1] * 10, {}, bend=lambda picks, loss: min(loss, 1.0))
    model.schemes = [[None, EIGHT, COARSE]] * 10
    model.costs = [[32.0, 8.0, 12.0]] * 10
    model.losses = [[0.0, loss, 0.02] for loss in [100.0] * 2 + [0.03] * 8]
    budget = 0.27
    picks, lost = model.search(budget)
    assert picks[:2] == [2, 2] and sum(pick == 1 for pick in picks) == 6
    assert lost <= budget and len(model.tried) <= 3


def test_errors_that_compound_are_found_out_in_a_few_trials() -> None:
    model = Model([0.2] * 30, {}, compound=2.0)
    picks, lost = model.search(4.0)
    assert 0.8 * 4.0 <= lost <= 4.0 and len(model.tried) <= 7
    assert any(picks)


def test_choices_that_all_lose_a_little_too_much_are_aimed_lower_and_lower() -> None:
    """A whole scheme loses hardly more than the budget, and so does the choice that it leads to."""
    model = Model(
        [0.01 * (one + 1) for one in range(30)],
        {},
        bend=lambda picks, loss: loss * (1.0 if all(p == 3 for p in picks) else 1.04),
    )
    budget = 0.99 * model.exact([3] * 30)
    picks, lost = model.search(budget)
    assert 0.93 * budget < lost <= budget
    assert model.cost(picks) < 1.1 * model.cost([3] * 30)


def test_a_whole_scheme_that_keeps_the_budget_misleads_no_aim() -> None:
    """Whole schemes lose what is expected once they were tried, mixes a tenth more."""
    model = Model(
        [0.01 * (one + 1) for one in range(30)],
        {},
        bend=lambda picks, loss: loss * (1.0 if len({*picks}) == 1 else 1.1),
    )
    model.losses = [[0.0, 0.5 * loss[2], *loss[2:]] for loss in model.losses]
    budget = 0.9 * model.exact([3] * 30)
    picks, lost = model.search(budget)
    assert 0.95 * budget < lost <= budget
    assert model.cost(picks) < 240  # 258 where the search goes on from 8 bits for all


def test_one_layer_that_loses_a_thousand_times_what_was_expected_does_not_leave_all_in_float() -> None:
    model = Model([0.1] * 20, {}, bend=lambda picks, loss: loss + (1.0 if picks[7] > 1 else 0.0))
    model.losses[7] = [0.0, 1e-5, 1e-3, 0.6e-3]
    picks, lost = model.search(0.5)
    assert picks[7] < 2 and all(picks[:7] + picks[8:])
    assert lost <= 0.5 and len(model.tried) <= 12


def test_nothing_is_tried_for_all_that_another_scheme_beats() -> None:
    model = Model([0.2] * 4, {})
    model.costs = [[32.0, 4.0, 4.3, 4.6]] * 4  # 8 bits cost least and lose least
    picks, _ = model.search(0.1)
    assert picks == [1] * 4 and model.tried == [[1] * 4]


def test_no_budget_leaves_all_as_it_is() -> None:
    assert Model([0.2] * 4, {}).search(1e-9) == ([0] * 4, 0.0)
    assert search([], [], [], lambda picks: 0.0, 1.0) == ([], 0.0)
