"""``SmoothQuant``: outliers of activations move into the weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...ir.errors import OptionError
from ...ir.graph import Graph
from ..base import Context, Outcome, Pass, Stage
from . import measured, migration
from .balance import balance
from .flow import Consumer, spread
from .groups import Group
from .products import Array

RULE = "SmoothQuant"
_GRID = tuple(i / 20 for i in range(21))
WORTH = 0.5
"""What an inserted multiplication must bring the expected error of its products down to, as a part of what it was."""


@dataclass(frozen=True)
class SmoothQuant(Pass):
    """Move the outliers of activations into the weights, for 8-bit activations (Xiao et al. 2023, eq. 4).

    Scales are folded into normalizations and products, found by data flow; the outputs stay what they are.

    Attributes:
        alpha: how much of the activations' range the weights take over, 0 to 1; ``"search"`` takes for each group the
            one of 21 that minimizes the expected error of its outputs with 8-bit weights and one static activation
            scale per tensor. With a scale per token keep the number: the few tokens with huge activations, which
            decide the static scale, would mislead the search (SmolLM2: perplexity 14.69 instead of 14.22).
        only_calibrated: without calibration inputs do nothing and say so, instead of an error.
        insert: where nothing before a product can take scales (behind a GELU, or behind a normalization that a residual
            reads, too), a multiplication does, if the error that is expected with one static scale per tensor falls to
            half by it or less.

    Raises:
        OptionError: ``alpha`` is neither.
        CalibrationError: (when run) there are no calibration inputs.
    """

    stage = Stage.SMOOTH
    alpha: float | str = 0.5
    only_calibrated: bool = False
    insert: bool = False

    def __post_init__(self) -> None:
        number = isinstance(self.alpha, int | float) and not isinstance(self.alpha, bool)
        if self.alpha != "search" and not (number and 0 <= float(self.alpha) <= 1):
            raise OptionError(
                f"alpha={self.alpha!r} is no migration strength",
                where="SmoothQuant",
                fix="use a number from 0 to 1, or 'search'",
            )

    def run(self, graph: Graph, context: Context) -> Outcome:
        """Scale every group; say of each product in none what stands in the way."""
        if self.only_calibrated and not context.has_calibration:
            outcome = Outcome()
            outcome.skipped("", "nothing was smoothed: no calibration inputs were given")
            return outcome

        def choose(group: Group, inputs: measured.Inputs) -> tuple[Array, dict[str, float]]:
            activations, weights = measured.largest(group, inputs), measured.largest_weights(group)
            alpha = _search(group, activations, weights, inputs) if self.alpha == "search" else float(self.alpha)
            return migration.scales(activations, weights, alpha), {"alpha": alpha}

        def worth(group: Group, inputs: measured.Inputs) -> tuple[Array | None, dict[str, float]]:
            scales, figures = choose(group, inputs)
            rows = _rows(group)
            before, after = (_error(group, rows, inputs, s) for s in (np.ones_like(scales), scales))
            return (scales if after <= WORTH * before else None), figures | {"error": after, "error_before": before}

        return balance(graph, context, RULE, choose, worth if self.insert else None)


_Rows = list[tuple[Consumer, Array]]


def _rows(group: Group) -> _Rows:
    return [(consumer, measured.sample(consumer)) for consumer in group.consumers]


def _error(group: Group, rows: _Rows, inputs: measured.Inputs, scales: Array) -> float:
    """Summed relative output error of the group's consumers, with 8-bit weights and one static scale per tensor."""
    return sum(
        migration.output_error(
            part, spread(scales, consumer.labels), inputs.largest(consumer), inputs.mean_square(consumer)
        )
        for consumer, part in rows
    )


def _search(group: Group, activations: Array, weights: Array, inputs: measured.Inputs) -> float:
    """The alpha of the least summed relative output error of the group's consumers."""
    rows = _rows(group)

    def loss(alpha: float) -> float:
        scales = measured.only_free(group, migration.scales(activations, weights, alpha))
        return _error(group, rows, inputs, scales)

    return min(_GRID, key=loss)
