"""Activations as matrices of rows: [batch, sequence, channels] becomes [batch * sequence, channels] between attentions.

The runtime computes a product and the addition of its bias in one kernel, for matrices only: with plain sizes it puts
a ``Reshape`` before and behind each product, with named ones it adds the bias in a pass of its own. What works on each
row by itself does not care how rows are arranged, so one ``Reshape`` where a stretch of such operators begins, and one
where it ends, do for all of its products.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir

from ...ir.graph import Graph, attribute, dims, is_op, tensor_of
from ...ir.remarks import Remark
from ...ir.rewrite import Editor
from ...ir.symbolic import Dim, Dims, known, product

RULE = "operators on rows => operators on a matrix of rows"
_UNARY = (
    "Abs", "Cast", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log",
    "Mish", "Neg", "Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus", "Sqrt", "Swish", "Tanh",
)  # fmt: skip
_MANY = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Sum", "Where")
_LAST_AXIS = ("LayerNormalization", "RMSNormalization", "Softmax", "LogSoftmax")


@dataclass
class _Stretch:
    """Operators on rows that hang together, and the sizes of the axes before the last one."""

    lead: tuple[str, ...]
    nodes: list[onnx_ir.Node] = field(default_factory=list)


def flatten_rows(graph: Graph) -> list[Remark]:
    """Let stretches of operators on rows work on matrices, where that takes fewer reshapes than their products do."""
    edit, made = Editor(graph, RULE), 0
    for stretch in _stretches(graph):
        entries, exits = _ends(stretch)
        biased = sum(_biased(node) for node in stretch.nodes)
        if 2 * biased > len(entries) + len(exits):
            _flatten(edit, stretch.nodes, exits)
            made += biased
    return [Remark("applied", "", f"{RULE}: {made} products with a bias", {RULE: made})] if made else []


def _lead(value: onnx_ir.Value | None) -> tuple[str, ...] | None:
    """The sizes before the last axis as comparable text; None for fewer than three axes, or an unknown size."""
    shape = dims(value)
    if shape is None or len(shape) < 3 or not all(map(known, shape)) or not isinstance(shape[-1], int):
        return None
    return tuple(str(dim if isinstance(dim, int) else dim.value) for dim in shape[:-1])


def _rows(node: onnx_ir.Node) -> list[int] | None:
    """Which inputs of an operator are rows, if it computes each row of its outputs from the same row of these."""
    lead = _lead(node.outputs[0]) if node.outputs else None
    if lead is None or node.domain not in ("", "ai.onnx") or any(_lead(v) != lead for v in node.outputs if v.name):
        return None
    first, last = node.inputs[0] if node.inputs else None, len(lead)
    if is_op(node, *_UNARY, "MatMul", "Split", *_LAST_AXIS) and _lead(first) != lead:
        return None
    others = node.inputs[1:]
    if is_op(node, "MatMul"):
        return [0] if len(dims(others[0]) or ()) == 2 else None
    if is_op(node, *_LAST_AXIS):
        if attribute(node, "axis", -1) not in (-1, last) or sum(bool(value.name) for value in node.outputs) > 1:
            return None
        return [0] if all(len(dims(value) or ()) == 1 for value in others if value is not None) else None
    if is_op(node, "Split"):
        return [0] if attribute(node, "axis", 0) in (-1, last) and all(map(_constant, others)) else None
    if is_op(node, *_UNARY):
        return [0] if all(value is None or _constant(value) for value in others) else None
    if not is_op(node, *_MANY, "Concat") or (is_op(node, "Concat") and attribute(node, "axis") not in (-1, last)):
        return None
    found = []
    for index, value in enumerate(node.inputs):
        shape = dims(value)
        if _lead(value) == lead and value is not None and tensor_of(value) is None:
            found.append(index)
        elif is_op(node, "Concat") or shape is None or len(shape) > 1:
            return None
    return found or None


def _constant(value: onnx_ir.Value | None) -> bool:
    return tensor_of(value) is not None


def _stretches(graph: Graph) -> list[_Stretch]:
    """Operators on rows, together with those that read or make the same rows."""
    found: dict[onnx_ir.Node, _Stretch] = {}
    for node in graph.graph:
        rows = _rows(node)
        if rows is None:
            continue
        lead = _lead(node.outputs[0])
        assert lead is not None
        stretch = _Stretch(lead)
        makers = [value.producer() for index in rows if (value := node.inputs[index]) is not None]
        # Siblings count, too: what reads the same rows shares the Reshape before it.
        readers = [use.node for index in rows if (value := node.inputs[index]) is not None for use in value.uses()]
        for near in dict.fromkeys([*makers, *readers]):
            other = found.get(near) if near is not None else None
            if other is not None and other is not stretch and other.lead == lead:
                if len(other.nodes) > len(stretch.nodes):
                    stretch, other = other, stretch
                stretch.nodes += other.nodes
                found.update(dict.fromkeys(other.nodes, stretch))
        stretch.nodes.append(node)
        found[node] = stretch
    return list({id(stretch): stretch for stretch in found.values()}.values())


def _ends(stretch: _Stretch) -> tuple[list[onnx_ir.Value], list[onnx_ir.Value]]:
    """Rows that come from outside of a stretch, and rows that are read outside of it."""
    members = set(stretch.nodes)
    entries: dict[onnx_ir.Value, None] = {}
    exits: dict[onnx_ir.Value, None] = {}
    for node in stretch.nodes:
        for index in _rows(node) or []:
            value = node.inputs[index]
            assert value is not None
            if value.producer() not in members:
                entries[value] = None
        for value in node.outputs:
            if value.is_graph_output() or any(not _reads(use, members) for use in value.uses()):
                exits[value] = None
    return list(entries), list(exits)


def _reads(use: Any, members: set[onnx_ir.Node]) -> bool:
    return use.node in members and use.idx in (_rows(use.node) or [])


def _biased(node: onnx_ir.Node) -> bool:
    """Whether a product by a constant is followed by the addition of a constant vector alone."""
    if not is_op(node, "MatMul") or not _constant(node.inputs[1]):
        return False
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or not is_op(uses[0].node, "Add"):
        return False
    bias = uses[0].node.inputs[1 - uses[0].idx]
    return _constant(bias) and len(dims(bias) or ()) == 1


def _flatten(edit: Editor, nodes: Sequence[onnx_ir.Node], exits: Iterable[onnx_ir.Value]) -> None:
    graph = edit.graph.graph
    order = {node: at for at, node in enumerate(graph)}
    nodes = sorted(nodes, key=order.__getitem__)
    flat: dict[onnx_ir.Value, onnx_ir.Value] = {}
    shapes = _Shapes(edit)
    leaving = set(exits)
    for node in nodes:
        rows = _rows(node)
        assert rows is not None
        edit.at(node, [node])
        inputs = list(node.inputs)
        for index in rows:
            value = node.inputs[index]
            assert value is not None
            if value not in flat:
                flat[value] = shapes.matrix(value)
            inputs[index] = flat[value]
        attributes = {name: attribute(node, name) for name in node.attributes}
        if "axis" in attributes:
            attributes["axis"] = -1
        outputs = edit.ops(
            node.op_type, inputs, attributes, outputs=len(node.outputs), hint=node.name, infer_types=False
        )  # fmt: skip
        for old, new in zip(node.outputs, outputs, strict=True):
            if not old.name:
                new.name = ""
                continue
            flat[old] = new
            new.type, new.shape = old.type, onnx_ir.Shape(_matrix(old))
    for node in nodes:
        edit.at(node, [node])
        for old in node.outputs:
            if old in leaving:
                edit.replace(old, shapes.back(flat[old], old))
    edit.sweep(nodes[::-1])


def _matrix(value: onnx_ir.Value) -> Dims:
    """The shape of rows as a matrix."""
    shape = dims(value)
    assert shape is not None
    return (product(shape[:-1]), shape[-1])


class _Shapes:
    """Makes the reshapes of one stretch."""

    def __init__(self, edit: Editor) -> None:
        self._edit = edit
        self._lead: onnx_ir.Value | None = None
        self._targets: dict[Dim, onnx_ir.Value] = {}

    def matrix(self, value: onnx_ir.Value) -> onnx_ir.Value:
        """Rows as a matrix."""
        shape = dims(value)
        assert shape is not None and isinstance(shape[-1], int)
        if self._lead is None and sum(not isinstance(dim, int) for dim in shape[:-1]) > 1:
            # Everything in the stretch has the sizes of what enters it first.
            self._lead = self._edit.op("Shape", [value], {"start": 0, "end": len(shape) - 1})
        target = self._edit.ints([-1, shape[-1]])
        return self._edit.op("Reshape", [value, target], dtype=value.dtype, shape=_matrix(value))

    def back(self, flat: onnx_ir.Value, old: onnx_ir.Value) -> onnx_ir.Value:
        """A matrix as what it was before."""
        shape = dims(old)
        assert shape is not None and isinstance(shape[-1], int)
        width = shape[-1]
        if width not in self._targets:
            if self._lead is not None:
                end = self._edit.ints([width])
                self._targets[width] = self._edit.op("Concat", [self._lead, end], {"axis": 0})
            else:
                self._targets[width] = self._edit.ints([dim if isinstance(dim, int) else -1 for dim in shape])
        return self._edit.op("Reshape", [flat, self._targets[width]], dtype=old.dtype, shape=old.shape)
