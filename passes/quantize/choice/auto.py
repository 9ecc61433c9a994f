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
from collections.abc import Sequence

from ....ir.errors import CalibrationError, UnsupportedError
from ...base import Context, Outcome
from ..calibrated import Calibrated
from ..replace import where
from ..scheme import Scheme
from ..targets import Weight
from . import tell
from .options import Options, Wishes, own_scheme
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
    budget = math.log1p(wishes.budget) if context.decodes else wishes.budget**2
    picks, lost = search(
        [unit.schemes for unit in options.units], options.costs, options.losses, options.try_picks, budget
    )
    tell.chosen(options, picks, lost, budget, context, outcome)
    if rounder is not None and any(picks) and not context.trial_held_out:
        outcome.skipped(
            "",
            "the budget was kept on the inputs that the rounding was fitted to, others lose more: "
            "with evaluation= it is kept on inputs of their own",
        )
    tell.tried(options, picks, context, outcome)
    tell.refused(options, picks, outcome)
    return _picked(options, picks, [weight for weight in free if not weight.products], budget, outcome)


def _picked(
    options: Options,
    picks: Sequence[int],
    tables: Sequence[Weight],
    budget: float,
    outcome: Outcome,
) -> tuple[list[tuple[Weight, Scheme]], int]:
    """What :func:`choose` returns; what stays float is told, ``tables`` without a product among it."""
    result: list[tuple[Weight, Scheme]] = []
    for weight in tables:
        reason = f"left in floating point: {Calibrated.obstacle(weight)}"
        outcome.skipped(where(weight), reason, weight=weight.value.name)
    left = sum(weight.size for weight in tables)
    for unit, pick in zip(options.units, picks, strict=True):
        scheme = unit.schemes[pick]
        if scheme is None:
            left += sum(weight.size for weight in unit.weights)
            reason = f"left in floating point: {tell.why_float(options, unit, budget)}"
            for weight in unit.weights:
                outcome.skipped(where(weight), reason, weight=weight.value.name)
            continue
        result += [(weight, own_scheme(weight, scheme)) for weight in unit.weights]
    return result, left
