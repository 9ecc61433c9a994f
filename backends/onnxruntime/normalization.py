"""Residual additions and the normalizations behind them: one kernel where it is the faster, two where they are.

ONNX Runtime 1.32, one thread of an AMD EPYC (Zen 3), [1024, 384]: ``SkipLayerNormalization`` takes 2.4 ms where
addition and ``LayerNormalization`` take 0.4, ``SkipSimplifiedLayerNormalization`` 0.5 ms where addition and
``RMSNormalization`` take 0.2. For a single token each takes as long as its two halves, and is one node less.
"""

from __future__ import annotations

import math

import onnx_ir

from ...ir.graph import Graph, attribute, dims, is_op, tensor_of
from ...ir.remarks import Remark
from ...ir.rewrite import Editor
from . import kernels
from .choice import Choices
from .legality import type_name
from .products import write_as_sum

APART = "layer_norm(x + y) => layer_norm(Sum(x, y))"
RULE = "rms_norm(x + y) => SkipSimplifiedLayerNormalization"
LAYER_RULE = "layer_norm(x + y) => SkipLayerNormalization"
_JOINED = {"RMSNormalization": "SkipSimplifiedLayerNormalization", "LayerNormalization": "SkipLayerNormalization"}
_FEW_ROWS = 16
"""Rows up to which the joined kernel of an RMS normalization is the rule."""


def lower_residual_norms(graph: Graph, choices: Choices | None = None) -> list[Remark]:
    """Join additions with the normalizations that read them, or keep them apart.

    A joined kernel gives the sum, too, for the next residual. Apart, the addition before a ``LayerNormalization`` is
    written as ``Sum``: the runtime would join an ``Add`` with it by itself.
    """
    choices = choices or Choices(graph, None)
    counts: dict[str, int] = {}
    edits = {rule: Editor(graph, rule) for rule in (RULE, LAYER_RULE, APART)}
    for edit in edits.values():
        edit.names = edits[RULE].names
    for norm in [n for n in graph.graph if is_op(n, *_JOINED)]:
        add = None if norm.inputs[0] is None else norm.inputs[0].producer()
        if add is None or not is_op(add, "Add") or add.graph is not norm.graph or _constant(add):
            continue
        rule = RULE if norm.op_type == "RMSNormalization" else LAYER_RULE
        joined = _JOINED[norm.op_type] if joinable(norm) else None
        apart = f"addition and {norm.op_type}"
        usual = joined if joined and rule == RULE and _few(norm) else apart
        chosen = usual
        if joined is not None:
            variants = {apart: _apart_alone, joined: _join_alone}
            like = (norm.op_type, str(dims(norm.inputs[0])))
            chosen = choices.pick([add, norm], variants, usual, like)
        if chosen == joined:
            _join(edits[rule], norm)
            counts[rule] = counts.get(rule, 0) + 1
        elif rule == LAYER_RULE and _keep_apart(edits[APART], add):
            counts[APART] = counts.get(APART, 0) + 1
    return [Remark("applied", "", f"{rule}: {n} times", {rule: n}) for rule, n in counts.items()]


def _join_alone(graph: Graph) -> None:
    for norm in [n for n in graph.graph if is_op(n, *_JOINED)]:
        _join(Editor(graph, "timed"), norm)


def _apart_alone(graph: Graph) -> None:
    for norm in [n for n in graph.graph if is_op(n, "LayerNormalization")]:
        add = None if norm.inputs[0] is None else norm.inputs[0].producer()
        if add is not None:
            _keep_apart(Editor(graph, "timed"), add)


def _few(norm: onnx_ir.Node) -> bool:
    """Whether a normalization has few rows, or nobody knows how many: a decoder's token."""
    rows = (dims(norm.inputs[0]) or ())[:-1]
    plain = [size for size in rows if isinstance(size, int)]
    return len(plain) < len(rows) or math.prod(plain) <= _FEW_ROWS


def _constant(node: onnx_ir.Node) -> bool:
    """Whether an operand is constant: a bias, which the runtime adds in the kernel before."""
    return any(tensor_of(value) is not None for value in node.inputs)


def _keep_apart(edit: Editor, add: onnx_ir.Node) -> bool:
    if type_name(add.outputs[0]) != "tensor(float)":
        return False
    write_as_sum(edit, add)
    return True


def joinable(norm: onnx_ir.Node) -> bool:
    """Whether the joined kernel can take a normalization and the addition before it."""
    total, scale = norm.inputs[0], norm.inputs[1]
    add = None if total is None else total.producer()
    if total is None or scale is None or add is None or not is_op(add, "Add") or add.graph is not norm.graph:
        return False
    left, right = add.inputs
    shape = dims(total)
    if shape is None or len(shape) not in (2, 3) or dims(left) != shape or dims(right) != shape:
        return False
    if any(isinstance(d, onnx_ir.SymbolicDim) and d.value is None for d in shape):
        return False
    last = len(shape) - 1
    if attribute(norm, "axis", -1) not in (-1, last) or attribute(norm, "stash_type", 1) != 1:
        return False
    if any(use for value in norm.outputs[1:] for use in value.uses()):
        return False
    factors = [value for value in norm.inputs[1:] if value is not None]
    if any(len(dims(value) or ()) != 1 or value.producer() is not None for value in factors):
        return False
    kind = type_name(total)
    return kind == "tensor(float)" and kernels.has("com.microsoft", _JOINED[norm.op_type], 1, [kind, kind, kind])


def _join(edit: Editor, norm: onnx_ir.Node) -> None:
    total = norm.inputs[0]
    assert total is not None
    add = total.producer()
    assert add is not None
    # At the addition: whatever else reads the sum comes later.
    edit.at(add, [add, norm])
    outputs = edit.ops(
        _JOINED[norm.op_type],
        [*add.inputs, *norm.inputs[1:]],
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
