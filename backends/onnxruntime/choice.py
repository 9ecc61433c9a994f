"""Of several kernels for the same nodes the one that is faster on this machine; a rule of thumb if none was timed."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import onnx_ir

from ...ir.excerpt import Clock, Variant, timed
from ...ir.graph import Graph, dims, module_path
from ...ir.remarks import Remark

MARGIN = 0.97
"""Part of the usual variant's time that another one may take at most to be preferred: less is noise."""


class Choices:
    """Decisions for one graph, each made once for all places that are alike, and what is to be said about them.

    Args:
        graph: that is lowered.
        clock: takes the time of variants; None: rules of thumb decide.
    """

    def __init__(self, graph: Graph, clock: Clock | None) -> None:
        self._graph, self._clock = graph, clock
        self._known: dict[Hashable, tuple[str, Remark | None]] = {}
        self.remarks: list[Remark] = []

    @property
    def measured(self) -> bool:
        """Whether anything can be timed."""
        return self._clock is not None

    def pick(self, nodes: Sequence[onnx_ir.Node], variants: Mapping[str, Variant], usual: str, like: Hashable) -> str:
        """The name of the variant to take.

        Args:
            nodes: of the place, in topological order.
            variants: ways to compute them, by what the report calls them; each rewrites a graph of these nodes alone.
            usual: the variant that is taken unless another one is faster by more than noise.
            like: equal for places that need not be told apart.
        """
        if self._clock is None or len(variants) < 2:
            return usual
        if like not in self._known:
            self._known[like] = self._decide(nodes, variants, usual, self._clock)
        chosen, remark = self._known[like]
        if remark is not None:
            self.remarks.append(Remark(remark.kind, module_path(nodes[-1]), remark.reason, remark.values))
        return chosen

    def _decide(
        self, nodes: Sequence[onnx_ir.Node], variants: Mapping[str, Variant], usual: str, clock: Clock
    ) -> tuple[str, Remark | None]:
        taken = timed(self._graph, nodes, variants, clock)
        where = _sizes(nodes[-1])
        if taken is None:
            reason = f"{usual} for {where} by rule of thumb: a size is not known, or no time was left to measure"
            return usual, Remark("skipped", "", reason)
        best = min(taken, key=lambda name: taken[name])
        chosen = best if taken[best] < MARGIN * taken[usual] else usual
        others = ", ".join(
            f"{name} takes {taken[name] / taken[chosen]:.2f} times the time" for name in taken if name != chosen
        )
        figures = {name: round(1e6 * seconds, 1) for name, seconds in taken.items()}
        return chosen, Remark("applied", "", f"{chosen} for {where}: {others}", figures)


def _sizes(node: onnx_ir.Node) -> str:
    shape = dims(node.outputs[0])
    return "?" if shape is None else f"[{', '.join(str(d if isinstance(d, int) else d.value) for d in shape)}]"
