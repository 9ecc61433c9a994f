"""``SimplifyAlgebra``: the first step of operator fusion, rewriting by the properties of arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from ...ir.graph import Graph
from ..base import Context, Outcome, Pass, Stage
from ..recover.convolution import recover_convolution
from ..recover.match import Site
from .chains import order_chains
from .greedy import Greedy
from .scales import fold_scales
from .views import meet_views


@dataclass(frozen=True)
class SimplifyAlgebra(Pass):
    """Compute the same with fewer operations: equations of arithmetic, factors into weights, views that cancel.

    Niu et al. 2021 (DNNFusion), section 4.2, with a larger table. By default only what gives the same bits is used,
    infinities included, up to the sign of a zero. It may run behind ``recover``, so that folded factors are in the
    weights before these are quantized, or before ``fuse``.

    Attributes:
        reassociate: also use what changes rounding, overflow or the domain: other groupings of sums and products,
            ``√a·√a = a``, factors that are no powers of two, orders of matrix products.
    """

    stage = Stage.RECOVER
    latest = Stage.FUSE

    reassociate: bool = False

    def run(self, graph: Graph, context: Context) -> Outcome:
        """Rewrite the main graph in place; ``Outcome.rewrites`` counts by equation."""
        outcome = Outcome()
        meet_views(graph, outcome)
        if self.reassociate:
            site = Site(graph, context)
            recover_convolution(site)
            site.sweep()
            outcome.merge(site.outcome)
            order_chains(graph, outcome)
        fold_scales(graph, self.reassociate, outcome)
        Greedy(graph, self.reassociate, outcome).run()
        if not outcome.changed:
            outcome.skipped("", "nothing could be computed in a cheaper way")
        return outcome
