"""How operators that compute place by place, normalize or reduce carry grids on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir

from ...ir.graph import attribute, dims, is_op, rank, tensor_of
from ...ir.rewrite import Editor
from ...ir.traits import reduced_axes
from .coupling import Coupling
from .grids import Array, Fix, Grid, Keeps, fits
from .pull import pull


def elementwise(c: Coupling, node: onnx_ir.Node) -> None:
    """Places of all operands go together; constants lose theirs."""
    out = node.outputs[0]
    grid = combined(c, node, list(enumerate(node.inputs)))
    if grid is not None:
        c.carry(out, grid)


def combined(
    c: Coupling, node: onnx_ir.Node, operands: Sequence[tuple[int, onnx_ir.Value | None]], skip: int | None = None
) -> Grid | None:
    """The grid of what operands make that are broadcast with each other, with constants cut along.

    Args:
        c: the analysis.
        node: that reads them.
        operands: (index, value).
        skip: an axis of the output along which operands are not related (a Concat's).
    """
    out = node.outputs[0]
    dimensions = rank(out)
    tracked = [(i, v) for i, v in operands if v is not None and v in c.grids]
    if not tracked:
        return None
    if dimensions is None:
        c.stop(node, f"the shape of what {node.op_type} computes is not known")
        return None
    grids = []
    for _, value in tracked:
        grid = c.grids[value]
        shift = dimensions - (rank(value) or 0)
        grids.append(Grid(tuple(axis + shift for axis in grid.axes), grid.labels))
    axes = tuple(sorted({axis for grid in grids for axis in grid.axes if axis != skip}))
    sizes = [max(size_along(g, a) for g in grids) for a in axes]
    labels: Array | None = None
    for grid in grids:
        wide = spread(grid, axes)
        if labels is None:
            labels = np.broadcast_to(wide, sizes)
        else:
            c.unite(labels, wide)
    assert labels is not None
    whole = Grid(axes, np.ascontiguousarray(labels))
    for index, operand in operands:
        if operand is None:
            continue
        shape, value = dims(operand), operand
        if shape is None:
            c.block(whole, f"{node.op_type} combines it with a value of unknown shape", node)
            continue
        mine = c.grids.get(value)
        if mine is not None and value in c.pulled:
            c.pulls.add((node, index))
        shift = dimensions - len(shape)
        pairs = []
        for at, axis in enumerate(axes):
            own = axis - shift
            if own < 0 or shape[own] == 1 or (mine is not None and own in mine.axes):
                continue
            if not fits(shape[own], sizes[at]):
                c.block(whole, f"{node.op_type} combines it with a value of unknown shape", node)
            elif tensor_of(value) is not None:
                pairs.append((own, at))
            elif labels.ndim > 1 or skip is not None or not pull(c, node, index, own, labels):
                c.block(whole, f"{node.op_type} combines it with a value whose channels cannot go", node)
        c.cut(node, index, pairs, whole)
    return whole


def size_along(grid: Grid, axis: int) -> int:
    """Places of a grid along an axis; 1 where it has no such axis."""
    return int(grid.labels.shape[grid.axes.index(axis)]) if axis in grid.axes else 1


def spread(grid: Grid, axes: Sequence[int]) -> Array:
    """Labels with an axis of 1 for each of ``axes`` that the grid lacks; others must not be there."""
    keep = [grid.axes.index(axis) for axis in axes if axis in grid.axes]
    labels = (
        grid.labels
        if len(keep) == grid.labels.ndim
        else grid.labels[tuple(slice(None) if at in keep else 0 for at in range(grid.labels.ndim))]
    )
    return labels.reshape([size_along(grid, axis) for axis in axes])


def same(c: Coupling, node: onnx_ir.Node) -> None:
    """The output has the places of the first input."""
    c.carry(node.outputs[0], c.grid(node.inputs[0]))


def channels_only(c: Coupling, node: onnx_ir.Node) -> None:
    """Pools and resizes: places along the channel axis stay, others change."""
    grid = c.grid(node.inputs[0])
    if grid is None:
        return
    after = dims(node.outputs[0])
    before = dims(node.inputs[0])
    if grid.axes != (1,) or after is None or before is None or after[1] != before[1]:
        c.stop(node, f"{node.op_type} changes more than its channels")
        return
    for out in node.outputs:
        c.carry(out, grid)


def batch_normalization(c: Coupling, node: onnx_ir.Node) -> None:
    """One number a channel in each constant."""
    grid = c.grid(node.inputs[0])
    if grid is None:
        return
    if grid.axes != (1,) or any(tensor_of(value) is None for value in node.inputs[1:]):
        c.stop(node, f"{node.op_type} has no constant of one number a channel")
        return
    for index in range(1, len(node.inputs)):
        c.cut(node, index, [(0, 0)], grid)
    c.carry(node.outputs[0], grid)


def group_normalization(c: Coupling, node: onnx_ir.Node) -> None:
    """Channels of a group go together; the number of groups changes."""
    grid, groups = c.grid(node.inputs[0]), attribute(node, "num_groups", 1)
    if grid is None:
        return
    if grid.axes != (1,) or any(tensor_of(value) is None for value in node.inputs[1:]):
        c.stop(node, "GroupNormalization has no constant of one number a channel")
        return
    rows = grid.labels.reshape(groups, -1)
    c.unite(rows, rows[:, :1])
    if groups == 1:
        c.block(grid, "GroupNormalization takes the mean over all channels", node)
    for index in range(1, len(node.inputs)):
        tensor = tensor_of(node.inputs[index])
        if tensor is not None and tensor.shape[0] == grid.labels.size:
            c.cut(node, index, [(0, 0)], grid)
        else:
            c.block(grid, "GroupNormalization has a constant of one number a group", node)

    def change(_: Editor, keeps: Keeps) -> None:
        left = keeps[0].reshape(groups, -1).any(axis=1).sum()
        node.attributes["num_groups"] = onnx_ir.AttrInt64("num_groups", int(left))

    c.fixes.append(Fix(node, grid, change))
    c.carry(node.outputs[0], grid)


def normalization(c: Coupling, node: onnx_ir.Node) -> None:
    """Softmax and normalizations: what is normalized together goes together."""
    grid, axes = c.grid(node.inputs[0]), reduced_axes(node)
    if grid is None:
        return
    if axes is None:
        c.stop(node, f"{node.op_type} reads it")
        return
    if not (c.across_norms and is_op(node, "RMSNormalization", "LayerNormalization")):
        _together(c, node, grid, axes)
    dimensions = rank(node.inputs[0]) or 0
    for index, value in list(enumerate(node.inputs))[1:]:
        tensor = tensor_of(value)
        if value is None:
            continue
        if tensor is None:
            c.stop(node, f"{node.op_type} has a weight that is no constant")
            continue
        shift = 1 if is_op(node, "InstanceNormalization") else dimensions - len(tensor.shape)
        pairs = [(axis - shift, at) for at, axis in enumerate(grid.axes) if 0 <= axis - shift < len(tensor.shape)]
        c.cut(node, index, [(own, at) for own, at in pairs if tensor.shape[own] != 1], grid)
    c.carry(node.outputs[0], grid)
    for extra in node.outputs[1:]:
        if extra.uses() or extra.is_graph_output():
            c.block(grid, f"something reads the statistics of {node.op_type}", node)


def _together(c: Coupling, node: onnx_ir.Node, grid: Grid, axes: Sequence[int]) -> Grid | None:
    """Unite what is reduced over; the grid of the other axes."""
    rest: Grid = grid
    for axis in axes:
        if axis in rest.axes:
            if len(rest.axes) == 1:
                c.block(rest, f"{node.op_type} computes over all of it", node)
                return None
            rest = c.unite_along(rest, axis)
    return rest


def reduction(c: Coupling, node: onnx_ir.Node) -> None:
    """What is reduced together goes together; other axes stay."""
    grid, axes = c.grid(node.inputs[0]), reduced_axes(node)
    if grid is None or axes is None:
        return
    rest = _together(c, node, grid, axes)
    if rest is None:
        return
    if not attribute(node, "keepdims", 1) and not node.op_type.startswith("Global"):
        rest = Grid(tuple(axis - sum(a < axis for a in axes) for axis in rest.axes), rest.labels)
    c.carry(node.outputs[0], rest)
