"""Residual additions and the normalizations behind them, in one kernel."""

from __future__ import annotations

import onnx_ir

from ...ir.graph import Graph, attribute, dims, is_op
from ...ir.remarks import Remark
from ...ir.rewrite import Editor
from . import kernels
from .legality import type_name

RULE = "rms_norm(x + y) => SkipSimplifiedLayerNormalization"
_OP = "SkipSimplifiedLayerNormalization"


def lower_skip_norms(graph: Graph) -> list[Remark]:
    """Join ``Add`` and the ``RMSNormalization`` that reads it; the sum stays an output for the next residual."""
    edit = Editor(graph, RULE)
    count = 0
    for norm in [n for n in graph.graph if is_op(n, "RMSNormalization")]:
        count += _join(edit, norm)
    return [Remark("applied", "", f"{RULE}: {count} times", {RULE: count})] if count else []


def _join(edit: Editor, norm: onnx_ir.Node) -> int:
    total, scale = norm.inputs[0], norm.inputs[1]
    add = None if total is None else total.producer()
    if total is None or scale is None or add is None or not is_op(add, "Add") or add.graph is not norm.graph:
        return 0
    left, right = add.inputs
    shape = dims(total)
    if shape is None or len(shape) != 3 or dims(left) != shape or dims(right) != shape:
        return 0
    if any(isinstance(d, onnx_ir.SymbolicDim) and d.value is None for d in shape):
        return 0
    if (
        attribute(norm, "axis", -1) not in (-1, 2)
        or len(dims(scale) or ()) != 1
        or attribute(norm, "stash_type", 1) != 1
    ):
        return 0
    kind = type_name(total)
    if kind != "tensor(float)" or not kernels.has("com.microsoft", _OP, 1, [kind, kind, kind]):
        return 0
    # At the addition: whatever else reads the sum comes later.
    edit.at(add, [add, norm])
    if scale.producer() is not None:
        return 0
    outputs = edit.ops(
        _OP,
        [left, right, scale],
        {"epsilon": attribute(norm, "epsilon", 1e-5)},
        outputs=4,
        domain="com.microsoft",
        hint=norm.name,
        infer_types=False,
    )
    for unused in outputs[1:3]:
        unused.name = ""
    for new, old in ((outputs[0], norm.outputs[0]), (outputs[3], total)):
        new.type, new.shape = old.type, old.shape
        edit.replace(old, new)
    edit.sweep([norm])
    edit.sweep([add])
    return 1
