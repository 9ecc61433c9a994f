"""A product and the addition of its bias: in one kernel, or in two."""

from __future__ import annotations

import onnx_ir

from ...ir.graph import Graph, dims, is_op, tensor_of
from ...ir.remarks import Remark
from ...ir.rewrite import Editor
from .choice import Choices
from .legality import type_name

RULE = "x @ W + bias => Sum(x @ W, bias)"
_ONE, _TWO = "Gemm", "MatMul and addition"


def choose_products(graph: Graph, choices: Choices) -> list[Remark]:
    """Keep additions of biases apart from products where that was measured to be faster.

    The runtime makes a ``Gemm`` of a ``MatMul`` and the ``Add`` that reads it; a ``Sum`` it leaves alone.
    """
    if not choices.measured:
        return []
    edit, count = Editor(graph, RULE), 0
    for add in [n for n in graph.graph if is_op(n, "Add")]:
        product = _product(add)
        if product is None:
            continue
        variants = {_ONE: lambda small: None, _TWO: _apart_alone}
        like = (str(dims(product.inputs[0])), str(dims(add.outputs[0])))
        if choices.pick([product, add], variants, _ONE, like) == _TWO:
            write_as_sum(edit, add)
            count += 1
    return [Remark("applied", "", f"{RULE}: {count} times", {RULE: count})] if count else []


def _product(add: onnx_ir.Node) -> onnx_ir.Node | None:
    """The product by a constant whose constant bias is added."""
    for value, bias in (add.inputs, add.inputs[::-1]):
        product = None if value is None else value.producer()
        shape = dims(add.outputs[0])
        if product is None or not is_op(product, "MatMul") or product.graph is not add.graph or not shape:
            continue
        if tensor_of(product.inputs[1]) is None or tensor_of(bias) is None or dims(bias) != (shape[-1],):
            continue
        result = product.outputs[0]
        if type_name(result) == "tensor(float)" and len(list(result.uses())) == 1 and not result.is_graph_output():
            return product
    return None


def _apart_alone(graph: Graph) -> None:
    for add in [n for n in graph.graph if is_op(n, "Add")]:
        write_as_sum(Editor(graph, "timed"), add)


def write_as_sum(edit: Editor, add: onnx_ir.Node) -> None:
    """Write an ``Add`` as ``Sum``, which the runtime joins with nothing."""
    out = add.outputs[0]
    edit.at(add, [add])
    edit.replace(out, edit.op("Sum", list(add.inputs), dtype=out.dtype, shape=out.shape, hint=add.name))
    edit.sweep([add])
