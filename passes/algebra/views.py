"""Views and transposes that meet: what stands between two of them is computed on the other side of the first.

``reshape(f(reshape(x))) = reshape(f(x))`` for what works row by row (products with a matrix, biases, functions of one
element), and ``transpose(f(transpose(x))) = transpose(f(x))`` for what works element by element. Every number is
computed from the same numbers as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir

from ...ir.graph import Graph, attribute, constant, dims, is_op, module_path, rank, tensor_of
from ...ir.rewrite import Editor
from ...ir.symbolic import Dim, same, symbols_of
from ...ir.traits import Kind, trait
from ..base import Outcome
from ..canonicalize.views import reshape_target

_VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")
_LAST_AXIS = ("Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization")
_PLACED = ("BatchNormalization", "PRelu", "Trilu", "CumSum", "CumProd", "RotaryEmbedding", "QuantizeLinear",
           "DequantizeLinear", "Dropout", "Identity", "BitCast", "SwiGLU")  # fmt: skip
"""Elementwise to the table of traits, but not regardless of the place of an element."""
_LIMIT = 1 << 16
_RESHAPE = "reshape(f(reshape(x))) => reshape(f(x))"
_TRANSPOSE = "transpose(f(transpose(x))) => transpose(f(x))"
_JOINED = "f(transpose(x), transpose(y)) => transpose(f(x, y))"


@dataclass(frozen=True)
class _Link:
    """A node between two views, and the input through which the value flows."""

    node: onnx_ir.Node
    index: int


def meet_views(graph: Graph, outcome: Outcome) -> None:
    """Bring views and transposes of the main graph together, in place."""
    edit = Editor(graph, _RESHAPE)
    symbols = frozenset(s for value in graph.graph.inputs for dim in dims(value) or () for s in symbols_of(dim))
    for node in list(graph.graph):
        if node.graph is None:
            continue
        if is_op(node, *_VIEWS):
            _meet_reshapes(edit, node, symbols, outcome)
        elif is_op(node, "Transpose"):
            _meet_transposes(edit, node, outcome)
        elif _pointwise(node):
            _join_transposes(edit, node, outcome)


def _pointwise(node: onnx_ir.Node) -> bool:
    row = trait(node)
    return row is not None and row.kind is Kind.ELEMENTWISE and node.domain == "" and node.op_type not in _PLACED


def _chain(value: onnx_ir.Value, ends: Sequence[str]) -> tuple[list[_Link], onnx_ir.Node] | None:
    """What stands between ``value`` and the view or transpose before it, first node first; None if there is none."""
    links: list[_Link] = []
    while True:
        node = value.producer()
        if node is None:
            return None
        if is_op(node, *ends):
            return (links[::-1], node) if links else None
        # What others read stays, so nothing would be gained; the view itself may have other readers.
        if len(value.uses()) != 1 or value.is_graph_output() or node.domain != "":
            return None
        flowing = [i for i, v in enumerate(node.inputs) if v is not None and tensor_of(v) is None]
        if len(flowing) != 1 or not (_pointwise(node) or is_op(node, "MatMul", *_LAST_AXIS)):
            return None
        links.append(_Link(node, flowing[0]))
        value = node.inputs[flowing[0]]  # type: ignore[assignment]


# --- reshapes -------------------------------------------------------------------------------------------------------


def _meet_reshapes(edit: Editor, last: onnx_ir.Node, symbols: frozenset[str], outcome: Outcome) -> None:
    value = last.inputs[0]
    found = None if value is None else _chain(value, _VIEWS)
    if value is None or found is None:
        return
    links, first = found
    source = first.inputs[0]
    before, middle, after = dims(source), dims(first.outputs[0]), dims(last.outputs[0])
    end = dims(value)
    if source is None or before is None or middle is None or after is None or end is None:
        return
    rows = bool(before) and bool(middle) and same(before[-1], middle[-1])
    if not all(_row_by_row(link, rows) for link in links):
        return
    if not rows and not (len(end) == len(middle) and all(map(same, end, middle))):
        return
    new_end: list[Dim] = [*before[:-1], end[-1]] if rows else list(before)
    gone = len(new_end) == len(after) and all(map(same, new_end, after))
    target = None if gone else reshape_target(new_end, after, inputs=symbols)
    shared = len(first.outputs[0].uses()) > 1 or first.outputs[0].is_graph_output()
    if not gone and (target is None or shared):
        return
    edit.rule = _RESHAPE
    edit.at(last, [first, *(link.node for link in links), last])
    result = _again(edit, links, source)
    if not gone:
        assert target is not None
        result = edit.op("Reshape", [result, edit.ints(target)], dtype=result.dtype, shape=onnx_ir.Shape(after))
    _finish(edit, last, result, outcome, _RESHAPE)


def _row_by_row(link: _Link, rows: bool) -> bool:
    """Whether a node gives the same on any arrangement of the rows (of the elements, if not ``rows``)."""
    node = link.node
    others = [v for i, v in enumerate(node.inputs) if i != link.index and v is not None]
    if is_op(node, "MatMul"):
        return rows and link.index == 0 and rank(others[0]) == 2
    if is_op(node, *_LAST_AXIS):
        size = rank(node.inputs[0])
        axis = attribute(node, "axis", -1)
        last = axis == -1 or (size is not None and axis == size - 1)
        return rows and last and link.index == 0 and len(node.outputs) == 1
    ranks = [rank(v) for v in others]
    if any(size is None or size > 1 for size in ranks):
        return False
    return rows or all(dim == 1 for v in others for dim in dims(v) or ())


# --- transposes -----------------------------------------------------------------------------------------------------


def _perm(node: onnx_ir.Node) -> list[int] | None:
    given = attribute(node, "perm")
    size = rank(node.inputs[0])
    if given is not None:
        return [int(axis) for axis in given]
    return None if size is None else list(range(size))[::-1]


def _meet_transposes(edit: Editor, last: onnx_ir.Node, outcome: Outcome) -> None:
    value = last.inputs[0]
    found = None if value is None else _chain(value, ("Transpose",))
    if found is None:
        return
    links, first = found
    one, two, source = _perm(first), _perm(last), first.inputs[0]
    if one is None or two is None or source is None or len(one) != len(two):
        return
    if not all(_pointwise(link.node) and _permutable(link, len(one)) for link in links):
        return
    both = [one[axis] for axis in two]
    gone = both == sorted(both)
    if not gone and (len(first.outputs[0].uses()) > 1 or first.outputs[0].is_graph_output()):
        return
    edit.rule = _TRANSPOSE
    edit.at(last, [first, *(link.node for link in links), last])
    result = _again(edit, links, source, np.argsort(one).tolist())
    if not gone:
        result = edit.op("Transpose", [result], {"perm": both})
    _finish(edit, last, result, outcome, _TRANSPOSE)


def _permutable(link: _Link, size: int) -> bool:
    """Whether the constants of a node can be transposed along with the value, and widen it nowhere."""
    flowing, out = dims(link.node.inputs[link.index]), dims(link.node.outputs[0])
    if flowing is None or out is None or len(out) != size or not all(map(same, flowing, out)):
        return False
    for i, value in enumerate(link.node.inputs):
        if i == link.index or value is None:
            continue
        tensor = tensor_of(value)
        if tensor is None or tensor.size > _LIMIT or len(tensor.shape) > size:
            return False
    return True


def _join_transposes(edit: Editor, node: onnx_ir.Node, outcome: Outcome) -> None:
    """One transpose behind an elementwise node instead of one before each of its operands."""
    flowing = [(i, v) for i, v in enumerate(node.inputs) if v is not None and tensor_of(v) is None]
    makers = [v.producer() for _, v in flowing]
    if len({id(maker) for maker in makers}) < 2:
        return
    perms = {tuple(_perm(m) or ()) if m is not None and is_op(m, "Transpose") else None for m in makers}
    out = dims(node.outputs[0])
    if len(perms) != 1 or None in perms or out is None:
        return
    perm = list(perms.pop() or ())
    if any(v.is_graph_output() or {use.node for use in v.uses()} != {node} for _, v in flowing):
        return
    if len(out) != len(perm) or any(rank(v) != len(perm) for _, v in flowing):
        return
    constants = [tensor_of(v) for i, v in enumerate(node.inputs) if v is not None and tensor_of(v) is not None]
    if any(t is None or t.size > _LIMIT or len(t.shape) > len(perm) for t in constants):
        return
    edit.rule = _JOINED
    edit.at(node, [node, *(m for m in makers if m is not None)])
    inverse = np.argsort(perm).tolist()
    inputs: list[onnx_ir.Value | None] = []
    for value in node.inputs:
        maker = None if value is None else value.producer()
        if maker is not None and is_op(maker, "Transpose"):
            inputs.append(maker.inputs[0])
        else:
            inputs.append(None if value is None else _transposed(edit, value, inverse))
    inner = edit.op(node.op_type, inputs, _attributes(node))
    result = edit.op("Transpose", [inner], {"perm": perm})
    _finish(edit, node, result, outcome, _JOINED)


def _transposed(edit: Editor, value: onnx_ir.Value, perm: Sequence[int]) -> onnx_ir.Value:
    """A constant with its axes permuted; one number for all stays as it is."""
    array = constant(value, limit=_LIMIT)
    tensor = tensor_of(value)
    assert array is not None and tensor is not None
    if array.size == 1 and array.ndim <= 1:
        return value
    wide = array.reshape([1] * (len(perm) - array.ndim) + list(array.shape))
    turned = onnx_ir.Tensor(np.ascontiguousarray(wide.transpose(perm)), dtype=tensor.dtype)
    return edit.initializer(turned, f"{value.name}.transposed")


# --- both -----------------------------------------------------------------------------------------------------------


def _attributes(node: onnx_ir.Node) -> dict[str, Any]:
    return {name: attribute(node, name) for name in node.attributes}


def _again(
    edit: Editor, links: Sequence[_Link], value: onnx_ir.Value, perm: Sequence[int] | None = None
) -> onnx_ir.Value:
    """The nodes of a chain once more, on ``value``; with ``perm`` their constants are transposed."""
    for link in links:
        inputs: list[onnx_ir.Value | None] = list(link.node.inputs)
        for i, other in enumerate(inputs):
            if i != link.index and other is not None and perm is not None:
                inputs[i] = _transposed(edit, other, perm)
        inputs[link.index] = value
        attributes = _attributes(link.node)
        if is_op(link.node, *_LAST_AXIS):
            attributes["axis"] = -1
        value = edit.op(link.node.op_type, inputs, attributes, hint=link.node.name)
    return value


def _finish(edit: Editor, last: onnx_ir.Node, result: onnx_ir.Value, outcome: Outcome, rule: str) -> None:
    where = module_path(last)
    edit.replace(last.outputs[0], result)
    edit.sweep([last])
    outcome.count(rule)
    outcome.applied(where, rule)
