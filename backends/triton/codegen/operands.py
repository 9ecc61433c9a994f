"""Which inputs of an operator say how it works, and what its subgraphs read."""

from __future__ import annotations

import onnx_ir

SETTINGS: dict[str, tuple[int, ...]] = {
    "Reshape": (1,), "Squeeze": (1,), "Unsqueeze": (1,), "Expand": (1,), "Tile": (1,), "Slice": (1, 2, 3, 4),
    "Split": (1,), "Pad": (1, 3), "ReduceSum": (1,), "ReduceMean": (1,), "ReduceMax": (1,), "ReduceMin": (1,),
    "ReduceProd": (1,), "ReduceL1": (1,), "ReduceL2": (1,), "ReduceSumSquare": (1,), "ReduceLogSum": (1,),
    "ReduceLogSumExp": (1,), "Trilu": (1,), "Resize": (1, 2, 3), "Upsample": (1,), "CenterCropPad": (1,),
    "ConstantOfShape": (0,), "Range": (0, 1, 2), "OneHot": (1,), "CastLike": (1,), "Dropout": (1, 2),
}  # fmt: skip
"""Inputs that say how an operator works: shapes, axes, numbers that must be known."""


def captured(node: onnx_ir.Node) -> list[onnx_ir.Value]:
    """Values of the outer graph that subgraphs of a node read, each once."""
    found: dict[onnx_ir.Value, None] = {}
    for attr in node.attributes.values():
        if attr.type != onnx_ir.AttributeType.GRAPH:
            continue
        inner = list(onnx_ir.traversal.RecursiveGraphIterator(attr.as_graph()))
        made = {v for each in inner for v in each.outputs} | set(attr.as_graph().inputs)
        for each in inner:
            for a in each.attributes.values():
                if a.type == onnx_ir.AttributeType.GRAPH:
                    made |= set(a.as_graph().inputs)
        reads = [v for each in inner for v in each.inputs if v is not None] + list(attr.as_graph().outputs)
        for value in reads:
            if value not in made and not value.is_initializer():
                found[value] = None
    return list(found)
