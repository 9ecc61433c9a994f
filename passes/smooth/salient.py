"""``ScaleSalientChannels``: AWQ's scales, searched for the scheme that the weights will be rounded to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...ir.graph import Graph
from ..base import Context, Outcome, Pass, Stage
from ..quantize.scheme import Scheme, resolve
from . import measured, saliency
from .balance import balance
from .flow import spread
from .groups import Group
from .products import Array

RULE = "AWQ"


@dataclass(frozen=True)
class ScaleSalientChannels(Pass):
    """Scale up the weights that meet large activations, so that rounding hurts them less (AWQ, Lin et al. 2023).

    Scales are folded into normalizations and products, found by data flow; the outputs stay what they are. Give the
    options that ``Quantize`` has behind it: the scales are searched for them.

    Attributes:
        scheme: ``"w4a16"`` or ``"w8a16"``, what the weights will be rounded to.
        bits: 4 or 8 instead of the scheme's.
        group_size: weights that will share a scale, instead of the scheme's.
        symmetric: whether the zero point will be the middle of the range, instead of the scheme's.

    Raises:
        OptionError: a scheme or value that no kernel takes.
        CalibrationError: (when run) there are no calibration inputs.
    """

    stage = Stage.SMOOTH
    scheme: str = "w4a16"
    bits: int | None = None
    group_size: int | None = None
    symmetric: bool | None = None

    def __post_init__(self) -> None:
        _ = self.resolved

    @property
    def resolved(self) -> Scheme:
        """The scheme that scales are searched for."""
        return resolve(self.scheme, bits=self.bits, group_size=self.group_size, symmetric=self.symmetric)

    def run(self, graph: Graph, context: Context) -> Outcome:
        """Scale every group where it helps; say of each product in none what stands in the way."""

        def choose(group: Group, inputs: measured.Inputs) -> tuple[Array | None, dict[str, float]]:
            means = measured.mean_abs(group, inputs)
            ratio, before, after = _search(group, means, inputs, self.resolved)
            figures = {"ratio": ratio, "output_error_before": before, "output_error": after}
            return saliency.scales(means, ratio) if ratio else None, figures

        return balance(graph, context, RULE, choose)


def _search(group: Group, means: Array, inputs: measured.Inputs, scheme: Scheme) -> tuple[float, float, float]:
    """The best exponent, and the mean relative output error of the group's consumers without and with it."""
    rows = [(consumer, measured.sample(consumer)) for consumer in group.consumers]
    errors = {}
    for ratio in saliency.RATIOS:
        scales = measured.only_free(group, saliency.scales(means, ratio))
        each = [
            saliency.output_error(part, spread(scales, consumer.labels), inputs.mean_square(consumer), scheme)
            for consumer, part in rows
        ]
        errors[ratio] = float(f"{np.mean(each):.4g}")
    best = min(errors, key=errors.__getitem__)
    return best, errors[0.0], errors[best]
