"""``EqualizeLog``: FPTQ's logarithmic equalization of activations."""

from __future__ import annotations

from dataclasses import dataclass

from ...ir.graph import Graph
from ..base import Context, Outcome, Pass, Stage
from . import measured, migration
from .balance import balance

RULE = "EqualizeLog"


@dataclass(frozen=True)
class EqualizeLog(Pass):
    """Press the range of activations together by its logarithm (FPTQ, Li et al. 2023; survey, eq. 12).

    Scales are folded into normalizations and products, found by data flow; the outputs stay what they are.

    Raises:
        CalibrationError: (when run) there are no calibration inputs.
    """

    stage = Stage.SMOOTH

    def run(self, graph: Graph, context: Context) -> Outcome:
        """Scale every group; say of each product in none what stands in the way."""
        return balance(
            graph,
            context,
            RULE,
            lambda group, inputs: (migration.logarithmic(measured.largest(group, inputs)), {}),
        )
