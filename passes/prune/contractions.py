"""How products, convolutions and attention carry grids on: new atoms for what they compute, none for what they sum."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir

from ...ir.graph import attribute, dims, rank, sizes_of, tensor_of
from ...ir.rewrite import Editor
from .coupling import Coupling
from .grids import Balance, Fix, Grid, Keeps
from .pull import pull


def matmul(c: Coupling, node: onnx_ir.Node) -> None:
    """By a constant matrix: input channels are read, output channels are new. Else: heads are kept apart."""
    found = c.weight(node, 1)
    if found is None:
        _computed(c, node)
        return
    base, axes = found
    if len(axes) != 2:
        c.stop(node, "the weight of a product is no matrix")
        return
    _product(c, node, base, axes[0], axes[1])


def gemm(c: Coupling, node: onnx_ir.Node) -> None:
    """Like a product, with a bias."""
    found = c.weight(node, 1)
    if found is None or attribute(node, "transA", 0):
        c.stop(node, "Gemm has no constant weight")
        return
    base, axes = found
    k, n = (axes[1], axes[0]) if attribute(node, "transB", 0) else (axes[0], axes[1])
    _product(c, node, base, k, n)
    grid = c.grid(node.outputs[0])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if grid is None or bias is None:
        return
    shape = dims(bias)
    if tensor_of(bias) is None or shape is None:
        c.block(grid, "Gemm adds a value that is no constant", node)
    elif len(shape) and shape[-1] != 1:
        c.cut(node, 2, [(len(shape) - 1, 0)], grid)


def _product(c: Coupling, node: onnx_ir.Node, base: onnx_ir.Value, k: int, n: int) -> None:
    value, out = node.inputs[0], node.outputs[0]
    grid, before, after = c.grid(value), rank(value), rank(out)
    rest: Grid | None = None
    if grid is not None and before is not None:
        last = before - 1
        if grid.axes == (last,):
            c.unite(grid.labels, c.atoms(base, k, reads=True))
        elif last in grid.axes:
            c.stop(node, f"{node.op_type} sums over the channels of each head apart")
        else:
            rest = grid
    if after is None:
        return
    fresh = c.atoms(base, n, reads=False)
    if rest is None:
        c.carry(out, Grid((after - 1,), fresh))
        return
    # The product leaves the other axes as they are; its own channels would make a second kind of place.
    if max(rest.axes) < after - 2:
        c.block(fresh, f"{node.op_type} computes it for each head apart", node)
        c.carry(out, rest)
    else:
        c.block(rest, f"{node.op_type} mixes the other axis of it", node)
        c.carry(out, Grid((after - 1,), fresh))


def _computed(c: Coupling, node: onnx_ir.Node) -> None:
    """A product of two computed values: what they share besides the summed axis goes together."""
    out = node.outputs[0]
    a, b = node.inputs[0], node.inputs[1]
    dimensions = rank(out)
    left, right = rank(a), rank(b)
    grids = [g for g in (c.grid(a), c.grid(b)) if g is not None]
    if not grids:
        return
    if dimensions is None or left != dimensions or right != dimensions or dimensions < 3:
        c.stop(node, "a product of two computed values reads it")
        return
    batch = dimensions - 2
    heads: list[Grid | None] = []
    for value, summed in ((a, dimensions - 1), (b, dimensions - 2)):
        grid = c.grid(value)
        if grid is None:
            heads.append(None)
            continue
        if not any(axis < batch for axis in grid.axes):
            c.stop(node, "a product of two computed values sums over it, or keeps no heads apart")
            return
        if summed in grid.axes:
            grid = c.unite_along(grid, summed)
        heads.append(grid)
    shapes = [dims(a), dims(b)]
    for at, grid in enumerate(heads):
        other, shape = heads[1 - at], shapes[1 - at]
        if grid is None:
            continue
        for axis in grid.axes:
            if axis < batch and (other is None or axis not in other.axes) and shape is not None and shape[axis] != 1:
                c.block(grid, "a product combines it with a value whose heads cannot go", node)
    axes = tuple(sorted({axis for g in heads if g is not None for axis in g.axes}))
    labels = None
    for grid in heads:
        if grid is None:
            continue
        wide = grid.labels.reshape([grid.labels.shape[grid.axes.index(x)] if x in grid.axes else 1 for x in axes])
        if labels is None:
            labels = wide
        else:
            c.unite(labels, wide)
            labels = np.broadcast_to(labels, np.broadcast_shapes(labels.shape, wide.shape))
    if labels is not None:
        c.heads.append(np.asarray(labels).reshape(-1))
        c.carry(out, Grid(axes, np.ascontiguousarray(labels)))


def conv(c: Coupling, node: onnx_ir.Node) -> None:
    """Input channels are read, output channels are new; depthwise they are the same ones."""
    found = c.weight(node, 1)
    grid, out = c.grid(node.inputs[0]), node.outputs[0]
    if found is None:
        c.stop(node, "Conv has no constant weight")
        return
    if grid is not None and grid.axes != (1,):
        c.stop(node, "Conv reads more than channels of it")
        grid = None
    base, axes = found
    tensor = tensor_of(base)
    assert tensor is not None
    groups = attribute(node, "group", 1)
    outputs, inputs = (sizes_of(tensor)[axes[i]] for i in (0, 1))
    if groups > 1 and inputs == 1 and outputs % groups == 0:
        _depthwise(c, node, base, axes[0], grid, outputs // groups)
        return
    made = c.atoms(base, axes[0], reads=False)
    if grid is not None:
        rows = grid.labels.reshape(groups, -1)
        # The groups stay equally large if the same places of each go.
        c.unite(rows, rows[:1])
        c.unite(rows[0], c.atoms(base, axes[1], reads=True))
    if groups > 1:
        rows = made.reshape(groups, -1)
        c.unite(rows, rows[:1])
    _made(c, node, out, Grid((1,), made))


def _depthwise(c: Coupling, node: onnx_ir.Node, base: onnx_ir.Value, axis: int, grid: Grid | None, times: int) -> None:
    atoms = c.atoms(base, axis, reads=False)
    if grid is None:
        c.block(atoms, "a depthwise convolution's input channels cannot go", node)
    else:
        c.unite(np.repeat(grid.labels, times), atoms)

        def change(_: Editor, keeps: Keeps) -> None:
            node.attributes["group"] = onnx_ir.AttrInt64("group", int(keeps[0].sum()))

        c.fixes.append(Fix(node, grid, change))
    _made(c, node, node.outputs[0], Grid((1,), atoms))


def _made(c: Coupling, node: onnx_ir.Node, out: onnx_ir.Value, grid: Grid) -> None:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        if tensor_of(bias) is None:
            c.block(grid, f"{node.op_type} has a bias that is no constant", node)
        else:
            c.cut(node, 2, [(0, 0)], grid)
    c.carry(out, grid)


def conv_transpose(c: Coupling, node: onnx_ir.Node) -> None:
    """As a convolution, with the weight's axes the other way round."""
    found = c.weight(node, 1)
    grid = c.grid(node.inputs[0])
    if found is None or attribute(node, "group", 1) != 1:
        c.stop(node, "ConvTranspose has groups, or no constant weight")
        if found is not None:
            for axis in (0, 1):
                c.block(c.atoms(found[0], axis, reads=False), "ConvTranspose has groups", node)
        return
    base, axes = found
    if grid is not None and grid.axes == (1,):
        c.unite(grid.labels, c.atoms(base, axes[0], reads=True))
    elif grid is not None:
        c.stop(node, "ConvTranspose reads more than channels of it")
    _made(c, node, node.outputs[0], Grid((1,), c.atoms(base, axes[1], reads=False)))


