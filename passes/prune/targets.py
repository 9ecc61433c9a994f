"""Target shapes of Reshape and Expand, when places go."""

from __future__ import annotations

import numpy as np
import onnx_ir

from ...ir.graph import constant, rank
from ...ir.rewrite import Editor
from .grids import Grid, Keeps


def reshaped(node: onnx_ir.Node, grid: Grid, index: int, edit: Editor, keeps: Keeps) -> None:
    """Write the sizes that changed into a target shape, constant or computed."""
    changed = {axis: keep for axis, keep in zip(grid.axes, keeps, strict=True) if not keep.all()}
    target = node.inputs[index]
    if not changed or target is None:
        return
    known = constant(target)
    count = rank(node.outputs[0]) or 0
    before = np.asarray([len(changed[axis]) if axis in changed else 1 for axis in range(count)], np.int64)
    after = np.asarray([int(changed[axis].sum()) if axis in changed else 1 for axis in range(count)], np.int64)
    edit.at(node)
    if known is not None:
        # -1 is what is left, 0 the size that the input has there: both stay right.
        new = edit.ints(
            [int(n) // int(b) * int(a) if n > 0 else int(n) for n, b, a in zip(known, before, after, strict=True)]
        )
    else:
        sized = edit.op("Mul", [edit.op("Div", [target, edit.initializer(before, "sizes")]),
                                edit.initializer(after, "sizes")])  # fmt: skip
        zero = edit.initializer(np.asarray(0, np.int64), "zero")
        new = edit.op("Where", [edit.op("Greater", [target, zero]), sized, target])
    node.replace_input_with(index, new)
    edit.drop_initializer(target)
