"""Shapes of an imported model, inferred afresh: what a file says of its inner values may be out of date."""

from __future__ import annotations

import onnx_ir

from ..ir.graph import Graph
from ..ir.infer import infer_graph
from ..ir.remarks import Remark
from ..ir.symbolic import Dim, known, symbols_of

_STANDARD = frozenset(("", "ai.onnx", "ai.onnx.ml"))


def infer_shapes(graph: Graph) -> list[Remark]:
    """Give the values of ``graph`` the shapes that follow from its inputs and weights, in place.

    People edit the inputs of a file (a fixed batch made dynamic) and leave old inner shapes behind. So the shapes that
    the file gives to outputs of standard operators are not believed; those of other operators are all there is.
    Outputs of the graph keep what they declare, except where it is certainly something else.
    """
    declared = [(value, value.shape) for value in graph.graph.outputs]
    for node in graph.graph:
        if node.domain in _STANDARD:
            for value in node.outputs:
                value.shape = None
    contradictions = infer_graph(graph)
    roots = frozenset(s for v in graph.graph.inputs if v.shape is not None for d in v.shape for s in symbols_of(d))
    for value, shape in declared:
        value.shape = _merged(shape, value.shape, roots)
    return [Remark("skipped", "", f"shapes contradict each other: {text}") for text in contradictions]


def _merged(
    declared: onnx_ir.Shape | None, inferred: onnx_ir.Shape | None, roots: frozenset[str]
) -> onnx_ir.Shape | None:
    """The declared shape of an output, corrected where inference is sure of something else."""
    if declared is None or inferred is None:
        return inferred if declared is None else declared
    if len(declared) != len(inferred):
        return inferred
    dims: list[Dim] = []
    for old, new in zip(declared, inferred, strict=True):
        sure = isinstance(new, int) or (known(new) and symbols_of(new) <= roots)
        unnamed = isinstance(old, int) or not known(old)
        dims.append(new if sure and unnamed else old)
    return onnx_ir.Shape(dims)
