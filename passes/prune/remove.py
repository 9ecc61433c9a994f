"""Removal: smaller constants, attributes and target shapes, and the shapes of all values in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir

from ...ir.graph import is_op, sizes_of, tensor_of
from ...ir.rewrite import Editor
from ...ir.symbolic import exact_div, mul
from ...ir.weights import lazy
from .coupling import Coupling
from .grids import Array

SUFFIX = ".pruned"


def gone(coupling: Coupling, roots: Sequence[int]) -> Array:
    """Which atoms go with some classes: bool for each atom."""
    chosen: Array = np.isin(coupling.parents, np.asarray(roots, np.int64))
    return chosen


def remove(
    edit: Editor, coupling: Coupling, atoms: Array, replaced: Mapping[onnx_ir.Value, Array] | None = None
) -> None:
    """Take atoms out of a graph.

    Args:
        edit: of the graph.
        coupling: of the graph as it is; worth nothing afterwards.
        atoms: which go, bool for each atom, as :func:`gone` gives them.
        replaced: weights of which what stays has changed, in their old shapes.
    """
    for cut in coupling.cuts:
        keeps = coupling.keeps(cut.grid, atoms)
        assert keeps is not None
        chosen = {axis: keeps[at] for axis, at in cut.axes if not keeps[at].all()}
        old = cut.node.inputs[cut.index]
        if chosen and old is not None:
            new = _taken(edit.at(cut.node), old, chosen, None)
            cut.node.replace_input_with(cut.index, new)
            _drop(edit, old)
    for change in coupling.fixes:
        keeps = coupling.keeps(change.grid, atoms)
        assert keeps is not None
        if not all(keep.all() for keep in keeps):
            change.change(edit, keeps)
    for base, axes in coupling.weights.items():
        chosen = {number: ~atoms[axis.atoms] for number, axis in axes.items() if atoms[axis.atoms].any()}
        array = None if replaced is None else replaced.get(base)
        if not chosen and array is None:
            continue
        readers = [(use.node, use.idx) for use in base.uses()]
        new = _taken(edit.at(readers[0][0]), base, chosen, array)
        for node, index in readers:
            node.replace_input_with(index, new)
            _reshape_constant(node)
        _drop(edit, base)
    for value, grid in coupling.grids.items():
        keeps = coupling.keeps(grid, atoms)
        assert keeps is not None
        if value.shape is not None and not all(keep.all() for keep in keeps):
            sizes = list(value.shape)
            for axis, keep in zip(grid.axes, keeps, strict=True):
                sizes[axis] = mul(exact_div(sizes[axis], len(keep)), int(keep.sum()))
            value.shape = onnx_ir.Shape(sizes)


def _taken(edit: Editor, old: onnx_ir.Value, chosen: Mapping[int, Array], array: Array | None) -> onnx_ir.Value:
    """A constant with some places of some axes only, read when it is needed."""
    tensor = tensor_of(old)
    assert tensor is not None
    places = {axis: np.flatnonzero(keep) for axis, keep in chosen.items()}
    shape = [len(places[axis]) if axis in places else int(size) for axis, size in enumerate(sizes_of(tensor))]

    def compute() -> Any:
        data = tensor.numpy() if array is None else array.astype(tensor.dtype.numpy())
        for axis, at in places.items():
            data = np.take(data, at, axis=axis)
        return np.ascontiguousarray(data)

    name = (old.name or "weight").partition(SUFFIX)[0] + SUFFIX
    return edit.initializer(lazy(compute, tensor.dtype, shape, name), name)


def _reshape_constant(node: onnx_ir.Node) -> None:
    """Set the shape of a transposed weight anew."""
    while is_op(node, "Transpose") and node.inputs[0] is not None and node.inputs[0].shape is not None:
        perm = node.attributes.get("perm")
        sizes = list(node.inputs[0].shape)
        order = list(perm.value) if perm is not None else list(range(len(sizes)))[::-1]
        node.outputs[0].shape = onnx_ir.Shape([sizes[axis] for axis in order])
        users = [use.node for use in node.outputs[0].uses() if is_op(use.node, "Transpose")]
        if not users:
            return
        node = users[0]


def _drop(edit: Editor, old: onnx_ir.Value) -> None:
    if old.is_initializer():
        edit.drop_initializer(old)
    elif (maker := old.producer()) is not None:
        edit.sweep([maker])
