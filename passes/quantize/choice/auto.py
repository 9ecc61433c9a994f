"""``Quantize("auto", budget=...)``: the scheme of each product that makes the model fastest or smallest within a loss.

What a scheme costs a product is measured: the time of its kernel on this machine, and the relative error of its outputs
on the calibration inputs. How much the model loses for such an error differs by layer, and is measured, too: each kind
of layer is rounded alone, the outputs of the model compared, and derivatives divide the loss among the layers. Losses
of independent small errors add up, so the choice is a knapsack with one item of each group, which dynamic programming
solves (Kellerer et al. 2004, section 11.5). Schemes that lose about the budget are tried for the whole model, too,
because what kinds lose one by one need not add up. A trial of the whole choice then corrects the estimate, and the
problem is solved anew. What is tried is rounded as it will be.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from ....ir.errors import CalibrationError, UnsupportedError
from ...base import Context, Outcome
from ..calibrated import Calibrated
from ..replace import where
from ..scheme import Scheme
from ..targets import Weight
from .options import Options, Unit, Wishes, obstacle, own_scheme
from .search import search

NAME = "auto"
OBJECTIVES = ("time", "size")


def require(context: Context) -> None:
    """Check that :func:`choose` can do its work.

    Raises:
        CalibrationError: there are no calibration inputs.
        UnsupportedError: nothing can be measured for the target.
    """
    if context.cost is None:
        raise UnsupportedError(
            f"nothing can be measured for the target {context.target!r}",
            where="Quantize",
            fix='name a scheme, or compile for "onnxruntime"',
        )
    if not context.has_calibration or context.trial is None:
        raise CalibrationError(
            "the scheme 'auto' needs calibration inputs",
            where="calibration=",
            fix="pass calibration=batches, or --calibration FILE on the command line",
        )


def choose(
    free: Sequence[Weight], context: Context, wishes: Wishes, rounder: Calibrated | None, outcome: Outcome
) -> tuple[list[tuple[Weight, Scheme]], int]:
    """Schemes of the weights that get one, and how many weights stay float.

    Args:
        free: weights that may be quantized, by whatever scheme; nothing is changed.
        context: gives statistics, costs and trials.
        wishes: of the user.
        rounder: rounds them as they will be rounded; None if that is to nearest.
        outcome: gets a remark for each scheme, and for what was refused.
    """
    products = [weight for weight in free if weight.products]
    if not products:
        outcome.missed("", "nothing was chosen: no product can be quantized")
        return [], sum(weight.size for weight in free)
    options = Options(products, context, wishes, rounder, outcome)
    units = options.units
    costs = [unit.times if wishes.objective == "time" else unit.sizes for unit in units]
    budget = math.log1p(wishes.budget) if context.decodes else wishes.budget**2
    picks, lost = search([unit.schemes for unit in units], costs, options.losses, options.try_picks, budget)
    _tell_chosen(options, picks, lost, budget, context, wishes, outcome)
    if rounder is not None and any(picks) and not context.trial_held_out:
        outcome.skipped(
            "",
            "the budget was kept on the inputs that the rounding was fitted to, others lose more: "
            "with evaluation= it is kept on inputs of their own",
        )
    _tell_refused(options, picks, wishes, outcome)
    result: list[tuple[Weight, Scheme]] = []
    tables = [weight for weight in free if not weight.products]
    for weight in tables:
        reason = f"left in floating point: {Calibrated.obstacle(weight)}"
        outcome.skipped(where(weight), reason, weight=weight.value.name)
    left = sum(weight.size for weight in tables)
    for unit, pick in zip(units, picks, strict=True):
        scheme = unit.schemes[pick]
        if scheme is None:
            left += sum(weight.size for weight in unit.weights)
            reason = f"left in floating point: {_why_float(unit, budget, wishes)}"
            for weight in unit.weights:
                outcome.skipped(where(weight), reason, weight=weight.value.name)
            continue
        result += [(weight, own_scheme(weight, scheme)) for weight in unit.weights]
    return result, left


def _tell_chosen(
    options: Options,
    picks: Sequence[int],
    lost: float,
    budget: float,
    context: Context,
    wishes: Wishes,
    outcome: Outcome,
) -> None:
    counts: Counter[str] = Counter()
    before = after = 0.0
    for unit, pick in zip(options.units, picks, strict=True):
        counts[str(unit.schemes[pick] or "float32")] += len(unit.weights)
        before, after = before + unit.times[0], after + unit.times[pick]
    listed = "; ".join(f"{count} × {name}" for name, count in counts.most_common())
    what = "perplexity × " if context.decodes else "relative error "
    share = math.exp(lost) if context.decodes else math.sqrt(max(lost, 0.0))
    outcome.applied(
        "",
        f"chosen for {wishes.objective} within the budget: {listed}; expected {what}{share:.3f}, "
        f"products {after / before:.2f} of the time of float32",
        expected_loss=lost,
        budget=budget,
        time_ratio=round(after / before, 4),
        **{name: count for name, count in counts.items()},
    )


def _why_float(unit: Unit, budget: float, wishes: Wishes) -> str:
    """Why products have no scheme."""
    unknown = [why for weight in unit.weights if (why := Calibrated.obstacle(weight)) is not None]
    if unknown:
        return unknown[0]
    costs, better = (
        (unit.times, "faster") if wishes.objective == "time" else (unit.sizes, "smaller and not much slower")
    )
    paying = [at for at, cost in enumerate(costs) if cost < costs[0]]
    if not paying:
        return f"no scheme makes it {better}"
    least = min(paying, key=unit.losses.__getitem__)
    return f"even by {unit.schemes[least]} it was expected to lose {unit.losses[least]:.2g} of a budget of {budget:.2g}"


def _tell_refused(options: Options, picks: Sequence[int], wishes: Wishes, outcome: Outcome) -> None:
    taken = {unit.schemes[pick] for unit, pick in zip(options.units, picks, strict=True)}
    for scheme in wishes.schemes:
        if scheme in taken:
            continue
        weights = [w for unit in options.units for w in unit.weights if obstacle(w, scheme) is None]
        if not weights:
            outcome.skipped("", f"{scheme}: refused, no product can have it")
            continue
        ratio = sum(options.time(w, scheme) for w in weights) / sum(options.time(w, None) for w in weights)
        why = "slower than float32" if ratio > 1 else "another scheme is better for the budget"
        outcome.skipped("", f"{scheme}: refused, {why} ({ratio:.2f} of its time on this machine)", time_ratio=ratio)
