"""Values that get their heads from constants: followed backwards from where they meet the heads of an attention.

A mask with one plane a head is made of a table of biases, perhaps added to a mask that all heads share. What it is made
of loses the planes of the heads that go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import onnx_ir

from ...ir.graph import attribute, constant, dims, is_op, rank, tensor_of
from ...ir.traits import Kind, kind
from .coupling import Coupling
from .grids import Array, Grid, fits
from .regrid import Dim, stretches
from .targets import reshaped


@dataclass
class _Trail:
    """What was met on the way back."""

    values: dict[onnx_ir.Value, int] = field(default_factory=dict)
    constants: list[tuple[onnx_ir.Node, int, int]] = field(default_factory=list)
    expands: list[tuple[onnx_ir.Node, int]] = field(default_factory=list)


def pull(c: Coupling, node: onnx_ir.Node, index: int, axis: int, labels: Array) -> bool:
    """Let an input of a node lose along an axis what ``labels`` lose; False if it is not made of constants there.

    Args:
        c: the analysis.
        node: the reader.
        index: of the input.
        axis: of the input, along which labels may repeat if its size is symbolic.
        labels: atoms.
    """
    trail = _Trail()
    if not _follow(c, node, index, axis, len(labels), trail):
        return False
    for reader, at, own in trail.constants:
        c.cut(reader, at, [(own, 0)], Grid((0,), labels))
    for value, own in trail.values.items():
        known = c.grids.get(value)
        if known is not None:
            c.unite(known.labels, labels)
        else:
            c.grids[value] = Grid((own,), labels)
            c.pulled.append(value)
    for reader, own in trail.expands:
        grid = Grid((own,), labels)
        c.add_fix(reader, grid, partial(reshaped, reader, grid, 1))
    return True


def _follow(c: Coupling, node: onnx_ir.Node, index: int, axis: int, size: int, trail: _Trail) -> bool:
    value = node.inputs[index]
    shape = dims(value)
    if value is None or shape is None or axis < 0 or shape[axis] == 1:
        return value is None or shape is not None
    if not fits(shape[axis], size):
        return False
    if tensor_of(value) is not None:
        trail.constants.append((node, index, axis))
        return True
    maker = value.producer()
    if maker is None or maker.graph is not c.graph.graph or value.is_graph_output() or len(maker.outputs) > 1:
        return False
    known = c.grids.get(value)
    c.pulls.update((use.node, use.idx) for use in value.uses() if use.node is node)
    if value in trail.values or known is not None:
        return trail.values.setdefault(value, axis) == axis and (known is None or known.axes == (axis,))
    trail.values[value] = axis
    return _through(c, maker, axis, size, trail)


def _through(c: Coupling, maker: onnx_ir.Node, axis: int, size: int, trail: _Trail) -> bool:
    before, after = dims(maker.inputs[0]), dims(maker.outputs[0])
    if before is None or after is None:
        return False
    if kind(maker) is Kind.ELEMENTWISE:
        return all(
            _follow(c, maker, i, axis - (len(after) - (rank(v) or 0)), size, trail)
            for i, v in enumerate(maker.inputs)
            if v is not None
        )
    if is_op(maker, "Transpose"):
        perm = attribute(maker, "perm", list(range(len(before)))[::-1])
        return _follow(c, maker, 0, perm[axis], size, trail)
    if is_op(maker, "Expand"):
        target = dims(maker.inputs[1])
        if target is None or target[0] != len(after):
            return False
        trail.expands.append((maker, axis))
        return _follow(c, maker, 0, axis - (len(after) - len(before)), size, trail)
    if is_op(maker, "Reshape", "Unsqueeze", "Squeeze"):
        own = _source(before, after, axis, size)
        if own is not None:
            if is_op(maker, "Reshape"):
                known = constant(maker.inputs[1])
                if known is None or known[axis] > 0:
                    trail.expands.append((maker, axis))
            return _follow(c, maker, 0, own, size, trail)
    return False


def _source(before: Sequence[Dim], after: Sequence[Dim], axis: int, size: int) -> int | None:
    """The axis of a Reshape's input whose ``size`` places are those of an axis of its output, or what repeats there."""
    for (a, b), (c, d) in stretches(before, after):
        if not c <= axis < d or any(after[i] != 1 for i in range(c, d) if i != axis):
            continue
        own = [i for i in range(a, b) if before[i] != 1]
        # Of merged axes the last is what repeats; along the others places do not differ.
        if len(own) == 1 or (own and before[own[-1]] == size and not isinstance(after[axis], int)):
            return own[-1]
    return None
