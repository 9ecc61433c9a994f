"""One zero point for all tokens of an input, each with a scale of its own: the ends of a token no longer move it.

A zero point for each token costs more than its scale: six operators find it, and since the kernel has one for all rows,
it stands in columns behind the codes (:mod:`burnish.backends.onnxruntime.integer`), which the product multiplies, too.
Where it lies hardly differs from token to token: about the middle for what has two sides, near the lower end behind a
GELU. One from calibration inputs serves all; the step of a token is then what the end that needs more asks for, and no
number is clipped.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir

from ...base import Context, Outcome, Request
from ...statistics import ZERO_POINTS, TokenSpan, TokenSteps
from ..scheme import Scheme
from ..targets import Weight
from .activations import inputs_by_token

LIMIT = 1.4
"""The factor that the square error may grow by."""


def requests(chosen: Sequence[tuple[Weight, Scheme]]) -> list[Request]:
    """What :func:`fix` will ask for, so that it can be computed together with other statistics."""
    values = inputs_by_token(chosen)
    return [(values, TokenSpan()), (values, TokenSteps())]


def fix(
    chosen: Sequence[tuple[Weight, Scheme]], limit: float, context: Context, outcome: Outcome, *also: Request
) -> dict[onnx_ir.Value, int]:
    """Zero points, of ``ZERO_POINTS``, of the inputs that can do with one for all tokens.

    Args:
        chosen: weights and their schemes; only inputs that are quantized token by token count.
        limit: see :data:`LIMIT`.
        context: gives the statistics.
        outcome: gets a remark.
        also: what else will be asked for, to be computed in the same run.

    Raises:
        CalibrationError: there are no calibration inputs, or they give no finite statistics.
    """
    values = inputs_by_token(chosen)
    if not values:
        return {}
    context.prepare(*requests(chosen), *also)
    spans, steps = context.statistics(values, TokenSpan()), context.statistics(values, TokenSteps())
    found: dict[onnx_ir.Value, int] = {}
    growth: dict[onnx_ir.Value, float] = {}
    for value in values:
        each, for_all = float(spans[value.name or ""][0]), steps[value.name or ""]
        best = int(np.argmin(for_all))
        growth[value] = float(for_all[best]) / each if each > 0 else 1.0
        if growth[value] <= limit:
            found[value] = ZERO_POINTS[best]
    # A weight that several inputs meet is stored once, with columns that cancel zero points or without.
    meetings = [inputs_by_token([pair]) for pair in chosen]
    while split := [v for met in meetings if not all(v in found for v in met) for v in met if v in found]:
        for value in split:
            found.pop(value, None)
    if found:
        worst = max(growth[value] for value in found)
        outcome.applied(
            "",
            f"{len(found)} of {len(values)} inputs quantized by token get one zero point for all tokens: their square "
            f"error grows by a factor of {worst:.2f} at most",
            inputs=len(found),
            growth=round(worst, 4),
        )
    else:
        least = min(growth.values())
        reason = f"square errors would grow by a factor of {least:.2f} or more, and {limit:g} is allowed"
        if least <= limit:
            reason = "those that could are inputs of weights that meet others, which cannot"
        outcome.missed(
            "",
            f"none of {len(values)} inputs quantized by token gets one zero point for all tokens: {reason}",
            growth=round(least, 4),
        )
    return found
