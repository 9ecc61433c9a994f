"""Zero points of weights, written out where ONNX Runtime would add one of a shape that it then refuses.

Where it makes signed weights unsigned (:mod:`.saturation`), it gives a ``DequantizeLinear`` by channel that has
no zero point a single one, and fails when the model runs: what it wants there is one to a channel.
"""

from __future__ import annotations

import numpy as np
import onnx_ir

from ...ir.graph import Graph, dims, is_op, tensor_of
from ...ir.rewrite import Editor

RULE = "zero points of channels are written out"


def write_zero_points(graph: Graph) -> None:
    """Give each int8 weight that is dequantized by channel in the graph a zero point of 0 for every channel."""
    edit = Editor(graph, RULE)
    for node in graph.graph:
        if not is_op(node, "DequantizeLinear") or len(node.inputs) != 2:
            continue
        weight, scales = tensor_of(node.inputs[0]), dims(node.inputs[1])
        if weight is None or weight.dtype != onnx_ir.DataType.INT8 or scales is None or len(scales) != 1:
            continue
        size = scales[0]
        if isinstance(size, int):
            # Each its own: the runtime makes a shared one unsigned once a node, and fails at the second.
            zeros = edit.at(node).initializer(np.zeros(size, np.int8), f"{node.name}.zeros")
            node.resize_inputs(3)
            node.replace_input_with(2, zeros)
