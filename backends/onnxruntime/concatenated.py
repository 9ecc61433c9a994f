"""Convolutions of values put together along the channels, as a sum of convolutions.

``conv([a b], [U V]) = conv(a, U) + conv(b, V)``: nothing is copied together, each part may stay in the blocked layout
that the runtime's convolutions compute in, and the second adds to the result of the first. In the way of a U-Net's
skip connections.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir

from ...ir.graph import Graph, attribute, dims, is_op, producer, tensor_of
from ...ir.remarks import Remark
from ...ir.rewrite import Editor
from ...ir.weights import lazy
from .choice import Choices
from .legality import type_name

RULE = "conv(concat(a, b)) => conv(a) + conv(b)"
_ONE, _SUM = "Concat and one Conv", "a Conv for each part"
_BLOCKED = ("Conv", "MaxPool", "AveragePool")
_KEEPING = ("Add", "Clip", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Tanh")
_BLOCK = 8
"""Channels must be a multiple of this for the runtime's blocked layout, without which nothing is gained."""


def lower_concatenated(graph: Graph, choices: Choices | None = None) -> list[Remark]:
    """Divide convolutions that alone read a concatenation, where that was measured to be faster.

    What is timed is given and wanted in the plain layout. Where a part comes in blocks already, and another one does
    not, the concatenation costs a change of layout more than that: it has to be faster by more than noise to stay.
    """
    choices = choices or Choices(graph, None)
    if not choices.measured:
        return []
    edit, count = Editor(graph, RULE), 0
    for conv in [n for n in graph.graph if is_op(n, "Conv")]:
        concat = _place(conv)
        if concat is None:
            continue
        variants = {_ONE: lambda small: None, _SUM: _divide_alone}
        like = (str([dims(v) for v in concat.inputs]), str(dims(conv.inputs[1])), str(_attributes(conv)))
        blocked = [_blocked(value) for value in concat.inputs]
        usual = _SUM if any(blocked) and not all(blocked) else _ONE
        if choices.pick([concat, *_with_activation(conv)], variants, usual, (*like, usual)) == _SUM:
            _divide(edit, concat, conv)
            count += 1
    return [Remark("applied", "", f"{RULE}: {count} times", {RULE: count})] if count else []


def _place(conv: onnx_ir.Node) -> onnx_ir.Node | None:
    """The concatenation of channels that a convolution alone reads."""
    concat = producer(conv.inputs[0], "Concat")
    weight, bias = conv.inputs[1], conv.inputs[2] if len(conv.inputs) > 2 else None
    if concat is None or concat.graph is not conv.graph or attribute(concat, "axis") not in (1, -3):
        return None
    result = concat.outputs[0]
    if len(list(result.uses())) != 1 or result.is_graph_output() or attribute(conv, "group", 1) != 1:
        return None
    shape = dims(weight)
    if tensor_of(weight) is None or type_name(weight) != "tensor(float)" or shape is None or len(shape) != 4:
        return None
    if bias is not None and tensor_of(bias) is None:
        return None
    channels = [(dims(value) or (None, None))[1] for value in concat.inputs]
    if not all(isinstance(size, int) and size % _BLOCK == 0 for size in [*channels, shape[0]]):
        return None
    return concat if len(concat.inputs) > 1 and len(set(concat.inputs)) == len(concat.inputs) else None


def _blocked(value: onnx_ir.Value | None) -> bool:
    """Whether the runtime has a value in its blocked layout: from a convolution or pool, or what keeps the layout."""
    node = None if value is None else value.producer()
    if node is None or is_op(node, *_BLOCKED):
        return node is not None
    return is_op(node, *_KEEPING) and all(
        _blocked(operand) for operand in node.inputs[: 2 if is_op(node, "Add") else 1]
    )


def _with_activation(conv: onnx_ir.Node) -> Sequence[onnx_ir.Node]:
    """A convolution and the Relu behind it, which the runtime computes at once."""
    uses = list(conv.outputs[0].uses())
    alone = len(uses) == 1 and not conv.outputs[0].is_graph_output()
    return [conv, uses[0].node] if alone and is_op(uses[0].node, "Relu") else [conv]


def _attributes(node: onnx_ir.Node) -> dict[str, object]:
    return {name: attribute(node, name) for name in sorted(node.attributes)}


def _divide_alone(graph: Graph) -> None:
    for conv in [n for n in graph.graph if is_op(n, "Conv")]:
        concat = _place(conv)
        if concat is not None:
            _divide(Editor(graph, "timed"), concat, conv)


def _divide(edit: Editor, concat: onnx_ir.Node, conv: onnx_ir.Node) -> None:
    weight, old = conv.inputs[1], conv.outputs[0]
    tensor = tensor_of(weight)
    assert tensor is not None and weight is not None
    edit.at(conv, [concat, conv])
    total: onnx_ir.Value | None = None
    start = 0
    for index, part in enumerate(concat.inputs):
        assert part is not None
        size = (dims(part) or (0, 0))[1]
        assert isinstance(size, int)
        piece = edit.initializer(_channels(tensor, start, start + size), f"{weight.name}.{index}")
        bias = list(conv.inputs[2:]) if index == 0 else []
        one = edit.op(
            "Conv", [part, piece, *bias], _attributes(conv), dtype=old.dtype, shape=old.shape, hint=conv.name
        )  # fmt: skip
        total = one if total is None else edit.op("Add", [total, one], dtype=old.dtype, shape=old.shape)
        start += size
    assert total is not None
    edit.replace(old, total)
    edit.sweep([conv])


def _channels(tensor: onnx_ir.TensorProtocol, start: int, end: int) -> onnx_ir.TensorProtocol:
    """Input channels ``start`` to ``end`` of the weight of a convolution, read when they are written."""
    sizes = list(tensor.shape.numpy())
    sizes[1] = end - start
    return lazy(lambda: np.ascontiguousarray(tensor.numpy()[:, start:end]), tensor.dtype, sizes)
