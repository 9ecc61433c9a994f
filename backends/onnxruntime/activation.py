"""GELU: behind a product with a bias in a kernel of its own, or together with the bias; before codes by tanh."""

from __future__ import annotations

import numpy as np
import onnx_ir

from ...ir.graph import Graph, attribute, constant, dims, is_op, producer, read_elsewhere, rules_of, tensor_of
from ...ir.remarks import Remark
from ...ir.rewrite import Editor
from . import kernels
from .choice import Choices
from .legality import type_name

RULES = {"BiasGelu": "gelu(x + bias) => BiasGelu", "FastGelu": "tanh_gelu(x + bias) => FastGelu"}
_JOINED = {"none": "BiasGelu", "tanh": "FastGelu"}
_APART = "bias with the product and Gelu"
ROUNDED = "gelu(x) rounded to 8 bits => tanh_gelu(x) rounded to 8 bits"
APART_BY = 4.8e-4
"""Largest difference between GELU by the error function and by tanh (Hendrycks and Gimpel 2016), at |x| = 2.7."""
_OF_A_STEP = 0.25
"""Part of a step of the codes that may make no difference: rounding moves a number by as much on average."""


def lower_activations(graph: Graph, choices: Choices | None = None) -> list[Remark]:
    """Let one kernel add the bias of a product and compute GELU.

    Apart, the runtime adds the bias while it computes the product, and GELU reads the result once more; joined it is
    one node less. There is a kernel for GELU by the error function, and one for its approximation by tanh.
    """
    choices = choices or Choices(graph, None)
    counts: dict[str, int] = {}
    edits = {joined: Editor(graph, rule) for joined, rule in RULES.items()}
    edits["FastGelu"].names = edits["BiasGelu"].names
    for gelu in [n for n in graph.graph if is_op(n, "Gelu")]:
        found = _place(gelu)
        if found is None:
            continue
        product, add = found
        joined = _kernel(gelu)
        variants = {_APART: lambda small: None, joined: _join_alone}
        like = (joined, str(dims(product.inputs[0])), str(dims(gelu.outputs[0])))
        if choices.pick([product, add, gelu], variants, joined, like) == joined:
            _join(edits[joined], add, gelu)
            counts[RULES[joined]] = counts.get(RULES[joined], 0) + 1
    return [Remark("applied", "", f"{rule}: {n} times", {rule: n}) for rule, n in counts.items()]


def approximate_rounded(graph: Graph) -> list[Remark]:
    """Compute GELU by tanh where only 8-bit codes are made of it, in whose steps the difference is lost.

    ONNX Runtime 1.32, [1024, 1536], one thread of an AMD EPYC (Zen 4): 0.77 ms for 0.98. Considered are codes of one
    constant scale, right behind it or behind a multiplication by constants, that a pass made: a model that came with
    codes keeps the function it came with.
    """
    edit, moved = Editor(graph, ROUNDED), []
    for gelu in [n for n in graph.graph if is_op(n, "Gelu") and attribute(n, "approximate", "none") == "none"]:
        old = gelu.outputs[0]
        part = _of_a_step(old)
        if part is None or part > _OF_A_STEP or type_name(old) != "tensor(float)":
            continue
        edit.at(gelu, [gelu])
        new = edit.op(
            "Gelu", gelu.inputs, {"approximate": "tanh"}, dtype=old.dtype, shape=old.shape, hint=gelu.name
        )  # fmt: skip
        edit.replace(old, new)
        edit.sweep([gelu])
        moved.append(part)
    if not moved:
        return []
    reason = f"{ROUNDED}: {len(moved)} times; a number moves by {max(moved):.3f} of a step at most"
    return [Remark("applied", "", reason, {ROUNDED: len(moved)})]


def _of_a_step(value: onnx_ir.Value, factor: float = 1.0) -> float | None:
    """By what part of a step the codes of a value move with its GELU; None if something else reads it."""
    found: list[float] = []
    for use in value.uses():
        node = use.node
        other = constant(node.inputs[1], limit=1 << 16) if len(node.inputs) > 1 and use.idx == 0 else None
        if other is None or node.graph is not value.graph:
            return None
        part: float | None = None
        if is_op(node, "QuantizeLinear") and other.size == 1 and _by_a_pass(node) and other.reshape(-1)[0] > 0:
            part = factor * APART_BY / float(other.reshape(-1)[0])
        elif is_op(node, "Mul") and factor == 1.0:
            part = _of_a_step(node.outputs[0], float(np.abs(other).max()))
        if part is None:
            return None
        found.append(part)
    return max(found) if found and not value.is_graph_output() else None


def _by_a_pass(node: onnx_ir.Node) -> bool:
    return any(rule.startswith("quantize ") for rule in rules_of(node))


def _kernel(gelu: onnx_ir.Node) -> str:
    return _JOINED[attribute(gelu, "approximate", "none")]


def _place(gelu: onnx_ir.Node) -> tuple[onnx_ir.Node, onnx_ir.Node] | None:
    """The product and the addition of its bias that a GELU alone reads."""
    add = producer(gelu.inputs[0], "Add")
    if add is None or add.graph is not gelu.graph or read_elsewhere(add):
        return None
    kind = type_name(gelu.inputs[0])
    if kind != "tensor(float)" or not kernels.has("com.microsoft", _kernel(gelu), 1, [kind, kind]):
        return None
    for value, bias in (add.inputs, add.inputs[::-1]):
        product = producer(value, "MatMul")
        channels = (dims(add.outputs[0]) or (None,))[-1]
        if (
            product is not None
            and not read_elsewhere(product)
            and tensor_of(bias) is not None
            and dims(bias) == (channels,)
        ):
            return product, add
    return None


def _join_alone(graph: Graph) -> None:
    for gelu in [n for n in graph.graph if is_op(n, "Gelu")]:
        found = _place(gelu)
        if found is not None:
            _join(Editor(graph, "timed"), found[1], gelu)


def _join(edit: Editor, add: onnx_ir.Node, gelu: onnx_ir.Node) -> None:
    value, bias = add.inputs if tensor_of(add.inputs[1]) is not None else add.inputs[::-1]
    old = gelu.outputs[0]
    edit.at(gelu, [add, gelu])
    new = edit.op(
        _kernel(gelu), [value, bias], domain="com.microsoft", dtype=old.dtype, shape=old.shape, hint=gelu.name
    )  # fmt: skip
    edit.replace(old, new)
    edit.sweep([gelu])
