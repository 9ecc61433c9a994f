"""How operators that move, join or select places carry grids on, and what must change with them."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import onnx_ir

from ...ir.graph import attribute, constant, dims, is_op, rank, sizes_of, tensor_of
from ...ir.rewrite import Editor
from .coupling import Coupling
from .grids import Fix, Grid, Keeps
from .placewise import combined, size_along, spread
from .regrid import regrid
from .targets import reshaped


def transpose(c: Coupling, node: onnx_ir.Node) -> None:
    """Axes change places."""
    value = node.inputs[0]
    grid = c.grid(value)
    if grid is None:
        return
    perm = attribute(node, "perm", list(range(rank(value) or 0))[::-1])
    moved = [perm.index(axis) for axis in grid.axes]
    turn = sorted(range(len(moved)), key=moved.__getitem__)
    c.carry(node.outputs[0], Grid(tuple(sorted(moved)), grid.labels.transpose(turn)))


def reshape(c: Coupling, node: onnx_ir.Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: elements stay in order."""
    grid, before, after = c.grid(node.inputs[0]), dims(node.inputs[0]), dims(node.outputs[0])
    if grid is None:
        return
    found = None if before is None or after is None else regrid(grid, before, after)
    if found is None:
        c.stop(node, f"{node.op_type} mixes it with axes of unknown size")
        return
    if is_op(node, "Reshape"):
        if attribute(node, "allowzero", 0):
            c.stop(node, "Reshape with allowzero reads it")
            return
        c.fixes.append(Fix(node, found, partial(reshaped, node, found, 1)))
    c.carry(node.outputs[0], found)


def expand(c: Coupling, node: onnx_ir.Node) -> None:
    """Expand repeats axes of size 1; labelled ones are longer than that."""
    value, out = node.inputs[0], node.outputs[0]
    grid, before, after = c.grid(value), rank(value), dims(out)
    if before is None or after is None:
        return c.stop(node, "the shape of what Expand computes is not known")
    tensor = tensor_of(value)
    if grid is None and tensor is not None and before >= 2 and sizes_of(tensor)[-1] > 1 and value is not None:
        # A token that every sequence begins with: its channels are those of what it is joined to.
        found = c.weight(node, 0)
        assert found is not None
        grid = Grid((before - 1,), c.atoms(found[0], found[1][-1], reads=False))
    if grid is None:
        return None
    moved = Grid(tuple(axis + len(after) - before for axis in grid.axes), grid.labels)
    c.fixes.append(Fix(node, moved, partial(_expanded, node, moved)))
    return c.carry(out, moved)


def _expanded(node: onnx_ir.Node, grid: Grid, edit: Editor, keeps: Keeps) -> None:
    shape, out = dims(node.inputs[1]), rank(node.outputs[0]) or 0
    if shape is not None and shape[0] == out:
        reshaped(node, grid, 1, edit, keeps)
    else:
        shift = out - int(shape[0]) if shape is not None else 0  # type: ignore[arg-type]
        inner = [(axis - shift, keep) for axis, keep in zip(grid.axes, keeps, strict=True) if axis >= shift]
        left = Grid(tuple(axis for axis, _ in inner), np.empty([len(keep) for _, keep in inner]))
        reshaped(node, left, 1, edit, tuple(keep for _, keep in inner))


def concat(c: Coupling, node: onnx_ir.Node) -> None:
    """Along a labelled axis labels follow each other; along another one all parts go together."""
    dimensions = rank(node.outputs[0])
    if dimensions is None:
        return c.stop(node, "the shape of what Concat computes is not known")
    axis = attribute(node, "axis", 0) % dimensions
    tracked = [value for value in node.inputs if value is not None and value in c.grids]
    if not any(axis in c.grids[value].axes for value in tracked):
        return c.carry(node.outputs[0], combined(c, node, list(enumerate(node.inputs)), axis))
    axes = tuple(sorted({a for value in tracked for a in c.grids[value].axes}))
    others = [max(size_along(c.grids[v], a) for v in tracked) for a in axes]
    parts = []
    for value in node.inputs:
        grid = c.grid(value)
        if grid is None:
            shape = dims(value)
            size = None if shape is None else shape[axis]
            if not isinstance(size, int):
                return c.stop(node, "Concat joins it with a value of unknown size")
            sizes = [size if a == axis else n for a, n in zip(axes, others, strict=True)]
            labels = c.fresh(int(np.prod(sizes))).reshape(sizes)
            c.block(labels, "its channels come from an input or a constant", node)
        else:
            shape = dims(value)
            size = None if shape is None else shape[axis]
            if axis not in grid.axes and not isinstance(size, int):
                return c.stop(node, "Concat joins it with a value of unknown size")
            along = size_along(grid, axis) if axis in grid.axes else int(size)  # type: ignore[arg-type]
            sizes = [along if a == axis else n for a, n in zip(axes, others, strict=True)]
            labels = np.broadcast_to(spread(grid, axes), sizes)
        parts.append(labels)
    at = axes.index(axis)
    return c.carry(node.outputs[0], Grid(axes, np.concatenate(parts, axis=at)))


