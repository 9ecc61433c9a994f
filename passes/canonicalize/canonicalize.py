"""The first pass of every compilation: one way to write each thing, nothing twice, nothing for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir

from ...ir.graph import Graph
from ...ir.infer import infer_graph
from ..base import Context, Outcome, Pass, Stage
from . import attention, identities, views
from .constants import fold, fold_sizes, lift
from .dead import remove_dead
from .duplicates import merge_initializers, merge_nodes
from .work import NodeRule, Work

ROUNDS = 8
"""Each round sees what the one before made possible; graphs settle in two or three."""


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Fold constants and shape arithmetic, compute equal things once, drop what has no effect.

    Every rewrite keeps the outputs exactly, up to the bit: sums with +0.0 stay, because they turn −0.0 into +0.0.
    Nothing inside a subgraph (``If``, ``Loop``, ``Scan``) or of an unknown domain is touched, and no tensor of more
    than 65,536 elements is read.
    """

    stage: ClassVar[Stage] = Stage.CANONICALIZE

    def run(self, graph: Graph, context: Context) -> Outcome:
        """Simplify ``graph`` in place until nothing changes."""
        return simplify(graph)


def simplify(graph: Graph) -> Outcome:
    """Run the simplifications of :class:`Canonicalize` on ``graph``, in place."""
    work = Work(graph)
    if any(value.shape is None for node in graph.graph for value in node.outputs):
        infer_graph(graph)
    lift(work)
    for _ in range(ROUNDS):
        before = sum(work.outcome.rewrites.values())
        remove_dead(work)
        fold_sizes(work)
        fold(work)
        for node in list(graph.graph):
            _apply(work, node)
        merge_initializers(work)
        merge_nodes(work)
        if sum(work.outcome.rewrites.values()) == before:
            break
        work.forget()
    remove_dead(work)
    if not work.outcome.changed:
        work.outcome.skipped("", "the graph is canonical already")
    return work.outcome


_RULES: dict[str, list[NodeRule]] = {}
for _table in (identities.RULES, views.RULES, attention.RULES):
    for _op_type, _rules in _table.items():
        _RULES.setdefault(_op_type, []).extend(_rules)


def _apply(work: Work, node: onnx_ir.Node) -> None:
    """Try the rules of the node's operator, again as long as one changes it."""
    if node.domain in ("", "ai.onnx"):
        rules = _RULES.get(node.op_type, ())
        while _first(work, node, rules):
            pass


def _first(work: Work, node: onnx_ir.Node, rules: Sequence[NodeRule]) -> bool:
    """Apply the first rule that applies; none does to a node that is gone."""
    return any(node.graph is not None and rule(work, node) for rule in rules)