def rotary(c: Coupling, node: onnx_ir.Node) -> None:
    """Pairs of a head are rotated together: a head goes as a whole."""
    value = node.inputs[0]
    grid, dimensions = c.grid(value), rank(value)
    if grid is None:
        return
    heads = attribute(node, "num_heads", 0)
    if dimensions == 4 and 3 in grid.axes:
        shape = dims(value)
        if 1 not in grid.axes and (shape is None or shape[1] != 1):
            c.stop(node, "RotaryEmbedding rotates channels of all heads")
            return
        first = np.take(grid.labels, [0], axis=grid.axes.index(3))
        c.unite(grid.labels, first)
    elif dimensions == 3 and grid.axes == (2,):
        if heads <= 0:
            c.stop(node, "RotaryEmbedding rotates channels of all heads")
            return
        rows = grid.labels.reshape(heads, -1)
        c.unite(rows, rows[:, :1])
        c.fixes.append(Fix(node, grid, _heads(node, "num_heads", heads)))
    elif 1 not in grid.axes:
        c.stop(node, "RotaryEmbedding rotates channels of all heads")
        return
    c.carry(node.outputs[0], grid)


def _heads(node: onnx_ir.Node, name: str, heads: int) -> Callable[[Editor, Keeps], None]:
    def change(_: Editor, keeps: Keeps) -> None:
        left = int(keeps[0].reshape(heads, -1).any(axis=1).sum())
        node.attributes[name] = onnx_ir.AttrInt64(name, left)

    return change


