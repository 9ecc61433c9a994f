"""What is told of a choice: what was chosen, tried and refused, and why a layer stays in floating point."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from ...base import Context, Outcome
from ..calibrated import Calibrated
from .knapsack import total
from .options import Options, Unit, obstacle


def chosen(
    options: Options, picks: Sequence[int], lost: float, budget: float, context: Context, outcome: Outcome
) -> None:
    """What was chosen, what it loses and how long it takes."""
    counts: Counter[str] = Counter()
    before = after = 0.0
    for unit, pick in zip(options.units, picks, strict=True):
        counts[str(unit.schemes[pick] or "float32")] += len(unit.weights)
        before, after = before + unit.times[0], after + unit.times[pick]
    listed = "; ".join(f"{count} × {name}" for name, count in counts.most_common())
    outcome.applied(
        "",
        f"chosen for {options.wishes.objective} within the budget: {listed}; expected {_told(lost, context)}, "
        f"products {after / before:.2f} of the time of float32",
        expected_loss=lost,
        budget=budget,
        time_ratio=round(after / before, 4),
        **{name: count for name, count in counts.items()},
    )


def tried(options: Options, picks: Sequence[int], context: Context, outcome: Outcome) -> None:
    """The other choices that were tried and that no tried one beats: another budget may be a better bargain."""
    whole = sum(costs[0] for costs in options.costs)

    def told(cost: float) -> str:
        return f"{cost / whole:.2f} of the time" if options.wishes.fast else f"{cost / 1e6:.1f} MB"

    points = sorted((total(options.costs, choice), loss, choice) for choice, loss in options.tried.items())
    best = [point for at, point in enumerate(points) if all(point[1] < other[1] for other in points[:at])]
    others = [f"{told(cost)} for {_told(loss, context)}" for cost, loss, choice in best if choice != tuple(picks)]
    if others:
        mine = told(total(options.costs, picks))
        outcome.skipped("", f"also tried, beside {mine} of what was chosen: {'; '.join(others)}")


def why_float(options: Options, unit: Unit, budget: float) -> str:
    """Why products have no scheme."""
    unknown = [why for weight in unit.weights if (why := Calibrated.obstacle(weight)) is not None]
    if unknown:
        return unknown[0]
    costs, better = (unit.times, "faster") if options.wishes.fast else (unit.sizes, "smaller and not much slower")
    paying = [at for at, cost in enumerate(costs) if cost < costs[0]]
    if not paying:
        return f"no scheme makes it {better}"
    least = min(paying, key=unit.losses.__getitem__)
    return f"even by {unit.schemes[least]} it was expected to lose {unit.losses[least]:.2g} of a budget of {budget:.2g}"


def refused(options: Options, picks: Sequence[int], outcome: Outcome) -> None:
    """Schemes that no product has got, each with its reason."""
    taken = {unit.schemes[pick] for unit, pick in zip(options.units, picks, strict=True)}
    for scheme in options.wishes.schemes:
        if scheme in taken:
            continue
        weights = [w for unit in options.units for w in unit.weights if obstacle(w, scheme) is None]
        if not weights:
            outcome.skipped("", f"{scheme}: refused, no product can have it")
            continue
        ratio = sum(options.time(w, scheme) for w in weights) / sum(options.time(w, None) for w in weights)
        why = "slower than float32" if ratio > 1 else "another scheme is better for the budget"
        outcome.skipped("", f"{scheme}: refused, {why} ({ratio:.2f} of its time on this machine)", time_ratio=ratio)


def _told(loss: float, context: Context) -> str:
    """A loss as the budget is given."""
    return f"perplexity × {math.exp(loss):.4g}" if context.decodes else f"relative error {math.sqrt(max(loss, 0)):.3g}"
