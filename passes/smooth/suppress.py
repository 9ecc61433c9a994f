"""``SuppressOutliers``: weights of normalizations, shifts and thresholds of channels move into the products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir.errors import OptionError
from ...ir.graph import Graph, constant, is_op, module_path
from ...ir.rewrite import Editor
from ..base import Context, Outcome, Pass, Stage
from ..statistics import MinMax
from . import measured, migration, suppression
from .balance import balance
from .flow import spread
from .groups import Group, find
from .products import Array
from .shift import obstacle, shift

RULE = "SuppressOutliers"
SHIFT = "shift channels"
METHODS = ("shift", "gamma")


@dataclass(frozen=True)
class SuppressOutliers(Pass):
    """Make the channels of activations alike, for one 8-bit range over all of them.

    ``"gamma"`` moves the weight of a normalization into the products behind it (Outlier Suppression, Wei et al. 2022).
    ``"shift"`` moves the middle of each channel's range to zero, where a layer normalization can subtract it and biases
    can add it again, and brings channels above a threshold down to it (Outlier Suppression+, Wei et al. 2023); the
    threshold is searched for the least expected error of the products' outputs. Outputs stay what they are.

    Attributes:
        method: ``"shift"`` or ``"gamma"``.

    Raises:
        OptionError: ``method`` is neither.
        CalibrationError: (when run) there are no calibration inputs.
    """

    stage = Stage.SMOOTH
    method: str = "shift"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise OptionError(
                f"method={self.method!r} is no way to suppress outliers",
                where="SuppressOutliers",
                fix=f"use one of {', '.join(METHODS)}",
            )

    def run(self, graph: Graph, context: Context) -> Outcome:
        """Shift and scale every group; say of each product in none what stands in the way."""
        if self.method == "gamma":
            return balance(graph, context, RULE, lambda group, inputs: _gamma(group))
        outcome = _shift_all(graph, context)
        outcome.merge(balance(graph, context, RULE, _threshold))
        return outcome


def _gamma(group: Group) -> tuple[Array | None, dict[str, Any]]:
    if not is_op(group.node, "RMSNormalization", "LayerNormalization"):
        return None, {"producer": group.node.op_type}
    weight = constant(group.node.inputs[1])
    assert weight is not None
    return suppression.gamma(weight.reshape(-1)), {}


def _threshold(group: Group, inputs: measured.Inputs) -> tuple[Array, dict[str, float]]:
    largest = measured.largest(group, inputs)
    rows = [(consumer, measured.sample(consumer)) for consumer in group.consumers]

    def loss(scales: Array) -> float:
        free = measured.only_free(group, scales)
        return sum(
            migration.output_error(
                part, spread(free, consumer.labels), inputs.largest(consumer), inputs.mean_square(consumer)
            )
            for consumer, part in rows
        )

    threshold, scales = suppression.search(largest, loss)
    return scales, {"threshold": float(f"{threshold:.4g}")}


def _shift_all(graph: Graph, context: Context) -> Outcome:
    outcome, edit = Outcome(), Editor(graph, SHIFT)
    places = []
    for group in find(graph).groups:
        if (reason := obstacle(group)) is not None:
            outcome.skipped(module_path(group.node), f"channels are not shifted: {reason}")
        else:
            places.append(group)
    values = [group.node.outputs[0] for group in places]
    ranges = context.statistics(values, MinMax()) if values or not context.has_calibration else {}
    for group, value in zip(places, values, strict=True):
        low, high = ranges[value.name or ""]
        middles = suppression.middles(low, high)
        added = shift(edit, group, middles)
        outcome.count(SHIFT)
        outcome.applied(
            module_path(group.node),
            f"channels shifted, {len(group.consumers)} products add it again",
            largest_shift=float(f"{np.abs(middles).max():.4g}"),
            added=added,
        )
    return outcome
