"""The dependency analysis: every operator's rule, in graph order, and what stands in the way afterwards."""

from __future__ import annotations

import onnx_ir

from ...ir.graph import Graph, all_nodes, is_op
from .coupling import Coupling
from .rules import RULES, default


def analyse(graph: Graph, *, across_norms: bool = False) -> Coupling:
    """Which channels of which tensors of a graph must go together; the graph is not changed.

    Args:
        graph: shapes inferred.
        across_norms: see :class:`.Coupling`.
    """
    found = Coupling(graph, across_norms=across_norms)
    inner = {node for node in all_nodes(graph) if node.graph is not graph.graph}
    for node in graph.graph:
        rule = RULES.get(node.op_type, default) if is_op(node, node.op_type) else default
        rule(found, node)
        for value in node.inputs:
            if value is not None and value in found.grids and any(_captured(node, value)):
                found.block(found.grids[value], f"a subgraph of {node.op_type} reads it", node)
    for node in inner:
        for value in node.inputs:
            if value is not None and (value in found.grids or value in found.weights):
                found.block_value(value, f"{node.op_type} inside a subgraph reads it", node)
    for value in graph.graph.outputs:
        if value in found.grids:
            found.block(found.grids[value], "it is an output of the model", value.producer())
    for value in found.pulled:
        for use in value.uses():
            if (use.node, use.idx) not in found.pulls:
                found.block(found.grids[value], f"{use.node.op_type} reads the mask of its heads, too", use.node)
    found.close()
    return found


def _captured(node: onnx_ir.Node, value: onnx_ir.Value) -> list[bool]:
    """One True for each subgraph of a node that reads a value (beside its inputs)."""
    found = []
    for attr in node.attributes.values():
        if attr.type == onnx_ir.AttributeType.GRAPH:
            inner = onnx_ir.traversal.RecursiveGraphIterator(attr.as_graph())
            found.append(any(value in each.inputs for each in inner))
    return [one for one in found if one]
