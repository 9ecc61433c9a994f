"""``LinearizeAttention``: attention whose cost grows with the length, not its square."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir

from ...ir.graph import Graph, attribute, dims, is_op, module_path
from ...ir.rewrite import Editor
from ..base import Context, Outcome, Pass, Stage
from ..selectors import parse_all, selected

RULE = "softmax attention => linear attention"
_CHUNK = 64


@dataclass(frozen=True)
class LinearizeAttention(Pass):
    """Replace softmax attention by attention with the feature map φ(x) = elu(x) + 1: an approximation.

    ``out_i = φ(q_i)ᵀ Σ_j φ(k_j) v_jᵀ / φ(q_i)ᵀ Σ_j φ(k_j)`` over all j, or over j ≤ i (Katharopoulos et al. 2020,
    equations 5, 7 and 9-12; survey, equation 32). Causal sums run by chunks of 64: products within a chunk, a running
    sum of ``Σ φ(k) vᵀ`` between chunks. A model that was not trained for it needs training afterwards.

    Attributes:
        include: selectors of the attention to replace; all if empty.
    """

    stage = Stage.ATTENTION
    approximate = True
    include: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parse_all(self.include)

    def run(self, graph: Graph, context: Context) -> Outcome:
        """Rewrite attention in the main graph in place."""
        outcome, edit = Outcome(), Editor(graph, RULE)
        nodes = [node for node in graph.graph if is_op(node, "Attention")]
        wanted = selected(nodes, self.include, "attention")
        for node in wanted:
            if (why := _obstacle(node)) is not None:
                outcome.missed(module_path(node), f"attention stays as it is: {why}")
                continue
            _linear(edit, node)
            outcome.count(RULE)
        if not nodes:
            outcome.skipped("", "there is no attention")
        return outcome


def _obstacle(node: onnx_ir.Node) -> str | None:
    inputs = list(node.inputs)
    if len(inputs) > 3 and inputs[3] is not None:
        return "it has a mask of its own"
    if any(value is not None for value in inputs[4:]) or len(node.outputs) > 1:
        return "it has a cache"
    shapes = [dims(value) for value in inputs[:3]]
    if any(shape is None or len(shape) != 4 for shape in shapes):
        return "its operands are not split into heads"
    if not all(isinstance(shape[axis], int) for shape in shapes if shape is not None for axis in (1, 3)):
        return "heads of unknown number or size"
    if attribute(node, "softcap", 0.0):
        return "it caps its scores"
    return None


def _linear(edit: Editor, node: onnx_ir.Node) -> None:
    edit.at(node, [node])
    query, key, value = node.inputs[:3]
    heads, groups, width = (_fixed(x, axis) for x, axis in ((query, 1), (key, 1), (value, 3)))
    one = edit.initializer(np.asarray(1, np.float32), "one")
    query, key = (edit.op("Add", [edit.op("Elu", [x]), one]) for x in (query, key))
    # A column of ones makes the same sums give the denominators.
    ones = edit.op("Slice", [value, edit.ints([0]), edit.ints([1]), edit.ints([3], "axis")])
    zero = edit.initializer(np.asarray(0, np.float32), "zero")
    ones = edit.op("Add", [edit.op("Mul", [ones, zero]), one])
    value = edit.op("Concat", [value, ones], {"axis": 3})
    if heads != groups:
        key, value = (_repeated(edit, x, groups, heads // groups) for x in (key, value))
    sums = _causal(edit, query, key, value, heads) if attribute(node, "is_causal", 0) else _all(edit, query, key, value)
    last = edit.ints([3], "axis")
    above = edit.op("Slice", [sums, edit.ints([0]), edit.ints([width]), last])
    below = edit.op("Slice", [sums, edit.ints([width]), edit.ints([width + 1]), last])
    result = edit.op("Div", [above, below])
    old = node.outputs[0]
    result.type, result.shape = old.type, old.shape
    edit.replace(old, result)
    edit.sweep([node])


def _fixed(x: onnx_ir.Value | None, axis: int) -> int:
    size = (dims(x) or ())[axis]
    assert isinstance(size, int)
    return size


def _repeated(edit: Editor, x: onnx_ir.Value, heads: int, times: int) -> onnx_ir.Value:
    """Heads [batch, heads, length, size], each so many times."""
    order = edit.initializer(np.repeat(np.arange(heads, dtype=np.int64), times), "heads")
    return edit.op("Gather", [x, order], {"axis": 1})


def _all(edit: Editor, query: onnx_ir.Value, key: onnx_ir.Value, value: onnx_ir.Value) -> onnx_ir.Value:
    state = edit.op("MatMul", [edit.op("Transpose", [key], {"perm": [0, 1, 3, 2]}), value])
    return edit.op("MatMul", [query, state])


def _causal(edit: Editor, query: onnx_ir.Value, key: onnx_ir.Value, value: onnx_ir.Value, heads: int) -> onnx_ir.Value:
    """Sums over what stands before and at each query, [batch, heads, length, size + 1]."""
    batch = edit.op("Shape", [query], {"start": 0, "end": 1})
    length = edit.op("Shape", [query], {"start": 2, "end": 3})
    chunk = edit.ints([_CHUNK], "chunk")
    count = edit.op("Div", [edit.op("Add", [length, edit.ints([_CHUNK - 1], "rest")]), chunk])
    missing = edit.op("Sub", [edit.op("Mul", [count, chunk]), length])
    pads = edit.op("Concat", [edit.ints([0] * 6, "none"), missing, edit.ints([0], "none")], {"axis": 0})
    parts = []
    for x in (query, key, value):
        shape = edit.op("Concat", [batch, edit.ints([heads]), count, edit.ints([_CHUNK, _fixed(x, 3)])], {"axis": 0})
        parts.append(edit.op("Reshape", [edit.op("Pad", [x, pads]), shape]))
    queries, keys, values = parts
    turned = edit.op("Transpose", [keys], {"perm": [0, 1, 2, 4, 3]})
    scores = edit.op("Trilu", [edit.op("MatMul", [queries, turned])], {"upper": 0})
    within = edit.op("MatMul", [scores, values])
    states = edit.op("MatMul", [turned, values])  # Σ φ(k) vᵀ of each chunk
    before = edit.op("CumSum", [states, edit.ints(2, "axis")], {"exclusive": 1})
    sums = edit.op("Add", [within, edit.op("MatMul", [queries, before])])
    whole = edit.op("Mul", [count, chunk])
    shape = edit.op("Concat", [batch, edit.ints([heads]), whole, edit.ints([_fixed(value, 3)])], {"axis": 0})
    sums = edit.op("Reshape", [sums, shape])
    return edit.op("Slice", [sums, edit.ints([0]), length, edit.ints([2], "axis")])
