"""``ScaleSalientChannels``: AWQ's scales, searched for the scheme that the weights will be rounded to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...ir.graph import Graph, module_path
from ...ir.rewrite import Editor
from ..base import Context, Outcome, Pass, Stage
from ..quantize.scheme import Scheme, resolve
from . import measured, saliency
from .flow import spread
from .fold import fold
from .groups import Group, find
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
        outcome, found = Outcome(), find(graph)
        inputs = measured.Inputs(found.groups, context)
        edit = Editor(graph, RULE)
        for done, group in enumerate(found.groups):
            context.progress(done, len(found.groups), RULE)
            means = measured.mean_abs(group, inputs)
            ratio, before, after = _search(group, means, inputs, self.resolved)
            where, values = module_path(group.node), {"output_error_before": before, "output_error": after}
            if ratio == 0:
                outcome.skipped(where, "scaling does not lower the error of its products", **values)
                continue
            fold(edit, group, measured.only_free(group, saliency.scales(means, ratio)))
            outcome.count(RULE)
            text = f"salient channels of {len(group.consumers)} products scaled up"
            outcome.applied(where, text, ratio=ratio, channels=int(group.free.sum()), **values)
        measured.tell_others(outcome, found)
        return outcome


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
