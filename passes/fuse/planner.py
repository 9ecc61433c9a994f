"""The fusion planner: which nodes of a graph become one kernel (DNNFusion, Niu et al. 2021, listing 1)."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir

from ...ir.graph import Graph, is_op
from ...ir.outline import boundary
from ...ir.traits import Mapping, mapping


@dataclass(frozen=True)
class Block:
    """Nodes that run as one kernel.

    Attributes:
        nodes: in topological order.
        type: the mapping type of the whole.
        inputs: what they read of others, constants included.
        outputs: what others, or the caller, read of them.
    """

    nodes: tuple[onnx_ir.Node, ...]
    type: Mapping
    inputs: tuple[onnx_ir.Value, ...]
    outputs: tuple[onnx_ir.Value, ...]


@dataclass(frozen=True)
class Plan:
    """A partition of the main graph's nodes (``Constant`` excepted) into blocks, in topological order."""

    blocks: tuple[Block, ...]


def plan(graph: Graph) -> Plan:
    """The partition of the main graph's nodes into blocks."""
    blocks = []
    for node in graph.graph:
        if not is_op(node, "Constant"):
            inputs, outputs = boundary([node])
            blocks.append(Block((node,), mapping(node), tuple(inputs), tuple(outputs)))
    return Plan(tuple(blocks))
