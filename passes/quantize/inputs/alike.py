"""Inputs whose tokens are alike: one scale that was found before does for all of them, and takes no time to compute.

A normalization gives every token the same length, whatever came into it. In a rotated basis that length is spread
evenly over the channels (QuaRot, Ashkboos et al. 2024, section 3), so the ranges of tokens hardly differ, and scales by
token buy little for the time that finding them takes. What they buy is square error on the calibration inputs, which
one scale multiplies by a factor: of normally distributed numbers, 576 a token, by 1.8, with the range of least error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir

from ....ir.graph import is_op, tensor_of
from ...base import Context, Outcome, Request
from ...statistics import Histogram, TokenSpan
from ..scheme import Activations, Scheme
from ..targets import Weight
from .activations import by_token, inputs_by_token
from .histogram import Range, choose, expected_error

LIMIT = 2.5
"""The factor that the square error may grow by. On SmolLM2-135M, rotated, 1.5 to 2.1 behind its normalizations, 3 to 10
for outputs of attention, 3 to 116 behind the gated unit; on MiniLM, which cannot be rotated, 4 to 14 everywhere."""
_NORMALIZATIONS = ("RMSNormalization", "LayerNormalization")


def candidates(chosen: Sequence[tuple[Weight, Scheme]]) -> list[onnx_ir.Value]:
    """What is quantized token by token, as far as a normalization made it: its size is bounded on any input."""
    return [value for value in inputs_by_token(chosen) if _normalized(value)]


def _normalized(value: onnx_ir.Value) -> bool:
    """Whether a normalization made it, or a multiplication by constants behind one (inserted by smoothing)."""
    maker = value.producer()
    if maker is not None and is_op(maker, "Mul") and tensor_of(maker.inputs[1]) is not None:
        maker = None if maker.inputs[0] is None else maker.inputs[0].producer()
    return is_op(maker, *_NORMALIZATIONS)


def fix(
    chosen: Sequence[tuple[Weight, Scheme]], limit: float, context: Context, outcome: Outcome, *also: Request
) -> tuple[list[tuple[Weight, Scheme]], dict[onnx_ir.Value, Range]]:
    """Let products whose inputs are alike take them in one range instead of a range of each token.

    Args:
        chosen: weights and their schemes; only those that take inputs token by token change.
        limit: see :data:`LIMIT`.
        context: gives the statistics.
        outcome: gets a remark.
        also: what else will be asked for, to be computed in the same run.

    Returns:
        Weights with the schemes that they have now, and the ranges of the inputs that got one.

    Raises:
        CalibrationError: there are no calibration inputs, or they give no finite statistics.
    """
    values = candidates(chosen)
    found: dict[onnx_ir.Value, Range] = {}
    growth: dict[onnx_ir.Value, float] = {}
    if values or not context.has_calibration:
        context.prepare((values, Histogram()), (values, TokenSpan()), *also)
        histograms, spans = context.statistics(values, Histogram()), context.statistics(values, TokenSpan())
        for value in values:
            observed = histograms[value.name or ""]
            span, each = choose(observed, "mse"), float(spans[value.name or ""][0]) / 255**2 / 12
            growth[value] = expected_error(observed, span) / each if each > 0 else 1.0
            if growth[value] <= limit:
                found[value] = span
    result = []
    for weight, scheme in chosen:
        if by_token(weight, scheme) and all(node.inputs[0] in found for node in weight.products):
            scheme = replace(scheme, activations=Activations("tensor", dynamic=False))
        result.append((weight, scheme))
    if found:
        worst = max(growth[value] for value in found)
        outcome.applied(
            "",
            f"{len(found)} of {len(values)} inputs behind normalizations are alike from token to token, and get one "
            f"scale each: their square error grows by a factor of {worst:.2f} at most",
            inputs=len(found),
            growth=round(worst, 4),
        )
    elif growth:
        least = min(growth.values())
        outcome.missed(
            "",
            f"none of {len(values)} inputs behind normalizations is alike enough from token to token for one scale: "
            f"square errors would grow by a factor of {least:.2f} or more, and {limit:g} is allowed",
            growth=round(least, 4),
        )
    return result, found
