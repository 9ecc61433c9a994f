"""GELU behind a product with a bias: in a kernel of its own, or together with the bias."""

from __future__ import annotations

import onnx_ir

from ...ir.graph import Graph, attribute, dims, is_op, producer, read_elsewhere, tensor_of
from ...ir.remarks import Remark
from ...ir.rewrite import Editor
from . import kernels
from .choice import Choices
from .legality import type_name

RULES = {"BiasGelu": "gelu(x + bias) => BiasGelu", "FastGelu": "tanh_gelu(x + bias) => FastGelu"}
_JOINED = {"none": "BiasGelu", "tanh": "FastGelu"}
_APART = "bias with the product and Gelu"


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
