"""``ChooseKernels``: of several ways to compute the same, the one that is fastest on this machine."""

from __future__ import annotations

from dataclasses import dataclass

from ...ir.errors import OptionError
from ...ir.graph import Graph
from ..base import Context, Outcome, Pass, Stage
from .merge_products import MergeProducts


@dataclass(frozen=True)
class ChooseKernels(Pass):
    """Let measurements on this machine decide where several kernels could do the same.

    Products of one input are joined where that is faster. What concerns single operators is decided when the graph is
    lowered, after the last pass: residual additions and normalizations, GELU and biases, kernels of attention,
    convolutions of concatenations. Each choice is timed on a few nodes by themselves, and the times are kept in the
    cache folder, so that the same machine makes the same file again. Without this pass, and where the time does not
    suffice, rules of thumb decide.

    Attributes:
        seconds: that measuring may take; what is known already takes none.
    """

    stage = Stage.FUSE

    seconds: float = 2.0

    def __post_init__(self) -> None:
        if not self.seconds >= 0:
            raise OptionError(f"seconds={self.seconds!r} is no time", fix="use 0 or more")

    def run(self, graph: Graph, context: Context) -> Outcome:
        """Join products; the rest is left to the lowering."""
        if context.target != "onnxruntime":
            outcome = Outcome()
            outcome.skipped("", f"kernels are chosen by measurement for onnxruntime, not for {context.target}")
            return outcome
        return MergeProducts(measured=True).run(graph, context)
