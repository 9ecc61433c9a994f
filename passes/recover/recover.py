"""The pass that finds fused operators again in graphs whose exporter took them apart."""

from __future__ import annotations

from dataclasses import dataclass

from ...ir.graph import Graph
from ..base import Context, Outcome, Pass, Stage
from .activation import recover_activation
from .attention import recover_attention
from .convolution import recover_convolution
from .match import Site
from .normalization import recover_normalization
from .rotary import recover_rotary


@dataclass(frozen=True)
class Recover(Pass):
    """Find normalization, activation, rotary embedding, attention and biases of convolutions in decomposed graphs.

    Recognition follows the flow of values, not the literal nodes of one exporter. Each operator is put in only where
    it computes the same; what nearly matched is told in a ``missed`` remark with the reason.
    """

    stage = Stage.RECOVER
    normalization: bool = True
    activation: bool = True
    rotary: bool = True
    attention: bool = True
    convolution: bool = True

    def run(self, graph: Graph, context: Context) -> Outcome:
        """Rewrite the main graph in place; ``Outcome.rewrites`` counts what was recovered by operator."""
        site = Site(graph, context)
        parts = {
            recover_normalization: self.normalization,
            recover_activation: self.activation,
            recover_rotary: self.rotary,
            recover_attention: self.attention,
            recover_convolution: self.convolution,
        }
        for part, wanted in parts.items():
            if wanted:
                part(site)
        site.sweep()
        if not site.outcome.changed:
            site.outcome.skipped("", "no decomposed operator was found")
        return site.outcome