def split(c: Coupling, node: onnx_ir.Node) -> None:
    """Along a labelled axis each part has its own labels."""
    value = node.inputs[0]
    grid, dimensions = c.grid(value), rank(value)
    if grid is None or dimensions is None:
        return None
    axis = attribute(node, "axis", 0) % dimensions
    if axis not in grid.axes:
        for out in node.outputs:
            c.carry(out, grid)
        return None
    at, start = grid.axes.index(axis), 0
    bounds = [0]
    for out in node.outputs:
        shape = dims(out)
        size = None if shape is None else shape[axis]
        if not isinstance(size, int):
            return c.stop(node, "the sizes of a Split are not known")
        c.carry(out, Grid(grid.axes, np.take(grid.labels, range(start, start + size), axis=at)))
        start += size
        bounds.append(start)

    def change(edit: Editor, keeps: Keeps) -> None:
        sizes = [int(keeps[at][a:b].sum()) for a, b in itertools.pairwise(bounds)]
        node.attributes.pop("num_outputs", None)
        new = edit.at(node).ints(sizes, "split")
        if len(node.inputs) < 2:
            node.resize_inputs(2)
        node.replace_input_with(1, new)

    c.fixes.append(Fix(node, grid, change))
    return None


def slice_(c: Coupling, node: onnx_ir.Node) -> None:
    """A constant stretch of a labelled axis."""
    value = node.inputs[0]
    grid, dimensions = c.grid(value), rank(value)
    if grid is None or dimensions is None:
        return None
    numbers = [constant(v, limit=64) if v is not None else None for v in node.inputs[1:]]
    axes = numbers[2] if len(numbers) > 2 else None
    steps = numbers[3] if len(numbers) > 3 else None
    if axes is None:
        return c.stop(node, "the axes of a Slice are not known")
    places = [int(axis) % dimensions for axis in axes]
    mine = [i for i, axis in enumerate(places) if axis in grid.axes]
    if not mine:
        return c.carry(node.outputs[0], grid)
    starts, ends = numbers[0], numbers[1]
    if len(mine) > 1 or starts is None or ends is None or (steps is not None and int(steps[mine[0]]) != 1):
        return c.stop(node, "a Slice takes more than a constant stretch of its channels")
    i = mine[0]
    at = grid.axes.index(places[i])
    size = grid.labels.shape[at]
    first, last, _ = slice(int(starts[i]), int(ends[i])).indices(size)
    part = Grid(grid.axes, np.take(grid.labels, range(first, max(first, last)), axis=at))

    def change(edit: Editor, keeps: Keeps) -> None:
        for index, old, bound in ((1, starts, first), (2, ends, last)):
            new = old.copy()
            new[i] = int(keeps[at][:bound].sum())
            node.replace_input_with(index, edit.at(node).ints([int(n) for n in new], "slice"))

    c.fixes.append(Fix(node, grid, change))
    return c.carry(node.outputs[0], part)


def gather(c: Coupling, node: onnx_ir.Node) -> None:
    """Rows of a table, or places of a value by constant or computed indices."""
    value, indices = node.inputs[0], node.inputs[1]
    dimensions, count = rank(value), rank(indices)
    if value is None or dimensions is None or count is None:
        return c.stop(node, "Gather reads it")
    axis = attribute(node, "axis", 0) % dimensions
    if tensor_of(value) is not None:
        if dimensions != 2 or axis != 0 or tensor_of(indices) is not None:
            return None
        found = c.weight(node, 0)
        assert found is not None
        base, axes = found
        out_rank = rank(node.outputs[0])
        if out_rank is not None:
            c.carry(node.outputs[0], Grid((out_rank - 1,), c.atoms(base, axes[1], reads=False)))
        return None
    grid = c.grid(value)
    if grid is None:
        return None
    shifted = [a + count - 1 if a > axis else a for a in grid.axes if a != axis]
    if axis not in grid.axes:
        return c.carry(node.outputs[0], Grid(tuple(shifted), grid.labels))
    numbers = constant(indices, limit=1 << 16)
    if numbers is None or numbers.ndim > 1:
        return c.stop(node, "a Gather takes places that are not known")
    at = grid.axes.index(axis)
    labels = np.take(grid.labels, numbers, axis=at)
    new_axes = tuple(shifted) if numbers.ndim == 0 else grid.axes

    def change(edit: Editor, keeps: Keeps) -> None:
        keep = keeps[at]
        if keep.all():
            return
        place = np.cumsum(keep) - 1
        chosen = numbers.reshape(-1) % len(keep)
        new = place[chosen[keep[chosen]]].astype(np.int64)
        data = new if numbers.ndim else new.reshape(())
        node.replace_input_with(1, edit.at(node).initializer(np.asarray(data, np.int64), "indices"))

    if numbers.ndim == 0 and grid.labels.ndim == 1:
        return c.stop(node, "a Gather takes a single channel")
    c.fixes.append(Fix(node, grid, change))
    return c.carry(node.outputs[0], Grid(new_axes, labels))


def pad(c: Coupling, node: onnx_ir.Node) -> None:
    """Constant pads of other axes than the labelled ones."""
    grid, dimensions = c.grid(node.inputs[0]), rank(node.inputs[0])
    pads = constant(node.inputs[1], limit=64)
    if grid is None or dimensions is None:
        return None
    axes = constant(node.inputs[3], limit=64) if len(node.inputs) > 3 and node.inputs[3] is not None else None
    if len(node.inputs) > 3 and node.inputs[3] is not None and axes is None:
        return c.stop(node, "the axes of a Pad are not known")
    places = list(range(dimensions)) if axes is None else [int(a) % dimensions for a in axes]
    if pads is None or any(place in grid.axes and (pads[i] or pads[i + len(places)]) for i, place in enumerate(places)):
        return c.stop(node, "Pad adds channels")
    return c.carry(node.outputs[0], grid)