def attention(c: Coupling, node: onnx_ir.Node) -> None:
    """A head goes as a whole, in queries, keys and values; shared heads of keys serve several of queries."""
    rows, counts = [], []
    for index, name in enumerate(("q_num_heads", "kv_num_heads", "kv_num_heads")):
        value = node.inputs[index]
        grid, shape = c.grid(value), dims(value)
        if grid is None or shape is None:
            c.stop(node, "Attention reads a value beside it whose heads cannot go")
            return
        if len(shape) == 3 and grid.axes == (2,):
            heads = attribute(node, name, 0)
            labels = grid.labels.reshape(heads, -1)
            c.fixes.append(Fix(node, grid, _heads(node, name, heads)))
        elif len(shape) == 4 and grid.axes in ((1, 3), (1,)):
            labels = grid.labels.reshape(grid.labels.shape[0], -1)
        elif len(shape) == 4 and grid.axes == (3,) and shape[1] == 1:
            labels = grid.labels.reshape(1, -1)
        else:
            c.stop(node, "Attention reads a value whose heads cannot be told apart")
            return
        c.unite(labels, labels[:, :1])
        rows.append(labels)
        counts.append(len(labels))
    queries, keys, values = rows
    c.heads.append(queries[:, 0])
    c.unite(keys[:, 0], values[:, 0])
    share = counts[0] // counts[1]
    if share == 1:
        c.unite(queries[:, 0], keys[:, 0])
    else:
        c.balances.append(Balance(node, queries[:, 0].reshape(counts[1], share), keys[:, 0]))
    mask = dims(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else None
    if mask is not None and len(mask) == 4 and mask[1] != 1:
        _masked(c, node, Grid((1,), queries[:, 0]))
    past = len(node.inputs) > 4 and node.inputs[4] is not None
    present = any(out.uses() or out.is_graph_output() for out in node.outputs[1:3])
    if past or present:
        c.block(keys, "Attention keeps it in a cache outside the model", node)
    if any(out.uses() or out.is_graph_output() for out in node.outputs[3:]):
        c.block(queries, "something reads the scores of Attention", node)
    out, out_shape, value_shape = node.outputs[0], dims(node.outputs[0]), dims(node.inputs[2])
    if out_shape is None or value_shape is None:
        c.block(queries, "the shape of what Attention computes is not known", node)
        return
    if len(out_shape) == 4:
        c.carry(out, Grid((1,), queries[:, 0]))
        return
    width = values.shape[1] if values.shape[1] > 1 else int(out_shape[2]) // counts[0]  # type: ignore[arg-type]
    c.carry(out, Grid((2,), np.repeat(queries[:, 0], width)))


def _masked(c: Coupling, node: onnx_ir.Node, heads: Grid) -> None:
    """A mask with a head of its own for each: constant, or of the same heads."""
    value = node.inputs[3]
    grid = c.grid(value)
    shape = dims(value)
    if grid is not None and grid.axes == (1,):
        c.unite(grid.labels, heads.labels)
        c.pulls.add((node, 3))
    elif shape is not None and (grid is not None or not pull(c, node, 3, 1, heads.labels)):
        c.block(heads, "a mask with one plane a head is added to its scores", node)
