"""The search for a choice whose trial keeps a budget, from expected losses that trials correct."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from ..scheme import Scheme
from .knapsack import solve, total

_LITTLE, _MUCH = 0.25, 10.0
"""Schemes that are expected to lose less or more than these times the budget are not tried for the whole model: the
former matter little, and what the latter lose together says nothing of the few layers that may have them."""
_ALIKE = 0.9
"""A scheme whose expected loss is more than this part of that of one tried before tells nothing new."""
_ROUNDS = 5
"""Choices that are tried at most, besides single schemes; twice as many if none has kept the budget, but nearly."""
_CLOSE = 1.2
"""A choice that loses less than this times the budget has nearly kept it."""
_NEAR = 0.97
"""A choice that loses more than this part of the budget is good enough."""
_MARGIN = 1.01
"""Choices are aimed at a budget that is smaller by this factor, so that they keep the real one."""
_CAUTIONS = 8
"""How many times the budget is halved if no choice has kept it."""

Table = Sequence[Sequence[float]]
Schemes = Sequence[Sequence[Scheme | None]]
Trial = Callable[[Sequence[int]], float]


def search(schemes: Schemes, costs: Table, losses: Table, trial: Trial, budget: float) -> tuple[list[int], float]:
    """The option of each unit that is best of those tried, and what the model loses by them.

    First schemes that lose about the budget are tried for the whole model, since expected losses need not add up; then
    choices by the corrected losses, each correcting them anew. If no choice keeps the budget, more careful ones follow.

    Args:
        schemes: of the options of each unit; the first option is None, float32.
        costs: of them, seconds or bytes.
        losses: that are expected of them; those of the first are 0.
        trial: what the model really loses by an option of each unit.
        budget: what it may lose.
    """
    tried: dict[tuple[int, ...], float] = {}

    def once(picks: Sequence[int]) -> float:
        if tuple(picks) not in tried:
            tried[tuple(picks)] = trial(picks)
        return tried[tuple(picks)]

    factors = _corrections(schemes, costs, losses, once, budget)
    expected = [
        [loss * (1.0 if scheme is None else factors.get(scheme, 1.0)) for scheme, loss in zip(*unit, strict=True)]
        for unit in zip(schemes, losses, strict=True)
    ]
    # Of choices alone: what is expected of whole schemes has just been made what they lose, so they say nothing more.
    points: dict[tuple[int, ...], tuple[float, float]] = {}
    for rounds in range(2 * _ROUNDS):
        picks = solve(costs, expected, _aim(list(points.values()), budget))
        if not any(picks) or tuple(picks) in points:
            break
        real = once(picks)
        points[tuple(picks)] = (total(expected, picks), real)
        kept_one = any(lost <= budget for _, lost in points.values())
        if _NEAR * budget <= real <= budget or (rounds + 1 >= _ROUNDS and (kept_one or real > _CLOSE * budget)):
            break
    if all(real > budget for real in tried.values()):
        for cautious in _cautious(schemes, costs, expected, budget):
            if tuple(cautious) not in tried and once(cautious) <= budget:
                break
    kept = {picks: real for picks, real in tried.items() if real <= budget}
    best = min(kept, key=lambda picks: total(costs, picks), default=(0,) * len(costs))
    return list(best), kept.get(best, 0.0)


def _cautious(schemes: Schemes, costs: Table, expected: Table, budget: float) -> Iterator[list[int]]:
    """Choices for a model that loses much more than is expected of it, the smallest or fastest first.

    Whole schemes that are expected to keep the budget, such as 8 bits, then whatever is expected to lose less and less.
    """
    wholes = [picks for picks in _wholes(schemes).values() if total(expected, picks) <= budget]
    yield from sorted(wholes, key=lambda picks: total(costs, picks))
    for halvings in range(1, _CAUTIONS + 1):
        picks = solve(costs, expected, budget / 2**halvings)
        if not any(picks):
            return
        yield picks


def _aim(points: Sequence[tuple[float, float]], budget: float) -> float:
    """The expected loss at which the real one should be a little below the budget.

    Between the nearest choices on both sides of it, by a power law, for errors may compound; else in proportion.

    Args:
        points: expected and real losses of what was tried.
    """
    known = [(max(expected, 1e-12), max(real, 1e-12)) for expected, real in points]
    kept, broken = [one for one in known if one[1] <= budget], [one for one in known if one[1] > budget]
    wanted = math.log(budget / _MARGIN)
    if kept and broken and max(kept)[0] < min(broken)[0]:
        below, above = max(kept), min(broken)
        (low, start), (high, end) = ((math.log(expected), math.log(real)) for expected, real in (below, above))
        return math.exp(low + (high - low) * (wanted - start) / (end - start))
    if not kept:
        # By the one that lost most for what was expected of it, so that each choice is aimed lower than the last.
        expected, real = min(broken, key=lambda one: one[0] / one[1], default=(1.0, 1.0))
    elif not broken:
        expected, real = max(kept)
    else:
        expected, real = min(known, key=lambda one: abs(math.log(one[1]) - wanted))
    return expected / real * budget / _MARGIN


def _corrections(schemes: Schemes, costs: Table, losses: Table, trial: Trial, budget: float) -> dict[Scheme, float]:
    """What the losses expected of each scheme are to be multiplied by, from trials of some for the whole model.

    One that is not tried, because others cost no more and lose no more or lose almost the same, gets the factor of the
    one whose loss is nearest.
    """
    wholes = _wholes(schemes)
    cost = {scheme: total(costs, picks) for scheme, picks in wholes.items()}
    loss = {scheme: max(total(losses, picks), 1e-12) for scheme, picks in wholes.items()}
    tried: dict[Scheme, float] = {}
    for scheme in sorted(wholes, key=loss.__getitem__, reverse=True):
        others = [other for other in wholes if other != scheme]
        beaten = any(cost[other] <= cost[scheme] and loss[other] <= loss[scheme] for other in others)
        alike = any(loss[scheme] > _ALIKE * loss[other] for other in tried)
        if _LITTLE * budget < loss[scheme] < _MUCH * budget and not beaten and not alike:
            tried[scheme] = trial(wholes[scheme]) / loss[scheme]
    factors: dict[Scheme, float] = {}
    for scheme in wholes if tried else ():
        distances = {other: abs(math.log(loss[other] / loss[scheme])) for other in tried}
        factors[scheme] = tried[min(distances, key=distances.__getitem__)]
    return factors


def _wholes(schemes: Schemes) -> Mapping[Scheme, list[int]]:
    """Each scheme for all units that can have it; the others stay float32, so that they do not blur what it loses."""
    known = dict.fromkeys(scheme for options in schemes for scheme in options if scheme is not None)
    return {scheme: [options.index(scheme) if scheme in options else 0 for options in schemes] for scheme in known}
